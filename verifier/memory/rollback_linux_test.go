package memory

import (
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// A list in a file whose issuer only the chain shows is read by the gates alone: no
// refresh compiles it. Once one counted, no older one counts again, in whatever process.
func TestAnOlderListInAFileNeverComesBack(t *testing.T) {
	n := newNode(t)
	old := n.pki.AgentCRL(testpki.Numbered(4))
	n.put("agent.crl", old)
	if vd := n.verify(); !vd.Allowed {
		t.Fatal(vd.Line())
	}
	n.put("agent.crl", n.pki.AgentCRL(testpki.Numbered(5), testpki.Revoking(n.pki.Leaf)))
	if vd := n.verify(); vd.Reason != fault.Revoked {
		t.Fatal(vd.Line())
	}
	n.put("agent.crl", old)
	for range 2 {
		if vd := n.verify(); vd.Reason != fault.Revoked {
			t.Errorf("by the older list: %s", vd.Line())
		}
	}
	n.put("agent.crl", n.pki.AgentCRL(testpki.Numbered(6)))
	if vd := n.verify(); !vd.Allowed {
		t.Errorf("by the newer list: %s", vd.Line())
	}
}
