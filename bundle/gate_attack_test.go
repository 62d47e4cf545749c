package bundle

import (
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
)

// Nobody signs an index. Whoever writes to the registry can put beside a signed
// container agent an image of their own with the very same layers: its config,
// the program among it, is what containerd makes the container from.
func TestAnUnsignedTwinInTheIndexIsNotHiddenByTheSignedOne(t *testing.T) {
	w := enforcing(t)
	box := w.add("", w.sign(w.containerAgent()))
	chain := w.read(w.blobs[box.Digest]).ChainID().String()
	twin := w.add("", w.image(func(c *ocispec.Image, _ *ocispec.Manifest) {
		c.Config.Entrypoint = []string{"sh", "-c", "anything"}
	}))
	agent := w.add("", w.sign(w.agent("")))
	other := w.add("", w.agent(""))
	for name, tc := range map[string]struct {
		entries []ocispec.Descriptor
		parent  string
		wasm    bool
		refused bool
	}{
		"the container, signed first":   {entries: []ocispec.Descriptor{entry(box, "linux", "amd64"), entry(twin, "linux", "amd64")}, parent: chain, refused: true},
		"the container, signed last":    {entries: []ocispec.Descriptor{entry(twin, "linux", "amd64"), entry(box, "linux", "amd64")}, parent: chain, refused: true},
		"posing as a build's statement": {entries: []ocispec.Descriptor{entry(box, "linux", "amd64"), entry(twin, "unknown", "unknown")}, parent: chain, refused: true},
		"without a platform":            {entries: []ocispec.Descriptor{entry(box, "linux", "amd64"), {MediaType: ocispec.MediaTypeImageManifest, Digest: twin.Digest, Size: twin.Size}}, parent: chain, refused: true},
		"the WASM agent":                {entries: []ocispec.Descriptor{entry(agent, "wasip1", "wasm"), entry(other, "wasip1", "wasm")}, refused: true},
		"twice the same":                {entries: []ocispec.Descriptor{entry(box, "linux", "amd64"), entry(box, "linux", "arm64")}, parent: chain},
		"of another root":               {entries: []ocispec.Descriptor{entry(agent, "wasip1", "wasm"), entry(twin, "linux", "amd64")}, wasm: true},
	} {
		t.Run(name, func(t *testing.T) {
			w.TB = t
			w.dir = t.TempDir()
			w.write(plain())
			w.tag(ref, index(w, tc.entries...))
			w.containerOf(ref, tc.parent)
			if tc.refused {
				w.refused(fault.Unsigned)
				return
			}
			w.runs(tc.wasm)
		})
	}
}

// A checkpoint is the memory of a process: code that nobody signed, whatever
// image the container was made from.
func TestACheckpointIsNotRunUnderASignature(t *testing.T) {
	for name, tc := range map[string]struct {
		ref  string
		make func(*world) []byte
		want fault.Reason
	}{
		"a signed agent":                 {ref, func(w *world) []byte { return w.sign(w.agent("")) }, fault.Unsupported},
		"a signed container agent":       {ref, func(w *world) []byte { return w.sign(w.containerAgent()) }, fault.Unsigned},
		"an unsigned agent":              {mixed, func(w *world) []byte { return w.agent("") }, fault.Unsupported},
		"an unsigned image in the scope": {mixed, func(w *world) []byte { return w.image() }, fault.Unsigned},
		"an ordinary image":              {outside, func(w *world) []byte { return w.image() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.create(tc.ref, tc.make(w))
			before := w.tree()
			_, err := w.preparer().Prepare(t.Context(), Request{ID: id, Dir: w.dir, Checkpoint: true})
			if tc.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			w.isRefusal(err, tc.want)
			if w.tree() != before {
				t.Error("the bundle changed")
			}
		})
	}
}

// Two mounts may have one destination, in two spellings that a validator takes
// for two: the later is what the agent would see, with the mode of its own.
func TestAReadOnlyMountIsNotOpenedByAnotherAtItsPlace(t *testing.T) {
	for name, mounts := range map[string][]specs.Mount{
		"behind": {
			{Destination: "/vols", Type: "bind", Source: "/scratch", Options: []string{"rbind", "rw"}},
			{Destination: "/vols/", Type: "bind", Source: "/theirs", Options: []string{"rbind", "ro"}},
		},
		"before": {
			{Destination: "/x/../vols", Type: "bind", Source: "/theirs", Options: []string{"rbind", "ro"}},
			{Destination: "/vols", Type: "bind", Source: "/scratch", Options: []string{"rbind", "rw"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.create(ref, w.sign(w.agent(asking)))
			spec := plain()
			spec.Mounts = append(spec.Mounts, mounts...)
			w.write(spec)
			w.runs(true)
			for _, m := range w.spec().Mounts {
				if m.Source == "/theirs" && !slices.Contains(m.Options, "ro") {
					t.Errorf("it is mounted with %q", m.Options)
				}
			}
		})
	}
}

// What is judged is the container's own root, and not a directory that its
// specification names instead.
func TestTheRootOfAnImagesContainerIsItsSnapshot(t *testing.T) {
	for _, root := range []string{"/", "../../other/rootfs", "rootfs/sub"} {
		w := enforcing(t)
		w.create(ref, w.sign(w.containerAgent()))
		spec := plain()
		spec.Root.Path = root
		w.write(spec)
		w.refused(fault.SnapshotMismatch)
		// An agent's root is an empty one of our own.
		w.create(ref, w.sign(w.agent("")))
		w.runs(true)
	}
}

// A label is a user's or an image author's to choose. One that names another,
// signed agent leads to nothing but that agent.
func TestAForgedHoldLeadsToNothingElse(t *testing.T) {
	w := enforcing(t)
	good := w.sign(w.containerAgent())
	w.create(ref, good)
	delete(w.images, ref)
	w.edit(func(c *Container) { c.Held = digest.FromBytes(good) })
	w.parents["overlayfs/"+id] = digest.FromString("evil layers").String()
	w.refused(fault.SnapshotMismatch)
	w.edit(func(c *Container) { c.Image = "registry.example/agents/other:1.0.0" })
	w.refused(fault.BindingMismatch)
	w.edit(func(c *Container) { c.Image, c.Held = ref, "sha256:../../etc/passwd" })
	w.refused(fault.NotFound)
}

// The name decides the scope, and CRI's digest the content: neither alone is
// enough to get an unsigned image into a scope.
func TestNameAndDigestAreJudgedTogether(t *testing.T) {
	for name, image := range map[string]string{
		"by tag": ref, "by digest": repository + "@" + digest.FromString("x").String(),
		"by both": ref + "@" + digest.FromString("x").String(), "the host in capitals": "REGISTRY.example/agents/echo:1.0.0",
		"with the port": "registry.example:443/agents/echo:1.0.0", "with zeros in the port": "registry.example:0443/agents/echo:1.0.0",
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			good, evil := w.sign(w.containerAgent()), w.image()
			w.create(ref, good)
			w.add("", evil)
			w.edit(func(c *Container) { c.Image, c.Digest = image, digest.FromBytes(evil) })
			w.refused(fault.Unsigned)
			w.edit(func(c *Container) { c.Digest = digest.FromBytes(good) })
			w.runs(false)
		})
	}
}

// CRI makes a container from the first of an image's names, in an order of its
// own: one from outside of the scope must not let in what the pod named inside.
func TestAnotherNameOfTheImageDoesNotDecideItsScope(t *testing.T) {
	for name, tc := range map[string]struct {
		asked string
		names []string
		want  fault.Reason
		image func(*world) []byte
	}{
		"unsigned, asked for in the scope": {asked: ref, names: []string{ref, outside}, want: fault.Unsigned, image: func(w *world) []byte { return w.image() }},
		"unsigned, asked for outside":      {asked: outside, names: []string{ref, outside}, image: func(w *world) []byte { return w.image() }},
		"signed, asked for in the scope":   {asked: ref, names: []string{ref, outside}, image: func(w *world) []byte { return w.sign(w.agent("")) }},
		"a name that is of something else": {asked: mixed, names: []string{outside}, want: fault.PolicyDenied, image: func(w *world) []byte { return w.sign(w.agent("")) }},
		"an image's id":                    {asked: digest.FromString("config").String(), names: []string{outside}, image: func(w *world) []byte { return w.image() }},
		"no name":                          {asked: "::", names: []string{outside}, want: fault.Unsigned, image: func(w *world) []byte { return w.agent("") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			raw := tc.image(w)
			w.create(outside, raw)
			for _, n := range tc.names {
				w.tag(n, raw)
			}
			w.edit(func(c *Container) { c.Asked, c.Digest = tc.asked, digest.FromBytes(raw) })
			if tc.want != "" {
				w.refused(tc.want)
				return
			}
			w.runs(w.read(raw).Module != nil)
		})
	}
}
