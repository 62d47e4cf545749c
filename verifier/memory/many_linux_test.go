package memory

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// used is what a process holds.
type used struct {
	goroutines, files int
	heap              uint64
}

func inUse(t *testing.T) used {
	t.Helper()
	runtime.GC()
	runtime.GC() // what the first one's finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return used{runtime.NumGoroutine(), len(files), m.HeapAlloc}
}

// TestAThousandVerificationsAtOnceUnderAPolicyThatIsReplaced has a thousand judge
// at once, some from the memory; meanwhile the policy's file is replaced by one
// that refuses. Who opened the old one is answered by it throughout, who opens it
// anew never gets an old verdict, and nothing is left behind.
func TestAThousandVerificationsAtOnceUnderAPolicyThatIsReplaced(t *testing.T) {
	n := newNode(t)
	cfg := nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state")}
	open := func() *verifier.Verifier {
		v, err := verifier.Open(cfg, func() time.Time { return n.now }, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := fetch.Refresh(t.Context(), v, cfg, nil, false); err != nil {
			t.Fatal(err)
		}
		return v
	}
	old := open()
	if vd := n.memory.Verify(t.Context(), old, n.in); !vd.Allowed {
		t.Fatal(vd.Line())
	}
	policy, err := os.ReadFile(cfg.Policy)
	if err != nil {
		t.Fatal(err)
	}
	refusing := strings.ReplaceAll(string(policy), "dev@example.com", "other@example.com")

	round := func(before, after *verifier.Verifier, replace func()) {
		t.Helper()
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range 1000 {
			wg.Go(func() {
				<-begin
				switch i % 4 {
				case 0:
					if vd := before.Verify(t.Context(), n.in); !vd.Allowed || vd.Remembered {
						t.Errorf("the old policy, judged: %s", vd.Line())
					}
				case 1, 2:
					if vd := n.memory.Verify(t.Context(), before, n.in); !vd.Allowed {
						t.Errorf("the old policy, remembered: %s", vd.Line())
					}
				default:
					if vd := n.memory.Verify(t.Context(), after, n.in); vd.Allowed || vd.Remembered || vd.Reason != fault.IdentityUntrusted {
						t.Errorf("the new policy: %s", vd.Line())
					}
				}
			})
		}
		close(begin)
		replace()
		wg.Wait()
	}
	n.put("policy.yaml", []byte(refusing))
	refuses := open()
	n.put("policy.yaml", policy)
	round(old, refuses, func() {}) // fills what the library and the runtime keep for good
	start := inUse(t)
	round(old, refuses, func() { n.put("policy.yaml", []byte(refusing)) })

	if vd := n.memory.Verify(t.Context(), open(), n.in); vd.Allowed || vd.Remembered {
		t.Errorf("opened after the policy was replaced: %s", vd.Line())
	}
	var now used
	for deadline := time.Now().Add(30 * time.Second); ; {
		now = inUse(t)
		if now.goroutines <= start.goroutines && now.files <= start.files && now.heap < start.heap+4<<20 || time.Now().After(deadline) {
			break
		}
	}
	if now.goroutines > start.goroutines || now.files > start.files || now.heap >= start.heap+4<<20 {
		t.Errorf("before: %+v, afterwards: %+v", start, now)
	}
}
