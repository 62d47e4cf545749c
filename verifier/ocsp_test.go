package verifier

import (
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
