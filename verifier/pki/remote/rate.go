package remote

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mentatlab/mentat/internal/limits"
)

// rate lets each caller do something so often: burst times at once, and again as
// time passes. Callers whose allowance is whole again are forgotten; when there
// are too many others, new ones are refused.
type rate struct {
	burst float64
	every time.Duration // until one more is allowed
	most  int

	mu      sync.Mutex
	callers map[string]*allowance
}

type allowance struct {
	left float64
	at   time.Time
}

func newRate(burst int, per time.Duration, count int) *rate {
	return &rate{burst: float64(burst), every: per / time.Duration(count), most: limits.PKICallers, callers: map[string]*allowance{}}
}

func (r *rate) allow(caller string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.callers[caller]
	if a == nil {
		if len(r.callers) >= r.most && !r.forget(now) {
			return false
		}
		a = &allowance{left: r.burst, at: now}
		r.callers[caller] = a
	}
	r.refill(a, now)
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

func (r *rate) refill(a *allowance, now time.Time) {
	// A clock that is set back gives nothing.
	if passed := now.Sub(a.at); passed > 0 {
		a.left = min(r.burst, a.left+float64(passed)/float64(r.every))
	}
	a.at = now
}

// forget makes room and tells whether there is some.
func (r *rate) forget(now time.Time) bool {
	for caller, a := range r.callers {
		if r.refill(a, now); a.left >= r.burst {
			delete(r.callers, caller)
		}
	}
	return len(r.callers) < r.most
}

// callerOf is whom an address belongs to: an IPv6 customer has a network of 64
// bits at least.
func callerOf(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	addr := at.Addr().Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	network, err := addr.Prefix(64)
	if err != nil {
		return addr.String()
	}
	return network.String()
}

// bounded is a listener that hangs up on connections beyond its bounds.
type bounded struct {
	net.Listener
	most, mostEach int

	mu    sync.Mutex
	open  int
	by    map[string]int
	turns int // connections that were refused
}

func newBounded(l net.Listener, most, mostEach int) *bounded {
	return &bounded{Listener: l, most: most, mostEach: mostEach, by: map[string]int{}}
}

// Accept waits for a connection within the bounds.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		caller := callerOf(c.RemoteAddr().String())
		if b.take(caller) {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { b.leave(caller) })}, nil
		}
		_ = c.Close() // nobody waits for what its end brings
	}
}

func (b *bounded) take(caller string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.most || b.by[caller] >= b.mostEach {
		b.turns++
		return false
	}
	b.open++
	b.by[caller]++
	return true
}

func (b *bounded) leave(caller string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if b.by[caller]--; b.by[caller] == 0 {
		delete(b.by, caller)
	}
}

type counted struct {
	net.Conn
	leave func()
}

// Close ends the connection and makes room for another.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
