package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"

	_ "embed"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// FileName is the manifest's name in an agent's directory.
const FileName = "manifest.yaml"

// RuntimeWASM is the runtime of WASM agents; every other one names a container
// agent's. DefaultRuntime is what a manifest without the key means.
const (
	RuntimeWASM    = "wasm"
	DefaultRuntime = "python3.12"
)

// EngineWasmtime is the one engine there is.
const EngineWasmtime = "wasmtime"

// WASI versions that a manifest may name.
const (
	WASIPreview1 = "preview1"
	WASIPreview2 = "preview2"
)

// Modes of [Manifest.Mode]; none is [ModeRun].
const (
	// ModeRun runs the agent once, with one input.
	ModeRun = "run"
	// ModeServe answers HTTP requests, each with a run of its own.
	ModeServe = "serve"
)

// Network modes of [Network.Mode].
const (
	NetworkNone       = "none"
	NetworkRestricted = "restricted"
	NetworkFull       = "full"
)

// Manifest is an agent manifest. The keys are the same in YAML and in canonical
// JSON.
type Manifest struct {
	// ID is a dotted name, like mentatlab.wasm-example.
	ID string `yaml:"id" json:"id"`
	// Version is a semantic version.
	Version     string `yaml:"version" json:"version"`
	Description string `yaml:"description" json:"description,omitempty"`
	// Runtime is [RuntimeWASM] or a container runtime like python3.12.
	Runtime string `yaml:"runtime" json:"runtime"`
	// Mode is how a WASM agent works: [ModeRun] or [ModeServe].
	Mode string `yaml:"mode" json:"mode,omitempty"`
	// Module is the module's path, relative to the manifest; set exactly when
	// Runtime is [RuntimeWASM].
	Module string `yaml:"module" json:"module,omitempty"`
	// Image is the reference that the agent is published under and, for a
	// container agent, the image that it is.
	Image string `yaml:"image" json:"image,omitempty"`
	// Container is, for a WASM agent that is a container too, a reference or
	// the path of an OCI layout. It only matters to the build.
	Container string `yaml:"container" json:"-"`
	// Config are non-secret settings.
	Config map[string]string `yaml:"config" scalar:"any" empty:"allowed" json:"config,omitempty"`
	WASM   *WASM             `yaml:"wasm" json:"wasm,omitempty"`
	// Serve are the settings of [ModeServe].
	Serve   *Serve   `yaml:"serve" json:"serve,omitempty"`
	Sandbox *Sandbox `yaml:"sandbox" json:"sandbox,omitempty"`
	// Attestations are the signature blocks as JSON, one a platform; an
	// artifact carries them elsewhere.
	Attestations Attestations `yaml:"attestation" json:"-"`

	source source
}

// source says where a manifest was written, for errors that come later.
type source struct {
	file  string
	lines strictyaml.Lines
}

// said reports whether the value at path was written, rightly or wrongly.
func (s source) said(path string) bool {
	_, ok := s.lines[path]
	return ok
}

// at gives the subject of an error about the value at path.
func (s source) at(path string) string {
	if s.lines == nil {
		return path
	}
	return strictyaml.Position(s.file, s.lines.Of(path))
}

// Keys are all keys of a manifest, as [strictyaml.Keys] names them.
func Keys() []string { return strictyaml.Keys(Manifest{}) }

// Where says where the value at path was written, as "file:line"; of a manifest
// that came in an artifact it is the path itself.
func (m *Manifest) Where(path string) string { return m.source.at(path) }

// WASM are the settings of a WASM agent.
type WASM struct {
	Engine string  `yaml:"engine" json:"engine,omitempty"`
	Memory *Memory `yaml:"memory" json:"memory,omitempty"`
	// Capabilities is all that the agent may ask for.
	Capabilities []Capability `yaml:"capabilities" json:"capabilities,omitempty"`
	WASI         *WASI        `yaml:"wasi" json:"wasi,omitempty"`
	// Deadline bounds one run's wall time; 0 means that nothing was said.
	Deadline Duration `yaml:"deadline" json:"deadline,omitzero"`
}

// Memory bounds the guest's linear memory; 0 means that nothing was said.
type Memory struct {
	Initial Size `yaml:"initial" json:"initial,omitzero"`
	Maximum Size `yaml:"maximum" json:"maximum,omitzero"`
}

// WASI are the settings of the WASI side.
type WASI struct {
	Version  string   `yaml:"version" json:"version,omitempty"`
	Preopens Preopens `yaml:"preopens" entries:"list" json:"preopens,omitempty"`
	// Env are variables with their values, as KEY=VALUE.
	Env []string `yaml:"env" json:"env,omitempty"`
}

// Sandbox narrows what the agent may do beyond its capabilities.
type Sandbox struct {
	Process    *Process    `yaml:"process" json:"process,omitempty"`
	Filesystem *Filesystem `yaml:"filesystem" json:"filesystem,omitempty"`
	Network    *Network    `yaml:"network" json:"network,omitempty"`
	Resources  *Resources  `yaml:"resources" json:"resources,omitempty"`
}

// Process are the walls around the process. They always stand; a manifest can
// say so, and cannot say otherwise.
type Process struct {
	Namespace  *bool  `yaml:"namespace" json:"namespace,omitempty"`
	Seccomp    string `yaml:"seccomp" json:"seccomp,omitempty"`
	NoNewPrivs *bool  `yaml:"no_new_privs" json:"no_new_privs,omitempty"`
}

// Filesystem is the agent's view of files.
type Filesystem struct {
	ReadonlyRoot *bool    `yaml:"readonly_root" json:"readonly_root,omitempty"`
	TempDirs     TempDirs `yaml:"temp_dirs" entries:"list" json:"temp_dirs,omitempty"`
	Preopens     Preopens `yaml:"preopens" entries:"list" json:"preopens,omitempty"`
}

// Network narrows the network capabilities.
type Network struct {
	Mode string `yaml:"mode" json:"mode,omitempty"`
	// AllowedHosts are hosts as in a network capability; nil is no restriction,
	// an empty list allows none.
	AllowedHosts []string `yaml:"allowed_hosts" json:"allowed_hosts,omitzero"`
	BlockedPorts []int    `yaml:"blocked_ports" json:"blocked_ports,omitempty"`
}

// Resources bounds what the agent may use; 0 means that nothing was said.
type Resources struct {
	MemoryLimit Size `yaml:"memory_limit" json:"memory_limit,omitzero"`
	// CPUQuota is processor time a second, like "1000ms/s".
	CPUQuota string `yaml:"cpu_quota" json:"cpu_quota,omitempty"`
	// CPUTime bounds one run's processor time.
	CPUTime         Duration `yaml:"cpu_time" json:"cpu_time,omitzero"`
	FileDescriptors int      `yaml:"file_descriptors" json:"file_descriptors,omitempty"`
	ProcessCount    int      `yaml:"process_count" json:"process_count,omitempty"`
}

// CPUQuotaMillis is [Resources.CPUQuota] in milliseconds of processor time a
// second, 0 when it is not set.
func (r *Resources) CPUQuotaMillis() int {
	if r == nil {
		return 0
	}
	n, _ := quotaMillis(r.CPUQuota)
	return n
}

// CPUTime bounds one run's processor time; 0 means that the manifest says
// nothing.
func (m *Manifest) CPUTime() time.Duration {
	if m.Sandbox == nil || m.Sandbox.Resources == nil {
		return 0
	}
	return time.Duration(m.Sandbox.Resources.CPUTime)
}

// WASMAgent reports whether the agent has a module to run.
func (m *Manifest) WASMAgent() bool { return m.Runtime == RuntimeWASM }

// MemoryLimit is the guest's memory in bytes: the smallest of what the manifest
// says, 0 when it says nothing.
func (m *Manifest) MemoryLimit() int64 {
	var limit int64
	consider := func(s Size) {
		if s > 0 && (limit == 0 || int64(s) < limit) {
			limit = int64(s)
		}
	}
	if m.WASM != nil && m.WASM.Memory != nil {
		consider(m.WASM.Memory.Maximum)
	}
	if m.Sandbox != nil && m.Sandbox.Resources != nil {
		consider(m.Sandbox.Resources.MemoryLimit)
	}
	return limit
}

// Deadline bounds one run's wall time; 0 means that the manifest says nothing.
func (m *Manifest) Deadline() time.Duration {
	if m.WASM == nil {
		return 0
	}
	return time.Duration(m.WASM.Deadline)
}

// Capabilities are those that the manifest asks for.
func (m *Manifest) Capabilities() []Capability {
	if m.WASM == nil {
		return nil
	}
	return m.WASM.Capabilities
}

// Parse reads a manifest.yaml; file names it in errors. The error joins every
// problem found, each a *fault.Error of reason [fault.ManifestInvalid] with
// "file:line" as its subject.
func Parse(file string, data []byte) (*Manifest, error) {
	m := new(Manifest)
	lines, err := strictyaml.Decoder{Reason: fault.ManifestInvalid}.Decode(file, data, m)
	if lines == nil {
		return nil, err
	}
	m.source = source{file: file, lines: lines}
	if !m.source.said("runtime") {
		m.Runtime = DefaultRuntime
	}
	if err := errors.Join(flatten(err, m.validate())...); err != nil {
		return nil, err
	}
	return m, nil
}

// flatten turns joined errors into one list.
func flatten(errs ...error) []error {
	var all []error
	for _, err := range errs {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			all = append(all, many.Unwrap()...)
		}
	}
	return all
}

// Canonical gives the manifest as it goes into an artifact: canonical JSON,
// without attestations and what only matters to the build.
func (m *Manifest) Canonical() ([]byte, error) {
	data, err := canonical.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(err, fault.ManifestInvalid, m.source.at(""), "the manifest has no canonical form")
	}
	if len(data) > limits.AgentManifestBytes {
		return nil, fault.New(fault.ManifestInvalid, m.source.at(""),
			"the manifest's canonical form has %d bytes, at most %d are allowed", len(data), limits.AgentManifestBytes)
	}
	return data, nil
}

// ParseCanonical reads the manifest of an artifact. The bytes must be exactly
// what [Manifest.Canonical] gives for what they mean, and the rules of [Parse]
// hold. Errors name the value's path instead of a line.
func ParseCanonical(data []byte) (*Manifest, error) {
	const on = "agent manifest"
	if len(data) > limits.AgentManifestBytes {
		return nil, fault.New(fault.ManifestInvalid, on, "over %d bytes", limits.AgentManifestBytes)
	}
	if err := canonical.Check(data); err != nil {
		return nil, fault.Wrap(err, fault.ManifestInvalid, on, "not acceptable as JSON")
	}
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fault.Wrap(err, fault.ManifestInvalid, on, "malformed")
	}
	if err := m.validate(); err != nil {
		return nil, fault.Wrap(err, fault.ManifestInvalid, on, "breaks a rule")
	}
	own, err := m.Canonical()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(own, data) {
		return nil, fault.New(fault.ManifestInvalid, on, "not in canonical form at byte %d", firstDifference(own, data))
	}
	return m, nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

//go:embed schema.json
var schema []byte

// Schema is the JSON Schema (2020-12) of manifest.yaml, for editors. It accepts
// whatever [Parse] accepts, and refuses what a schema can say is wrong.
func Schema() []byte { return bytes.Clone(schema) }

// printable reports whether s is UTF-8 text without control, formatting and
// other characters that have no shape of their own.
func printable(s string) bool {
	return !strings.ContainsFunc(s, unprintable)
}
