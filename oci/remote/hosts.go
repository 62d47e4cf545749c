package remote

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// capability is what an endpoint may be used for.
type capability uint8

const (
	canPull capability = 1 << iota
	canResolve
	canPush
	canReferrers
	canAll = canPull | canResolve | canPush | canReferrers
)

var capabilities = map[string]capability{"pull": canPull, "resolve": canResolve, "push": canPush, "referrers": canReferrers}

// hostConfig is one server of a hosts.toml file; an empty server is the
// registry itself.
type hostConfig struct {
	server, path string
	plain        bool
	can          capability
	cas          []string
	clientCerts  []tls.Certificate
	header       http.Header
	dialTimeout  time.Duration
	note         string
}

// hostTable has the keys that containerd knows. Where it takes a string or a
// list, so do we.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	Server string `toml:"server"`
	hostTable
	Host map[string]hostTable `toml:"host"`
}

const hostsName = "hosts.toml"

// loadHosts reads what a containerd host directory says about a registry; nil
// when it says nothing. containerd falls back to other files when hosts.toml
// is malformed; here that is an error, because a mirror or an authority that is
// silently left out is worse than no answer.
func loadHosts(root, host string) ([]hostConfig, error) {
	for _, dir := range hostDirs(root, host) {
		fi, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !fi.IsDir() {
			return nil, fault.New(fault.Unavailable, dir, "cannot read the registry's host directory")
		}
		file := filepath.Join(dir, hostsName)
		data, err := limits.ReadFile(file, limits.HostsFileBytes)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
			return certFiles(dir)
		}
		if err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, file, "cannot be read")
		}
		return parseHosts(file, data)
	}
	return nil, nil
}

// hostDirs are the directories that containerd looks into, most specific first.
func hostDirs(root, host string) []string {
	names := []string{host, "_default"}
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		names = append([]string{host[:i] + "_" + host[i+1:] + "_"}, names...)
	}
	for i, n := range names {
		if runtime.GOOS == "windows" {
			n = strings.ReplaceAll(n, ":", "")
		}
		names[i] = filepath.Join(root, n)
	}
	return names
}

func parseHosts(file string, data []byte) ([]hostConfig, error) {
	bad := func(err error) error {
		return fault.Wrap(err, fault.Unavailable, file, "the registry host file is malformed")
	}
	var f hostsFile
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			err = fmt.Errorf("unknown key: %s", strict.String())
		}
		return nil, bad(err)
	}
	order, err := hostOrder(data)
	if err != nil {
		return nil, bad(err)
	}
	if len(order) != len(f.Host) {
		return nil, bad(errors.New("hosts must be tables of their own, [host.\"URL\"]"))
	}
	var out []hostConfig
	for _, server := range order {
		cfg, err := f.Host[server].config(filepath.Dir(file), server)
		if err != nil {
			return nil, bad(fmt.Errorf("host %q: %w", server, err))
		}
		out = append(out, cfg)
	}
	cfg, err := f.config(filepath.Dir(file), f.Server)
	if err != nil {
		return nil, bad(err)
	}
	return append(out, cfg), nil
}

// hostOrder lists the host tables as they stand in the file, which is the
// order to try them in; a decoded map has lost it.
func hostOrder(data []byte) ([]string, error) {
	var p unstable.Parser
	p.Reset(data)
	var order []string
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	return order, p.Error()
}

func (t hostTable) config(dir, server string) (hostConfig, error) {
	var c hostConfig
	if server != "" {
		if !strings.Contains(server, "://") {
			server = "https://" + server
		}
		u, err := url.Parse(server)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http" {
			return c, fmt.Errorf("%q is not an http or https address of a server", server)
		}
		c.server, c.plain = u.Host, u.Scheme == "http"
		c.path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
		if !t.OverridePath && !strings.HasSuffix(c.path, apiRoot) {
			c.path += apiRoot
		}
	}
	for _, name := range t.Capabilities {
		can, ok := capabilities[strings.ToLower(name)]
		if !ok {
			return c, fmt.Errorf("unknown capability %q, allowed are pull, resolve, push, referrers", name)
		}
		c.can |= can
	}
	if c.can == 0 {
		c.can = canAll
	}
	var err error
	if c.cas, err = stringList("ca", t.CA); err != nil {
		return c, err
	}
	for i, ca := range c.cas {
		c.cas[i] = within(dir, ca)
	}
	if c.clientCerts, err = clientCerts(dir, t.Client); err != nil {
		return c, err
	}
	if t.SkipVerify {
		c.note = "; skip_verify in " + filepath.Join(dir, hostsName) + " is not honoured, ca is"
	}
	for name, v := range t.Header {
		if c.header == nil {
			c.header = http.Header{}
		}
		values, err := stringList("header", v)
		if err != nil {
			return c, err
		}
		c.header[http.CanonicalHeaderKey(name)] = values
	}
	if t.DialTimeout != "" {
		if c.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil || c.dialTimeout <= 0 {
			return c, fmt.Errorf("dial_timeout %q is not a duration", t.DialTimeout)
		}
	}
	return c, nil
}

func within(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

// stringList takes nothing, a string or a list of strings.
func stringList(key string, v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%s: %v is not a string", key, e)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s: %v is neither a string nor a list of strings", key, v)
}

// clientCerts takes a file with certificate and key, a list of such files, or
// a list of pairs of files.
func clientCerts(dir string, v any) ([]tls.Certificate, error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	var out []tls.Certificate
	for _, e := range list {
		files, err := stringList("client", e)
		if err != nil {
			return nil, err
		}
		if len(files) == 1 {
			files = append(files, files[0])
		}
		if len(files) != 2 {
			return nil, fmt.Errorf("client: %v is not a certificate and a key", e)
		}
		cert, err := tls.LoadX509KeyPair(within(dir, files[0]), within(dir, files[1]))
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		out = append(out, cert)
	}
	return out, nil
}

// certFiles reads a directory without hosts.toml as docker does: *.crt are
// authorities, NAME.cert with NAME.key a client certificate.
func certFiles(dir string) ([]hostConfig, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, dir, "cannot read the registry's host directory")
	}
	c := hostConfig{can: canAll}
	for _, e := range entries {
		name := e.Name()
		switch {
		case e.IsDir():
		case strings.HasSuffix(name, ".crt"):
			c.cas = append(c.cas, filepath.Join(dir, name))
		case strings.HasSuffix(name, ".cert"):
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if _, err := os.Stat(filepath.Join(dir, key)); errors.Is(err, fs.ErrNotExist) {
				key = name
			}
			certs, err := clientCerts(dir, []any{[]any{name, key}})
			if err != nil {
				return nil, fault.Wrap(err, fault.Unavailable, dir, "cannot use the registry's client certificate")
			}
			c.clientCerts = append(c.clientCerts, certs...)
		}
	}
	return []hostConfig{c}, nil
}
