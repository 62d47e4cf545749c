package fetch_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// Responders are asked about a countersigner's certificate as about the first
// signer's, and not about those who could not count anyway.
func TestARespondersWordDecidesAboutACountersigner(t *testing.T) {
	const bob = "bob@example.com"
	for name, c := range map[string]struct {
		by     string
		status int // of Bob's certificate; below zero for no answer
		want   fault.Reason
		says   string
		hits   int32
	}{
		"good":      {bob, ocsp.Good, "", "", 2},
		"revoked":   {bob, ocsp.Revoked, fault.SignersMissing, "its OCSP responder says", 2},
		"unknown":   {bob, ocsp.Unknown, fault.SignersMissing, "does not know it", 2},
		"no answer": {bob, -1, fault.SignersMissing, "no OCSP responder could tell", 2},
		"not named": {"mallory@example.com", ocsp.Good, fault.SignersMissing, "none of the required_signers", 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := newAsked(t)
			p := testpki.New(t, testpki.LeafEmails(c.by), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)))
			n.handle(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				var asked *ocsp.Request
				if err == nil {
					asked, err = ocsp.ParseRequest(body)
				}
				about := n.pki
				if err == nil && asked.SerialNumber.Cmp(p.Leaf.SerialNumber) == 0 {
					about = p
				}
				if err != nil || about == p && c.status < 0 {
					http.Error(w, "no", http.StatusInternalServerError)
					return
				}
				w.Header().Set("Content-Type", "application/ocsp-response")
				_, _ = w.Write(about.OCSP(func(r *ocsp.Response) {
					if about == p {
						r.Status, r.RevokedAt = c.status, testpki.Now.Add(-2*time.Hour)
					}
				}))
			})
			text := strings.Replace(fmt.Sprintf(askingPolicy, "0s", fmt.Sprintf("url: %q", n.url)), "identities: [any],",
				fmt.Sprintf(`identities: [any], required_signers: [{at_least: 2, of: ["email:%s", "email:%s"]}],`, testpki.Email, bob), 1)
			n.put("policy.yaml", []byte(text))
			v, in := n.open()
			raw, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: in.Artifact.Raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now})
			if err != nil {
				t.Fatal(err)
			}
			in.Artifact = testagent.Read(t, raw)
			n.expect(fetch.Judge(t.Context(), v, n.cfg, nil, in, v.Verify), c.want, c.says)
			if hits := n.hits.Load(); hits != c.hits {
				t.Errorf("responders were asked %d times, want %d", hits, c.hits)
			}
		})
	}
}
