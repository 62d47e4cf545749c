package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// Lint reports where the manifest contradicts itself: it says some things
// twice, and a directory, host or variable that no capability covers would be
// withheld at every run. A manifest with such errors is not built. Each is a
// *fault.Error that names the missing line.
func (m *Manifest) Lint() []error {
	p := &problems{source: m.source}
	if !m.WASMAgent() {
		if m.Sandbox != nil {
			p.hint("sandbox", "set the container's own limits where it is run",
				"sandbox has no effect on runtime %s: only WASM agents run in MentatLab's sandbox", m.Runtime)
		}
		return p.all
	}
	caps := m.Capabilities()
	if m.WASM != nil && m.WASM.WASI != nil {
		lintPreopens(p, "wasm.wasi.preopens", m.WASM.WASI.Preopens, caps)
		for i, env := range m.WASM.WASI.Env {
			name, _, _ := strings.Cut(env, "=")
			need(p, strictyaml.Index("wasm.wasi.env", i), "the variable "+name, caps, Capability{Kind: KindEnv, Name: name})
		}
	}
	if s := m.Sandbox; s != nil {
		if s.Filesystem != nil {
			lintPreopens(p, "sandbox.filesystem.preopens", s.Filesystem.Preopens, caps)
			lintTwice(p, m)
		}
		if s.Network != nil {
			s.Network.lint(p, caps)
		}
	}
	return p.all
}

// need reports a thing that no capability covers.
func need(p *problems, path, what string, caps []Capability, req Capability) {
	if !Allowed(caps, req) {
		p.hint(path, "add to wasm.capabilities: - "+req.String(), "%s has no capability that allows it", what)
	}
}

func lintPreopens(p *problems, at string, preopens Preopens, caps []Capability) {
	for _, dir := range slices.Sorted(maps.Keys(preopens)) {
		req := Capability{Kind: KindFilesystem, Access: AccessRead, Path: dir}
		if preopens[dir] == ModeReadWrite {
			req.Access = AccessReadWrite
		}
		need(p, strictyaml.Key(at, dir), fmt.Sprintf("the directory %s (%s)", dir, preopens[dir]), caps, req)
	}
}

// lintTwice compares the two places that name directories.
func lintTwice(p *problems, m *Manifest) {
	if m.WASM == nil || m.WASM.WASI == nil {
		return
	}
	for _, dir := range slices.Sorted(maps.Keys(m.Sandbox.Filesystem.Preopens)) {
		mode := m.Sandbox.Filesystem.Preopens[dir]
		if other, ok := m.WASM.WASI.Preopens[dir]; ok && other != mode {
			p.add("sandbox.filesystem.preopens", "the directory %s is %s here and %s in wasm.wasi.preopens", dir, mode, other)
		}
	}
}

func (n *Network) lint(p *problems, caps []Capability) {
	isNetwork := func(c Capability) bool { return c.Kind == KindNetwork }
	for i, host := range n.AllowedHosts {
		if !slices.ContainsFunc(caps, func(c Capability) bool { return isNetwork(c) && hostAllows(c.Host, host) }) {
			p.hint(strictyaml.Index("sandbox.network.allowed_hosts", i), "add to wasm.capabilities: - network:https:"+host,
				"the host %s has no capability that allows it", host)
		}
	}
	for i, c := range caps {
		if !isNetwork(c) {
			continue
		}
		at := strictyaml.Index("wasm.capabilities", i)
		switch {
		case n.Mode == NetworkNone:
			p.add(at, "capability %s contradicts sandbox.network.mode none", c)
		case n.AllowedHosts != nil && !slices.ContainsFunc(n.AllowedHosts, func(h string) bool { return hostAllows(h, c.Host) || hostAllows(c.Host, h) }):
			p.add(at, "capability %s reaches no host of sandbox.network.allowed_hosts", c)
		case c.Port != 0 && slices.Contains(n.BlockedPorts, c.Port):
			p.add(at, "capability %s needs a port of sandbox.network.blocked_ports", c)
		}
	}
	if n.Mode == NetworkNone && len(n.AllowedHosts) > 0 {
		p.add("sandbox.network.allowed_hosts", "hosts contradict sandbox.network.mode none")
	}
}
