package bundle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	imagespecs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// cacheDir is the compiled modules' cache of all tests that need no other one.
var cacheDir string

// TestMain makes the test binary play mentat-host too: compiling is copying.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "compile" {
		if _, err := io.Copy(os.NewFile(3, "result"), os.Stdin); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if cacheDir, err = os.MkdirTemp("", "bundle-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(cacheDir)
	return m.Run()
}

// node is a containerd in memory.
type node struct {
	mu        sync.Mutex
	container map[string]Container
	images    map[string]ocispec.Descriptor
	blobs     map[digest.Digest][]byte
	parents   map[string]string
	held      map[string]digest.Digest
	// fails is what a method answers instead.
	fails map[string]error
	// calls are the methods' names.
	calls []string
	// before runs at every call, outside the lock.
	before func(call string)
}

func newNode() *node {
	return &node{
		container: map[string]Container{}, images: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{},
		parents: map[string]string{}, held: map[string]digest.Digest{}, fails: map[string]error{},
	}
}

func (n *node) enter(call string) (func(), error) {
	if n.before != nil {
		n.before(call)
	}
	n.mu.Lock()
	n.calls = append(n.calls, call)
	return n.mu.Unlock, n.fails[call]
}

func absent(what string) error { return fmt.Errorf("%s: %w", what, errdefs.ErrNotFound) }

func (n *node) Container(_ context.Context, id string) (Container, error) {
	leave, err := n.enter("Container")
	defer leave()
	if err != nil {
		return Container{}, err
	}
	c, ok := n.container[id]
	if !ok {
		return Container{}, absent(id)
	}
	return c, nil
}

func (n *node) Image(_ context.Context, ref string) (ocispec.Descriptor, error) {
	leave, err := n.enter("Image")
	defer leave()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, ok := n.images[ref]
	if !ok {
		return d, absent(ref)
	}
	return d, nil
}

func (n *node) Blob(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	leave, err := n.enter("Blob")
	defer leave()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	data, ok := n.blobs[d]
	if !ok {
		return ocispec.Descriptor{}, absent(string(d))
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(data))}, nil
}

func (n *node) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	leave, err := n.enter("Fetch " + d.MediaType)
	defer leave()
	if err != nil {
		return nil, err
	}
	data, ok := n.blobs[d.Digest]
	if !ok {
		return nil, fault.Wrap(absent(string(d.Digest)), fault.NotFound, string(d.Digest), "not in containerd's content store")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (n *node) SnapshotParent(_ context.Context, snapshotter, key string) (string, error) {
	leave, err := n.enter("SnapshotParent")
	defer leave()
	if err != nil {
		return "", err
	}
	parent, ok := n.parents[snapshotter+"/"+key]
	if !ok {
		return "", absent(key)
	}
	return parent, nil
}

func (n *node) Hold(_ context.Context, id string, d digest.Digest) error {
	leave, err := n.enter("Hold")
	defer leave()
	if err == nil {
		n.held[id] = d
	}
	return err
}

// add puts content into the store.
func (n *node) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	n.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// tamper changes content without its name.
func (n *node) tamper(d digest.Digest) {
	data := slices.Clone(n.blobs[d])
	data[len(data)-2] ^= 1
	n.blobs[d] = data
}

const (
	id         = "c1"
	repository = "registry.example/agents/echo"
	ref        = repository + ":1.0.0"
	// mixed is in a scope that takes everybody's signature, and none.
	mixed = "registry.example/mixed/echo:1.0.0"
	// outside is in no scope.
	outside = "registry.example/elsewhere/echo:1.0.0"
)

const policy = `version: 1
scopes:
  - name: agents
    match: ["registry.example/agents/**"]
    stores: [agents]
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
  - name: mixed
    match: ["registry.example/mixed/**"]
    stores: [agents]
    identities: [any]
    unsigned_containers: allow
    unsigned_agents: allow
    binding: none
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl}
`

// capabilities is what signed agents may have on that node.
const capabilities = `version: 1
rules:
  - name: agents
    trust: [signed]
    allow: ["filesystem:read:/data", "filesystem:read-write:/vols", "env:GREETING", "env:APP_PORT"]
`

// world is a node with a policy and one bundle.
type world struct {
	testing.TB
	*node
	pki    *testpki.PKI
	config *nodeconfig.Config
	// etc is where the configuration lies, dir the bundle.
	etc, dir string
	clock    func() time.Time
	log      bytes.Buffer
}

// developer is a world without a policy.
func developer(t testing.TB) *world {
	t.Helper()
	host, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, node: newNode(), etc: t.TempDir(), dir: t.TempDir(), clock: testpki.Clock}
	text := fmt.Sprintf("[verify]\nstate = %q\n[capability]\nmedia = 'var/media'\n[audit]\nspool = 'spool'\nlog = 'log'\n[host]\nbinary = %q\nnet_binary = %q\n[cache]\ndir = %q\nmemory = %q\n",
		filepath.Join(w.etc, "state"), host, host, filepath.Join(cacheDir, "modules"), filepath.Join(cacheDir, "memory"))
	if w.config, err = nodeconfig.Parse(filepath.Join(w.etc, "config.toml"), []byte(text)); err != nil {
		t.Fatal(err)
	}
	w.write(plain())
	return w
}

// enforcing is a world whose policy trusts pki's root.
func enforcing(t testing.TB, knobs ...testpki.Knob) *world {
	t.Helper()
	w := developer(t)
	w.pki = testpki.New(t, knobs...)
	w.enforce(policy)
	return w
}

// enforce puts a policy, its trust store and its lists in place.
func (w *world) enforce(text string) {
	w.Helper()
	w.file("trust/agents/root.pem", testpki.PEM(w.pki.Root))
	w.file("root.crl", w.pki.RootCRL())
	w.file("agent.crl", w.pki.AgentCRL())
	w.file("policy.yaml", []byte(text))
	w.config.Verify.Policy = filepath.Join(w.etc, "policy.yaml")
	w.grants(capabilities)
}

// grants makes text the capability policy.
func (w *world) grants(text string) {
	w.Helper()
	w.file("capabilities.yaml", []byte(text))
	w.config.Capability.Policy = filepath.Join(w.etc, "capabilities.yaml")
}

func (w *world) file(name string, data []byte) {
	w.Helper()
	path := filepath.Join(w.etc, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.Fatal(err)
	}
}

// write makes spec the bundle's specification.
func (w *world) write(spec *specs.Spec) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, specName), encode(w, spec), 0o600); err != nil {
		w.Fatal(err)
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// plain is what containerd makes for `ctr run`, run by this process's user.
func plain() *specs.Spec {
	return &specs.Spec{
		Version: "1.2.0",
		Process: &specs.Process{
			Args: []string{"/agent.wasm"}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"},
			User:         specs.User{},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"}},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}},
		},
		Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		},
		Linux: &specs.Linux{
			// The tests' user is the container's root: they run as anybody.
			UIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Getuid()), Size: 1}},
			GIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Getgid()), Size: 1}},
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UserNamespace}},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
		},
	}
}

const wasm = "\x00asm\x01\x00\x00\x00"

// asking is the manifest of an agent that asks for what the policy grants.
const asking = `
wasm:
  capabilities: ["filesystem:read:/data", "filesystem:read-write:/vols", "env:GREETING", "env:APP_PORT"]
`

// agent builds a WASM agent and returns its unsigned manifest.
func (w *world) agent(extra string) []byte {
	w.Helper()
	return w.build(oci.BuildInput{Agent: w.manifest("wasm\nmodule: agent.wasm" + extra), Module: []byte(wasm)})
}

func (w *world) manifest(rest string) *manifest.Manifest {
	w.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: "+rest+"\n"))
	if err != nil {
		w.Fatal(err)
	}
	return m
}

// dual builds an agent that is a container too.
func (w *world) dual(change ...func(*ocispec.Image)) []byte {
	w.Helper()
	return w.build(oci.BuildInput{Agent: w.manifest("wasm\nmodule: agent.wasm" + asking), Module: []byte(wasm), Container: w.container(change...)})
}

// containerAgent builds an agent that is a container only.
func (w *world) containerAgent() []byte {
	w.Helper()
	return w.build(oci.BuildInput{Agent: w.manifest("python3.12\nimage: " + ref), Container: w.container()})
}

// container is an ordinary image of one layer.
func (w *world) container(change ...func(*ocispec.Image)) *oci.ContainerImage {
	w.Helper()
	layer := w.add(ocispec.MediaTypeImageLayer, []byte("the tests unpack nothing"))
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"python", "app.py"}, Env: []string{"PATH=/bin", "MODEL=small"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}
	for _, c := range change {
		c(&config)
	}
	return &oci.ContainerImage{Config: encode(w, config), Layers: []ocispec.Descriptor{layer}, Source: w.node}
}

// image is an ordinary image's manifest, or that of something like it.
func (w *world) image(change ...func(*ocispec.Image, *ocispec.Manifest)) []byte {
	w.Helper()
	c := w.container()
	var config ocispec.Image
	if err := json.Unmarshal(c.Config, &config); err != nil {
		w.Fatal(err)
	}
	m := ocispec.Manifest{
		Versioned: imagespecs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, Layers: c.Layers,
	}
	for _, f := range change {
		f(&config, &m)
	}
	d := w.add(m.Config.MediaType, encode(w, config))
	m.Config = d
	raw, err := canonical.Marshal(m)
	if err != nil {
		w.Fatal(err)
	}
	w.add(m.MediaType, raw)
	return raw
}

// chart is an artifact that is no image.
func (w *world) chart() []byte {
	return w.image(func(_ *ocispec.Image, m *ocispec.Manifest) {
		m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		m.Layers = []ocispec.Descriptor{w.add("application/vnd.cncf.helm.chart.content.v1.tar+gzip", []byte("chart"))}
	})
}

// build builds an artifact and pulls it.
func (w *world) build(in oci.BuildInput) []byte {
	w.Helper()
	l, err := oci.CreateLayout(filepath.Join(w.TempDir(), "layout"))
	if err != nil {
		w.Fatal(err)
	}
	desc, err := oci.Build(w.Context(), in, l)
	if err != nil {
		w.Fatal(err)
	}
	blobs := filepath.Join(l.Dir(), "blobs", "sha256")
	entries, err := os.ReadDir(blobs)
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(blobs, e.Name()))
		if err != nil {
			w.Fatal(err)
		}
		w.add("", data)
	}
	return w.blobs[desc.Digest]
}

// sign signs as the world's developer.
func (w *world) sign(raw []byte, edits ...func(*verifier.SignRequest)) []byte {
	w.Helper()
	return w.signAs(w.pki.LeafKey, w.pki.Chain(), raw, edits...)
}

func (w *world) signAs(key crypto.Signer, chain []*x509.Certificate, raw []byte, edits ...func(*verifier.SignRequest)) []byte {
	w.Helper()
	req := verifier.SignRequest{
		Raw: raw, Key: key, Chain: chain, Time: testpki.Now.Add(-time.Minute),
		Subject: verifier.Subject{ID: "mentatlab.echo", Version: "1.0.0", Repository: repository},
	}
	for _, edit := range edits {
		edit(&req)
	}
	signed, _, err := verifier.Sign(req)
	if err != nil {
		w.Fatal(err)
	}
	w.add(ocispec.MediaTypeImageManifest, signed)
	return signed
}

func (w *world) read(raw []byte) *oci.Artifact {
	w.Helper()
	a, err := oci.Read(w.Context(), w.node, raw)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// tag gives a manifest or index a name.
func (w *world) tag(name string, raw []byte) ocispec.Descriptor {
	d := w.add(ocispec.MediaTypeImageManifest, raw)
	w.images[name] = d
	return d
}

// create makes the container from an image, as containerd's client does.
func (w *world) create(name string, raw []byte) {
	w.Helper()
	w.tag(name, raw)
	w.containerOf(name, w.read(raw).ChainID().String())
}

// containerOf is a container with a snapshot of that parent.
func (w *world) containerOf(name, parent string) {
	w.node.container[id] = Container{Image: name, Snapshotter: "overlayfs", SnapshotKey: id}
	w.parents["overlayfs/"+id] = parent
}

// edit changes what containerd knows of the container.
func (w *world) edit(change func(*Container)) {
	c := w.node.container[id]
	change(&c)
	w.node.container[id] = c
}

func (w *world) preparer() *Preparer {
	w.Helper()
	p, err := New(Options{Config: w.config, Node: w.node, Clock: w.clock, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) prepare() (*Result, error) {
	w.Helper()
	return w.preparer().Prepare(w.Context(), Request{ID: id, Dir: w.dir})
}

// runs requires that the bundle is made ready, in that form.
func (w *world) runs(wasm bool) *Result {
	w.Helper()
	before := w.bytes(specName)
	got, err := w.prepare()
	if err != nil {
		w.Fatalf("refused: %v", err)
	}
	if got.WASM != wasm || Prepared(w.dir) != wasm || got.Verdict == nil || !got.Verdict.Allowed {
		w.Fatalf("WASM is %v, prepared %v, want %v; verdict %+v", got.WASM, Prepared(w.dir), wasm, got.Verdict)
	}
	if after := w.bytes(specName); bytes.Equal(before, after) == wasm {
		w.Fatalf("config.json is %s", after)
	}
	return got
}

// refused requires a refusal that leaves the bundle as it was.
func (w *world) refused(want fault.Reason) {
	w.Helper()
	w.refusal(want)
}

// refusal is [world.refused] and what was said.
func (w *world) refusal(want fault.Reason) string {
	w.Helper()
	before := w.tree()
	got, err := w.prepare()
	if got != nil || err == nil {
		w.Fatalf("not refused, want %s", want)
	}
	w.isRefusal(err, want)
	if after := w.tree(); after != before {
		w.Errorf("the bundle changed from\n%s\nto\n%s", before, after)
	}
	return err.Error()
}

func (w *world) isRefusal(err error, want fault.Reason) {
	w.Helper()
	var fe *fault.Error
	if !errors.As(err, &fe) || fe.Reason != want {
		w.Fatalf("reason %q of %v, want %q", fault.ReasonOf(err), err, want)
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\r") || text == "" {
		w.Errorf("the error is not a line: %q", text)
	}
}

// tree is the bundle as text: names, modes and contents.
func (w *world) tree() string {
	w.Helper()
	var b strings.Builder
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s", path, info.Mode())
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s", data)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	return b.String()
}

func (w *world) bytes(name string) []byte {
	w.Helper()
	data, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.Fatal(err)
	}
	return data
}

// spec is the bundle's specification as the runtime will read it.
func (w *world) spec() *specs.Spec {
	w.Helper()
	spec, err := parseSpec(specName, w.bytes(specName))
	if err != nil {
		w.Fatal(err)
	}
	return spec
}

// document is what the host will read.
func (w *world) document() *hostdoc.Document {
	w.Helper()
	d, err := hostdoc.Read(filepath.Join(w.dir, privateDir, filepath.Base(hostdoc.Path)))
	if err != nil {
		w.Fatal(err)
	}
	return d
}
