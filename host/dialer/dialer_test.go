package dialer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testnet"
)

type resolverFunc func(host string) ([]netip.Addr, error)

func (f resolverFunc) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return f(host)
}

func addrs(texts ...string) []netip.Addr {
	out := make([]netip.Addr, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// listener counts the connections it gets.
func listener(t *testing.T, at string) (port string, got *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Skip("no loopback address of that kind: " + err.Error())
	}
	t.Cleanup(func() { l.Close() })
	got = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got.Add(1)
			c.Close()
		}
	}()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, got
}

func refusal(t *testing.T, err error) *backend.Refusal {
	t.Helper()
	var r *backend.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("no refusal: %v", err)
	}
	return r
}

// Each address with the word that its refusal holds; "" is public.
var vectors = map[string]string{
	"8.8.8.8": "", "1.1.1.1": "", "100.63.255.255": "", "100.128.0.0": "", "172.15.255.255": "", "172.32.0.0": "",
	"192.0.1.0": "", "198.17.255.255": "", "198.20.0.0": "", "223.255.255.255": "", "9.255.255.255": "", "11.0.0.0": "",
	"2606:4700::1111": "", "2a00::1": "", "2001:4860:4860::8888": "", "3ffe::1": "",

	"10.0.0.1": "private", "172.16.0.1": "private", "172.31.255.255": "private", "192.168.1.1": "private",
	"fc00::1": "private", "fd12:3456::1": "private", "fec0::1": "private",
	"127.0.0.1": "loopback", "127.255.255.254": "loopback", "::1": "loopback",
	"0.0.0.0": "this network", "0.1.2.3": "this network", "::": "this network",
	"169.254.1.1": "link-local", "fe80::1": "link-local", "febf::1": "link-local",
	"169.254.169.254": "metadata", "169.254.170.2": "metadata", "100.100.100.200": "metadata", "168.63.129.16": "metadata",
	"fd00:ec2::254": "metadata", "fd20:ce::254": "metadata", "192.0.0.192": "metadata",
	"100.64.0.1": "carrier", "100.127.255.255": "carrier",
	"224.0.0.1": "multicast", "239.255.255.255": "multicast", "ff02::1": "multicast", "ff0e::1": "multicast",
	"240.0.0.1": "reserved", "255.255.255.255": "reserved", "192.0.0.1": "reserved", "100::1": "reserved", "5f00::1": "reserved", "2001:100::1": "reserved",
	"198.18.0.1": "benchmarking", "198.19.255.255": "benchmarking", "2001:2::1": "benchmarking",
	"192.0.2.1": "documentation", "198.51.100.1": "documentation", "203.0.113.1": "documentation", "2001:db8::1": "documentation", "3fff::1": "documentation",
	"192.88.99.1": "transition", "2001::1": "transition", "2002:808:808::1": "transition", "64:ff9b:1::808:808": "transition", "::8.8.8.8": "transition", "::ffff:0:8.8.8.8": "transition",
	"4000::1": "outside", "1::1": "outside", "200::1": "outside",

	// IPv4 in IPv6, judged by what is inside.
	"::ffff:8.8.8.8": "", "::ffff:127.0.0.1": "loopback", "::ffff:10.0.0.1": "private", "::ffff:169.254.169.254": "metadata",
	"64:ff9b::8.8.8.8": "", "64:ff9b::10.0.0.1": "private", "64:ff9b::169.254.169.254": "metadata", "64:ff9b::127.0.0.1": "loopback",
	"2a00::5efe:8.8.8.8": "", "2a00::5efe:10.0.0.1": "private", "2a00::200:5efe:127.0.0.1": "loopback",
	"fe80::1%eth0": "no plain address", "2a00::1%eth0": "no plain address",
}

func TestOnlyPublicAddressesAreDialledByDefault(t *testing.T) {
	for text, want := range vectors {
		_, r := new(Dialer).vet(t.Context(), "name.example", 80, addrs(text))
		switch {
		case want == "" && r != nil:
			t.Errorf("%s: refused: %s", text, r.Reason)
		case want != "" && (r == nil || r.Code != backend.Denied || r.Rule != ruleAddresses || !strings.Contains(r.Reason, want)):
			t.Errorf("%s: %v, want %q", text, r, want)
		}
	}
}

func TestARefusedAddressIsNeverConnectedTo(t *testing.T) {
	for at, names := range map[string][]string{
		"127.0.0.1:0": {"127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"},
		"[::1]:0":     {"::1"},
	} {
		port, got := listener(t, at)
		for _, ip := range names {
			for _, host := range []string{"name.example", ip} {
				d := &Dialer{Resolver: testnet.NewResolver().Set("name.example", ip)}
				conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
				if conn != nil {
					t.Fatalf("%s: connected", host)
				}
				if r := refusal(t, err); r.Code != backend.Denied || strings.Contains(r.Reason, port) {
					t.Errorf("%s: %+v", host, r)
				}
			}
		}
		if got.Load() != 0 {
			t.Errorf("%s got %d connections", at, got.Load())
		}
	}
}

func TestRefusedAddressesOfANameAreDroppedAndTheOthersDialled(t *testing.T) {
	port, got := listener(t, "127.0.0.1:0")
	d := &Dialer{
		Resolver: testnet.NewResolver().Set("name.example", "169.254.169.254 127.9.9.9 ::ffff:127.0.0.1 10.0.0.1"),
		Allow:    prefixes("127.0.0.1/32"),
	}
	vetted, r := d.vet(t.Context(), "name.example", 80, addrs("169.254.169.254", "127.9.9.9", "::ffff:127.0.0.1", "10.0.0.1"))
	if r != nil || len(vetted) != 1 || vetted[0].String() != "127.0.0.1" {
		t.Fatalf("%v, %v", vetted, r)
	}
	conn, err := d.DialContext(t.Context(), "tcp", "name.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != "127.0.0.1:"+port {
		t.Errorf("connected to %s", conn.RemoteAddr())
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	if got.Load() != 1 {
		t.Errorf("%d connections", got.Load())
	}
}

// A name that leads to a public address when it is judged and inside when it is
// dialled: there is no second question.
func TestANameIsResolvedOncePerConnection(t *testing.T) {
	port, got := listener(t, "127.0.0.1:0")
	r := testnet.NewResolver().Set("rebind.example", "127.0.0.1", "10.0.0.1")
	d := &Dialer{Resolver: r, Allow: prefixes("127.0.0.0/8")}
	conn, err := d.DialContext(t.Context(), "tcp", "rebind.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if r.Asked("rebind.example") != 1 || got.Load() != 1 {
		t.Fatalf("asked %d times, %d connections", r.Asked("rebind.example"), got.Load())
	}
	// The next connection's answer is judged anew.
	if _, err := d.DialContext(t.Context(), "tcp", "rebind.example:"+port); refusal(t, err).Code != backend.Denied {
		t.Errorf("after the name moved: %v", err)
	}
	if got.Load() != 1 {
		t.Errorf("%d connections", got.Load())
	}
}

func TestNamesAreAskedForAsAbsolute(t *testing.T) {
	var asked string
	d := &Dialer{Resolver: resolverFunc(func(host string) ([]netip.Addr, error) {
		asked = host
		return addrs("10.0.0.1"), nil
	})}
	for _, host := range []string{"name", "name.example"} {
		if _, err := d.DialContext(t.Context(), "tcp", host+":443"); refusal(t, err).Code != backend.Denied {
			t.Errorf("%v", err)
		}
		if asked != host+"." {
			t.Errorf("asked for %q", asked)
		}
	}
}

func TestARangeOpensWhatItHoldsAndMetadataOnlyAlone(t *testing.T) {
	for _, c := range []struct {
		allow, addr string
		ok          bool
	}{
		{"10.0.0.0/8", "10.1.2.3", true},
		{"10.0.0.0/8", "::ffff:10.1.2.3", true},
		{"10.0.0.0/8", "11.1.2.3", true}, // public as it is
		{"10.0.0.0/8", "192.168.0.1", false},
		{"10.0.0.0/8", "64:ff9b::10.1.2.3", false},
		{"127.0.0.0/8", "::1", false},
		{"169.254.0.0/16", "169.254.1.1", true},
		{"169.254.0.0/16", "169.254.169.254", false},
		{"169.254.169.254/32", "169.254.169.254", true},
		{"fc00::/7", "fd12::1", true},
		{"fc00::/7", "fd00:ec2::254", false},
		{"fd00:ec2::254/128", "fd00:ec2::254", true},
		{"100.64.0.0/10", "100.100.100.200", false},
	} {
		d := &Dialer{Allow: prefixes(c.allow)}
		if _, r := d.vet(t.Context(), "x", 80, addrs(c.addr)); (r == nil) != c.ok {
			t.Errorf("%s for %s: %v", c.allow, c.addr, r)
		}
	}
}

func TestARangeWithPublicAddressesIsNoRule(t *testing.T) {
	for _, text := range []string{"10.0.0.0/8", "10.1.0.0/16", "127.0.0.1/32", "fc00::/7", "fd00::/8", "::1/128", "169.254.169.254/32", "1000::/4", "168.63.129.16/32"} {
		if _, err := ParsePrivate(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"", "10.0.0.1", "0.0.0.0/0", "8.8.8.8/32", "10.0.0.0/7", "10.0.0.1/8", "172.16.0.0/11", "::/0", "::ffff:10.0.0.0/104", "2000::/3", "64:ff9b::/96", "64::/16", "168.63.129.0/24"} {
		if p, err := ParsePrivate(text); err == nil || fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v, %v", text, p, err)
		}
	}
}

func TestAJudgeHasAWordOnEveryAddressAndWhatItStandsFor(t *testing.T) {
	for _, text := range []string{"8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2a00::5efe:8.8.8.8"} {
		d := &Dialer{Judge: func(_ context.Context, host string, port int, a netip.Addr) *backend.Refusal {
			if host != "name.example" || port != 80 {
				t.Errorf("%s:%d", host, port)
			}
			if a.String() == "8.8.8.8" {
				return denied("a rule", "", "no")
			}
			return nil
		}}
		if _, r := d.vet(t.Context(), "name.example", 80, addrs(text)); r == nil || r.Rule != "a rule" {
			t.Errorf("%s: %v", text, r)
		}
		if vetted, r := d.vet(t.Context(), "name.example", 80, addrs(text, "9.9.9.9")); r != nil || len(vetted) != 1 {
			t.Errorf("%s: %v, %v", text, vetted, r)
		}
	}
}

func TestThisMachinesOwnAddressesAreNotPublic(t *testing.T) {
	d := &Dialer{Own: addrs("8.8.4.4")}
	if _, r := d.vet(t.Context(), "x", 80, addrs("8.8.4.4")); r == nil || !strings.Contains(r.Reason, "this machine") {
		t.Errorf("%v", r)
	}
	if _, r := d.vet(t.Context(), "x", 80, addrs("8.8.8.8")); r != nil {
		t.Errorf("%v", r)
	}
	own, err := Own()
	if err != nil || len(own) == 0 {
		t.Errorf("%v, %v", own, err)
	}
}

func TestAnEndpointsDialerReachesOnlyThatAndNoMetadata(t *testing.T) {
	port, _ := listener(t, "127.0.0.1:0")
	d := &Dialer{Resolver: testnet.NewResolver().Set("llm.example", "127.0.0.1"), Endpoint: "llm.example:" + port}
	conn, err := d.DialContext(t.Context(), "tcp", "llm.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for _, addr := range []string{"llm.example:80", "other.example:" + port, "127.0.0.1:" + port} {
		if _, err := d.DialContext(t.Context(), "tcp", addr); refusal(t, err).Code != backend.Denied {
			t.Errorf("%s: %v", addr, err)
		}
	}
	for _, ip := range []string{"169.254.169.254", "fd00:ec2::254", "169.254.1.1", "fe80::1", "224.0.0.1", "0.0.0.0", "::"} {
		if _, r := d.vet(t.Context(), "x", 80, addrs(ip)); r == nil {
			t.Errorf("%s is dialled", ip)
		}
	}
	for _, ip := range []string{"10.0.0.1", "::1", "fd00::1", "100.64.0.1", "8.8.8.8"} {
		if _, r := d.vet(t.Context(), "x", 80, addrs(ip)); r != nil {
			t.Errorf("%s: %v", ip, r)
		}
	}
}

func TestBlockedPortsAreRefusedBeforeTheNameIsResolved(t *testing.T) {
	r := testnet.NewResolver().Set("name.example", "127.0.0.1")
	d := &Dialer{Resolver: r, Allow: prefixes("127.0.0.0/8"), BlockedPorts: []int{8088}}
	for _, port := range []string{"8088", "22", "25", "6667", "587"} {
		if _, err := d.DialContext(t.Context(), "tcp", "name.example:"+port); refusal(t, err).Rule != rulePorts {
			t.Errorf("%s: %v", port, err)
		}
	}
	if r.Asked("name.example") != 0 {
		t.Errorf("the resolver was asked %d times", r.Asked("name.example"))
	}
}

func TestFailuresAreExplainedWithoutTheirText(t *testing.T) {
	plain, _ := listener(t, "127.0.0.1:0")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := closed.Addr().String()
	closed.Close()
	loop := prefixes("127.0.0.0/8")
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for name, c := range map[string]struct {
		url  string
		d    *Dialer
		code backend.Code
		want string
	}{
		"no such name":     {"http://name.example/?q=canary", &Dialer{Resolver: testnet.NewResolver()}, backend.NotFound, "does not exist"},
		"a broken server":  {"http://name.example/?q=canary", &Dialer{Resolver: resolverFunc(func(string) ([]netip.Addr, error) { return nil, &net.DNSError{Name: "canary", Server: "canary"} })}, backend.Unavailable, "cannot be resolved"},
		"no address":       {"http://name.example/?q=canary", &Dialer{Resolver: testnet.NewResolver().Set("name.example", "")}, backend.NotFound, "no address"},
		"refused":          {"http://" + refused + "/?q=canary", &Dialer{Allow: loop}, backend.Unavailable, "refuses the connection"},
		"closed early":     {"http://127.0.0.1:" + plain + "/?q=canary", &Dialer{Allow: loop}, backend.Unavailable, ""},
		"plain for TLS":    {"https://127.0.0.1:" + plain + "/?q=canary", &Dialer{Allow: loop}, backend.Unavailable, ""},
		"unknown issuer":   {secure.URL + "/?q=canary", &Dialer{Allow: loop}, backend.Unavailable, "no authority that this node trusts"},
		"a private answer": {"http://127.0.0.1:" + plain + "/?q=canary", &Dialer{}, backend.Denied, "loopback"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			roots, err := Roots(testnet.NewCA(t).File)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.d.Transport(roots, 1).RoundTrip(req)
			if err == nil {
				resp.Body.Close()
				t.Fatal("there is an answer")
			}
			if r := Explain(err); r.Code != c.code || !strings.Contains(r.Reason, c.want) || strings.Contains(r.Reason, "canary") || r.Reason == "" {
				t.Errorf("%+v from %v", r, err)
			}
		})
	}
	for err, code := range map[error]backend.Code{
		context.Canceled:         backend.Canceled,
		context.DeadlineExceeded: backend.Deadline,
		errors.New("canary"):     backend.Unavailable,
	} {
		if r := Explain(err); r.Code != code || strings.Contains(r.Reason, "canary") {
			t.Errorf("%v: %+v", err, r)
		}
	}
}

func TestProxiesOfTheEnvironmentAreIgnored(t *testing.T) {
	proxy, used := listener(t, "127.0.0.1:0")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:"+proxy)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://name.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Resolver: testnet.NewResolver().Set("name.example", "10.0.0.1")}
	transport := d.Transport(nil, 1)
	// The standard library asks the environment once; this may not be the first.
	if transport.Proxy != nil {
		t.Error("a proxy may be used")
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	if refusal(t, err).Code != backend.Denied || used.Load() != 0 {
		t.Errorf("%v, the proxy got %d connections", err, used.Load())
	}
}

func TestRootsAreTheFilesOrTheSystems(t *testing.T) {
	if pool, err := Roots(""); pool == nil || err != nil {
		t.Errorf("%v, %v", pool, err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, "/nonexistent"} {
		if _, err := Roots(file); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Whatever the bytes are, an address that may be dialled is public by the
// standard library's own word too, and no form of an inner address is dialled
// that would not be dialled plainly.
func FuzzAddresses(f *testing.F) {
	for text := range vectors {
		a := netip.MustParseAddr(text).As16()
		f.Add(a[:])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, ok := netip.AddrFromSlice(data)
		if !ok {
			return
		}
		d := new(Dialer)
		a = a.Unmap()
		if d.refuses(a) == "" && (!a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast()) {
			t.Fatalf("%s may be dialled", a)
		}
		if !a.Is4() || d.refuses(a) == "" {
			return
		}
		v4 := a.As4()
		for _, form := range []string{"::ffff:0:0", "64:ff9b::", "::", "::ffff:0:0:0", "2a00::5efe:0:0", "2a00::200:5efe:0:0"} {
			in := netip.MustParseAddr(form).As16()
			copy(in[12:], v4[:])
			if b := netip.AddrFrom16(in); d.refuses(b.Unmap()) == "" {
				t.Fatalf("%s is refused, and may be dialled as %s", a, b)
			}
		}
		six := netip.MustParseAddr("2002::1").As16()
		copy(six[2:], v4[:])
		if b := netip.AddrFrom16(six); d.refuses(b) == "" {
			t.Fatalf("%s is refused, and may be dialled as %s", a, b)
		}
	})
}
