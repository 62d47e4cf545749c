package memory

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// A policy's file is replaced again and again while eight judge as new processes do.
// Each verdict is that of the policy that was opened, whole; what is remembered is never
// lent to the other; and after the last replacement there is no other.
func TestEveryVerdictIsOneOfTheTwoPoliciesThatReplaceEachOther(t *testing.T) {
	n := newNode(t)
	cfg := nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state")}
	open := func() *verifier.Verifier {
		v, err := verifier.Open(cfg, func() time.Time { return n.now }, nil)
		if err != nil {
			t.Error(err)
			return nil
		}
		return v
	}
	text, err := os.ReadFile(cfg.Policy)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(text string) {
		if err := atomicfile.Write(cfg.Policy, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := string(text), strings.ReplaceAll(string(text), "dev@example.com", "other@example.com")
	wants := map[digest.Digest]*verifier.Verdict{}
	for _, text := range []string{theirs, ours} {
		replace(text)
		v := open()
		if err := fetch.Refresh(t.Context(), v, cfg, nil, false); err != nil {
			t.Fatal(err)
		}
		wants[v.Rules()] = v.Verify(t.Context(), n.in)
	}
	var allowed, refused, remembered int
	var mu sync.Mutex
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				v := open()
				if v == nil {
					return
				}
				vd, want := n.memory.Verify(t.Context(), v, n.in), wants[v.Rules()]
				if want == nil || vd.Allowed != want.Allowed || vd.Reason != want.Reason || vd.Trust != want.Trust || vd.Remembered && !want.Allowed {
					t.Errorf("%s, remembered %v, by %s; want %v", vd.Line(), vd.Remembered, v.Rules(), want)
					return
				}
				mu.Lock()
				switch {
				case vd.Remembered:
					remembered++
				case vd.Allowed:
					allowed++
				default:
					refused++
				}
				mu.Unlock()
			}
		})
	}
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return allowed+remembered > 100 && refused > 100 && remembered > 20
	}
	for deadline := time.Now().Add(30 * time.Second); !enough() && time.Now().Before(deadline) && !t.Failed(); {
		replace(theirs)
		replace(ours)
	}
	replace(theirs)
	last := open().Rules()
	if vd := n.memory.Verify(t.Context(), open(), n.in); vd.Allowed || vd.Remembered || vd.Reason != fault.IdentityUntrusted || open().Rules() != last {
		t.Errorf("after the last replacement: %s", vd.Line())
	}
	close(done)
	wg.Wait()
	if !t.Failed() && !enough() {
		t.Errorf("only %d were allowed, %d refused and %d remembered", allowed, refused, remembered)
	}
}

// A full disk costs the memory, nothing else: everything is judged anew.
func TestAFullDiskIsNoVerdict(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	n := newNode(t)
	if err := unix.Mount("tmpfs", n.memory.dir, "tmpfs", 0, "size=16k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.memory.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(filepath.Join(n.memory.dir, "filler"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, unix.ENOSPC) || f.Close() != nil {
		t.Fatal(err)
	}
	for range 3 {
		if vd := n.verify(); !vd.Allowed || vd.Remembered {
			t.Errorf("%s, remembered %v", vd.Line(), vd.Remembered)
		}
	}
	if left := n.kept(); len(left) != 1 {
		t.Errorf("half-written: %q", left)
	}
	n.put("agent.crl", n.pki.AgentCRL(testpki.Numbered(2), testpki.Revoking(n.pki.Leaf)))
	if vd := n.verify(); vd.Reason != fault.Revoked {
		t.Error(vd.Line())
	}
	if err := os.Remove(filepath.Join(n.memory.dir, "filler")); err != nil {
		t.Fatal(err)
	}
	n.put("agent.crl", n.pki.AgentCRL(testpki.Numbered(3)))
	for i := range 2 {
		if vd := n.verify(); !vd.Allowed || vd.Remembered != (i == 1) {
			t.Errorf("with room again, %d: %s, remembered %v", i, vd.Line(), vd.Remembered)
		}
	}
}
