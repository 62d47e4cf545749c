package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/crypto/bcrypt"
)

// RegistryConfig says what a private registry demands of its clients.
type RegistryConfig struct {
	// Certificate and Key are PEM files; with them the registry speaks TLS.
	Certificate, Key string
	// Username and Password, if set, are required (HTTP basic authentication).
	Username, Password string
	// TokenRealm, if set, is the address of the token server whose tokens are
	// required, which call themselves Issuer and lead to a certificate in TokenRoots, a
	// PEM file.
	TokenRealm, TokenRoots string
}

// What a registry and its token server call themselves.
const (
	Issuer  = "a token server"
	Service = "a registry"
)

// Registry is a private registry on a loopback port.
type Registry struct {
	// Host is host:port, the first part of a reference.
	Host    string
	process *process
}

var listening = regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`)

// StartRegistry starts a registry that ends with the node. The port is chosen
// by the kernel, so that no two tests ever meet on one.
func (n *Node) StartRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	dir := n.path("registry" + strconv.Itoa(len(n.registries)))
	r, err := StartRegistry(ctx, n.cfg.Tools, dir, n.Environ(), cfg)
	if r != nil {
		n.registries = append(n.registries, r)
	}
	return r, err
}

// StartRegistry starts the registry of the directory tools without a node, with
// its files in dir. Whoever calls stops it, also when it did not get ready.
func StartRegistry(ctx context.Context, tools, dir string, environ []string, cfg RegistryConfig) (*Registry, error) {
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http:
  addr: 127.0.0.1:0
`, filepath.Join(dir, "data"))
	if cfg.Certificate != "" {
		config += fmt.Sprintf("  tls: {certificate: %q, key: %q}\n", cfg.Certificate, cfg.Key)
	}
	if cfg.Username != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(cfg.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		users := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(users, fmt.Appendf(nil, "%s:%s\n", cfg.Username, hash), 0o600); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("auth:\n  htpasswd: {realm: mentat, path: %q}\n", users)
	}
	if cfg.TokenRealm != "" {
		config += fmt.Sprintf("auth:\n  token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}\n", cfg.TokenRealm, Service, Issuer, cfg.TokenRoots)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(tools, "registry"), "serve", file)
	cmd.Env = append(slices.Clone(environ), "OTEL_TRACES_EXPORTER=none")
	p, err := startProcess(cmd, filepath.Join(dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	r := &Registry{process: p}
	err = p.ready(ctx, readyWithin, func(context.Context) error {
		m := listening.FindStringSubmatch(p.text())
		if m == nil {
			return errors.New("no port yet")
		}
		r.Host = "127.0.0.1:" + m[1]
		return nil
	})
	return r, err
}

// Stop ends the registry: from then on its port refuses connections.
func (r *Registry) Stop() error { return r.process.stop() }

// Log is what the registry wrote, one line per request included.
func (r *Registry) Log() string { return r.process.text() }
