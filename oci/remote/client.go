package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"
	orasremote "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Options say how registries are reached. The zero value uses the system's
// certificate authorities, docker's credentials and no mirrors.
type Options struct {
	// CAFile is a PEM file of certificate authorities to trust beside the
	// system's.
	CAFile string
	// PlainHTTP speaks HTTP to every registry. Without it only loopback hosts
	// that do not speak TLS are spoken to in HTTP.
	PlainHTTP bool
	// DockerConfig is docker's config.json with credentials and helpers. Empty
	// is $DOCKER_CONFIG/config.json, else ~/.docker/config.json. A file that
	// does not exist holds no credentials.
	DockerConfig string
	// HostsDir is containerd's registry host directory (hosts.toml or
	// certificate files in a directory per host). skip_verify in it is not
	// honoured.
	HostsDir string
	// Username and Password, if set, are used instead of docker's credentials
	// for the registry that a reference names, but not for its mirrors.
	Username, Password string
	// Provide, if set, is asked for the credentials of the registry that a
	// reference names, never for its mirrors', where docker's configuration has
	// none. ok is false when it has none either.
	Provide func(context.Context) (user, secret string, ok bool, err error)
	// UserAgent is sent with every request; empty is "mentat".
	UserAgent string
	// Progress, if set, is told about transfers; calls do not overlap.
	Progress func(Event)
}

// What an [Event] is about.
const (
	OpPull = "pull"
	OpPush = "push"
	// OpSkip: the content was at its destination already.
	OpSkip = "skip"
)

// Event is progress of one blob: Done of Total bytes are transferred. The last
// event of a blob has Done equal to Total.
type Event struct {
	Op        string
	Digest    digest.Digest
	MediaType string
	Done      int64
	Total     int64
}

// Client talks to registries. It is safe for concurrent use.
type Client struct {
	opts  Options
	roots *x509.CertPool // nil: the system's
	cache auth.Cache
	store func() (*credentials.DynamicStore, error)
	// stall is how long nothing may move before an exchange is given up.
	stall time.Duration

	mu    sync.Mutex
	hosts map[string][]*endpoint // guarded by mu

	progress sync.Mutex // held while Progress is called
}

const (
	defaultUserAgent = "mentat"
	defaultStall     = time.Minute
	dialTimeout      = 10 * time.Second
)

// New makes a client. It reads CAFile, nothing else. Errors: NotFound or Usage
// for a CA file that is not one.
func New(opts Options) (*Client, error) {
	if opts.UserAgent == "" {
		opts.UserAgent = defaultUserAgent
	}
	c := &Client{opts: opts, cache: auth.NewCache(), stall: defaultStall, hosts: map[string][]*endpoint{}}
	if opts.CAFile != "" {
		var err error
		if c.roots, err = withCA(nil, opts.CAFile); err != nil {
			return nil, err
		}
	}
	// Only a registry that asks for credentials makes us read them: a broken
	// configuration does not get in the way of public images.
	c.store = sync.OnceValues(c.openStore)
	return c, nil
}

// withCA adds a file's certificates to a pool; nil is the system's.
func withCA(pool *x509.CertPool, file string) (*x509.CertPool, error) {
	data, err := limits.ReadFile(file, limits.CAFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, file, "no such file of certificate authorities")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, file, "cannot read the certificate authorities")
	}
	if pool == nil {
		if pool, err = x509.SystemCertPool(); err != nil {
			pool = x509.NewCertPool() // a system without a pool has only ours
		}
	} else {
		pool = pool.Clone()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fault.New(fault.Usage, file, "holds no PEM certificate")
	}
	return pool, nil
}

// dockerConfig is the path of docker's configuration file.
func (c *Client) dockerConfig() (string, error) {
	if c.opts.DockerConfig != "" {
		return c.opts.DockerConfig, nil
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.Wrap(err, fault.AccessDenied, "docker configuration", "cannot tell where it is").WithHint("set DOCKER_CONFIG")
	}
	return filepath.Join(home, ".docker", "config.json"), nil
}

func (c *Client) openStore() (*credentials.DynamicStore, error) {
	path, err := c.dockerConfig()
	if err != nil {
		return nil, err
	}
	// Like docker: without a helper, secrets go into the file, mode 0600.
	s, err := credentials.NewStore(path, credentials.StoreOptions{AllowPlaintextPut: true})
	if err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, path, "cannot read registry credentials")
	}
	return s, nil
}

// credential looks a host's credentials up in docker's configuration.
func (c *Client) credential(ctx context.Context, hostport string) (auth.Credential, error) {
	s, err := c.store()
	if err != nil {
		return auth.EmptyCredential, err
	}
	cred, err := credentials.Credential(s)(ctx, hostport)
	if err != nil {
		return auth.EmptyCredential, fault.Wrap(err, fault.AccessDenied, hostport, "cannot get credentials through %s", s.ConfigPath())
	}
	return cred, nil
}

// provided looks into docker's configuration first, and for the named server asks
// [Options.Provide] where that has nothing.
func (c *Client) provided(server string) auth.CredentialFunc {
	return func(ctx context.Context, hostport string) (auth.Credential, error) {
		cred, err := c.credential(ctx, hostport)
		if err != nil || cred != auth.EmptyCredential || hostport != server {
			return cred, err
		}
		user, secret, ok, err := c.opts.Provide(ctx)
		if err != nil || !ok {
			return auth.EmptyCredential, err
		}
		return auth.Credential{Username: user, Password: secret}, nil
	}
}

// endpoint is one server that answers for a registry.
type endpoint struct {
	// server is the host, with a port if there is one; path is the API's root.
	server, path string
	plain        bool
	// namespace is the registry's name if the server is a mirror of it.
	namespace string
	can       capability
	client    *auth.Client
	// note explains a failed certificate check.
	note string
}

// parseReference wants HOST/REPOSITORY with a tag or a digest.
func parseReference(ref string) (registry.Reference, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return r, fault.Wrap(err, fault.Usage, ref, "is not a reference of the form HOST/REPOSITORY:TAG or HOST/REPOSITORY@DIGEST")
	}
	// What looks like a path of docker's default registry is more often a typing error.
	if host := r.Registry; !strings.ContainsAny(host, ".:") && host != "localhost" {
		return r, fault.New(fault.Usage, ref, "%q is not a registry's host name", host).WithHint("write the registry too, for example docker.io/%s", ref)
	}
	return r, nil
}

// endpoints finds the servers for a registry, in the order to try.
func (c *Client) endpoints(ctx context.Context, host string) ([]*endpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if eps, ok := c.hosts[host]; ok {
		return eps, nil
	}
	configs := []hostConfig{{can: canAll}}
	if c.opts.HostsDir != "" {
		found, err := loadHosts(c.opts.HostsDir, host)
		if err != nil {
			return nil, err
		}
		if found != nil {
			configs = found
		}
	}
	var eps []*endpoint
	for _, cfg := range configs {
		ep, err := c.endpoint(ctx, host, cfg)
		if err != nil {
			return nil, err
		}
		eps = append(eps, ep)
	}
	c.hosts[host] = eps
	return eps, nil
}

func (c *Client) endpoint(ctx context.Context, host string, cfg hostConfig) (*endpoint, error) {
	own := registry.Reference{Registry: host}.Host() // docker.io answers elsewhere
	ep := &endpoint{server: cfg.server, path: cfg.path, plain: cfg.plain, can: cfg.can, note: cfg.note}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots, Certificates: cfg.clientCerts}
	for _, ca := range cfg.cas {
		var err error
		if tlsConfig.RootCAs, err = withCA(tlsConfig.RootCAs, ca); err != nil {
			return nil, err
		}
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	if cfg.dialTimeout > 0 {
		dialer.Timeout = cfg.dialTimeout
	}
	if ep.server == "" {
		ep.server, ep.path = own, apiRoot
		ep.plain = c.opts.PlainHTTP
		if !ep.plain && isLoopback(own) {
			secure, err := speaksTLS(ctx, dialer, own, tlsConfig)
			if err != nil {
				return nil, ep.fail(err, own, "cannot reach the registry")
			}
			ep.plain = !secure
		}
	}
	if ep.server != own {
		ep.namespace = host
	}

	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = tlsConfig
	base.DialContext = dialer.DialContext
	base.MaxIdleConnsPerHost = transfers
	ep.client = &auth.Client{
		Client: &http.Client{
			Transport:     newTransport(base, ep, cfg.header, c.stall),
			CheckRedirect: ep.checkRedirect,
		},
		Cache:      c.cache,
		Credential: c.credential,
	}
	if c.opts.Provide != nil && ep.namespace == "" {
		ep.client.Credential = c.provided(ep.server)
	}
	ep.client.SetUserAgent(c.opts.UserAgent)
	if c.opts.Username != "" && ep.namespace == "" {
		ep.client.Credential = auth.StaticCredential(ep.server, auth.Credential{Username: c.opts.Username, Password: c.opts.Password})
	}
	return ep, nil
}

// isLoopback is about the name as written: what a name resolves to can change.
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}

// speaksTLS asks a loopback server, where both protocols are usual, which one
// it speaks. Only an answer that is not TLS at all counts as plain HTTP.
func speaksTLS(ctx context.Context, dialer *net.Dialer, host string, config *tls.Config) (bool, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		return true, nil // port 443
	}
	ctx, cancel := context.WithTimeout(ctx, dialer.Timeout)
	defer cancel()
	conn, err := (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", host)
	if err == nil {
		_ = conn.Close() // nothing was sent
		return true, nil
	}
	var (
		notTLS tls.RecordHeaderError
		cert   *tls.CertificateVerificationError
		alert  tls.AlertError
	)
	switch {
	case errors.As(err, &notTLS):
		return false, nil
	case errors.As(err, &cert), errors.As(err, &alert):
		return true, nil // the request will say what is wrong
	}
	return false, err
}

// repository is oras-go's client for one endpoint of a reference.
func (ep *endpoint) repository(ref registry.Reference) *orasremote.Repository {
	ref.Registry = ep.server
	// The library cuts what is longer off; one byte more lets us see it.
	return &orasremote.Repository{Client: ep.client, Reference: ref, PlainHTTP: ep.plain, MaxMetadataBytes: limits.OCIManifestBytes + 1}
}

// checkRedirect keeps a redirect from leaving TLS: only where plain HTTP was
// right for the request is it right for its redirects, and then only to the
// same host or to a loopback address.
func (ep *endpoint) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	if req.URL.Scheme == "http" && !(ep.plain && (req.URL.Host == ep.server || isLoopback(req.URL.Host))) {
		return fault.New(fault.Unavailable, ep.server, "redirects to plain HTTP at %s, which is not followed", req.URL.Host)
	}
	return nil
}

// Login checks a user name and secret with the registry host and stores them
// where docker does: in a credential helper if one is configured, else in
// docker's configuration file. Errors: AccessDenied when the registry or the
// store refuses.
func (c *Client) Login(ctx context.Context, host, user, secret string) error {
	reg, ep, err := c.registry(ctx, host)
	if err != nil {
		return err
	}
	if user == "" || secret == "" {
		return fault.New(fault.Usage, host, "logging in needs a user name and a secret")
	}
	s, err := c.store()
	if err != nil {
		return err
	}
	// Login sets the credential on a copy of the client only.
	client := *ep.client
	client.Cache = nil
	reg.Client = &client
	if err := credentials.Login(ctx, s, reg, auth.Credential{Username: user, Password: secret}); err != nil {
		return ep.fail(err, host, "cannot log in")
	}
	return nil
}

// Logout forgets the credentials for a registry host.
func (c *Client) Logout(ctx context.Context, host string) error {
	if err := checkHost(host); err != nil {
		return err
	}
	s, err := c.store()
	if err != nil {
		return err
	}
	if err := credentials.Logout(ctx, s, host); err != nil {
		return fault.Wrap(err, fault.AccessDenied, host, "cannot log out")
	}
	return nil
}

func checkHost(host string) error {
	if err := (registry.Reference{Registry: host}).ValidateRegistry(); err != nil || host == "" || strings.Contains(host, "/") {
		return fault.New(fault.Usage, host, "is not a registry's host name")
	}
	return nil
}

// registry is the server that a user logs in to: the registry itself, not one
// of its mirrors.
func (c *Client) registry(ctx context.Context, host string) (*orasremote.Registry, *endpoint, error) {
	if err := checkHost(host); err != nil {
		return nil, nil, err
	}
	eps, err := c.endpoints(ctx, host)
	if err != nil {
		return nil, nil, err
	}
	ep := eps[len(eps)-1]
	reg, err := orasremote.NewRegistry(ep.server)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Usage, host, "is not a registry's host name")
	}
	reg.PlainHTTP = ep.plain
	return reg, ep, nil
}
