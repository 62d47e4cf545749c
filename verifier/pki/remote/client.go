package remote

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier/pki"
)

// attempts is how often an enrolment is tried while the server does not answer.
// One whose answer was lost is not lost: the server gives the same certificate to
// the same key.
const attempts = 3

// ClientOptions say which certificate authority is asked, and how. URL is
// required.
type ClientOptions struct {
	// URL is the server's, https.
	URL string
	// Roots are the authorities that its certificate may come from; nil: the
	// system's.
	Roots *x509.CertPool
	// Chain and Key are what a renewal is asked for with.
	Chain []*x509.Certificate
	Key   crypto.Signer
}

// Client asks a server for certificates.
type Client struct {
	url  string
	http *http.Client
}

// NewClient makes a client. Reason of its error: [fault.Usage].
func NewClient(o ClientOptions) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.Usage, o.URL, "is not the https URL of a certificate authority")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: o.Roots}
	if len(o.Chain) > 0 {
		cert := &tls.Certificate{PrivateKey: o.Key, Leaf: o.Chain[0]}
		for _, c := range o.Chain {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return &Client{
		url: strings.TrimSuffix(o.URL, "/"),
		http: &http.Client{
			Timeout: 2 * limits.PKIRequestTime,
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, DisableKeepAlives: true,
				DialContext:            (&net.Dialer{Timeout: limits.PKIRequestTime}).DialContext,
				MaxResponseHeaderBytes: 16 * limits.KiB,
			},
			// A token is for the server that was named.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Enrol has a certificate issued for the key and the address, by a token.
// Reasons: those of [pki.CA.Enrol], [fault.ResourceLimit] for asking too often,
// [fault.Unavailable] for a server that does not answer as one should; with
// [pki.UnansweredError] if it may have issued the certificate.
func (c *Client) Enrol(ctx context.Context, key crypto.Signer, token string, o pki.LeafOptions) ([]*x509.Certificate, error) {
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	q := request{CSR: encodeRequest(csr), Token: token, Email: o.Email, ValiditySeconds: int64(o.Validity / time.Second)}
	return c.issued(ctx, key, o, attempts, func(ctx context.Context) ([]*x509.Certificate, error) { return c.ask(ctx, enrolPath, q) })
}

// Renew has a certificate issued for the key and the address of the one that the
// client was made with. Reasons: those of [pki.CA.Renew], and as for
// [Client.Enrol].
func (c *Client) Renew(ctx context.Context, key crypto.Signer, o pki.LeafOptions) ([]*x509.Certificate, error) {
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	q := request{CSR: encodeRequest(csr), ValiditySeconds: int64(o.Validity / time.Second)}
	return c.issued(ctx, key, o, 1, func(ctx context.Context) ([]*x509.Certificate, error) { return c.ask(ctx, renewPath, q) })
}

// issued asks so often and holds the answer to what was asked for. Once a request went
// out, an answer that does not come, or is none, leaves open whether a certificate was
// issued.
func (c *Client) issued(ctx context.Context, key crypto.Signer, o pki.LeafOptions, times int, ask func(context.Context) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	var chain []*x509.Certificate
	var err error
	for range times {
		chain, err = ask(traced)
		if fault.ReasonOf(err) != fault.Unavailable || ctx.Err() != nil {
			break
		}
	}
	if err == nil {
		err = check(chain, key.Public(), o.Email, o.Now)
	}
	if sent.Load() && fault.ReasonOf(err) == fault.Unavailable {
		err = &pki.UnansweredError{Err: err}
	}
	return chain, err
}

func encodeRequest(csr *x509.CertificateRequest) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: requestPEM, Bytes: csr.Raw}))
}

func (c *Client) ask(ctx context.Context, path string, q request) ([]*x509.Certificate, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "request", "cannot encode")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, c.url, "cannot be asked")
	}
	r.Header.Set("Content-Type", jsonType)
	got, err := c.http.Do(r)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, c.url, "the certificate authority does not answer")
	}
	defer got.Body.Close()
	data, err := limits.Read(got.Body, limits.PKIAnswerBytes)
	if err != nil {
		return nil, badAnswer("cannot be read: %v", err)
	}
	if got.StatusCode != http.StatusOK {
		return nil, refused(got.StatusCode, data)
	}
	var a answer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, badAnswer("is malformed: %v", err)
	}
	return parseChain(a.Chain)
}

// refused turns a refusal into its error. Only reasons that a server gives count.
func refused(status int, data []byte) error {
	var f refusal
	if err := json.Unmarshal(data, &f); err != nil || f.Message == "" || statuses[f.Reason] == 0 || len(f.Message)+len(f.Hint) > 2*limits.KiB {
		return badAnswer("is the status %d %s", status, http.StatusText(status))
	}
	return fault.New(f.Reason, "the certificate authority refuses", "%s", f.Message).WithHint("%s", f.Hint)
}

// sameAddress compares as policies do: only a domain may be written in capitals.
func sameAddress(a, b string) bool {
	i, j := strings.LastIndexByte(a, '@'), strings.LastIndexByte(b, '@')
	return i >= 0 && j >= 0 && a[:i] == b[:j] && strings.EqualFold(a[i:], b[j:])
}

// check refuses a certificate that is not what was asked for.
func check(chain []*x509.Certificate, key crypto.PublicKey, email string, now time.Time) error {
	leaf := chain[0]
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(key):
		return badAnswer("is a certificate for another key")
	case len(leaf.EmailAddresses) != 1 || !sameAddress(leaf.EmailAddresses[0], email):
		return badAnswer("is a certificate for %q, not for %s", leaf.EmailAddresses, email)
	case leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		return badAnswer("is no certificate for code signing")
	case !now.Before(leaf.NotAfter):
		return badAnswer("is a certificate that ended at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	for i, c := range chain[:len(chain)-1] {
		if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
			return badAnswer("is no chain: %v", err)
		}
	}
	return nil
}
