package nodeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// Env names the configuration file for the processes that containerd
	// starts, which take no flags of ours.
	Env = "MENTAT_CONFIG"
	// DefaultPath is used when neither flag nor [Env] names a file.
	DefaultPath = "/etc/mentat/config.toml"
)

// Config is the node's configuration. Relative paths are relative to the file.
type Config struct {
	Verify     Verify     `toml:"verify"`
	Capability Capability `toml:"capability"`
	Audit      Audit      `toml:"audit"`
	Service    Service    `toml:"service"`
	Host       Host       `toml:"host"`
	Cache      Cache      `toml:"cache"`
	Runtime    Runtime    `toml:"runtime"`
	Sandbox    Sandbox    `toml:"sandbox"`
	// Dir is the directory of the configuration file.
	Dir string `toml:"-"`
}

// Verify says where policy, trust stores and revocation data are.
type Verify struct {
	// Policy is the policy file. Empty means: policy.yaml beside the
	// configuration if there is one, else developer mode.
	Policy string `toml:"policy"`
	// Trust is the directory of trust stores.
	Trust string `toml:"trust"`
	// State holds compiled revocation lists.
	State string `toml:"state"`
	// Memory is a tmpfs directory that remembers verdicts.
	Memory string `toml:"memory"`
	// HostsDir is containerd's registry host directory, used by the pull gate.
	HostsDir string `toml:"hosts_dir"`
	// DockerConfig is the credentials file used by the pull gate.
	DockerConfig string `toml:"docker_config"`
	// CredentialProviders is the kubelet's configuration of credential providers,
	// which the pull gate asks where the credentials file has nothing; empty is none.
	CredentialProviders string `toml:"credential_providers"`
	// CredentialProviderDir is the directory of their programs.
	CredentialProviderDir string `toml:"credential_provider_dir"`
}

// Capability says where the node's capability policy and media are.
type Capability struct {
	// Policy is the capability policy. Empty means: capabilities.yaml beside the
	// configuration if there is one, else no rules.
	Policy string `toml:"policy"`
	// Media is the directory of the media store, where the policy names none.
	Media string `toml:"media"`
}

// Audit says where audit records are kept.
type Audit struct {
	// Spool holds records until the node service takes them.
	Spool string `toml:"spool"`
	// Log is the node service's hash-chained log.
	Log string `toml:"log"`
	// Anchor is a file to which the node service appends the log's head from time
	// to time; empty is none.
	Anchor string `toml:"anchor"`
	// Required refuses to create an agent that cannot be recorded.
	Required bool `toml:"required"`
}

// Service is the node service.
type Service struct {
	// Listen is where metrics are served: unix:PATH, or a loopback address with a
	// port.
	Listen string `toml:"listen"`
}

// Host says which mentat-host runs agents.
type Host struct {
	// Binary is mentat-host; empty means next to the running program.
	Binary string `toml:"binary"`
	// NetBinary is mentat-host-net, which runs those that are served or reach a
	// network; empty means next to mentat-host.
	NetBinary string `toml:"net_binary"`
}

// Cache is the cache of compiled modules.
type Cache struct {
	Dir string `toml:"dir"`
	// Memory is a tmpfs directory that remembers what was already checked.
	Memory string `toml:"memory"`
}

// Runtime is the OCI runtime under everything.
type Runtime struct {
	// Binary is the runc to use where the caller names none.
	Binary string `toml:"binary"`
}

// Sandbox bounds every WASM agent on the node. 0 and "" bound nothing; of what
// manifest, container and node say the tighter holds.
type Sandbox struct {
	// MemoryMB bounds a guest's memory, TempDirsMB its temporary directories
	// together, in MiB.
	MemoryMB   int `toml:"memory_mb"`
	TempDirsMB int `toml:"temp_dirs_mb"`
	// DeadlineSeconds bounds a run's wall time, CPUSeconds its processor time.
	DeadlineSeconds int `toml:"deadline_seconds"`
	CPUSeconds      int `toml:"cpu_seconds"`
	// CPUQuotaMS is processor time a second of wall time, in milliseconds.
	CPUQuotaMS int `toml:"cpu_quota_ms"`
	OpenFiles  int `toml:"open_files"`
	// Network is the widest mode: none, restricted or full.
	Network string `toml:"network"`
}

func (s *Sandbox) check(path string) error {
	for _, n := range []struct {
		key       string
		n         int
		low, high int
	}{
		{"memory_mb", s.MemoryMB, 1, 4096},
		{"temp_dirs_mb", s.TempDirsMB, 1, 1 << 20},
		{"deadline_seconds", s.DeadlineSeconds, 1, 24 * 60 * 60},
		{"cpu_seconds", s.CPUSeconds, 1, 24 * 60 * 60},
		{"cpu_quota_ms", s.CPUQuotaMS, 1, 1_000_000},
		{"open_files", s.OpenFiles, limits.MinOpenFiles, limits.OpenFiles},
	} {
		if n.n != 0 && (n.n < n.low || n.n > n.high) {
			return fault.New(fault.PolicyInvalid, path, "sandbox.%s is %d, allowed is %d to %d, or no such line", n.key, n.n, n.low, n.high)
		}
	}
	switch s.Network {
	case "", hostdoc.NetworkNone, hostdoc.NetworkRestricted, hostdoc.NetworkFull:
		return nil
	}
	return fault.New(fault.PolicyInvalid, path, "sandbox.network is %q, allowed are none, restricted and full", s.Network)
}

// The policy files beside a configuration that names none.
const (
	policyName     = "policy.yaml"
	capabilityName = "capabilities.yaml"
)

func defaults() *Config {
	return &Config{
		Verify:     Verify{Trust: "trust", State: "/var/lib/mentat/revocation", Memory: "/run/mentat/verdicts", HostsDir: "/etc/containerd/certs.d"},
		Capability: Capability{Media: "/var/lib/mentat/media"},
		Audit:      Audit{Spool: "/var/lib/mentat/audit/spool", Log: "/var/lib/mentat/audit/log"},
		Service:    Service{Listen: "unix:/run/mentat/node.sock"},
		Cache:      Cache{Dir: "/var/lib/mentat/modules", Memory: "/run/mentat/modules"},
		Runtime:    Runtime{Binary: "runc"},
	}
}

// Load reads the file at path; with an empty path the one that [Env] names;
// else [DefaultPath], which alone may be absent.
func Load(path string) (*Config, error) {
	optional := false
	if path == "" {
		path = os.Getenv(Env)
	}
	if path == "" {
		path, optional = DefaultPath, true
	}
	data, err := limits.ReadFile(path, limits.PolicyBytes)
	if optional && errors.Is(err, fs.ErrNotExist) {
		c := defaults()
		c.Dir = filepath.Dir(path)
		return c.resolve()
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, path, "cannot read the node configuration")
	}
	return Parse(path, data)
}

// Parse decodes a configuration; path names it and anchors relative paths.
func Parse(path string, data []byte) (*Config, error) {
	c := defaults()
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return nil, explain(path, err)
	}
	if err := exactKeys(path, data); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot resolve the path")
	}
	if err := c.Sandbox.check(path); err != nil {
		return nil, err
	}
	c.Dir = filepath.Dir(abs)
	return c.resolve()
}

// explain gives the decoder's error its line.
func explain(path string, err error) error {
	at := func(e *toml.DecodeError) string {
		line, _ := e.Position()
		return fmt.Sprintf("%s:%d", path, line)
	}
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		e := &strict.Errors[0]
		return fault.New(fault.PolicyInvalid, at(e), "unknown key %q, allowed are %s", strings.Join(e.Key(), "."), strings.Join(Keys(), ", "))
	}
	var malformed *toml.DecodeError
	if errors.As(err, &malformed) {
		return fault.Wrap(err, fault.PolicyInvalid, at(malformed), "the node configuration is malformed")
	}
	return fault.Wrap(err, fault.PolicyInvalid, path, "the node configuration is malformed")
}

// Keys are all keys of the configuration, as "table.key".
func Keys() []string {
	var keys []string
	for table := range reflect.TypeFor[Config]().Fields() {
		if table.Type.Kind() != reflect.Struct {
			continue
		}
		for field := range table.Type.Fields() {
			keys = append(keys, table.Tag.Get("toml")+"."+field.Tag.Get("toml"))
		}
	}
	return keys
}

// exactKeys refuses keys in another case: the decoder takes them, so that of
// policy and Policy in one file the reader could not tell which counts.
func exactKeys(path string, data []byte) error {
	var tables map[string]map[string]any
	if err := toml.Unmarshal(data, &tables); err != nil {
		return explain(path, err)
	}
	known := Keys()
	for table, keys := range tables {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, table+".") }) {
			return fault.New(fault.PolicyInvalid, path, "unknown table %q, allowed are the keys %s", table, strings.Join(known, ", "))
		}
		for key := range keys {
			if !slices.Contains(known, table+"."+key) {
				return fault.New(fault.PolicyInvalid, path, "unknown key %q, allowed are %s", table+"."+key, strings.Join(known, ", "))
			}
		}
	}
	return nil
}

func (c *Config) resolve() (*Config, error) {
	for _, p := range []*string{
		&c.Verify.Policy, &c.Verify.Trust, &c.Verify.State, &c.Verify.Memory, &c.Verify.HostsDir, &c.Verify.DockerConfig,
		&c.Verify.CredentialProviders, &c.Verify.CredentialProviderDir,
		&c.Capability.Policy, &c.Capability.Media, &c.Audit.Spool, &c.Audit.Log, &c.Audit.Anchor,
		&c.Host.Binary, &c.Host.NetBinary, &c.Cache.Dir, &c.Cache.Memory,
	} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(c.Dir, *p)
		}
	}
	if err := errors.Join(c.beside(&c.Verify.Policy, policyName), c.beside(&c.Capability.Policy, capabilityName)); err != nil {
		return nil, err
	}
	return c, nil
}

// beside names the file beside the configuration if there is one and none was
// named.
func (c *Config) beside(path *string, name string) error {
	if *path != "" {
		return nil
	}
	file := filepath.Join(c.Dir, name)
	_, err := os.Lstat(file)
	if err == nil {
		*path = file
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.PolicyInvalid, file, "cannot tell whether there is such a policy")
	}
	return nil
}
