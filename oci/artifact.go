package oci

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Form says what an image is to us, as far as its bytes tell.
type Form string

// The forms. Only the first three carry an agent manifest.
const (
	// FormWASM is a WASM agent: no root file system, one module.
	FormWASM Form = "wasm"
	// FormContainer is a container agent: an ordinary image with an agent manifest.
	FormContainer Form = "container"
	// FormDual is a container agent that carries a module too.
	FormDual Form = "dual"
	// FormPlainWASM is WASM without an agent manifest: a module blob, a WASM
	// config, or a root file system whose entrypoint is a module.
	FormPlainWASM Form = "plain-wasm"
	// FormImage is an ordinary container image.
	FormImage Form = "image"
	// FormOther is an OCI artifact that cannot be run at all, such as a chart.
	FormOther Form = "other"
)

// Artifact is an image manifest with what it refers to, read and checked.
type Artifact struct {
	// Raw are the manifest's bytes, Digest their SHA-256.
	Raw      []byte
	Digest   digest.Digest
	Manifest *ocispec.Manifest
	// Config is nil for [FormOther] and for WASM configs that are not images.
	Config *ocispec.Image
	// Agent and AgentDesc are nil when there is no agent manifest.
	Agent     *manifest.Manifest
	AgentDesc *ocispec.Descriptor
	// Module is nil when there is no module blob. The module itself is not
	// read: whoever runs it hashes what it runs.
	Module *ocispec.Descriptor
	Form   Form
}

// Attested tells whether there is an attestation, of whatever worth.
func (a *Artifact) Attested() bool {
	_, ok := a.Manifest.Annotations[AnnotationAttestation]
	return ok
}

// ChainID is the name under which a snapshotter keeps the root file system
// made of the config's layers; empty when there is none.
func (a *Artifact) ChainID() digest.Digest {
	if a.Config == nil || len(a.Config.RootFS.DiffIDs) == 0 {
		return ""
	}
	// ChainID overwrites what it is given.
	return identity.ChainID(slices.Clone(a.Config.RootFS.DiffIDs))
}

// Read reads the artifact whose image manifest is raw: it fetches config and
// agent manifest and checks that the three agree. It refuses an index; see
// [ParseIndex] and [Select]. Errors are ArtifactInvalid or what [ReadBlob]
// says.
func Read(ctx context.Context, f Fetcher, raw []byte) (*Artifact, error) {
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, err
	}
	a := &Artifact{Raw: raw, Digest: digest.FromBytes(raw), Manifest: m}
	tars, others := 0, false
	for i := range m.Layers {
		l := &m.Layers[i]
		switch {
		case l.MediaType == MediaTypeAgentManifest:
			a.AgentDesc = l
		case l.MediaType == MediaTypeWASM:
			a.Module = l
		case tarLayers[l.MediaType] != "":
			if a.AgentDesc != nil || a.Module != nil {
				return nil, a.invalid("layer %d comes after the agent's own blobs, which must be last", i)
			}
			tars++
		default:
			others = true
		}
	}
	if a.Module != nil && a.Module.Size > limits.ModuleBytes {
		return nil, a.invalid("the module has %d bytes, over the limit of %d bytes", a.Module.Size, limits.ModuleBytes)
	}
	agent := a.fetchAgent(ctx, f)
	if err := a.readConfig(ctx, f); err != nil {
		return nil, err
	}
	if a.AgentDesc == nil {
		a.Form = a.plainForm()
		return a, nil
	}
	if others {
		return nil, a.invalid("an agent's layers are tar layers, the agent manifest and the module, nothing else")
	}
	data, err := agent()
	if err != nil {
		return nil, err
	}
	if a.Agent, err = manifest.ParseCanonical(data); err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, string(a.Digest), "the agent manifest in the artifact")
	}
	if err := a.checkAgent(tars); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Artifact) invalid(format string, args ...any) error {
	return fault.New(fault.ArtifactInvalid, string(a.Digest), format, args...)
}

// fetchAgent begins to read the agent manifest, if there is one.
func (a *Artifact) fetchAgent(ctx context.Context, f Fetcher) func() ([]byte, error) {
	if a.AgentDesc == nil {
		return nil
	}
	read := sync.OnceValues(func() ([]byte, error) { return ReadBlob(ctx, f, *a.AgentDesc, limits.AgentManifestBytes) })
	go read() //nolint:errcheck // whoever wants it calls it again
	return read
}

func (a *Artifact) readConfig(ctx context.Context, f Fetcher) error {
	mt := a.Manifest.Config.MediaType
	if !isImageConfig(mt) && mt != MediaTypeWASMConfigCNCF {
		return nil
	}
	data, err := ReadBlob(ctx, f, a.Manifest.Config, limits.ImageConfigBytes)
	if err != nil {
		return err
	}
	a.Config = new(ocispec.Image)
	if a.AgentDesc == nil {
		// Ordinary images are not ours to be strict about: runtimes read their
		// config exactly as it is read here.
		if err := json.Unmarshal(data, a.Config); err != nil {
			return fault.Wrap(err, fault.ArtifactInvalid, string(a.Digest), "the image config is malformed")
		}
	} else if _, err := strictly("image config", data, imageShape, true, a.Config); err != nil {
		return err
	}
	for _, d := range a.Config.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return a.invalid("the image config's diff_id %q is neither a sha256 nor a sha512 digest", d)
		}
	}
	return nil
}

// plainForm classifies what carries no agent manifest. In doubt it is WASM,
// for which the rules are tighter.
func (a *Artifact) plainForm() Form {
	m := a.Manifest
	if a.Module != nil || looksWASM(m.Config.MediaType) || slices.ContainsFunc(m.Layers, func(d ocispec.Descriptor) bool { return looksWASM(d.MediaType) }) {
		return FormPlainWASM
	}
	c := a.Config
	if c == nil {
		return FormOther
	}
	if c.Architecture == wasmArch || strings.HasPrefix(c.OS, "wasi") {
		return FormPlainWASM
	}
	if argv := append(slices.Clone(c.Config.Entrypoint), c.Config.Cmd...); len(argv) != 0 && strings.HasSuffix(argv[0], ".wasm") {
		return FormPlainWASM
	}
	return FormImage
}

// checkAgent checks that agent manifest, config and layers tell one story, and
// sets the form.
func (a *Artifact) checkAgent(tars int) error {
	m, c, agent := a.Manifest, a.Config, a.Agent
	if m.Config.MediaType != ocispec.MediaTypeImageConfig {
		return a.invalid("an agent's config type is %q, not %q", ocispec.MediaTypeImageConfig, m.Config.MediaType)
	}
	if m.MediaType != ocispec.MediaTypeImageManifest {
		return a.invalid("an agent's manifest type is %q, not %q", ocispec.MediaTypeImageManifest, m.MediaType)
	}
	for _, want := range [][2]string{{AnnotationAgentID, agent.ID}, {ocispec.AnnotationVersion, agent.Version}} {
		if got := m.Annotations[want[0]]; got != want[1] {
			return a.invalid("annotation %s is %q, the agent manifest says %q", want[0], got, want[1])
		}
	}
	isWASM := agent.Runtime == manifest.RuntimeWASM
	if isWASM && a.Module == nil {
		return a.invalid("the agent manifest says runtime %q, but there is no module", agent.Runtime)
	}
	if !isWASM && a.Module != nil {
		return a.invalid("the agent manifest says runtime %q, but there is a module", agent.Runtime)
	}
	if a.Module != nil && m.Layers[len(m.Layers)-1].MediaType != MediaTypeWASM {
		return a.invalid("the module must be the last layer, after the agent manifest")
	}
	if tars != len(c.RootFS.DiffIDs) {
		return a.invalid("%d tar layers, but the config names %d", tars, len(c.RootFS.DiffIDs))
	}
	switch {
	case c.OS == wasmOS || c.Architecture == wasmArch:
		if !isWASM || c.OS != wasmOS || c.Architecture != wasmArch || tars != 0 || !slices.Equal(c.Config.Entrypoint, []string{wasmEntrypoint}) {
			return a.invalid("a WASM agent's config is %s/%s without layers and with entrypoint %s", wasmOS, wasmArch, wasmEntrypoint)
		}
		a.Form = FormWASM
	case tars == 0:
		return a.invalid("a container agent needs at least one tar layer")
	case isWASM:
		a.Form = FormDual
	default:
		a.Form = FormContainer
	}
	return nil
}
