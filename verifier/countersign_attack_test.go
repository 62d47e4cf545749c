package verifier

import (
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// A domain has no case: who writes the own address in another way is nobody else, be it
// beside the first signature or beside another countersignature. What stands before the
// domain has one.
func TestOnePersonInTwoSpellingsCountsOnce(t *testing.T) {
	other := testpki.LeafKey(testpki.RSA(t, "a second key", 2048))
	for _, c := range []struct {
		name, required string
		by             []*testpki.PKI
		want           fault.Reason
	}{
		{"the first signer again", requires(2, dev, bob), []*testpki.PKI{person(t, "dev@EXAMPLE.com")}, fault.SignersMissing},
		{"a countersigner again", requires(2, bob, carol), []*testpki.PKI{person(t, bob), person(t, "bob@Example.COM", other)}, fault.SignersMissing},
		{"named in another spelling", requires(2, dev, "bob@EXAMPLE.com"), []*testpki.PKI{person(t, "bob@example.COM")}, ""},
		{"another name of the domain", requires(2, dev, bob), []*testpki.PKI{person(t, "Bob@example.com")}, fault.SignersMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(testpki.New(t))
			n.policy = requiring("    required_signers:\n" + c.required)
			vd, _ := explained(t, n.verifier(t), Input{Reference: ref, Artifact: read(t, countersignedBy(t, with()(t), c.by...))})
			expect(t, vd, c.want)
		})
	}
	// The tool makes no such block in the first place.
	p := person(t, "dev@EXAMPLE.com")
	if _, _, err := Countersign(CountersignRequest{Raw: with()(t), Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now}); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("the first signer in another spelling: %v", err)
	}
}

// A clock that is set back, or that is ahead, makes nobody count who does not count now.
func TestNoClockMakesACountersignerCountWhoseTimeIsNot(t *testing.T) {
	raw := by(bob, func(r *testpki.Recipe) {
		r.Leaf.NotBefore, r.Leaf.NotAfter = testpki.Now.Add(-2*time.Hour), testpki.Now.Add(2*time.Hour)
	})(t)
	for hours, want := range map[int]fault.Reason{-3: fault.SignersMissing, 0: "", 3: fault.SignersMissing} {
		n := countersignedNode(t)
		n.clock = func() time.Time { return testpki.Now.Add(time.Duration(hours) * time.Hour) }
		vd := judgeRaw(t, n.verifier(t), raw)
		if vd.Reason != want && (want == "" || vd.Allowed) {
			t.Errorf("%d hours from now: %s", hours, vd.Line())
		}
	}
}
