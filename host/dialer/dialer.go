package dialer

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Resolver finds the addresses of a name; [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// System resolves as the container is configured to, without cgo.
func System() Resolver { return &net.Resolver{PreferGo: true} }

// Dialer dials under rules. The zero value reaches public addresses only, on
// every port that may speak HTTP. It may be used from several goroutines; its
// fields are not changed once it is in use.
type Dialer struct {
	// Resolver finds addresses; nil is [System].
	Resolver Resolver
	// Allow are ranges that are reachable although they are not public. One that
	// is wider than a single address opens no metadata service.
	Allow []netip.Prefix
	// Own are this machine's addresses, which count as not public.
	Own []netip.Addr
	// Endpoint, as HOST:PORT, makes this a dialer for one endpoint that the
	// node's owner configured: nothing else is dialled, and it may be private or
	// on loopback.
	Endpoint string
	// BlockedPorts are refused besides those that never speak HTTP.
	BlockedPorts []int
	// Judge, if not nil, has a word on every address that would be dialled, and
	// on the IPv4 address that one of IPv6 stands for.
	Judge func(ctx context.Context, host string, port int, a netip.Addr) *backend.Refusal
}

// Own lists the addresses of this machine's interfaces.
func Own() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot list this machine's addresses")
	}
	var own []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, nil
}

// badPorts are those of protocols that a request could be smuggled into: the
// list of the Fetch standard.
var badPorts = []int{
	1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
	111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
	540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
	6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
}

const (
	ruleAddresses = "addresses"
	rulePorts     = "blocked ports"
)

func denied(rule, hint, format string, args ...any) *backend.Refusal {
	return &backend.Refusal{Code: backend.Denied, Rule: rule, Hint: hint, Reason: fmt.Sprintf(format, args...)}
}

// CheckPort judges a port.
func (d *Dialer) CheckPort(port int) *backend.Refusal {
	if d.Endpoint != "" {
		return nil
	}
	if slices.Contains(d.BlockedPorts, port) {
		return denied(rulePorts, "", "port %d is blocked on this node", port)
	}
	if slices.Contains(badPorts, port) {
		return denied(rulePorts, "", "port %d belongs to a protocol other than HTTP", port)
	}
	return nil
}

// DialContext connects to addr, HOST:PORT. Its errors are [*backend.Refusal] for
// what the rules refuse, and the network's otherwise.
func (d *Dialer) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	if d.Endpoint != "" && addr != d.Endpoint {
		return nil, denied(ruleAddresses, "", "only the configured endpoint is dialled")
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	if refusal := d.CheckPort(int(port)); refusal != nil {
		return nil, refusal
	}
	found, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	vetted, refusal := d.vet(ctx, host, int(port), found)
	if refusal != nil {
		return nil, refusal
	}
	return d.connect(ctx, vetted, uint16(port))
}

// resolve finds the addresses of a name. An absolute name is asked for, so that
// no search domain turns one name into another.
func (d *Dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	resolver := d.Resolver
	if resolver == nil {
		resolver = System()
	}
	found, err := resolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(host, ".")+".")
	if err != nil {
		return nil, err
	}
	return found, nil
}

// maxAddresses bounds how many addresses of a name are tried.
const maxAddresses = 8

// vet returns the addresses that may be dialled, as they are dialled.
func (d *Dialer) vet(ctx context.Context, host string, port int, found []netip.Addr) ([]netip.Addr, *backend.Refusal) {
	var vetted []netip.Addr
	var refused *backend.Refusal
	for _, a := range found {
		a = a.Unmap()
		if refusal := d.judge(ctx, host, port, a); refusal != nil {
			refused = cmp.Or(refused, refusal)
			continue
		}
		if !slices.Contains(vetted, a) && len(vetted) < maxAddresses {
			vetted = append(vetted, a)
		}
	}
	switch {
	case len(vetted) > 0:
		return vetted, nil
	case refused != nil:
		return nil, refused
	}
	return nil, &backend.Refusal{Code: backend.NotFound, Reason: "the host has no address"}
}

func (d *Dialer) judge(ctx context.Context, host string, port int, a netip.Addr) *backend.Refusal {
	if why := d.refuses(a); why != "" {
		// The address itself stays unsaid: names of the inside are not the guest's.
		return denied(ruleAddresses, "an address that is not public must be granted as a range by the node's policy",
			"the host %s leads to %s", host, why)
	}
	if d.Judge == nil {
		return nil
	}
	if refusal := d.Judge(ctx, host, port, a); refusal != nil {
		return refusal
	}
	if inner, ok := standsFor(a); ok {
		return d.Judge(ctx, host, port, inner)
	}
	return nil
}

// refuses says why an address may not be dialled, "" if it may.
func (d *Dialer) refuses(a netip.Addr) string {
	why := notPublic(a)
	if why == "" && slices.Contains(d.Own, a) {
		why = "an address of this machine"
	}
	if why == "" {
		return ""
	}
	if d.Endpoint != "" && !isMetadata(a) && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified() && a.Zone() == "" {
		return ""
	}
	for _, p := range d.Allow {
		if p.Contains(a) && (p.IsSingleIP() || !isMetadata(a)) {
			return ""
		}
	}
	return why
}

// connect tries the addresses one after the other.
func (d *Dialer) connect(ctx context.Context, vetted []netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limits.DialTime)
	defer cancel()
	var failures []error
	for i, a := range vetted {
		want := netip.AddrPortFrom(a, port).String()
		one := net.Dialer{
			FallbackDelay: -1,
			// The last word before the connection is made is the address's.
			Control: func(_, address string, _ syscall.RawConn) error {
				if address != want {
					return denied(ruleAddresses, "", "another address than the judged one would be dialled")
				}
				return nil
			},
		}
		// A dead address leaves time for the others.
		share := limits.DialTime
		if i < len(vetted)-1 {
			share /= 3
		}
		attempt, done := context.WithTimeout(ctx, share)
		conn, err := one.DialContext(attempt, "tcp", want)
		done()
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failures...)
}

// Transport is an HTTP transport over d: HTTP/1.1 and 2, no proxy, no
// decompression, TLS from 1.2 on with roots as the only authorities. conns bounds
// the connections to one host.
func (d *Dialer) Transport(roots *x509.CertPool, conns int) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            d.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		Protocols:              protocols,
		DisableCompression:     true,
		TLSHandshakeTimeout:    limits.TLSHandshakeTime,
		IdleConnTimeout:        limits.IdleConnectionTime,
		MaxConnsPerHost:        conns,
		MaxIdleConnsPerHost:    conns,
		MaxIdleConns:           4 * conns,
		MaxResponseHeaderBytes: limits.HTTPHeaderBytes,
	}
}

// Roots reads the trusted certificate authorities; an empty name gives the
// system's. They are read now: a host that has locked itself cannot any more.
func Roots(file string) (*x509.CertPool, error) {
	if file == "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, "", "cannot read the system's certificate authorities")
		}
		return pool, nil
	}
	data, err := limits.ReadFile(file, limits.CAFileBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, file, "cannot read the certificate authorities")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fault.New(fault.PolicyInvalid, file, "holds no certificate authority")
	}
	return pool, nil
}
