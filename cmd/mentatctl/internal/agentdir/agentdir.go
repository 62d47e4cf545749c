package agentdir

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/toolchain"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/manifest/module"
	"github.com/mentatlab/mentat/oci"
)

// stateDir holds what mentatctl makes.
const stateDir = ".mentat"

// Dir is an agent's directory. Paths in it are as the caller named it.
type Dir struct {
	Path     string
	Manifest *manifest.Manifest

	file string // the manifest
	text []byte // its content
}

// Open reads an agent's directory, named by itself or by its manifest.
func Open(path string) (*Dir, error) {
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, path, "there is no such agent directory or manifest").
				WithHint("mentatctl init makes one")
		}
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the agent")
	}
	d := &Dir{Path: path, file: filepath.Join(path, manifest.FileName)}
	if !info.IsDir() {
		if ext := filepath.Ext(path); ext != ".yaml" && ext != ".yml" {
			return nil, fault.New(fault.Usage, path, "is neither an agent's directory, nor its %s, nor an OCI layout", manifest.FileName)
		}
		d.Path, d.file = filepath.Dir(path), path
	}
	if d.text, err = readFile(d.file, limits.ManifestYAMLBytes, "manifest"); err != nil {
		return nil, err
	}
	if d.Manifest, err = manifest.Parse(d.file, d.text); err != nil {
		return nil, err
	}
	return d, nil
}

// ManifestPath is the manifest's file.
func (d *Dir) ManifestPath() string { return d.file }

// ModulePath is the module's file, "" for an agent without a module.
func (d *Dir) ModulePath() string {
	if d.Manifest.Module == "" {
		return ""
	}
	return filepath.Join(d.Path, filepath.FromSlash(d.Manifest.Module))
}

// LayoutPath is the OCI layout with the packed artifact.
func (d *Dir) LayoutPath() string { return filepath.Join(d.Path, stateDir, "layout") }

// LockPath is the lock file.
func (d *Dir) LockPath() string { return filepath.Join(d.Path, stateDir, "lock.json") }

// Name is the agent's id and version, for people.
func (d *Dir) Name() string { return d.Manifest.ID + " " + d.Manifest.Version }

// ReadModule reads and inspects the module; both are nil for an agent without.
func (d *Dir) ReadModule() ([]byte, *module.Info, error) {
	path := d.ModulePath()
	if path == "" {
		return nil, nil, nil
	}
	return ReadModuleFile(path)
}

// about makes subject what an error about a module is about.
func about(err error, subject string) error {
	var fe *fault.Error
	if errors.As(err, &fe) && fe.Reason == fault.ModuleInvalid {
		named := *fe
		named.On = subject
		return &named
	}
	return err
}

// Compile builds the module with a toolchain and puts it in its place once it
// proved to be one. It returns what [Dir.Pack] needs to note.
func (d *Dir) Compile(ctx context.Context, kind toolchain.Kind, offline bool) (Built, error) {
	if err := os.MkdirAll(filepath.Join(d.Path, stateDir), 0o755); err != nil {
		return Built{}, fault.Wrap(err, fault.Internal, d.Path, "cannot make the state directory")
	}
	tmp, err := os.MkdirTemp(filepath.Join(d.Path, stateDir), "build-")
	if err != nil {
		return Built{}, fault.Wrap(err, fault.Internal, d.Path, "cannot make a build directory")
	}
	defer os.RemoveAll(tmp)
	made := filepath.Join(tmp, "module.wasm")
	inputs, err := toolchain.Build(ctx, toolchain.Options{Kind: kind, Dir: d.Path, Out: made, Offline: offline, Environ: os.Environ()})
	if err != nil {
		return Built{}, err
	}
	data, _, err := ReadModuleFile(made)
	if err != nil {
		return Built{}, about(err, d.ModulePath())
	}
	if err := WriteFile(d.ModulePath(), data, 0o644); err != nil {
		return Built{}, err
	}
	return Built{Kind: kind, Inputs: inputs}, nil
}

// Built says how a module came to be.
type Built struct {
	Kind   toolchain.Kind
	Inputs []string
}

// Pack makes the artifact from the manifest, the module and, for an agent that
// is a container too, its image. It replaces an earlier artifact.
func (d *Dir) Pack(ctx context.Context, built Built, container *oci.ContainerImage, pin *Pin) (*oci.Artifact, error) {
	data, _, err := d.ReadModule()
	if err != nil {
		return nil, err
	}
	state := filepath.Join(d.Path, stateDir)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, fault.Wrap(err, fault.Internal, state, "cannot make the state directory")
	}
	fresh, err := os.MkdirTemp(state, "layout-")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, state, "cannot make a layout")
	}
	defer os.RemoveAll(fresh)
	layout, err := oci.CreateLayout(fresh)
	if err != nil {
		return nil, err
	}
	desc, err := oci.Build(ctx, oci.BuildInput{Agent: d.Manifest, Module: data, Container: container}, layout)
	if err != nil {
		return nil, err
	}
	artifact, err := readArtifact(ctx, layout, desc)
	if err != nil {
		return nil, err
	}
	lock := &Lock{ID: d.Manifest.ID, Release: d.Manifest.Version, Toolchain: built.Kind, Inputs: built.Inputs, Container: pin, Packed: desc.Digest}
	if lock.Sources, err = d.sourceDigest(built.Kind, built.Inputs); err != nil {
		return nil, err
	}
	if artifact.Module != nil {
		lock.Module = artifact.Module.Digest
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return nil, fault.Wrap(err, fault.Internal, fresh, "cannot make the layout readable")
	}
	if err := Replace(fresh, d.LayoutPath()); err != nil {
		return nil, err
	}
	return artifact, d.writeLock(lock)
}

// Replace puts a new file or directory in the place of another, which may be
// absent.
func Replace(fresh, place string) error {
	old := fresh + ".old"
	err := os.Rename(place, old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Internal, place, "cannot replace it")
	}
	if err := os.Rename(fresh, place); err != nil {
		return fault.Wrap(errors.Join(err, os.Rename(old, place)), fault.Internal, place, "cannot replace it")
	}
	if err := os.RemoveAll(old); err != nil {
		return fault.Wrap(err, fault.Internal, old, "cannot remove what was replaced")
	}
	return nil
}

// Layout opens the packed artifact. There being none is fault.NotFound.
func (d *Dir) Layout(ctx context.Context) (*oci.Layout, ocispec.Descriptor, *oci.Artifact, error) {
	fail := func(err error) (*oci.Layout, ocispec.Descriptor, *oci.Artifact, error) {
		return nil, ocispec.Descriptor{}, nil, err
	}
	if _, err := os.Stat(d.LayoutPath()); errors.Is(err, fs.ErrNotExist) {
		return fail(fault.New(fault.NotFound, d.Path, "the agent was not packed yet").WithHint("mentatctl build %s", d.Path))
	}
	layout, err := oci.OpenLayout(d.LayoutPath())
	if err != nil {
		return fail(err)
	}
	desc, err := layout.Root()
	if err != nil {
		return fail(err)
	}
	artifact, err := readArtifact(ctx, layout, desc)
	if err != nil {
		return fail(err)
	}
	return layout, desc, artifact, nil
}

func readArtifact(ctx context.Context, layout *oci.Layout, desc ocispec.Descriptor) (*oci.Artifact, error) {
	raw, err := oci.ReadBlob(ctx, layout, desc, limits.OCIManifestBytes)
	if err != nil {
		return nil, err
	}
	return oci.Read(ctx, layout, raw)
}

// Drift says why the packed artifact is not what the directory says now, one
// sentence each; nothing when they agree.
func (d *Dir) Drift(artifact *oci.Artifact) ([]string, error) {
	var drift []string
	now, err := d.Manifest.Canonical()
	if err != nil {
		return nil, err
	}
	if artifact.Agent == nil {
		return []string{"the artifact carries no agent manifest"}, nil
	}
	packed, err := artifact.Agent.Canonical()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(now, packed) {
		drift = append(drift, manifest.FileName+" changed")
	}
	if path := d.ModulePath(); path != "" && artifact.Module != nil {
		data, err := readFile(path, limits.ModuleBytes, "module")
		switch {
		case fault.ReasonOf(err) == fault.NotFound:
			// The layout has the module; a file that is not there differs from nothing.
		case err != nil:
			return nil, err
		case digest.FromBytes(data) != artifact.Module.Digest:
			drift = append(drift, d.Manifest.Module+" changed")
		}
	}
	lock, err := d.ReadLock()
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return drift, nil
	}
	if lock.Sources != "" {
		sources, err := d.sourceDigest(lock.Toolchain, lock.Inputs)
		if err != nil {
			return nil, err
		}
		if sources != lock.Sources {
			drift = append(drift, "the sources changed since the module was built")
		}
	}
	if ref := d.ContainerReference(); ref != "" && (lock.Container == nil || lock.Container.Reference != ref) {
		drift = append(drift, "the container image changed")
	}
	return drift, nil
}

// SourcesDrifted tells whether the module was built here, from sources that
// have changed since, and is still that module.
func (d *Dir) SourcesDrifted() (bool, error) {
	lock, err := d.ReadLock()
	if err != nil || lock == nil || lock.Sources == "" {
		return false, err
	}
	sources, err := d.sourceDigest(lock.Toolchain, lock.Inputs)
	if err != nil || sources == lock.Sources {
		return false, err
	}
	data, err := readFile(d.ModulePath(), limits.ModuleBytes, "module")
	if fault.ReasonOf(err) == fault.NotFound {
		return true, nil
	}
	return err == nil && digest.FromBytes(data) == lock.Module, err
}

// ContainerReference is the image that the agent is a container from: what
// manifest.yaml names for an agent in both forms, or the image that a container
// agent is; "" for an agent that is WASM only.
func (d *Dir) ContainerReference() string {
	switch {
	case d.Manifest.Container != "":
		return d.Manifest.Container
	case !d.Manifest.WASMAgent():
		return d.Manifest.Image
	}
	return ""
}

// SetSigned stores a signed artifact: the layout's manifest first, then the
// block in manifest.yaml.
func (d *Dir) SetSigned(ctx context.Context, layout *oci.Layout, old ocispec.Descriptor, raw, block []byte) (ocispec.Descriptor, error) {
	text, err := manifest.SetAttestation(d.file, d.text, [][]byte{block})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := layout.ReplaceManifest(ctx, old, raw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	info, err := os.Stat(d.file)
	if err != nil {
		return ocispec.Descriptor{}, fault.Wrap(err, fault.Internal, d.file, "cannot write the attestation")
	}
	if err := WriteFile(d.file, text, info.Mode().Perm()); err != nil {
		return ocispec.Descriptor{}, err
	}
	d.text = text
	lock, err := d.ReadLock()
	if err != nil || lock == nil {
		return desc, err
	}
	lock.Signed = desc.Digest
	return desc, d.writeLock(lock)
}

// SourcesCurrent tells whether the module and its sources are the ones that the
// lock file notes.
func (d *Dir) SourcesCurrent(lock *Lock) (bool, error) {
	sources, err := d.sourceDigest(lock.Toolchain, lock.Inputs)
	if err != nil || sources != lock.Sources {
		return false, err
	}
	data, err := readFile(d.ModulePath(), limits.ModuleBytes, "module")
	if fault.ReasonOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil && digest.FromBytes(data) == lock.Module, err
}

// CheckBlock compares the attestation that manifest.yaml shows with the one that
// the artifact carries. One without the other is refused like a difference.
func (d *Dir) CheckBlock(artifact *oci.Artifact) error {
	carried := artifact.Manifest.Annotations[oci.AnnotationAttestation]
	shown := d.Manifest.Attestations
	switch {
	case !artifact.Attested() && len(shown) == 0:
		return nil // whether that is enough is the verifier's matter
	case !artifact.Attested():
		return fault.New(fault.Unsigned, d.file, "shows an attestation that the artifact does not carry").WithHint("mentatctl sign %s", d.Path)
	case len(shown) == 0:
		return fault.New(fault.AttestationFormat, d.file, "does not show the attestation that the artifact carries").WithHint("mentatctl sign %s", d.Path)
	}
	for _, block := range shown {
		if text, err := canonical.JSON(block); err == nil && string(text) == carried {
			return nil
		}
	}
	// Whoever was interrupted while countersigning must not be told to replace what others
	// signed.
	return fault.New(fault.SignatureInvalid, d.file, "shows another attestation than the artifact carries").
		WithHint("mentatctl publish %s takes the artifact as it is; mentatctl sign %s attests it anew, and drops what others signed", d.LayoutPath(), d.Path)
}

// ReadModuleFile reads and inspects a module that is no agent's.
func ReadModuleFile(path string) ([]byte, *module.Info, error) {
	data, err := readFile(path, limits.ModuleBytes, "module")
	if err != nil {
		return nil, nil, err
	}
	info, err := module.Inspect(data)
	if err == nil {
		err = info.Check()
	}
	if err != nil {
		return nil, nil, about(err, path)
	}
	return data, info, nil
}
