package remote

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mentatlab/mentat/internal/limits"
)

// callers lets each caller do something so often: burst times at once, and again as
// time passes. Callers whose allowance is whole again are forgotten; when there
// are too many others, new ones are refused.
type callers struct {
	every rate.Limit
	burst int
	most  int

	mu   sync.Mutex
	each map[string]*rate.Limiter
}

func newCallers(burst int, per time.Duration, count int) *callers {
	return &callers{every: rate.Every(per / time.Duration(count)), burst: burst, most: limits.PKICallers, each: map[string]*rate.Limiter{}}
}

func (c *callers) allow(caller string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.each[caller]
	if l == nil {
		if len(c.each) >= c.most && !c.forget(now) {
			return false
		}
		l = rate.NewLimiter(c.every, c.burst)
		c.each[caller] = l
	}
	return l.AllowN(now, 1)
}

// forget makes room and tells whether there is some.
func (c *callers) forget(now time.Time) bool {
	for caller, l := range c.each {
		if l.TokensAt(now) >= float64(c.burst) {
			delete(c.each, caller)
		}
	}
	return len(c.each) < c.most
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
