package manifest

import (
	"errors"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// Bounds on single values, in bytes.
const (
	maxIdentifier  = 128
	maxVersion     = 128
	maxDescription = 4096
	maxPath        = 512
	maxReference   = 512
	maxConfigKey   = 128
	maxConfigBytes = 64 * limits.KiB
	maxEnvBytes    = 32 * limits.KiB
	maxGuestMemory = 4096 * limits.MiB
	maxEntries     = 256
)

var (
	identifier = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	semver     = regexp.MustCompile(`^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)` +
		`(-(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?` +
		`(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
	containerRuntime = regexp.MustCompile(`^((python|node|java)[0-9.]*|container)$`)
	reference        = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?$`)
	configKey        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

// problems collects what is wrong, each with where it was written.
type problems struct {
	source source
	all    []error
}

func (p *problems) add(path, format string, args ...any) {
	p.hint(path, "", format, args...)
}

// hint is add with what the reader can do about it.
func (p *problems) hint(path, hint, format string, args ...any) {
	err := fault.New(fault.ManifestInvalid, p.source.at(path), format, args...)
	err.Hint = hint
	p.all = append(p.all, err)
}

// validate applies the rules that types alone do not express, and brings values
// with several spellings into one. They are the same for YAML and JSON. A value
// that is empty although it was written has been reported by the decoder.
func (m *Manifest) validate() error {
	p := &problems{source: m.source}
	m.validateIdentity(p)
	m.validateRuntime(p)
	m.validateServe(p)
	m.validateConfig(p)
	if m.WASM != nil {
		m.WASM.validate(p)
	}
	if m.Sandbox != nil {
		m.Sandbox.validate(p)
	}
	return errors.Join(p.all...)
}

func (m *Manifest) validateIdentity(p *problems) {
	switch {
	case m.ID == "" && p.source.said("id"):
	case m.ID == "":
		p.hint("id", "add a line like: id: example.my-agent", "id is missing")
	case !ValidID(m.ID):
		p.add("id", "id %q, allowed are words of a-z and 0-9 joined by '.', '_' or '-', up to %d characters", clip(m.ID), maxIdentifier)
	}
	switch {
	case m.Version == "" && p.source.said("version"):
	case m.Version == "":
		p.hint("version", "add a line like: version: 1.0.0", "version is missing")
	case !ValidVersion(m.Version):
		p.add("version", "version %q, allowed is a semantic version like 1.0.0", clip(m.Version))
	}
	if len(m.Description) > maxDescription || strings.ContainsFunc(m.Description, func(r rune) bool { return r != '\n' && unprintable(r) }) {
		p.add("description", "description, allowed is printable text up to %d bytes", maxDescription)
	}
}

func (m *Manifest) validateRuntime(p *problems) {
	switch {
	case m.WASMAgent():
		if m.Module == "" {
			if !p.source.said("module") {
				p.hint("runtime", "add a line like: module: agent.wasm", "runtime wasm needs a module")
			}
		} else if len(m.Module) > maxPath || !printable(m.Module) || strings.ContainsAny(m.Module, `\:`) || !fs.ValidPath(m.Module) || m.Module == "." {
			p.add("module", "module %q, allowed is a plain relative path like agent.wasm", clip(m.Module))
		}
	case m.Runtime == "" && p.source.said("runtime"):
	case m.Runtime == "" || len(m.Runtime) > maxIdentifier || !containerRuntime.MatchString(m.Runtime):
		p.add("runtime", "runtime %q, allowed are wasm, container and python…, node…, java… with a version", clip(m.Runtime))
	default:
		for _, only := range []struct {
			key string
			set bool
		}{{"module", m.Module != ""}, {"wasm", m.WASM != nil}, {"mode", m.Mode != ""}, {"serve", m.Serve != nil}, {"container", m.Container != ""}} {
			if only.set {
				p.hint(only.key, "write runtime: wasm", "%s does not go with runtime %s", only.key, m.Runtime)
			}
		}
		if m.Image == "" && !p.source.said("image") {
			p.add("runtime", "runtime %s needs an image", m.Runtime)
		}
	}
	if m.Image != "" && (len(m.Image) > maxReference || !reference.MatchString(m.Image) || strings.Contains(m.Image, "//")) {
		p.add("image", "image %q, allowed is an image reference like registry.example/agents/name:1.0.0", clip(m.Image))
	}
	if len(m.Container) > maxReference || !printable(m.Container) {
		p.add("container", "container, allowed is an image reference or the path of an OCI layout, up to %d bytes", maxReference)
	}
}

func (m *Manifest) validateConfig(p *problems) {
	total := 0
	for _, key := range slices.Sorted(maps.Keys(m.Config)) {
		total += len(key) + len(m.Config[key])
		if len(key) > maxConfigKey || !configKey.MatchString(key) {
			p.add(strictyaml.Key("config", key), "config key %q, allowed are letters, digits, '_', '.' and '-', up to %d characters", clip(key), maxConfigKey)
		}
	}
	if total > maxConfigBytes {
		p.add("config", "config has %d bytes, at most %d are allowed", total, maxConfigBytes)
	}
}

func (w *WASM) validate(p *problems) {
	switch w.Engine {
	case "", EngineWasmtime:
	case "wasmedge":
		p.hint("wasm.engine", "write engine: wasmtime or leave the line out", "engine wasmedge is not available, allowed is wasmtime")
	default:
		p.add("wasm.engine", "engine %q, allowed is wasmtime", clip(w.Engine))
	}
	if w.Memory != nil {
		for _, bound := range []struct {
			key  string
			size Size
		}{{"initial", w.Memory.Initial}, {"maximum", w.Memory.Maximum}} {
			if bound.size > maxGuestMemory {
				p.add("wasm.memory."+bound.key, "wasm.memory.%s is %s, a WASM memory has at most 4GB", bound.key, bound.size)
			}
		}
		if w.Memory.Maximum > 0 && w.Memory.Initial > w.Memory.Maximum {
			p.add("wasm.memory.initial", "wasm.memory.initial %s is over wasm.memory.maximum %s", w.Memory.Initial, w.Memory.Maximum)
		}
	}
	if len(w.Capabilities) > limits.Capabilities {
		p.add("wasm.capabilities", "%d capabilities, at most %d are allowed", len(w.Capabilities), limits.Capabilities)
	}
	first := map[Capability]int{}
	for i, c := range w.Capabilities {
		if before, ok := first[c]; ok && c.Kind != "" {
			p.add(strictyaml.Index("wasm.capabilities", i), "capability %s is there twice, first as number %d", c, before+1)
			continue
		}
		first[c] = i
	}
	if w.WASI != nil {
		w.WASI.validate(p)
	}
}

func (w *WASI) validate(p *problems) {
	switch w.Version {
	case "", WASIPreview1, WASIPreview2:
	default:
		p.add("wasm.wasi.version", "wasm.wasi.version %q, allowed are preview1, preview2", clip(w.Version))
	}
	w.Preopens.validate(p, "wasm.wasi.preopens")
	total, seen := 0, map[string]bool{}
	for i, env := range w.Env {
		at := strictyaml.Index("wasm.wasi.env", i)
		total += len(env)
		key, value, ok := strings.Cut(env, "=")
		switch {
		case !ok || checkEnvName(key) != "":
			p.add(at, "env %q, allowed is NAME=VALUE with a name of letters, digits and '_'", clip(env))
		case strings.ContainsRune(value, 0):
			p.add(at, "env %s has a NUL character in its value", key)
		case seen[key]:
			p.add(at, "env %s is there twice", key)
		}
		seen[key] = true
	}
	if total > maxEnvBytes || len(w.Env) > maxEntries {
		p.add("wasm.wasi.env", "%d variables of %d bytes, at most %d of %d bytes are allowed", len(w.Env), total, maxEntries, maxEnvBytes)
	}
}

func (d Preopens) validate(p *problems, at string) {
	for _, dir := range slices.Sorted(maps.Keys(d)) {
		guestDir(p, at, dir)
		if mode := d[dir]; mode != "" && mode != ModeReadOnly && mode != ModeReadWrite {
			p.add(strictyaml.Key(at, dir), "%s: mode %q, allowed are read-only and read-write", clip(dir), clip(mode))
		}
	}
	if len(d) > maxEntries {
		p.add(at, "%d directories, at most %d are allowed", len(d), maxEntries)
	}
}

// guestDir checks a directory's name. It must be in its one spelling already:
// two names for one directory could contradict each other.
func guestDir(p *problems, at, dir string) {
	at = strictyaml.Key(at, dir)
	clean, problem := cleanPath(dir)
	switch {
	case problem != "":
		p.add(at, "%q: %s", clip(dir), problem)
	case !printable(dir) || len(dir) > maxPath:
		p.add(at, "%q: allowed are printable characters, up to %d bytes", clip(dir), maxPath)
	case clean != dir:
		p.add(at, "%q: write %s", clip(dir), clean)
	case dir == "/":
		p.add(at, "\"/\" cannot be given; name a directory")
	}
}

func (s *Sandbox) validate(p *problems) {
	mustStand := func(path string, wall *bool) {
		if wall != nil && !*wall {
			p.add(path, "%s is false, allowed is true: an agent cannot take its own walls down", path)
		}
	}
	if s.Process != nil {
		mustStand("sandbox.process.namespace", s.Process.Namespace)
		mustStand("sandbox.process.no_new_privs", s.Process.NoNewPrivs)
		if s.Process.Seccomp != "" && s.Process.Seccomp != "strict" {
			p.add("sandbox.process.seccomp", "sandbox.process.seccomp %q, allowed is strict", clip(s.Process.Seccomp))
		}
	}
	if s.Filesystem != nil {
		mustStand("sandbox.filesystem.readonly_root", s.Filesystem.ReadonlyRoot)
		s.Filesystem.Preopens.validate(p, "sandbox.filesystem.preopens")
		for _, dir := range slices.Sorted(maps.Keys(s.Filesystem.TempDirs)) {
			guestDir(p, "sandbox.filesystem.temp_dirs", dir)
		}
		if len(s.Filesystem.TempDirs) > maxEntries {
			p.add("sandbox.filesystem.temp_dirs", "%d directories, at most %d are allowed", len(s.Filesystem.TempDirs), maxEntries)
		}
	}
	if s.Network != nil {
		s.Network.validate(p)
	}
	if r := s.Resources; r != nil {
		if _, ok := quotaMillis(r.CPUQuota); r.CPUQuota != "" && !ok {
			p.add("sandbox.resources.cpu_quota", "cpu_quota %q, allowed is processor time a second, like 1000ms/s", clip(r.CPUQuota))
		}
		p.count("sandbox.resources.file_descriptors", r.FileDescriptors, 1<<20)
		p.count("sandbox.resources.process_count", r.ProcessCount, 1<<15)
	}
}

// count checks a number of which 0 stands for "not said": where it was written
// as 0, it is refused.
func (p *problems) count(path string, n, most int) {
	if n < 0 || n > most || n == 0 && p.source.said(path) {
		p.add(path, "%s is %d, allowed is 1 to %d", path, n, most)
	}
}

func (n *Network) validate(p *problems) {
	const hosts, ports = "sandbox.network.allowed_hosts", "sandbox.network.blocked_ports"
	switch n.Mode {
	case "", NetworkNone, NetworkRestricted, NetworkFull:
	default:
		p.add("sandbox.network.mode", "sandbox.network.mode %q, allowed are none, restricted, full", clip(n.Mode))
	}
	for i, host := range n.AllowedHosts {
		clean, problem := parseHost(host)
		if problem != "" {
			p.add(strictyaml.Index(hosts, i), "allowed host %q: %s", clip(host), problem)
			continue
		}
		n.AllowedHosts[i] = clean
	}
	for i, host := range n.AllowedHosts {
		if slices.Index(n.AllowedHosts, host) != i {
			p.add(strictyaml.Index(hosts, i), "allowed host %q is there twice", clip(host))
		}
	}
	for i, port := range n.BlockedPorts {
		if port < 1 || port > 65535 {
			p.add(strictyaml.Index(ports, i), "blocked port %d, allowed is 1 to 65535", port)
		}
		if slices.Index(n.BlockedPorts, port) != i {
			p.add(strictyaml.Index(ports, i), "blocked port %d is there twice", port)
		}
	}
	if len(n.AllowedHosts) > maxEntries || len(n.BlockedPorts) > maxEntries {
		p.add("sandbox.network", "over %d hosts or ports", maxEntries)
	}
}

// parseHost reads a host as it stands in a network capability, alone.
func parseHost(s string) (host, problem string) {
	if len(s) > maxCapability || !printable(s) {
		return "", "the host must be a name, *.name or an address range"
	}
	host, rest, problem := cutHost(s)
	if problem == "" && rest != "" {
		problem = "a host stands alone, without port and path"
	}
	return host, problem
}

func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "…"
}
