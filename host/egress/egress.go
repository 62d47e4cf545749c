package egress

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/dialer"
	"github.com/mentatlab/mentat/host/queue"
	"github.com/mentatlab/mentat/host/secret"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Config is what a [Backend] is made from.
type Config struct {
	// Document says what is granted and, in its Network, how it is served.
	Document *hostdoc.Document
	// Secrets are what injections name.
	Secrets hostdoc.Secrets
	// Resolver finds addresses; nil is the system's.
	Resolver dialer.Resolver
	// Own are this machine's addresses, which count as not public.
	Own []netip.Addr
}

// Backend serves network capabilities ([backend.Backend]).
type Backend struct {
	set        *capability.Set
	grants     []manifest.Capability
	injections []injection
	mask       *secret.Mask
	limits     hostdoc.NetworkLimits
	queue      *queue.Queue
	// transport makes a transport that reaches allow besides public addresses.
	transport func(allow []netip.Prefix) *http.Transport
	private   []netip.Prefix
	port      func(int) *backend.Refusal

	mu    sync.Mutex
	pools map[string]*http.Transport // by grant; guarded by mu
}

// New reads the configuration. Errors are [fault.PolicyInvalid], and
// [fault.Internal] for a document that cannot hold.
func New(c Config) (*Backend, error) {
	n := c.Document.Network
	if n == nil || n.Limits.Concurrent <= 0 || n.Limits.RequestBytes <= 0 || n.Limits.ResponseBytes <= 0 || n.Limits.TimeoutMillis <= 0 {
		return nil, fault.New(fault.Internal, "network", "limits must be set")
	}
	b := &Backend{
		limits: n.Limits,
		queue:  queue.New(n.Limits.Concurrent, limits.QueuedCalls, 4*n.Limits.RequestBytes),
		pools:  map[string]*http.Transport{},
	}
	var err error
	if b.set, err = capability.NewSet(c.Document); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "network", "the host document holds no capability")
	}
	for _, g := range c.Document.Grants {
		if granted, err := manifest.ParseCapability(g.Capability); err == nil && granted.Kind == manifest.KindNetwork {
			b.grants = append(b.grants, granted)
		}
	}
	for _, text := range n.AllowPrivate {
		p, err := dialer.ParsePrivate(text)
		if err != nil {
			return nil, err
		}
		b.private = append(b.private, p)
	}
	if b.injections, b.mask, err = injections(n.Inject, c.Secrets); err != nil {
		return nil, err
	}
	roots, err := dialer.Roots(n.CAFile)
	if err != nil {
		return nil, err
	}
	rules := func(allow []netip.Prefix) *dialer.Dialer {
		return &dialer.Dialer{Resolver: c.Resolver, Own: c.Own, Allow: allow, BlockedPorts: n.BlockedPorts, Judge: b.address}
	}
	b.port = rules(nil).CheckPort
	b.transport = func(allow []netip.Prefix) *http.Transport { return rules(allow).Transport(roots, n.Limits.Concurrent) }
	return b, nil
}

// schemeKey carries a request's scheme to the dialer.
type schemeKey struct{}

// address judges an address that a name resolved to. A connection serves many
// paths, so that a denial of any of them counts.
func (b *Backend) address(ctx context.Context, _ string, port int, a netip.Addr) *backend.Refusal {
	c := manifest.Capability{Kind: manifest.KindNetwork, Scheme: manifest.SchemeAny, Port: port}
	if scheme, ok := ctx.Value(schemeKey{}).(string); ok {
		c.Scheme = scheme
	}
	if port == schemePorts[c.Scheme] {
		c.Port = 0
	}
	return b.refuse(ctx, c.At(a), b.set.Address(c, a))
}

// refuse turns a denial into a refusal; nil lets the request pass.
func (b *Backend) refuse(ctx context.Context, c manifest.Capability, a capability.Answer) *backend.Refusal {
	if !a.Allowed {
		return &backend.Refusal{Code: backend.Denied, Rule: a.Rule, Reason: a.Reason, Hint: a.Hint}
	}
	backend.Count(ctx, c, a.DryRun)
	return nil
}

// Done has nothing to drop: nothing is kept for a run.
func (b *Backend) Done(string) {}

// Close closes the connections that no call uses.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.pools {
		t.CloseIdleConnections()
	}
	clear(b.pools)
	return nil
}

// args narrow a capability.
type args struct {
	// Methods are the only ones allowed.
	Methods []string `json:"methods"`
}

// Open judges a request for a network capability.
func (b *Backend) Open(ctx context.Context, _ string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	if g.Capability.Kind != manifest.KindNetwork {
		return nil, invalid("this is no network capability", "")
	}
	var a args
	if len(g.Args) > 0 && !decode(g.Args, &a) {
		return nil, invalid("the arguments are not as they must be", `they are {"methods": ["GET", …]}, or nothing`)
	}
	for _, m := range a.Methods {
		if refusal := checkMethod(m); refusal != nil {
			return nil, refusal
		}
	}
	// What rules in dry run say to the request itself the host has counted.
	said := b.set.Request(g.Capability)
	said.DryRun = nil
	if refusal := b.refuse(ctx, g.Capability, said); refusal != nil {
		return nil, refusal
	}
	return &opened{b: b, c: g.Capability, methods: a.Methods, transport: b.pool(g.Capability)}, nil
}

// pool finds the connections of the grant that covers c. A grant of a range that
// holds no public address opens that range; the narrowest such grant counts.
// What only the mode covers has public addresses alone.
func (b *Backend) pool(c manifest.Capability) *http.Transport {
	var best *manifest.Capability
	for i := range b.grants {
		if g := &b.grants[i]; g.Allows(c) && (best == nil || rangeBits(*g) > rangeBits(*best)) {
			best = g
		}
	}
	key, allow := "", []netip.Prefix(nil)
	if best != nil {
		key, allow = best.String(), slices.Clone(b.private)
		if p, ok := best.Range(); ok && dialer.Private(p) {
			allow = append(allow, p)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pools[key] == nil {
		b.pools[key] = b.transport(allow)
	}
	return b.pools[key]
}

func rangeBits(c manifest.Capability) int {
	if p, ok := c.Range(); ok {
		return p.Bits()
	}
	return -1
}

func manifestLine(c manifest.Capability) string {
	return "add to wasm.capabilities: - " + c.String()
}

// opened is one opened capability ([backend.Capability]).
type opened struct {
	b       *Backend
	c       manifest.Capability
	methods []string
	// transport holds the connections of the grant.
	transport *http.Transport
}

// Invoke judges a fetch and starts it.
func (o *opened) Invoke(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	if op != "fetch" {
		return nil, &backend.Refusal{Code: backend.Unsupported, Reason: "a network capability has the operation fetch and no other"}
	}
	r, refusal := parseHead(head)
	if refusal != nil {
		return nil, refusal
	}
	if int64(len(body)) > o.b.limits.RequestBytes {
		return nil, &backend.Refusal{Code: backend.Limit, Rule: "request size", Reason: "the request's body is larger than the node allows"}
	}
	r.body = body
	if len(o.methods) > 0 && !slices.Contains(o.methods, r.method) {
		return nil, &backend.Refusal{Code: backend.Denied, Rule: ruleMethods, Reason: "the capability was opened for " + strings.Join(o.methods, ", ") + " only"}
	}
	if refusal := o.check(ctx, &r.target); refusal != nil {
		return nil, refusal
	}
	if _, refusal := inject(o.b.applies(&r.target), r.headers, &r.target); refusal != nil {
		return nil, refusal
	}
	place, refusal := o.b.queue.Enter(int64(len(body)))
	if refusal != nil {
		return nil, refusal
	}
	limit := time.Duration(o.b.limits.TimeoutMillis) * time.Millisecond
	if r.timeout > 0 {
		limit = min(limit, r.timeout)
	}
	return start(ctx, o, r, place, limit), nil
}

// check judges whether a request to t is what the capability was opened for.
func (o *opened) check(ctx context.Context, t *target) *backend.Refusal {
	if t.covered(o.c) {
		if refusal := o.b.refuse(ctx, t.judged, o.b.set.Use(t.judged)); refusal != nil {
			return refusal
		}
		return o.b.port(t.port)
	}
	refusal := &backend.Refusal{Code: backend.Denied, Rule: ruleCapability}
	anywhere, needed := o.c, t.judged
	anywhere.Path, needed.Path = "", ""
	if anywhere.Allows(needed) {
		refusal.Reason = "the capability " + o.c.String() + " does not cover the URL's path"
		refusal.Hint = "the path is compared as it is written; one with '//', a hidden slash or '%25' is covered only where every path is"
		return refusal
	}
	refusal.Reason = "the capability " + o.c.String() + " does not cover " + needed.String()
	refusal.Hint = manifestLine(needed)
	return refusal
}
