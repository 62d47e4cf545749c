package bundle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/aot"
	capolicy "github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/memory"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
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
	// host runs agents, netHost those that are served or reach a network.
	host, netHost string
	// memory is nil where there is none.
	memory *memory.Memory
	ahead  atomic.Pointer[ahead]
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
	netHost := cmp.Or(o.Config.Host.NetBinary, filepath.Join(filepath.Dir(host), "mentat-host-net"))
	p := &Preparer{Options: o, host: host, netHost: netHost}
	if dir := o.Config.Verify.Memory; dir != "" {
		var err error
		if p.memory, err = memory.Open(dir); err != nil {
			o.Log.Warn("verdicts are not remembered", "error", err)
		}
	}
	return p, nil
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
	return cache.Module(ctx, module.Digest, func() (io.ReadCloser, error) {
		content, err := p.Node.Fetch(ctx, module)
		if err != nil {
			return nil, unreachable(err, module.Digest.String(), "cannot read the module")
		}
		return content, nil
	})
}

// Request names the bundle and what the caller knows beside it.
type Request struct {
	// ID is the container's id, Dir the bundle with config.json.
	ID, Dir string
	// Stdin is true when a standard input is attached.
	Stdin bool
	// Closed is true when no stream is attached at all. Runtimes then give a process
	// a null device that it cannot write to, and another one only where they make
	// devices.
	Closed bool
	// Checkpoint is true when the container is not to begin but to go on from a
	// checkpoint.
	Checkpoint bool
}

// Result says what was decided.
type Result struct {
	// WASM is true when config.json was rewritten to run mentat-host.
	WASM bool
	// Verdict is the gate's.
	Verdict *verifier.Verdict
	// Compiled is true when the module was not in the cache.
	Compiled bool
}

// Prepare makes one bundle ready. The context carries containerd's namespace.
// Every refusal is a fault with its reason, and is recorded.
func (p *Preparer) Prepare(ctx context.Context, req Request) (*Result, error) {
	note := p.note(ctx, req)
	result, err := p.prepare(ctx, req, note)
	if err != nil {
		note.refused(err)
	}
	return result, err
}

func (p *Preparer) prepare(ctx context.Context, req Request, note *note) (*Result, error) {
	q := p.taken(req)
	if q == nil {
		var err error
		q, err = p.inquire(ctx, req.ID, req.Dir)
		note.image = q.container.Image
		if err != nil {
			return nil, err
		}
	}
	var side sync.WaitGroup
	defer side.Wait()
	c, v, spec := q.container, q.verifier, q.spec
	note.image = c.Image
	found := q.candidates[0]
	var verdict *verifier.Verdict
	for _, a := range slices.Backward(q.candidates) {
		verdict = p.verify(ctx, v, verifier.Input{Reference: c.Image, Artifact: a, Index: q.index})
		note.judged(a, verdict)
		p.Log.Info("gate", "container", req.ID, "image", c.Image, "verdict", verdict.Line())
		if !verdict.Allowed {
			return nil, verdict.Err
		}
	}
	for _, w := range verdict.Warnings {
		p.Log.Warn(w, "container", req.ID)
	}
	if req.Checkpoint {
		if err := restorable(ctx, v, req.ID, found, verdict); err != nil {
			return nil, err
		}
	}
	result := &Result{Verdict: verdict}
	if found == nil {
		return note.container(result, spec)
	}
	if err := runnable(c.Image, found); err != nil {
		return nil, err
	}
	if err := checkSnapshot(req.ID, c, q.parent, spec.Spec, found); err != nil {
		return nil, err
	}
	if found.Module == nil {
		return note.container(result, spec)
	}
	held := begin(&side, func() (struct{}, error) {
		if err := p.Node.Hold(ctx, req.ID, found.Digest); err != nil {
			return struct{}{}, unreachable(err, req.ID, "cannot protect the agent's content from garbage collection")
		}
		return struct{}{}, nil
	})
	entry, err := p.compiled(ctx, *found.Module)
	if err != nil {
		return nil, err
	}
	capabilities, err := q.rules()
	if err != nil {
		return nil, err
	}
	run := wasmRun{
		id: req.ID, dir: req.Dir, stdin: req.Stdin, closed: req.Closed,
		reference: c.Image, artifact: found, verdict: verdict,
		host: p.host, netHost: p.netHost, module: entry.Path,
		grant:  grant(capabilities, verdict, c.Image, found, spec.Spec),
		node:   p.nodeOf(capabilities),
		bounds: p.Config.Sandbox,
		note:   note,
	}
	if err := run.apply(spec, held, &side); err != nil {
		return nil, err
	}
	result.WASM, result.Compiled = true, !entry.Hit
	p.Log.Info("agent", "container", req.ID, "agent", verdict.Agent, "trust", verdict.Trust, "module", found.Module.Digest, "compiled", !entry.Hit)
	return result, nil
}

// inquiry is what a decision is made from.
type inquiry struct {
	spec      *bundleSpec
	verifier  *verifier.Verifier
	container Container
	// parent is the container's snapshot's parent, "" for none.
	parent string
	// candidates and index are what [Preparer.find] found.
	candidates []*oci.Artifact
	index      digest.Digest
	// rules is the capability policy, which only agents depend on.
	rules func() (*capolicy.Policy, error)
}

// inquire reads the bundle and the policies and asks containerd. What does not
// depend on each other goes on at the same time: a start waits for all of it.
// What was found before an error is returned with it.
func (p *Preparer) inquire(ctx context.Context, id, dir string) (*inquiry, error) {
	var all sync.WaitGroup
	defer all.Wait()
	open := begin(&all, func() (*verifier.Verifier, error) { return p.openVerifier(ctx) })
	container := begin(&all, func() (Container, error) { return p.Node.Container(ctx, id) })
	q := &inquiry{rules: begin(&all, func() (*capolicy.Policy, error) { return capolicy.Open(p.Config.Capability) })}
	var err error
	if q.spec, err = readSpec(dir); err != nil {
		return q, err
	}
	c, err := container()
	if err != nil {
		return q, unreachable(err, id, "cannot find the container in containerd")
	}
	parent := begin(&all, func() (string, error) { return p.snapshotParent(ctx, c) })
	q.container = c
	q.container.Image = p.name(ctx, c)
	var findErr error
	q.candidates, q.index, findErr = p.find(ctx, q.container, q.spec.Spec, parent)
	q.verifier, err = open()
	if err = cmp.Or(err, findErr); err != nil {
		return q, err
	}
	q.parent, err = parent()
	return q, err
}

// Ahead begins to inquire about a container that a [Preparer.Prepare] of the
// same id and bundle follows for at once; it changes nothing. What goes wrong is
// asked again then.
func (p *Preparer) Ahead(ctx context.Context, id, dir string) {
	a := &ahead{id: id, dir: dir, begun: p.Clock(), done: make(chan struct{})}
	p.ahead.Store(a)
	go func() {
		defer close(a.done)
		a.found, a.err = p.inquire(ctx, id, dir)
	}()
}

// ahead is an inquiry that was begun before anybody asked.
type ahead struct {
	id, dir string
	begun   time.Time
	done    chan struct{}
	found   *inquiry
	err     error
}

// aheadAge bounds how old an answer may be that is used: a policy or a tag that
// changed before counts.
const aheadAge = time.Second

// taken returns what was found ahead, once, or nil.
func (p *Preparer) taken(req Request) *inquiry {
	a := p.ahead.Swap(nil)
	if a == nil || a.id != req.ID || a.dir != req.Dir {
		return nil
	}
	<-a.done
	if age := p.Clock().Sub(a.begun); a.err != nil || age < 0 || age > aheadAge {
		return nil
	}
	return a.found
}

// begin starts a call; its result waits for it. all waits for every one.
func begin[T any](all *sync.WaitGroup, call func() (T, error)) func() (T, error) {
	result := sync.OnceValues(call)
	all.Go(func() { _, _ = result() })
	return result
}

// verify asks the node's memory first. It may be unusable: then every start is
// judged. OCSP responders are asked where the policy wants it. Notary Project
// signatures are those that the pull gate kept.
func (p *Preparer) verify(ctx context.Context, v *verifier.Verifier, in verifier.Input) *verifier.Verdict {
	if v.AsksEnvelopes(in) {
		in.Envelopes = envelopes.In(p.Config.Verify.State).Read(in.Artifact.Digest)
	}
	return fetch.Judge(ctx, v, p.Config.Verify, nil, in, func(ctx context.Context, in verifier.Input) *verifier.Verdict {
		if p.memory == nil {
			return v.Verify(ctx, in)
		}
		return p.memory.Verify(ctx, v, in)
	})
}

func (p *Preparer) blobs() oci.Fetcher {
	if p.memory == nil {
		return p.Node
	}
	return p.memory.Blobs(p.Node)
}

// runnable refuses what is no image of a form that is known to be one.
func runnable(on string, a *oci.Artifact) error {
	switch {
	case a.Module != nil, a.Form == oci.FormImage, a.Form == oci.FormContainer:
		return nil
	case a.Form == oci.FormPlainWASM:
		return fault.New(fault.Unsupported, on, "it is WASM, but has no %s blob that could be run", oci.MediaTypeWASM).
			WithHint("pack the module with mentatctl build")
	}
	return fault.New(fault.Unsupported, on, "an artifact with a config of the type %q is no image that could be run", a.Manifest.Config.MediaType)
}

// restorable judges a checkpoint, which is the memory of a process: running code
// that no signature covers, whatever the container's image is. It is held to
// the rules for a container without an image, and cannot become an agent.
func restorable(ctx context.Context, v *verifier.Verifier, on string, a *oci.Artifact, verdict *verifier.Verdict) error {
	switch {
	case a != nil && a.Module != nil:
		return fault.New(fault.Unsupported, on, "a WASM agent cannot go on from a checkpoint")
	case verdict.Scope != "":
		return fault.New(fault.Unsigned, on, "a checkpoint cannot carry the attestation that the scope %q requires", verdict.Scope)
	}
	return v.Verify(ctx, verifier.Input{}).Err
}

// openVerifier reads policy and trust stores. Revocation data that is due is
// fetched first; the verifier reads it from disk when it judges.
func (p *Preparer) openVerifier(ctx context.Context) (*verifier.Verifier, error) {
	v, err := verifier.Open(p.Config.Verify, p.Clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil || v.Policy() == nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, limits.StartRefreshTime)
	defer cancel()
	if err := fetch.Refresh(ctx, v, p.Config.Verify, nil, false); err != nil {
		p.Log.Warn("revocation data not refreshed", "error", err)
	}
	return v, nil
}

// name is the reference that decides: the pod's own word, if it is a name of the
// very image that CRI took. Else the scope would be that of any other name which
// somebody gave the same image on this node.
func (p *Preparer) name(ctx context.Context, c Container) string {
	if c.Asked == "" || c.Digest == "" {
		return c.Image
	}
	ref, ok := imageref.ParseReference(c.Asked)
	if !ok {
		return c.Image
	}
	if target, err := p.Node.Image(ctx, ref.String()); err != nil || target.Digest != c.Digest {
		return c.Image
	}
	return ref.String()
}

// find reads the images that the container may have been made from, first the
// one that is to run; it is nil without an image. index is the digest of the
// index that led to them, "" if none did.
func (p *Preparer) find(ctx context.Context, c Container, spec *specs.Spec, parent func() (string, error)) (found []*oci.Artifact, index digest.Digest, err error) {
	if c.Image == "" && c.Digest == "" {
		return []*oci.Artifact{nil}, "", nil
	}
	var target ocispec.Descriptor
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
			return nil, "", fault.Wrap(err, fault.NotFound, c.Image, "the container's image is gone, so it cannot be verified").
				WithHint("pull the image and create the container again")
		}
		return nil, "", unreachable(err, c.Image, "cannot look the image up")
	}
	blobs := p.blobs()
	raw, err := oci.ReadBlob(ctx, blobs, target, limits.OCIManifestBytes)
	if err != nil {
		return nil, "", err
	}
	if !oci.LooksLikeIndex(raw) {
		a, err := oci.Read(ctx, blobs, raw)
		return []*oci.Artifact{a}, "", err
	}
	found, err = p.choose(ctx, c, spec, parent, raw)
	return found, target.Digest, err
}

// choose picks from an index the manifests that the container's snapshot may
// have been made from, the WASM one first. An entry whose content was not pulled
// is not what containerd unpacked. There can be several: with the layers of one
// and a config of its own an entry is another image, and nobody signs an index.
func (p *Preparer) choose(ctx context.Context, c Container, spec *specs.Spec, snapshot func() (string, error), raw []byte) ([]*oci.Artifact, error) {
	index, err := oci.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	entries := slices.Clone(index.Manifests)
	slices.SortStableFunc(entries, func(a, b ocispec.Descriptor) int { return rank(a) - rank(b) })
	parent, err := snapshot()
	if err != nil {
		return nil, err
	}
	var found []*oci.Artifact
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
		// A chart has no layers, but that does not make it an empty root.
		if a.Form != oci.FormOther && sameChain(parent, a.ChainID(), spec) {
			found = append(found, a)
		}
	}
	if len(found) > 0 {
		return found, nil
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
func checkSnapshot(id string, c Container, parent string, spec *specs.Spec, a *oci.Artifact) error {
	// containerd mounts the snapshot there; a specification can name another
	// root. That of a WASM agent is an empty one of our own.
	const mounted = "rootfs"
	if a.Module == nil && (c.SnapshotKey == "" || spec.Root == nil || filepath.Clean(spec.Root.Path) != mounted) {
		return fault.New(fault.SnapshotMismatch, id, "the root filesystem is none of containerd's snapshots, so it is not known to be that of the verified image %s", a.Digest)
	}
	if sameChain(parent, a.ChainID(), spec) {
		return nil
	}
	return fault.New(fault.SnapshotMismatch, id, "the root filesystem is made from %q, the verified image %s has layers %q",
		parent, a.Digest, a.ChainID()).WithHint("the tag moved or the image was replaced: create the container again")
}

// sameChain tells whether a snapshot's parent is what containerd makes of a
// chain: the chain itself or, for a user namespace on a snapshotter that cannot
// map owners, a copy under a name that follows from chain and mapping.
func sameChain(parent string, chain digest.Digest, spec *specs.Spec) bool {
	if parent == chain.String() {
		return true
	}
	l := spec.Linux
	if l == nil || len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
		return false
	}
	// As containerd's client encodes what it hashes.
	var remapped struct {
		Parent string
		IDMap  struct {
			UIDs []specs.LinuxIDMapping `json:"UidMap"`
			GIDs []specs.LinuxIDMapping `json:"GidMap"`
		}
	}
	byContainerID := func(a, b specs.LinuxIDMapping) int { return cmp.Compare(a.ContainerID, b.ContainerID) }
	remapped.Parent = chain.String()
	remapped.IDMap.UIDs = slices.SortedStableFunc(slices.Values(l.UIDMappings), byContainerID)
	remapped.IDMap.GIDs = slices.SortedStableFunc(slices.Values(l.GIDMappings), byContainerID)
	name, err := json.Marshal(remapped)
	return err == nil && parent == digest.FromBytes(name).String()
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
