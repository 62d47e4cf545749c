package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/notation"
)

// What a gate starts by the signatures that a pull kept is not told to be refused.
func TestAnImageIsJudgedWithTheSignaturesThatThePullGateKept(t *testing.T) {
	all, err := canaries(t.Context(), t.TempDir(), testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	cfg, p := trusting(t)
	put(t, cfg.Verify.Policy, 0o644, strings.Replace(read(t, cfg.Verify.Policy), "unsigned_containers: deny", "unsigned_containers: deny, binding: none, notation: accept", 1))
	r := &Report{}
	v := checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock, Lint: func(string) ([]string, error) { return nil, nil }}, nil)
	if v == nil {
		t.Fatalf("%+v", r)
	}
	for _, c := range all {
		if c.name != "unsigned" {
			continue
		}
		i := &inventory{report: r, judge: v, config: cfg.Verify}
		in := verifier.Input{Reference: scopeReference(v), Artifact: c.artifact}
		i.agent(t.Context(), "before", in)
		if i.refused != 1 {
			t.Error("without a signature it is no case of this")
		}
		data, err := notation.Sign(notation.Request{Target: verifier.Target(c.artifact), Key: p.LeafKey, Chain: append(p.Chain(), p.Root), Time: testpki.Now.Add(-time.Hour)})
		if err == nil {
			err = envelopes.In(cfg.Verify.State).Keep(c.artifact.Digest, []verifier.Envelope{{MediaType: notation.MediaType, Data: data}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if i.agent(t.Context(), "after", in); i.refused != 1 {
			t.Errorf("%+v", r.Findings[len(r.Findings)-1])
		}
	}
}
