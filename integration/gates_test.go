package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
	"github.com/mentatlab/mentat/verifier"
)

// guarded is a node with a policy, a registry and a PKI.
type guarded struct {
	*world
	registry *node.Registry
	pki      *testpki.PKI
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	testpki.Now = time.Now().UTC()
	w := newWorld(t, node.Config{Verifier: true})
	registry, err := w.StartRegistry(t.Context(), node.RegistryConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g := &guarded{world: w, registry: registry, pki: testpki.New(t)}
	g.trust(g.pki)
	g.policy("")
	return g
}

// trust makes a PKI's root and current lists the node's.
func (g *guarded) trust(p *testpki.PKI, revoked ...testpki.CRLKnob) {
	g.t.Helper()
	err := errors.Join(
		g.Trust("agents", "root.pem", testpki.PEM(p.Root)),
		os.WriteFile(filepath.Join(g.Etc, "agent.crl"), p.AgentCRL(revoked...), 0o600),
		os.WriteFile(filepath.Join(g.Etc, "root.crl"), p.RootCRL(), 0o600),
	)
	if err != nil {
		g.t.Fatal(err)
	}
}

// policy writes the node's policy, with extra top-level text.
func (g *guarded) policy(extra string) {
	g.t.Helper()
	text := fmt.Sprintf(`version: 1
scopes:
  - name: agents
    match: ["%s/agents/**"]
    stores: [agents]
    identities: ["email:%s"]
    unsigned_containers: deny
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: %q, file: root.crl}
    - {issuer: %q, file: agent.crl}
%s`, g.registry.Host, testpki.Email, g.pki.Root.Subject.String(), g.pki.Agent.Subject.String(), extra)
	if err := g.WritePolicy(text); err != nil {
		g.t.Fatal(err)
	}
}

// grants makes these rules, a list in YAML, the node's capability policy.
func (g *guarded) grants(rules string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.Etc, "capabilities.yaml"), []byte("version: 1\nrules:\n"+rules), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// ref is a name inside the scope.
func (g *guarded) ref(name string) string { return g.registry.Host + "/agents/" + name + ":1.0.0" }

// sign signs a layout's root in place.
func (g *guarded) sign(l *oci.Layout, p *testpki.PKI, id, repository string, change func(*verifier.SignRequest)) {
	g.t.Helper()
	root, raw := g.raw(l)
	req := verifier.SignRequest{
		Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now,
		Subject: verifier.Subject{ID: id, Version: "1.0.0", Repository: repository},
	}
	if change != nil {
		change(&req)
	}
	signed, _, err := verifier.Sign(req)
	if err != nil {
		g.t.Fatalf("sign: %v", err)
	}
	g.replace(l, root, signed)
}

func (g *guarded) raw(l *oci.Layout) (ocispec.Descriptor, []byte) {
	g.t.Helper()
	root, err := l.Root()
	if err != nil {
		g.t.Fatal(err)
	}
	raw, err := oci.ReadBlob(g.t.Context(), l, root, 4<<20)
	if err != nil {
		g.t.Fatal(err)
	}
	return root, raw
}

func (g *guarded) replace(l *oci.Layout, old ocispec.Descriptor, raw []byte) {
	g.t.Helper()
	if _, err := l.ReplaceManifest(g.t.Context(), old, raw); err != nil {
		g.t.Fatal(err)
	}
}

// edit changes a layout's root manifest as text, after it was signed.
func (g *guarded) edit(l *oci.Layout, change func(map[string]any)) {
	g.t.Helper()
	root, raw := g.raw(l)
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		g.t.Fatal(err)
	}
	change(m)
	edited, err := canonical.Marshal(m)
	if err != nil {
		g.t.Fatal(err)
	}
	g.replace(l, root, edited)
}

// push publishes a layout's exact bytes.
func (g *guarded) push(l *oci.Layout, ref string) {
	g.t.Helper()
	c, err := remote.New(remote.Options{DockerConfig: filepath.Join(g.Etc, "docker", "config.json")})
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := c.Push(g.t.Context(), l, ref); err != nil {
		g.t.Fatal(err)
	}
}

// pull pulls through containerd's transfer service and so through the gate.
func (g *guarded) pull(ref string) error {
	_, err := g.Ctr(g.t.Context(), "images", "pull", "--hosts-dir", filepath.Join(g.Etc, "certs.d"), ref)
	return err
}

// good makes a signed agent and publishes it.
func (g *guarded) good(name string) string {
	l, _ := g.build(name, assemble(g.t, guestMarker(1)), "")
	g.sign(l, g.pki, name, g.registry.Host+"/agents/"+name, nil)
	g.push(l, g.ref(name))
	return g.ref(name)
}

func TestASignedAgentIsPulledAndRun(t *testing.T) {
	g := newGuarded(t)
	ref := g.good("good")
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

// put stores a manifest in the registry under a tag, as any client could.
func (g *guarded) put(ref, mediaType string, raw []byte) {
	g.t.Helper()
	repository := strings.TrimSuffix(strings.TrimPrefix(ref, g.registry.Host), ":1.0.0")
	url := "http://" + g.registry.Host + "/v2" + repository + "/manifests/1.0.0"
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPut, url, bytes.NewReader(raw))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		g.t.Fatalf("the registry answers %s: %s", resp.Status, body)
	}
}

// loadRaw imports a layout's blobs under another manifest.
func (w *world) loadRaw(l *oci.Layout, raw []byte, ref string) {
	w.t.Helper()
	if err := w.importAs(l, ocispec.MediaTypeImageManifest, raw, ref); err != nil {
		w.t.Fatal(err)
	}
}

// importAs is the same for a manifest or an index.
func (w *world) importAs(l *oci.Layout, mediaType string, raw []byte, ref string) error {
	w.t.Helper()
	d := digest.FromBytes(raw)
	dir := w.t.TempDir()
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{
			MediaType: mediaType, Digest: d, Size: int64(len(raw)),
			Annotations: map[string]string{"io.containerd.image.name": ref},
		}},
	})
	err = errors.Join(err,
		os.CopyFS(filepath.Join(dir, "layout"), os.DirFS(l.Dir())),
		os.WriteFile(filepath.Join(dir, "layout", "blobs", "sha256", d.Encoded()), raw, 0o600),
		os.Remove(filepath.Join(dir, "layout", "index.json")),
		os.WriteFile(filepath.Join(dir, "layout", "index.json"), index, 0o600))
	if err != nil {
		w.t.Fatal(err)
	}
	if out, err := w.Command(w.t.Context(), "tar", "-C", filepath.Join(dir, "layout"), "-cf", filepath.Join(dir, "image.tar"), ".").CombinedOutput(); err != nil {
		w.t.Fatalf("tar: %v: %s", err, out)
	}
	_, err = w.Ctr(w.t.Context(), "images", "import", "--all-platforms", "--local", filepath.Join(dir, "image.tar"))
	return err
}

func TestRevokingACertificateStopsACachedAgent(t *testing.T) {
	g := newGuarded(t)
	ref := g.good("good")
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 {
		t.Fatalf("before: %q", got.stderr)
	}
	g.trust(g.pki, testpki.Revoking(g.pki.Leaf), testpki.Numbered(2))
	got := g.run("", ref, g.id())
	if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "revoked") {
		t.Errorf("after: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestABrokenPolicyDeniesEverything(t *testing.T) {
	g := newGuarded(t)
	ref := g.good("good")
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	for name, breakIt := range map[string]func() error{
		"unknown key": func() error { return g.WritePolicy("version: 1\nstrictness: high\n") },
		"no YAML":     func() error { return g.WritePolicy("{{{") },
		"empty":       func() error { return g.WritePolicy("") },
		"a directory": func() error {
			return errors.Join(os.Remove(g.PolicyFile()), os.Mkdir(g.PolicyFile(), 0o700))
		},
	} {
		if err := errors.Join(os.RemoveAll(g.PolicyFile()), os.WriteFile(g.PolicyFile(), nil, 0o600), breakIt()); err != nil {
			t.Fatal(err)
		}
		got := g.run("", ref, g.id())
		if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "policy") {
			t.Errorf("%s: at run: status %d, stdout %q, stderr %q", name, got.code, got.stdout, got.stderr)
		}
		if err := g.pull(ref); err == nil || !strings.Contains(err.Error(), string(fault.PolicyInvalid)) {
			t.Errorf("%s: at pull: %v", name, err)
		}
	}
}

func TestATagThatMovedToOtherLayersIsRefused(t *testing.T) {
	g := newGuarded(t)
	g.policy("")
	first, second := g.container("first", "/bin/echo", marker), g.busyboxWith("/changed")
	id := g.id()
	g.ctr("containers", "create", "--runtime", mentatRuntime, first, id)
	t.Cleanup(func() { (&task{world: g.world, id: id}).remove() })
	g.load(second, first) // the tag moves between create and start
	_, err := g.Ctr(t.Context(), "tasks", "start", id)
	if err == nil || !strings.Contains(err.Error(), "made from") {
		t.Errorf("got %v", err)
	}
}

func TestTamperedContentIsRefused(t *testing.T) {
	g := newGuarded(t)
	l, _ := g.build("tampered", assemble(t, guestMarker(77)), "")
	g.sign(l, g.pki, "tampered", g.registry.Host+"/agents/tampered", nil)
	ref := g.ref("tampered")
	g.push(l, ref)
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	_, raw := g.raw(l)
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	module := m.Layers[len(m.Layers)-1]
	blob := g.blob(module.Digest)
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := errors.Join(os.Chmod(blob, 0o600), os.WriteFile(blob, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	got := g.run("", ref, g.id())
	if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "digest") {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

// blob is where containerd keeps content.
func (w *world) blob(d digest.Digest) string {
	return filepath.Join(w.Root, "lib", "io.containerd.content.v1.content", "blobs", d.Algorithm().String(), d.Encoded())
}

// forge makes an artifact with bytes in the module's place that our own tools
// refuse to pack. Everything else about it is right.
func (w *world) forge(id string, module []byte) (*oci.Layout, []byte) {
	w.t.Helper()
	l, desc := w.build(id, assemble(w.t, guestMarker(1)), "")
	raw, err := oci.ReadBlob(w.t.Context(), l, desc, 4<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := oci.Read(w.t.Context(), l, raw)
	if err != nil {
		w.t.Fatal(err)
	}
	m, config := *a.Manifest, *a.Config
	config.Config.Labels[oci.LabelModule] = digest.FromBytes(module).String()
	configBytes, err := canonical.Marshal(config)
	if err != nil {
		w.t.Fatal(err)
	}
	if m.Config, err = l.PushBytes(w.t.Context(), ocispec.MediaTypeImageConfig, configBytes); err != nil {
		w.t.Fatal(err)
	}
	if m.Layers[1], err = l.PushBytes(w.t.Context(), oci.MediaTypeWASM, module); err != nil {
		w.t.Fatal(err)
	}
	if raw, err = canonical.Marshal(m); err != nil {
		w.t.Fatal(err)
	}
	return l, raw
}

func TestNativeCodeAndComponentsAreRefusedAtRun(t *testing.T) {
	w := newWorld(t, node.Config{})
	native, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		module []byte
		say    string
	}{
		{"native-code", native, "native"},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), "component"},
		{"no-wasm", []byte("#!/bin/sh\necho " + marker + "\n"), "script"},
		{"empty-file", []byte{}, "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.t = t
			l, raw := w.forge(tc.name, tc.module)
			ref := "mentat.test/" + tc.name + ":1.0.0"
			w.loadRaw(l, raw, ref)
			got := w.run("", ref, w.id())
			if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, tc.say) {
				t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
		})
	}
}

func TestAnImageThatIsBothRunsBothWays(t *testing.T) {
	g := newGuarded(t)
	image := g.busyboxWith("/etc/dual")
	root, err := image.Root()
	if err != nil {
		t.Fatal(err)
	}
	container, err := oci.LoadImage(t.Context(), image, root, ocispec.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse("manifest.yaml", []byte(agentYAML("dual", "")))
	if err != nil {
		t.Fatal(err)
	}
	l := g.layout()
	if _, err := oci.Build(t.Context(), oci.BuildInput{Agent: m, Module: assemble(t, guestMarker(1)), Container: container}, l); err != nil {
		t.Fatal(err)
	}
	g.sign(l, g.pki, "dual", g.registry.Host+"/agents/dual", nil)
	ref := g.ref("dual")
	g.push(l, ref)
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("as WASM: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	// Other arguments do not make a container of it.
	if got := g.run("", ref, g.id(), "/bin/echo", "container"); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("with arguments: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	if got := g.runWith("", "--runtime", runcRuntime, ref, g.id(), "/bin/echo", "container"); got.code != 0 || got.stdout != "container\n" {
		t.Errorf("as a container: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestModulesThatCannotBeAgentsAreRefusedAtRun(t *testing.T) {
	w := newWorld(t, node.Config{})
	good := assemble(t, guestMarker(1))
	for _, tc := range []struct {
		name   string
		module []byte
		say    []string
	}{
		{"empty", append([]byte{}, good[:8]...), []string{"neither", "process", "_start"}},
		{"truncated", good[:len(good)-5], []string{"truncated"}},
		{"no-entry", assemble(t, `(module (memory (export "memory") 1))`), []string{"neither", "process", "_start"}},
		{"unknown-imports", assemble(t, `(module
			(import "mentat" "no_such_call" (func)) (import "evil" "open_door" (func))
			(memory (export "memory") 1) (func (export "process") (result i32) (i32.const 0)))`), []string{"mentat.no_such_call", "evil.open_door"}},
		{"wrong-type", assemble(t, `(module
			(import "mentat" "read_input" (func (param i64)))
			(memory (export "memory") 1) (func (export "process") (result i32) (i32.const 0)))`), []string{"read_input"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.t = t
			l, _ := w.build(tc.name, tc.module, "")
			ref := "mentat.test/" + tc.name + ":1.0.0"
			w.load(l, ref)
			got := w.run("", ref, w.id())
			if got.code == 0 {
				t.Error("it runs")
			}
			for _, s := range tc.say {
				if !strings.Contains(got.stderr, s) {
					t.Errorf("stderr %q does not say %q", got.stderr, s)
				}
			}
		})
	}
}
