package memory

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

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

// A release list is kept under the lock of the state directory, and is judged under it:
// the revocation lists that this reads are remembered without that lock.
func TestAListIsRememberedWhileTheDirectoryIsLocked(t *testing.T) {
	n := newNode(t)
	state := filepath.Join(n.dir, "state")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(state, ".lock")).Lock()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() {
		v, err := n.open()
		done <- err == nil && v.Verify(n.Context(), n.in).Allowed
	}()
	select {
	case allowed := <-done:
		if !allowed {
			t.Error("refused")
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the lock")
	}
	unlock()
}
