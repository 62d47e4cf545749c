package tsa_test

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/notaryproject/tspclient-go"
	tsppki "github.com/notaryproject/tspclient-go/pki"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki/tsa"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

var (
	message = []byte("a signature")
	policy  = asn1.ObjectIdentifier{2, 999, 1}
	at      = time.Date(2026, 1, 15, 10, 30, 0, 700_000_000, time.UTC)
)

func authority(tb testing.TB) (tsa.Authority, *testpki.TSA) {
	t := testpki.NewTSA(tb, "authority", at)
	return tsa.Authority{Cert: t.Cert, Key: t.Key, Policy: policy}, t
}

func ticket() (tsa.Ticket, error) { return tsa.Ticket{Serial: big.NewInt(7), Time: at}, nil }

func request(tb testing.TB, change func(*tspclient.Request)) (*tspclient.Request, []byte) {
	tb.Helper()
	q, err := tspclient.NewRequest(tspclient.RequestOptions{Content: message, HashAlgorithm: crypto.SHA256})
	if err != nil {
		tb.Fatal(err)
	}
	if change != nil {
		change(q)
	}
	der, err := q.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return q, der
}

func parse(tb testing.TB, der []byte) *tspclient.Response {
	tb.Helper()
	var r tspclient.Response
	if err := r.UnmarshalBinary(der); err != nil {
		tb.Fatal(err)
	}
	return &r
}

func TestATokenSaysWhatWasAskedForAndNoMore(t *testing.T) {
	a, owner := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(owner.Root)
	for name, hash := range map[string]crypto.Hash{"SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512} {
		q, err := tspclient.NewRequest(tspclient.RequestOptions{Content: message, HashAlgorithm: hash, ReqPolicy: policy})
		if err != nil {
			t.Fatal(err)
		}
		query, err := q.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		der, err := a.Answer(query, ticket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		answer := parse(t, der)
		if err := answer.Validate(q); err != nil { // policy, hash, nonce, certificate
			t.Errorf("%s: %v", name, err)
		}
		stamp, err := timestamp.Reader{}.Verify(answer.TimestampToken.FullBytes, message, roots)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !stamp.Time.Equal(at.Truncate(time.Second)) || stamp.Accuracy != time.Second {
			t.Errorf("%s: %s, give or take %s", name, stamp.Time, stamp.Accuracy)
		}
	}

	q, query := request(t, func(q *tspclient.Request) { q.CertReq, q.Nonce = false, nil })
	der, err := a.Answer(query, ticket)
	if err != nil {
		t.Fatal(err)
	}
	answer := parse(t, der)
	if err := answer.Validate(q); err != nil {
		t.Error(err)
	}
	token, err := answer.SignedToken()
	if err != nil {
		t.Fatal(err)
	}
	info, err := token.Info()
	if err != nil {
		t.Fatal(err)
	}
	if len(token.Certificates) != 0 || info.Nonce != nil || info.SerialNumber.Int64() != 7 {
		t.Errorf("%d certificates, nonce %v, serial %v", len(token.Certificates), info.Nonce, info.SerialNumber)
	}
}

func TestWhatIsNoGoodRequestGetsNoTokenAndNoSerial(t *testing.T) {
	a, _ := authority(t)
	sum := sha1.Sum(message)
	for name, c := range map[string]struct {
		change func(*tspclient.Request)
		want   tsppki.FailureInfo
	}{
		"version": {func(q *tspclient.Request) { q.Version = 2 }, tsppki.FailureInfoBadRequest},
		"SHA-1": {func(q *tspclient.Request) {
			q.MessageImprint.HashAlgorithm.Algorithm, q.MessageImprint.HashedMessage = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, sum[:]
		}, tsppki.FailureInfoBadAlg},
		"hash's parameters": {func(q *tspclient.Request) {
			q.MessageImprint.HashAlgorithm.Parameters = asn1.RawValue{FullBytes: []byte{2, 1, 5}}
		}, tsppki.FailureInfoBadAlg},
		"short hash":  {func(q *tspclient.Request) { q.MessageImprint.HashedMessage = sum[:] }, tsppki.FailureInfoBadDataFormat},
		"policy":      {func(q *tspclient.Request) { q.ReqPolicy = asn1.ObjectIdentifier{1, 2, 3} }, tsppki.FailureInfoUnacceptedPolicy},
		"extension":   {func(q *tspclient.Request) { q.Extensions = testpki.Extension() }, tsppki.FailureInfoUnacceptedExtension},
		"large nonce": {func(q *tspclient.Request) { q.Nonce = new(big.Int).Lsh(big.NewInt(1), 300) }, tsppki.FailureInfoBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			_, query := request(t, c.change)
			refused(t, a, query, c.want)
		})
	}
	_, good := request(t, nil)
	for name, query := range map[string][]byte{"nothing": nil, "noise": []byte("GET / HTTP/1.1"), "followed": append(bytes.Clone(good), 5, 0), "cut": good[:len(good)-1]} {
		t.Run(name, func(t *testing.T) { refused(t, a, query, tsppki.FailureInfoBadDataFormat) })
	}
}

func refused(t *testing.T, a tsa.Authority, query []byte, want tsppki.FailureInfo) {
	t.Helper()
	der, err := a.Answer(query, func() (tsa.Ticket, error) {
		t.Error("a serial number was taken")
		return ticket()
	})
	if fault.ReasonOf(err) != fault.Usage {
		t.Errorf("error %v", err)
	}
	holds(t, der, want)
}

// holds checks that the answer is a rejection for the one reason.
func holds(t *testing.T, der []byte, want tsppki.FailureInfo) {
	t.Helper()
	answer := parse(t, der)
	if answer.Status.Status != tsppki.StatusRejection || len(answer.TimestampToken.FullBytes) != 0 || answer.Status.FailInfo.BitLength != int(want)+1 || answer.Status.FailInfo.At(int(want)) != 1 {
		t.Errorf("answer %+v, want failure %d", answer.Status, want)
	}
	for i := range int(want) {
		if answer.Status.FailInfo.At(i) != 0 {
			t.Errorf("failure %d, too", i)
		}
	}
}

func TestAnAuthorityWithoutTimeOrSerialGivesNoToken(t *testing.T) {
	a, _ := authority(t)
	_, query := request(t, nil)
	for _, c := range []struct {
		err  error
		want tsppki.FailureInfo
	}{
		{fault.New(fault.OutsideValidity, "clock", "was set back"), tsppki.FailureInfoTimeNotAvailable},
		{errors.New("disk full"), tsppki.FailureInfoSystemFailure},
	} {
		der, err := a.Answer(query, func() (tsa.Ticket, error) { return tsa.Ticket{}, c.err })
		if !errors.Is(err, c.err) {
			t.Errorf("error %v", err)
		}
		holds(t, der, c.want)
	}
}

func FuzzARequestNeverGetsATokenAboutSomethingElse(f *testing.F) {
	a, _ := authority(f)
	_, good := request(f, nil)
	f.Add(good)
	_, bare := request(f, func(q *tspclient.Request) { q.CertReq, q.Nonce = false, nil })
	f.Add(bare)
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, query []byte) {
		der, err := a.Answer(query, ticket)
		answer := parse(t, der)
		if err != nil {
			if answer.Status.Status != tsppki.StatusRejection || len(answer.TimestampToken.FullBytes) != 0 {
				t.Fatalf("%v, and %+v", err, answer)
			}
			return
		}
		var q tspclient.Request
		if err := q.UnmarshalBinary(query); err != nil {
			t.Fatal(err)
		}
		if err := answer.Validate(&q); err != nil {
			t.Fatal(err)
		}
	})
}
