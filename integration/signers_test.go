package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// A scope that requires two signers: what one signed is refused at pull and,
// imported past the verifier, at run; what both signed is pulled and runs.
func TestAnAgentOfTwoSignersIsPulledAndRun(t *testing.T) {
	const bob = "bob@example.com"
	g := newGuarded(t)
	if err := g.WritePolicy(fmt.Sprintf(`version: 1
scopes:
  - name: agents
    match: ["%s/agents/**"]
    stores: [agents]
    identities: ["email:%s"]
    required_signers: [{at_least: 2, of: ["email:%s", "email:%s"]}]
    unsigned_containers: deny
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: %q, file: root.crl}
    - {issuer: %q, file: agent.crl}
`, g.registry.Host, testpki.Email, testpki.Email, bob, g.pki.Root.Subject.String(), g.pki.Agent.Subject.String())); err != nil {
		t.Fatal(err)
	}
	l, _ := g.build("pair", assemble(t, guestMarker(1)), "")
	g.sign(l, g.pki, "pair", g.registry.Host+"/agents/pair", nil)
	ref := g.ref("pair")
	g.push(l, ref)
	_, raw := g.raw(l)
	if err := g.pull(ref); err == nil || !strings.Contains(err.Error(), "mentatctl countersign") {
		t.Errorf("the pull gate says %v", err)
	}
	g.loadRaw(l, raw, ref)
	if got := g.run("", ref, g.id()); got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "requires the signatures of 2 of") {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	g.ctr("images", "rm", ref)

	p := testpki.New(t, testpki.LeafEmails(bob), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)))
	signed, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now})
	if err != nil {
		t.Fatal(err)
	}
	root, _ := g.raw(l)
	g.replace(l, root, signed)
	g.push(l, ref)
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	// Revoked since: the image is there, and starts no more.
	g.trust(g.pki, testpki.Revoking(p.Leaf), testpki.Numbered(2))
	if got := g.run("", ref, g.id()); got.code == 0 || !strings.Contains(got.stderr, "countersignature 1 does not count") {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}
