package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// asked counts the calls for a container.
func (n *node) asked() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, call := range n.calls {
		if call == "Container" {
			count++
		}
	}
	return count
}

func TestWhatWasAskedAheadIsNotAskedAgain(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent("")))
	p := w.preparer()
	p.Ahead(t.Context(), id, w.dir)
	for want := 1; want <= 2; want++ { // the second time it is used up
		result, err := p.Prepare(t.Context(), Request{ID: id, Dir: w.dir})
		if err != nil || !result.WASM {
			t.Fatalf("%+v, %v", result, err)
		}
		if got := w.node.asked(); got != want {
			t.Errorf("asked %d times, want %d", got, want)
		}
	}
}

func TestWhatWasAskedAheadCountsForItsOwnBundleAndMoment(t *testing.T) {
	for name, c := range map[string]struct {
		id, dir string
		later   time.Duration
	}{
		"another container": {id: "other"},
		"another bundle":    {dir: "elsewhere"},
		"long ago":          {later: aheadAge + time.Millisecond},
		"in the future":     {later: -time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.create(ref, w.sign(w.agent("")))
			now := w.clock()
			w.clock = func() time.Time { return now }
			p := w.preparer()
			aheadID, dir := id, w.dir
			if c.id != "" {
				aheadID = c.id
				w.node.container[c.id] = w.node.container[id]
			}
			if c.dir != "" {
				dir = filepath.Join(t.TempDir(), c.dir)
				if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, specName), w.bytes(specName), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			p.Ahead(t.Context(), aheadID, dir)
			<-p.ahead.Load().done
			now = now.Add(c.later)
			if _, err := p.Prepare(t.Context(), Request{ID: id, Dir: w.dir}); err != nil {
				t.Fatal(err)
			}
			if got := w.node.asked(); got != 2 {
				t.Errorf("asked %d times", got)
			}
		})
	}
}

func TestWhatFailedAheadIsAskedAgain(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent("")))
	p := w.preparer()
	w.node.fails["Container"] = errors.New("not now")
	p.Ahead(t.Context(), id, w.dir)
	<-p.ahead.Load().done
	delete(w.node.fails, "Container")
	if result, err := p.Prepare(t.Context(), Request{ID: id, Dir: w.dir}); err != nil || !result.WASM {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestAskingAheadAllowsNothing(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.agent(""))
	before := w.tree()
	p := w.preparer()
	p.Ahead(t.Context(), id, w.dir)
	<-p.ahead.Load().done
	if w.tree() != before || len(w.node.held) > 0 {
		t.Error("asking ahead changed the bundle or the container")
	}
	_, err := p.Prepare(t.Context(), Request{ID: id, Dir: w.dir})
	w.isRefusal(err, fault.Unsigned)
}
