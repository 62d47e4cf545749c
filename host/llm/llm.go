package llm

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

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
	// Document says what is granted and, in its LLM, how it is served.
	Document *hostdoc.Document
	// Secrets are what providers name.
	Secrets hostdoc.Secrets
	// Resolver finds addresses; nil is the system's.
	Resolver dialer.Resolver
	// Meters may be nil.
	Meters *backend.Meters
}

// Backend serves llm capabilities ([backend.Backend]).
type Backend struct {
	set       *capability.Set
	providers []*provider
	mask      *secret.Mask
	queue     *queue.Queue
	meters    *backend.Meters
	tokens    int64
	// idle is how long a model may say nothing.
	idle time.Duration

	mu   sync.Mutex
	runs map[string]*budget // guarded by mu
}

// provider is an endpoint.
type provider struct {
	name   string
	models []manifest.Capability
	// chat is where chats are posted.
	chat      *url.URL
	secret    string
	transport *http.Transport
}

// New reads the configuration. Errors are [fault.PolicyInvalid], and
// [fault.Internal] for a document that cannot hold.
func New(c Config) (*Backend, error) {
	l := c.Document.LLM
	if l == nil || len(l.Providers) == 0 || l.Tokens < 0 {
		return nil, fault.New(fault.Internal, "llm", "there must be a provider, and no negative number of tokens")
	}
	b := &Backend{
		queue:  queue.New(limits.LLMConcurrent, limits.QueuedCalls, 4*limits.LLMRequestBytes),
		meters: c.Meters,
		tokens: l.Tokens,
		idle:   limits.LLMIdleTime,
		runs:   map[string]*budget{},
	}
	var err error
	if b.set, err = capability.NewSet(c.Document); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "llm", "the host document holds no capability")
	}
	var roots *x509.CertPool
	if slices.ContainsFunc(l.Providers, func(p hostdoc.LLMProvider) bool { return strings.HasPrefix(p.URL, "https:") }) {
		if roots, err = dialer.Roots(l.CAFile); err != nil {
			return nil, err
		}
	}
	var secrets []string
	for _, configured := range l.Providers {
		p, err := readProvider(configured, c.Secrets)
		if err != nil {
			return nil, err
		}
		d := &dialer.Dialer{Resolver: c.Resolver, Endpoint: endpoint(p.chat)}
		p.transport = d.Transport(roots, limits.LLMConcurrent)
		b.providers = append(b.providers, p)
		if p.secret != "" {
			secrets = append(secrets, p.secret)
		}
	}
	b.mask = secret.NewMask(secrets...)
	return b, nil
}

func readProvider(c hostdoc.LLMProvider, secrets hostdoc.Secrets) (*provider, error) {
	on := "llm provider " + c.Name
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fault.New(fault.PolicyInvalid, on, "its URL must be http(s)://HOST[:PORT][/PATH] and no more").WithHint("like https://api.example.com/v1; credentials are secrets")
	}
	u.Host = strings.ToLower(u.Host)
	p := &provider{name: c.Name, chat: u.JoinPath("chat", "completions")}
	for _, m := range c.Models {
		model, err := manifest.ParseCapability(manifest.KindLLM + ":" + m)
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, on, "offers no model")
		}
		p.models = append(p.models, model)
	}
	if len(p.models) == 0 {
		return nil, fault.New(fault.PolicyInvalid, on, "offers no model")
	}
	if c.Secret != "" {
		if p.secret, err = secret.Lookup(secrets, c.Secret, on); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// endpoint is HOST:PORT as a transport dials it.
func endpoint(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (p *provider) offers(model manifest.Capability) bool {
	return slices.ContainsFunc(p.models, func(m manifest.Capability) bool { return m.Allows(model) })
}

// Done forgets a run's budget.
func (b *Backend) Done(run string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.runs, run)
}

// Close closes the connections that no call uses.
func (b *Backend) Close() error {
	for _, p := range b.providers {
		p.transport.CloseIdleConnections()
	}
	return nil
}

// budget is the budget of a run, made when it is first asked for.
func (b *Backend) budget(run string) *budget {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.runs[run] == nil {
		b.runs[run] = newBudget(b.tokens)
	}
	return b.runs[run]
}

func decode(data []byte, to any) bool {
	return jsonv2.Unmarshal(data, to, jsonv2.RejectUnknownMembers(true)) == nil
}

func invalid(reason, hint string) *backend.Refusal {
	return &backend.Refusal{Code: backend.Invalid, Reason: reason, Hint: hint}
}

// Open judges a request for an llm capability.
func (b *Backend) Open(_ context.Context, run string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	if g.Capability.Kind != manifest.KindLLM {
		return nil, invalid("this is no llm capability", "")
	}
	var args struct {
		Tokens *int64 `json:"tokens"`
	}
	if len(g.Args) > 0 && !decode(g.Args, &args) || args.Tokens != nil && *args.Tokens <= 0 {
		return nil, invalid("the arguments are not as they must be", `they are {"tokens": N}, or nothing`)
	}
	if a := b.set.Request(g.Capability); !a.Allowed {
		return nil, &backend.Refusal{Code: backend.Denied, Rule: a.Rule, Reason: a.Reason, Hint: a.Hint}
	}
	o := &opened{b: b, run: run, c: g.Capability, budgets: []*budget{b.budget(run)}}
	if args.Tokens != nil {
		o.budgets = append(o.budgets, newBudget(*args.Tokens))
	}
	return o, nil
}

// opened is one opened capability ([backend.Capability]).
type opened struct {
	b       *Backend
	run     string
	c       manifest.Capability
	budgets []*budget
}

// Invoke judges a chat and starts it.
func (o *opened) Invoke(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	if op != "chat" {
		return nil, &backend.Refusal{Code: backend.Unsupported, Reason: "an llm capability has the operation chat and no other"}
	}
	if len(head) > 0 && !decode(head, &struct{}{}) {
		return nil, invalid("the request's head must be {}", "the chat is the body")
	}
	if len(body) > limits.LLMRequestBytes {
		return nil, &backend.Refusal{Code: backend.Limit, Rule: "request size", Reason: fmt.Sprintf("a chat's request has at most %d bytes", limits.LLMRequestBytes)}
	}
	r, refusal := parseRequest(body)
	if refusal != nil {
		return nil, refusal
	}
	p, refusal := o.provider(ctx, r.Model)
	if refusal != nil {
		return nil, refusal
	}
	l := newLedger(o.budgets)
	if refusal := l.reserve(r.estimate()); refusal != nil {
		return nil, refusal
	}
	r.bound(l.left())
	sent, err := r.encode()
	if err != nil {
		l.cancel()
		return nil, &backend.Refusal{Code: backend.Internal, Reason: "the request cannot be encoded"}
	}
	place, refusal := o.b.queue.Enter(int64(len(sent)))
	if refusal != nil {
		l.cancel()
		return nil, refusal
	}
	return start(ctx, o, p, r.Model, sent, l, place), nil
}

// provider judges the model and finds who offers it.
func (o *opened) provider(ctx context.Context, name string) (*provider, *backend.Refusal) {
	model, err := manifest.ParseCapability(manifest.KindLLM + ":" + name)
	if err != nil || strings.HasSuffix(name, "*") {
		return nil, invalid("the request's model is no model's name", "")
	}
	if !o.c.Allows(model) {
		return nil, &backend.Refusal{
			Code: backend.Denied, Rule: "capability", Reason: "the capability " + o.c.String() + " does not cover " + model.String(),
			Hint: "add to wasm.capabilities: - " + model.String(),
		}
	}
	a := o.b.set.Use(model)
	if !a.Allowed {
		return nil, &backend.Refusal{Code: backend.Denied, Rule: a.Rule, Reason: a.Reason, Hint: a.Hint}
	}
	backend.Count(ctx, model, a.DryRun)
	for _, p := range o.b.providers {
		if p.offers(model) {
			return p, nil
		}
	}
	return nil, &backend.Refusal{Code: backend.NotFound, Rule: "providers", Reason: "no provider of this node offers the model " + name}
}
