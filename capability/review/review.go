package review

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
)

// Report is what was found about one agent.
type Report struct {
	// Engine is the interpreter that the module carries, "" for none: what a
	// script does with it is not in the imports.
	Engine string `json:"engine,omitempty"`
	// Risk is the highest rating of what is asked for.
	Risk Risk `json:"risk"`
	// Asks are the capabilities that the manifest asks for, Needs the imports that
	// are of no use without one.
	Asks     []Ask     `json:"asks"`
	Needs    []Need    `json:"needs"`
	Findings []Finding `json:"findings"`
}

// Uses of a capability, as far as imports tell.
const (
	Used   = "used"   // something is imported that can use it
	Unused = "unused" // nothing is
	// Unknown: there is no module to look at, it carries an interpreter, or it may
	// call the host by its standard streams.
	Unknown = "unknown"
)

// Ask is one capability that the manifest asks for.
type Ask struct {
	// Capability is the canonical string, or [capability.FullNetwork].
	Capability string `json:"capability"`
	Risk       Risk   `json:"risk"`
	Why        string `json:"why"`
	// Use is one of the constants above, By are the imports that can use it.
	Use string   `json:"use"`
	By  []string `json:"by,omitempty"`
}

// Need is an import that is of no use without a capability.
type Need struct {
	Import string `json:"import"`
	// Needs says what for, Asked are the capabilities that are asked for and fit.
	Needs string   `json:"needs"`
	Asked []string `json:"asked,omitempty"`
}

// Kinds of findings.
const (
	Missing  = "missing"     // an import needs what the manifest does not ask for
	NotUsed  = "unused"      // the manifest asks for what no import can use
	Combined = "combination" // two capabilities together give more away than each
)

// Finding is something to look at.
type Finding struct {
	Kind string `json:"kind"`
	// On is a capability or an import.
	On      string `json:"on"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// dynamic are the kinds that a guest requests by name.
var dynamic = []string{manifest.KindNetwork, manifest.KindFilesystem, manifest.KindEnv, manifest.KindLLM, manifest.KindExtension}

// need is what an import wants.
type need struct {
	what string
	// kinds are served by it; access narrows media.
	kinds  []string
	access string
	hint   string
	// always is true for what toolchains import whether it is used or not.
	always bool
}

const addLine = "add to wasm.capabilities: - "

// needs is by "module.name"; [needOf] adds what has a common prefix.
var needs = map[string]need{
	"mentat.request_capability":        {what: "a capability to request", kinds: dynamic, hint: addLine + "network:https:HOST, or another one that the agent uses"},
	"mentat.invoke_capability":         {what: "a capability to invoke", kinds: dynamic, hint: addLine + "network:https:HOST, or another one that the agent uses"},
	"mentat.download_media":            {what: "media:read", kinds: []string{manifest.KindMedia}, access: manifest.AccessRead, hint: addLine + "media:read"},
	"mentat.upload_media":              {what: "media:write", kinds: []string{manifest.KindMedia}, access: manifest.AccessWrite, hint: addLine + "media:write"},
	module.ModuleWASI + ".environ_get": {what: "variables", kinds: []string{manifest.KindEnv}, always: true},
}

func needOf(im module.Import) (need, bool) {
	name := im.Module + "." + im.Name
	if n, ok := needs[name]; ok {
		return n, true
	}
	switch {
	case im.Module != module.ModuleWASI:
	case strings.HasPrefix(im.Name, "path_"), im.Name == "fd_readdir":
		return need{what: "a directory", kinds: []string{manifest.KindFilesystem}, hint: addLine + "filesystem:read:PATH, or declare a sandbox.filesystem.temp_dirs"}, true
	case strings.HasPrefix(im.Name, "sock_"):
		return need{what: "a socket, which no guest is given", hint: "use the network capability instead"}, true
	}
	return need{}, false
}

func (n need) fits(c manifest.Capability) bool {
	return slices.Contains(n.kinds, c.Kind) && (n.access == "" || n.access == c.Access)
}

// Review looks at an agent. info and data are nil where there is no module.
func Review(m *manifest.Manifest, info *module.Info, data []byte) *Report {
	r := &Report{Engine: engine(data), Asks: []Ask{}, Needs: []Need{}, Findings: []Finding{}}
	r.asks(m, info)
	if info != nil {
		r.imports(m, info)
	}
	r.combine(m)
	return r
}

func (r *Report) asks(m *manifest.Manifest, info *module.Info) {
	for _, c := range m.Capabilities() {
		risk, why := Rate(c)
		a := Ask{Capability: c.String(), Risk: risk, Why: why, Use: Unknown}
		if info != nil {
			a.By = users(info, c)
		}
		if info != nil && r.Engine == "" && !(byStdio(info) && slices.Contains(dynamic, c.Kind) && len(a.By) == 0) {
			a.Use = Used
			if len(a.By) == 0 {
				a.Use = Unused
				r.find(NotUsed, a.Capability, "nothing that the module imports can use it", "remove it from wasm.capabilities")
			}
		}
		r.Asks = append(r.Asks, a)
		r.Risk = max(r.Risk, risk)
	}
	if asksForAll(m) {
		r.Asks = append(r.Asks, Ask{Capability: capability.FullNetwork, Risk: Critical, Why: "every public host can be sent whatever the agent knows", Use: Unknown})
		r.Risk = Critical
	}
}

// byStdio reports whether a module may call the host by lines on its standard
// streams, which needs no import but WASI's.
func byStdio(info *module.Info) bool {
	return info.Entry == hostdoc.EntryCommand && !slices.ContainsFunc(info.Imports, func(im module.Import) bool { return im.Module == module.ModuleMentat })
}

// asksForAll reports whether the manifest asks for every public host.
func asksForAll(m *manifest.Manifest) bool {
	return m.Sandbox != nil && m.Sandbox.Network != nil && m.Sandbox.Network.Mode == manifest.NetworkFull && m.Sandbox.Network.AllowedHosts == nil
}

// users are the imports that can use a capability.
func users(info *module.Info, c manifest.Capability) []string {
	var by []string
	for _, im := range info.Imports {
		if n, ok := needOf(im); ok && n.fits(c) {
			by = appendNew(by, im.Module+"."+im.Name)
		}
	}
	return by
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

func (r *Report) imports(m *manifest.Manifest, info *module.Info) {
	seen := map[string]bool{}
	for _, im := range info.Imports {
		name := im.Module + "." + im.Name
		n, ok := needOf(im)
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		one := Need{Import: name, Needs: n.what}
		for _, c := range m.Capabilities() {
			if n.fits(c) {
				one.Asked = append(one.Asked, c.String())
			}
		}
		if slices.Contains(n.kinds, manifest.KindFilesystem) {
			one.Asked = append(one.Asked, tempDirs(m)...)
		}
		if slices.Contains(n.kinds, manifest.KindNetwork) && asksForAll(m) {
			one.Asked = append(one.Asked, capability.FullNetwork)
		}
		r.Needs = append(r.Needs, one)
		if len(one.Asked) == 0 && !n.always && r.Engine == "" {
			r.find(Missing, name, "it needs "+n.what+", and the manifest asks for none", n.hint)
		}
	}
}

// tempDirs are the directories that an agent has without a capability.
func tempDirs(m *manifest.Manifest) []string {
	if m.Sandbox == nil || m.Sandbox.Filesystem == nil {
		return nil
	}
	var list []string
	for dir := range m.Sandbox.Filesystem.TempDirs {
		list = append(list, "temp_dirs: "+dir)
	}
	slices.Sort(list)
	return list
}

// combine points out what may be read and carried out.
func (r *Report) combine(m *manifest.Manifest) {
	var read, reach string
	for _, c := range m.Capabilities() {
		switch c.Kind {
		case manifest.KindFilesystem:
			if c.Access != manifest.AccessWrite && read == "" {
				read = c.String()
			}
		case manifest.KindEnv:
			if risk, _ := Rate(c); risk == High {
				read = c.String()
			}
		case manifest.KindNetwork:
			if reach == "" {
				reach = c.String()
			}
		}
	}
	if reach == "" && asksForAll(m) {
		reach = capability.FullNetwork
	}
	if read != "" && reach != "" {
		r.find(Combined, read, fmt.Sprintf("what the agent reads by it can leave by %s", reach), "")
	}
}

func (r *Report) find(kind, on, message, hint string) {
	r.Findings = append(r.Findings, Finding{Kind: kind, On: on, Message: message, Hint: hint})
}

// Of are the findings of a kind.
func (r *Report) Of(kind string) []Finding {
	var found []Finding
	for _, f := range r.Findings {
		if f.Kind == kind {
			found = append(found, f)
		}
	}
	return found
}

// engines are recognised by texts that their code cannot do without. All of one
// list must be there.
var engines = []struct {
	name  string
	marks []string
}{
	{"QuickJS", []string{"[native code]", "Async-from-Sync Iterator", "QuickJS"}},
	{"a JavaScript engine", []string{"[native code]", "Async-from-Sync Iterator", "toISOString"}},
	{"CPython", []string{"_frozen_importlib", "BuiltinImporter"}},
}

// engine recognises an interpreter in a module.
func engine(data []byte) string {
	for _, e := range engines {
		if !slices.ContainsFunc(e.marks, func(mark string) bool { return !bytes.Contains(data, []byte(mark)) }) {
			return e.name
		}
	}
	return ""
}
