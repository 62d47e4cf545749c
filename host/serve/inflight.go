package serve

import "sync"

// inflight counts the requests that are not answered yet.
type inflight struct {
	mu   sync.Mutex
	n    int
	idle []chan struct{}
}

func (f *inflight) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
}

func (f *inflight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	f.tell()
}

// none is closed once there is no request; later ones do not open it again.
func (f *inflight) none() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{})
	f.idle = append(f.idle, c)
	f.tell()
	return c
}

func (f *inflight) tell() {
	if f.n > 0 {
		return
	}
	for _, c := range f.idle {
		close(c)
	}
	f.idle = nil
}
