package integration

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// decoy is a server on this machine that no guest may reach, another one that a
// guest may, and a server of names that lie about where they lead.
type decoy struct {
	far, near net.Listener
	dns       net.PacketConn
	hits      atomic.Int64

	mu      sync.Mutex
	queries map[string]int
}

// rebound is the address that the near server has, and that the policy opens.
const rebound = "127.0.0.2"

func newDecoy(t *testing.T) *decoy {
	t.Helper()
	d := &decoy{queries: map[string]int{}}
	var err error
	if d.far, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if d.near, err = net.Listen("tcp", net.JoinHostPort(rebound, d.port())); err != nil {
		t.Fatal(err)
	}
	// Any loopback address will do on which nobody serves names yet.
	for i := 1; i < 200 && d.dns == nil; i++ {
		d.dns, err = net.ListenPacket("udp", fmt.Sprintf("127.77.7.%d:53", i))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []interface{ Close() error }{d.far, d.near, d.dns} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	go d.serve(d.far, func(c net.Conn) {
		d.hits.Add(1)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(canary), canary)
	})
	// It hangs up, so that whoever wants an answer asks for an address again; after the
	// request, since a connection that is closed with bytes unread is reset.
	go d.serve(d.near, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
	})
	go d.names()
	return d
}

func (d *decoy) serve(l net.Listener, answer func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		answer(c)
		_ = c.Close()
	}
}

func (d *decoy) port() string { return strconv.Itoa(d.far.Addr().(*net.TCPAddr).Port) }

// asked is how often the far server was.
func (d *decoy) asked() int64 { return d.hits.Load() }

// resolvConf is a container's /etc/resolv.conf that leads here.
func (d *decoy) resolvConf(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "resolv.conf")
	host, _, err := net.SplitHostPort(d.dns.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("nameserver "+host+"\noptions attempts:1 timeout:2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// addresses are what a name leads to, the n-th time that it is asked for.
func addresses(name string, n int) []string {
	switch name {
	case "loopback":
		return []string{"127.0.0.1"}
	case "zero":
		return []string{"0.0.0.0"}
	case "six":
		return []string{"::1"}
	case "mapped":
		return []string{"::ffff:127.0.0.1"}
	case "nat64":
		return []string{"64:ff9b::7f00:1"}
	case "metadata":
		return []string{"169.254.169.254"}
	case "metadata6":
		return []string{"fd00:ec2::254"}
	case "mixed":
		return []string{"127.0.0.1", rebound, "169.254.169.254"}
	case "rebind":
		// What is allowed for who asks first, and then something else.
		if n == 0 {
			return []string{rebound}
		}
		return []string{"127.0.0.1"}
	}
	return nil
}

func (d *decoy) names() {
	buf := make([]byte, 1500)
	for {
		n, from, err := d.dns.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := d.answer(buf[:n]); answer != nil {
			_, _ = d.dns.WriteTo(answer, from)
		}
	}
}

func (d *decoy) answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true, RecursionAvailable: true})
	if b.StartQuestions() != nil || b.Question(q) != nil || b.StartAnswers() != nil {
		return nil
	}
	label, _, _ := strings.Cut(q.Name.String(), ".")
	d.mu.Lock()
	list := addresses(label, d.queries[label])
	if q.Type == dnsmessage.TypeA {
		d.queries[label]++
	}
	d.mu.Unlock()
	for _, a := range list {
		ip := net.ParseIP(a)
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 0}
		if four := ip.To4(); four != nil && !strings.Contains(a, ":") {
			if q.Type == dnsmessage.TypeA {
				err = b.AResource(h, dnsmessage.AResource{A: [4]byte(four)})
			}
		} else if q.Type == dnsmessage.TypeAAAA {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: [16]byte(ip.To16())})
		}
		if err != nil {
			return nil
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}
