package fetch

import (
	"context"
	"crypto"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/notaryproject/tspclient-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

// stampTimeout bounds a request for a time stamp: an authority that signs with
// hardware takes its time.
const stampTimeout = 30 * time.Second

// TimeStamp asks the authority at url for a token over message, which leads to
// one of the roots. A nil client is one with a time-out. Reasons:
// [fault.Unavailable] for an authority that does not answer, or not to what it
// was asked; those of [timestamp.Reader] for a token that no node would believe.
func TimeStamp(ctx context.Context, client *http.Client, url string, message []byte, roots *x509.CertPool) ([]byte, *verifier.TimeStamp, error) {
	if client == nil {
		client = newClient()
		client.Timeout = stampTimeout
	}
	authority, err := tspclient.NewHTTPTimestamper(client, url)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Usage, url, "is no address of a time stamp authority")
	}
	request, err := tspclient.NewRequest(tspclient.RequestOptions{Content: message, HashAlgorithm: crypto.SHA256})
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, url, "cannot make a request for a time stamp")
	}
	answer, err := authority.Timestamp(ctx, request)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Unavailable, url, "gave no time stamp")
	}
	token := answer.TimestampToken.FullBytes
	stamp, err := timestamp.Reader{}.Verify(token, message, roots)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.ReasonOf(err), url, "gave a time stamp that no node would believe")
	}
	return token, stamp, nil
}
