package serve

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// connections bounds the connections of a server. One too many takes the place
// of the one that has rested longest, so that clients that merely hold theirs
// keep nobody out, probes least of all; where none rests it is refused.
type connections struct {
	net.Listener
	most int

	closing func() error

	mu   sync.Mutex
	open map[net.Conn]*connection
}

type connection struct {
	// resting says that no request is on it; since says how long.
	resting bool
	since   time.Time
}

func newConnections(l net.Listener, most int) *connections {
	return &connections{Listener: l, most: most, closing: sync.OnceValue(l.Close), open: map[net.Conn]*connection{}}
}

// Close implements [net.Listener]. A drain closes, and the server once more if its
// own goroutine has not yet noticed: that is no error.
func (c *connections) Close() error { return c.closing() }

// Accept implements [net.Listener].
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c.add(conn) {
			return conn, nil
		}
		_ = conn.Close() // nothing was sent on it
	}
}

func (c *connections) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.most {
		oldest := c.oldest()
		if oldest == nil {
			return false
		}
		_ = oldest.Close() // its server notices
		delete(c.open, oldest)
	}
	c.open[conn] = &connection{resting: true, since: time.Now()}
	return true
}

func (c *connections) oldest() (oldest net.Conn) {
	for conn, state := range c.open {
		if state.resting && (oldest == nil || state.since.Before(c.open[oldest].since)) {
			oldest = conn
		}
	}
	return oldest
}

// changed is the server's ConnState.
func (c *connections) changed(conn net.Conn, to http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state, ok := c.open[conn]
	if !ok {
		return
	}
	switch to {
	case http.StateActive:
		state.resting = false
	case http.StateIdle:
		state.resting, state.since = true, time.Now()
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}
