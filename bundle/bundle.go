package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/aot"
	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// Start starts a child process and returns how to wait for it. A containerd
// shim must go through its reaper, everything else may use exec's own.
type Start = func(*exec.Cmd) (wait func() error, err error)

// Options are what a [Preparer] is made from.
type Options struct {
	// Config is the node's configuration.
	Config *nodeconfig.Config
	// Node is containerd.
	Node Node
	// Start starts the compiler child; nil uses the exec package.
	Start Start
	// Clock tells the time; nil is the system's.
	Clock func() time.Time
	// Log receives one line a decision.
	Log *slog.Logger
}

// Preparer makes bundles ready. It may be used from several goroutines; policy
// and trust stores are read again for each bundle, so that a changed policy
// holds for the next container.
type Preparer struct {
	Options
	host string
}

// New checks the options and finds mentat-host.
func New(o Options) (*Preparer, error) {
	if o.Config == nil || o.Node == nil {
		return nil, fault.New(fault.Internal, "bundle", "configuration and node are required")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	host := o.Config.Host.Binary
	if host == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "mentat-host", "cannot find the directory of this program")
		}
		host = filepath.Join(filepath.Dir(self), "mentat-host")
	}
	return &Preparer{Options: o, host: host}, nil
}

// compiled finds or makes the compiled module. The cache is opened only here:
// a broken one must not keep ordinary containers from starting.
func (p *Preparer) compiled(ctx context.Context, module ocispec.Descriptor) (aot.Entry, error) {
	cache, err := aot.Open(aot.Options{
		Dir: p.Config.Cache.Dir, Memory: p.Config.Cache.Memory, HostBinary: p.host, Start: p.Start,
		Report: func(line string) { p.Log.Warn(line) },
	})
	if err != nil {
		return aot.Entry{}, err
	}
	return cache.Module(ctx, module.Digest, func() (io.ReadCloser, error) { return p.Node.Fetch(ctx, module) })
}

// Request names the bundle and what the caller knows beside it.
type Request struct {
	// ID is the container's id, Dir the bundle with config.json.
	ID, Dir string
	// Stdin is true when a standard input is attached.
	Stdin bool
}

// Result says what was decided.
type Result struct {
	// WASM is true when config.json was rewritten to run mentat-host.
	WASM bool
	// Verdict is the gate's; nil only for a sandbox's own container without an
	// image.
	Verdict *verifier.Verdict
	// Compiled is true when the module was not in the cache.
	Compiled bool
}

// Prepare makes one bundle ready. The context carries containerd's namespace.
// Every refusal is a fault with its reason.
func (p *Preparer) Prepare(ctx context.Context, req Request) (*Result, error) {
	spec, err := readSpec(req.Dir)
	if err != nil {
		return nil, err
	}
	c, err := p.Node.Container(ctx, req.ID)
	if err != nil {
		return nil, unreachable(err, req.ID, "cannot find the container in containerd")
	}
	v, err := p.openVerifier(ctx)
	if err != nil {
		return nil, err
	}
	found, err := p.find(ctx, c)
	if err != nil {
		return nil, err
	}
	verdict := v.Verify(ctx, verifier.Input{Reference: c.Image, Artifact: found})
	p.Log.Info("gate", "container", req.ID, "image", c.Image, "verdict", verdict.Line())
	if !verdict.Allowed {
		return nil, verdict.Err
	}
	for _, w := range verdict.Warnings {
		p.Log.Warn(w, "container", req.ID)
	}
	result := &Result{Verdict: verdict}
	if found == nil {
		return result, nil
	}
	if err := p.checkSnapshot(ctx, req.ID, c, found); err != nil {
		return nil, err
	}
	if found.Module == nil {
		if found.Form == oci.FormPlainWASM {
			return nil, fault.New(fault.Unsupported, c.Image, "it is WASM, but has no %s blob that could be run", oci.MediaTypeWASM).
				WithHint("pack the module with mentatctl build")
		}
		return result, nil
	}
	if err := p.Node.Hold(ctx, req.ID, found.Digest); err != nil {
		return nil, unreachable(err, req.ID, "cannot protect the agent's content from garbage collection")
	}
	entry, err := p.compiled(ctx, *found.Module)
	if err != nil {
		return nil, err
	}
	run := wasmRun{
		id: req.ID, dir: req.Dir, stdin: req.Stdin,
		reference: c.Image, artifact: found, verdict: verdict,
		host: p.host, module: entry.Path,
		grant: p.grant(v, verdict, found, spec),
	}
	if err := run.apply(spec); err != nil {
		return nil, err
	}
	result.WASM, result.Compiled = true, !entry.Hit
	p.Log.Info("agent", "container", req.ID, "agent", verdict.Agent, "trust", verdict.Trust, "module", found.Module.Digest, "compiled", !entry.Hit)
	return result, nil
}

// refreshBudget bounds how long a start waits for a revocation server; what
// could not be refreshed is judged by its age.
const refreshBudget = 2 * time.Second

// openVerifier reads policy and trust stores. Revocation data that is due is
// fetched first; the verifier reads it from disk when it judges.
func (p *Preparer) openVerifier(ctx context.Context) (*verifier.Verifier, error) {
	v, err := verifier.Open(p.Config.Verify, p.Clock)
	if err != nil || v.Policy() == nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, refreshBudget)
	defer cancel()
	if err := fetch.Refresh(ctx, v.Policy(), p.Config.Verify, nil, p.Clock, false); err != nil {
		p.Log.Warn("revocation data not refreshed", "error", err)
	}
	return v, nil
}

// find reads the image that the container was made from; nil without an image.
func (p *Preparer) find(ctx context.Context, c Container) (*oci.Artifact, error) {
	if c.Image == "" && c.Digest == "" {
		return nil, nil
	}
	var target ocispec.Descriptor
	var err error
	if c.Digest != "" {
		target, err = p.Node.Blob(ctx, c.Digest)
	} else {
		target, err = p.Node.Image(ctx, c.Image)
		if errdefs.IsNotFound(err) && c.Held != "" {
			target, err = p.Node.Blob(ctx, c.Held)
		}
	}
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, fault.Wrap(err, fault.NotFound, c.Image, "the container's image is gone, so it cannot be verified").
				WithHint("pull the image and create the container again")
		}
		return nil, unreachable(err, c.Image, "cannot look the image up")
	}
	raw, err := oci.ReadBlob(ctx, p.Node, target, limits.OCIManifestBytes)
	if err != nil {
		return nil, err
	}
	if !isIndex(raw) {
		return oci.Read(ctx, p.Node, raw)
	}
	return p.choose(ctx, c, raw)
}

// isIndex tells an index from a manifest by its content: what is found by
// digest alone has no media type, and the strict readers check the rest.
func isIndex(raw []byte) bool {
	var head struct {
		Manifests json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(raw, &head) == nil && head.Manifests != nil
}

// choose picks from an index the manifest that the container's snapshot was
// made from, the WASM one first. An entry whose content was not pulled is not
// what containerd unpacked.
func (p *Preparer) choose(ctx context.Context, c Container, raw []byte) (*oci.Artifact, error) {
	index, err := oci.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	if len(index.Manifests) > limits.IndexManifests {
		return nil, fault.New(fault.ArtifactInvalid, c.Image, "the index has %d manifests, at most %d are judged", len(index.Manifests), limits.IndexManifests)
	}
	entries := slices.Clone(index.Manifests)
	slices.SortStableFunc(entries, func(a, b ocispec.Descriptor) int { return rank(a) - rank(b) })
	parent, err := p.snapshotParent(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		raw, err := oci.ReadBlob(ctx, p.Node, d, limits.OCIManifestBytes)
		if fault.ReasonOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := oci.Read(ctx, p.Node, raw)
		if fault.ReasonOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sameChain(parent, a.ChainID()) {
			return a, nil
		}
	}
	return nil, fault.New(fault.SnapshotMismatch, c.Image, "no manifest of the index is what the container's root filesystem was made from")
}

func rank(d ocispec.Descriptor) int {
	switch {
	case d.Platform == nil:
		return 1
	case d.Platform.Architecture == "wasm":
		return 0
	}
	return 1
}

func (p *Preparer) snapshotParent(ctx context.Context, c Container) (string, error) {
	if c.SnapshotKey == "" {
		return "", nil
	}
	parent, err := p.Node.SnapshotParent(ctx, c.Snapshotter, c.SnapshotKey)
	if err != nil {
		return "", unreachable(err, c.SnapshotKey, "cannot look the container's snapshot up")
	}
	return parent, nil
}

// checkSnapshot requires that the root filesystem was made from the layers of
// the image that was verified: a tag can move between create and start.
func (p *Preparer) checkSnapshot(ctx context.Context, id string, c Container, a *oci.Artifact) error {
	parent, err := p.snapshotParent(ctx, c)
	if err != nil {
		return err
	}
	if sameChain(parent, a.ChainID()) {
		return nil
	}
	return fault.New(fault.SnapshotMismatch, id, "the root filesystem is made from %q, the verified image %s has layers %q",
		parent, a.Digest, a.ChainID()).WithHint("the tag moved or the image was replaced: create the container again")
}

// remapped is how containerd names a copy of a chain for a user namespace.
var remapped = regexp.MustCompile(`^-\d+-\d+$`)

func sameChain(parent string, chain digest.Digest) bool {
	if parent == chain.String() {
		return true
	}
	rest, ok := strings.CutPrefix(parent, chain.String())
	return chain != "" && ok && remapped.MatchString(rest)
}

// grant computes what the agent may do from its manifest, the node's policy
// and what the container was given.
func (p *Preparer) grant(v *verifier.Verifier, verdict *verifier.Verdict, a *oci.Artifact, spec *specs.Spec) capability.Grant {
	var policy []manifest.Capability
	if v.Policy() != nil {
		policy = v.Policy().Grants(verdict.Trust)
	}
	return capability.Effective(capability.Request{
		Manifest: a.Agent,
		Trust:    string(verdict.Trust),
		Policy:   policy,
		Given:    given(spec, a.Config),
	})
}

// unreachable wraps a containerd error; a cancelled call keeps that meaning.
func unreachable(err error, on, msg string) error {
	var fe *fault.Error
	if errors.As(err, &fe) {
		return err
	}
	r := fault.Internal
	switch {
	case errdefs.IsNotFound(err):
		r = fault.NotFound
	case errors.Is(err, context.Canceled):
		r = fault.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		r = fault.Deadline
	case errdefs.IsUnavailable(err):
		r = fault.Unavailable
	}
	return fault.Wrap(err, r, on, "%s", msg)
}
