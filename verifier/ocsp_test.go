package verifier

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// A responder may forget what expired: only one that says from when on it knows
// such certificates speaks for one.
func TestAnAnswerAboutAnExpiredCertificateNeedsACutoff(t *testing.T) {
	leaf := testpki.New(t).Leaf
	now := leaf.NotAfter.Add(time.Hour)
	stamp := &TimeStamp{Time: testpki.Now}
	late, early := testpki.Now.Add(time.Hour), testpki.Now.Add(-time.Hour)
	for _, c := range []struct {
		name string
		a    OCSPAnswer
		want fault.Reason
	}{
		{"no cutoff", OCSPAnswer{status: ocsp.Good}, fault.RevocationUnknown},
		{"cutoff after its end", OCSPAnswer{status: ocsp.Good, cutoff: leaf.NotAfter.Add(time.Second)}, fault.RevocationUnknown},
		{"cutoff at its end", OCSPAnswer{status: ocsp.Good, cutoff: leaf.NotAfter}, ""},
		{"unknown", OCSPAnswer{status: ocsp.Unknown, cutoff: leaf.NotAfter}, fault.RevocationUnknown},
		{"revoked", OCSPAnswer{status: ocsp.Revoked, cutoff: leaf.NotAfter}, fault.Revoked},
		{"revoked, invalid before the stamp", OCSPAnswer{status: ocsp.Revoked, cutoff: leaf.NotAfter, revocation: revocation{invalid: early}}, fault.Revoked},
		{"revoked, invalid after the stamp", OCSPAnswer{status: ocsp.Revoked, cutoff: leaf.NotAfter, revocation: revocation{invalid: late}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := judge{Verifier: &Verifier{policy: &Policy{}}, now: now, verdict: &Verdict{}}
			c.a.This, c.a.Next = now.Add(-time.Hour), now.Add(time.Hour)
			fresh, err := j.says(&c.a, leaf, stamp)
			if (err == nil) != (c.want == "") || err != nil && fault.ReasonOf(err) != c.want || fresh != (err == nil) {
				t.Errorf("%v, %v, want %q", fresh, err, c.want)
			}
		})
	}
}

// frozenOCSP is an answer of one past run, with the certificate that it is about
// and the issuer. Fuzzing's workers are processes of their own: keys made anew in
// each would disagree.
func frozenOCSP(tb testing.TB) (leaf, issuer *x509.Certificate, der []byte) {
	tb.Helper()
	dir := filepath.Join("testdata", "ocsp")
	if *update {
		p := testpki.New(tb)
		for name, data := range map[string][]byte{
			"chain.pem": testpki.PEM(p.Chain()...),
			"revoked.der": p.OCSP(func(r *ocsp.Response) {
				r.Status, r.RevokedAt = ocsp.Revoked, testpki.Now.Add(-2*time.Hour)
			}),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				tb.Fatal(err)
			}
		}
	}
	chain, err := ParseChain("chain.pem", mustRead(tb, filepath.Join(dir, "chain.pem")))
	if err != nil || len(chain) != 2 {
		tb.Fatal(len(chain), err)
	}
	return chain[0], chain[1], mustRead(tb, filepath.Join(dir, "revoked.der"))
}

// FuzzReadOCSP: whatever the bytes, an answer that is read says what the issuer
// signed, and about this certificate alone.
func FuzzReadOCSP(f *testing.F) {
	leaf, issuer, der := frozenOCSP(f)
	want, err := ReadOCSP(der, leaf, issuer, testpki.Now)
	if err != nil || want.status != ocsp.Revoked {
		f.Fatal(want, err)
	}
	f.Add(der)
	f.Add(der[:len(der)/2])
	f.Add(append(bytes.Clone(der), 0))
	f.Add(ocsp.TryLaterErrorResponse)
	for _, i := range []int{1, 20, 40, 60, 80, len(der) / 2, len(der) - 1} {
		bent := bytes.Clone(der)
		bent[i] ^= 0x41
		f.Add(bent)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := ReadOCSP(der, leaf, issuer, testpki.Now)
		if err != nil {
			if got != nil || fault.ReasonOf(err) != fault.RevocationUnknown {
				t.Fatalf("%v beside %v", got, err)
			}
			return
		}
		if got.status != want.status || !got.This.Equal(want.This) || !got.Next.Equal(want.Next) || !got.revocation.at.Equal(want.revocation.at) {
			t.Fatalf("%+v, signed was %+v", got, want)
		}
		if _, err := ReadOCSP(der, issuer, issuer, testpki.Now); err == nil {
			t.Fatal("about another certificate")
		}
	})
}
