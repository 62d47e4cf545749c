package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// registry serves content by digest.
type registry struct {
	*httptest.Server
	mu      sync.Mutex
	content map[digest.Digest]ocispec.Descriptor // guarded by mu
	data    map[digest.Digest][]byte             // guarded by mu
	hook    func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{content: map[digest.Digest]ocispec.Descriptor{}, data: map[digest.Digest][]byte{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	hook := r.hook
	d := digest.Digest(req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:])
	desc, ok := r.content[d]
	data := r.data[d]
	r.mu.Unlock()
	if hook != nil && hook(w, req) {
		return
	}
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Docker-Content-Digest", string(desc.Digest))
	w.Header().Set("Content-Length", fmt.Sprint(desc.Size))
	_, _ = w.Write(data)
}

func (r *registry) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content[d.Digest], r.data[d.Digest] = d, data
	return d
}

func (r *registry) hooked(hook func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = hook
}

func (r *registry) repo() string { return strings.TrimPrefix(r.URL, "http://") + "/agents/echo" }

func (r *registry) ref() string { return r.repo() + ":1.0.0" }

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	out, err := canonical.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// agent puts a WASM agent's blobs there and returns its unsigned manifest.
func (r *registry) agent(t *testing.T, module string) []byte {
	t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	config := []byte(`{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"]},"os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`)
	return marshal(t, ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      r.add(ocispec.MediaTypeImageConfig, config),
		Layers:      []ocispec.Descriptor{r.add(oci.MediaTypeAgentManifest, text), r.add(oci.MediaTypeWASM, []byte(module))},
		Annotations: map[string]string{oci.AnnotationAgentID: "mentatlab.echo", ocispec.AnnotationVersion: "1.0.0"},
	})
}

func (r *registry) image(t *testing.T, name string) ocispec.Descriptor {
	t.Helper()
	layer := digest.FromString(name)
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["` + string(layer) + `"],"type":"layers"}}`)
	return r.add(ocispec.MediaTypeImageManifest, marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    r.add(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: int64(len(name))}},
	}))
}

func (r *registry) index(t *testing.T, children ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return r.add(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children,
	}))
}

func (r *registry) signed(t *testing.T, p *testpki.PKI) ocispec.Descriptor {
	t.Helper()
	raw, _, err := verifier.Sign(verifier.SignRequest{
		Raw: r.agent(t, "\x00asm\x01\x00\x00\x00"), Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now,
		Subject: verifier.Subject{ID: "mentatlab.echo", Version: "1.0.0", Repository: r.repo()},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.add(ocispec.MediaTypeImageManifest, raw)
}

// node is a node's configuration on disk.
type node struct {
	t   *testing.T
	dir string
}

const policy = `version: 1
scopes:
  - name: agents
    match: ["REGISTRY/agents/**"]
    stores: [agents]
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
outside: {ordinary_images: allow}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", certificate: agent-ca.pem, file: agent.crl}
on_unfetchable: UNFETCHABLE
`

func newNode(t *testing.T, r *registry, p *testpki.PKI, unfetchable string) node {
	t.Helper()
	n := node{t, t.TempDir()}
	n.put("config.toml", []byte("[verify]\nstate = \"state\"\nhosts_dir = \"hosts\"\ndocker_config = \"docker.json\"\n"))
	n.put("trust/agents/root.pem", testpki.PEM(p.Root))
	n.put("agent-ca.pem", testpki.PEM(p.Agent))
	n.put("root.crl", p.RootCRL())
	n.put("agent.crl", p.AgentCRL())
	text := strings.ReplaceAll(policy, "REGISTRY", strings.TrimPrefix(r.URL, "http://"))
	n.put("policy.yaml", []byte(strings.ReplaceAll(text, "UNFETCHABLE", unfetchable)))
	t.Setenv(nodeconfig.Env, filepath.Join(n.dir, "config.toml"))
	return n
}

func (n node) put(name string, data []byte) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n node) remove(name string) {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.dir, name)); err != nil {
		n.t.Fatal(err)
	}
}

// budget is long enough for a busy machine and short enough to wait for. Whatever
// ignores it is not over after patience.
const (
	budget   = 3 * time.Second
	patience = time.Minute
)

// ask runs the verifier as containerd does and holds it to its contract.
func ask(t *testing.T, name string, d ocispec.Descriptor) (allowed bool, line, log string) {
	t.Helper()
	stdin := append(marshal(t, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}), '\n')
	return askWith(t, []string{"-name", name, "-digest", string(d.Digest), "-stdin-media-type", ocispec.MediaTypeDescriptor}, stdin)
}

func askWith(t *testing.T, args []string, stdin []byte) (allowed bool, line, log string) {
	t.Helper()
	var out, errOut safeBuffer
	start := time.Now()
	code := run(t.Context(), budget, args, bytes.NewReader(stdin), &out, &errOut, testpki.Clock)
	if took := time.Since(start); took > patience {
		t.Errorf("the answer took %s", took)
	}
	line = out.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || len(line) < 10 {
		t.Errorf("the answer is not one line: %q", line)
	}
	if code != 0 && code != 1 {
		t.Errorf("exit status %d", code)
	}
	return code == 0, line, errOut.String()
}

// safeBuffer is written to by an answer that comes too late as well.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestTheGate(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	newNode(t, r, p, "deny")
	signed := r.signed(t, p)
	unsigned := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	image := r.image(t, "image")
	provenance := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("provenance"), Size: 10,
		Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}

	// The signed manifest with another module in it.
	var block struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(r.data[signed.Digest], &block); err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(r.agent(t, "\x00asm\x01\x00\x00\x00\x00"), &m); err != nil {
		t.Fatal(err)
	}
	m.Annotations[oci.AnnotationAttestation] = block.Annotations[oci.AnnotationAttestation]
	swapped := r.add(ocispec.MediaTypeImageManifest, marshal(t, m))

	elsewhere := strings.TrimPrefix(r.URL, "http://") + "/library/thing:1"
	for _, c := range []struct {
		name, ref string
		desc      ocispec.Descriptor
		want      fault.Reason
	}{
		{"signed agent", r.ref(), signed, ""},
		{"signed agent by digest", r.repo() + "@" + string(signed.Digest), signed, ""},
		{"unsigned agent", r.ref(), unsigned, fault.Unsigned},
		{"module swapped after signing", r.ref(), swapped, fault.SignatureInvalid},
		{"module swapped, outside", elsewhere, swapped, fault.SignatureInvalid},
		{"unsigned agent outside", elsewhere, unsigned, fault.Unsigned},
		{"ordinary image outside", elsewhere, image, ""},
		{"ordinary image in the scope", r.ref(), image, fault.Unsigned},
		{"index of a signed agent", r.ref(), r.index(t, signed), ""},
		{"index with provenance", r.ref(), r.index(t, signed, provenance), ""},
		{"index with an unsigned child", r.ref(), r.index(t, signed, unsigned), fault.Unsigned},
		{"index that hides an agent outside", elsewhere, r.index(t, image, unsigned), fault.Unsigned},
		{"index of images outside", elsewhere, r.index(t, image, r.image(t, "arm")), ""},
		{"index of nothing", elsewhere, r.index(t), fault.ArtifactInvalid},
		{"index of provenance only", elsewhere, r.index(t, provenance), fault.ArtifactInvalid},
		{"index in an index", r.ref(), r.index(t, r.index(t, signed)), ""},
		{"indexes without end", r.ref(), r.index(t, r.index(t, r.index(t, r.index(t, r.index(t, signed))))), fault.ArtifactInvalid},
		{"manifest not there", r.ref(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}, fault.NotFound},
		{"child not there", r.ref(), r.index(t, signed, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}), fault.NotFound},
		{"child not there beside a broken one", r.ref(), r.index(t, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1},
			r.add(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}`))), fault.ArtifactInvalid},
		{"too many children", elsewhere, r.index(t, many(t, r)...), fault.ArtifactInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			allowed, line, log := ask(t, c.ref, c.desc)
			if allowed != (c.want == "") || c.want != "" && !strings.HasPrefix(line, "refused ("+string(c.want)+"): ") {
				t.Errorf("want %q: %v %s%s", c.want, allowed, line, log)
			}
		})
	}
}

func many(t *testing.T, r *registry) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for i := range limits.IndexManifests + 1 {
		out = append(out, r.image(t, fmt.Sprint(i)))
	}
	return out
}

func TestARevokedCertificateIsRefusedAtTheNextPull(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "defer")
	signed := r.signed(t, p)
	if allowed, line, _ := ask(t, r.ref(), signed); !allowed {
		t.Fatal(line)
	}
	n.put("agent.crl", p.AgentCRL(testpki.Numbered(2), testpki.Revoking(p.Leaf)))
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.Contains(line, "revoked") {
		t.Fatal(line)
	}
	// Its index outlives the list.
	n.remove("agent.crl")
	allowed, line, log := ask(t, r.ref(), signed)
	if allowed || !strings.Contains(line, "revoked") || !strings.Contains(log, "agent.crl") {
		t.Fatal(line, log)
	}
}

func TestAResponderIsAskedBeforeAPull(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	answer := p.OCSP(func(r *ocsp.Response) { r.Status, r.RevokedAt = ocsp.Revoked, testpki.Now.Add(-time.Hour) })
	responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(answer)
	}))
	t.Cleanup(responder.Close)
	text, err := os.ReadFile(filepath.Join(n.dir, "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n.put("policy.yaml", []byte(strings.Replace(string(text), "revocation:\n", "revocation:\n  ocsp:\n    - {issuer: \"CN=MentatLab Agent CA,O=MentatLab,C=US\", url: \""+responder.URL+"\"}\n", 1)))
	signed := r.signed(t, p)
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.Contains(line, "its OCSP responder says") {
		t.Fatal(line)
	}
	n.remove("state")
	answer = nil
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.Contains(line, "revocation-unknown") {
		t.Fatal(line)
	}
	answer = p.OCSP()
	if allowed, line, _ := ask(t, r.ref(), signed); !allowed {
		t.Fatal(line)
	}
}

func TestWhatCannotBeFetchedFollowsThePolicy(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	signed := r.signed(t, p)
	for name, hook := range map[string]func(w http.ResponseWriter, req *http.Request) bool{
		"401": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusUnauthorized); return true },
		"404": func(w http.ResponseWriter, req *http.Request) bool { http.NotFound(w, req); return true },
		"500": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusNotImplemented)
			return true
		},
		"hangs up": func(w http.ResponseWriter, _ *http.Request) bool {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return true
		},
		"config missing": func(w http.ResponseWriter, req *http.Request) bool {
			if strings.Contains(req.URL.Path, "/blobs/") {
				http.NotFound(w, req)
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			r.hooked(hook)
			newNode(t, r, p, "defer")
			if allowed, line, _ := ask(t, r.ref(), signed); !allowed || !strings.HasPrefix(line, "deferred: ") || !strings.Contains(line, "decides before it starts") {
				t.Errorf("defer: %v %s", allowed, line)
			}
			newNode(t, r, p, "deny")
			if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.HasPrefix(line, "refused (") {
				t.Errorf("deny: %v %s", allowed, line)
			}
		})
	}
	t.Run("other content than promised", func(t *testing.T) {
		r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", string(signed.Digest))
			_, _ = io.WriteString(w, `{"schemaVersion":2}`)
			return true
		})
		newNode(t, r, p, "defer")
		if allowed, line, _ := ask(t, r.ref(), signed); allowed {
			t.Error(line)
		}
	})
}

func TestASilentRegistryDoesNotOutlastTheBudget(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	signed := r.signed(t, p)
	r.hooked(func(_ http.ResponseWriter, req *http.Request) bool { <-req.Context().Done(); return true })
	newNode(t, r, p, "defer")
	if allowed, line, _ := ask(t, r.ref(), signed); !allowed || !strings.HasPrefix(line, "deferred: ") {
		t.Errorf("%v %s", allowed, line)
	}
}

func TestNothingThatIgnoresTheBudgetHoldsTheAnswerUp(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	newNode(t, r, p, "defer")
	silent, end := io.Pipe()
	t.Cleanup(func() { _ = end.Close() })
	var out safeBuffer
	start := time.Now()
	code := run(t.Context(), budget, []string{"-name", r.ref(), "-digest", string(digest.FromString("x")), "-stdin-media-type", ocispec.MediaTypeDescriptor}, silent, &out, io.Discard, testpki.Clock)
	if code != exitRefuse || !strings.HasPrefix(out.String(), "refused (unavailable)") || time.Since(start) > patience {
		t.Errorf("%d %s after %s", code, out.String(), time.Since(start))
	}
}

func TestNodeCredentialsAreUsed(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	signed := r.signed(t, p)
	r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
		if user, secret, ok := req.BasicAuth(); ok && user == "node" && secret == "s3cret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	n := newNode(t, r, p, "deny")
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.HasPrefix(line, "refused (access-denied)") {
		t.Errorf("without credentials: %s", line)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("node:s3cret"))
	n.put("docker.json", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, strings.TrimPrefix(r.URL, "http://"), auth))
	if allowed, line, _ := ask(t, r.ref(), signed); !allowed {
		t.Errorf("with credentials: %s", line)
	}
}

func TestTheNodesHostsAreUsed(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	image := r.image(t, "mirrored")
	n := newNode(t, r, p, "deny")
	n.put("hosts/registry.invalid/hosts.toml", fmt.Appendf(nil, "server = %q\n", r.URL))
	if allowed, line, _ := ask(t, "registry.invalid/library/thing:1", image); !allowed {
		t.Error(line)
	}
}

func TestABrokenNodeRefuses(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	image := r.image(t, "image")
	for name, breakIt := range map[string]func(n node){
		"configuration missing":   func(n node) { n.remove("config.toml") },
		"configuration malformed": func(n node) { n.put("config.toml", []byte("verify = 1")) },
		"policy missing": func(n node) {
			n.put("config.toml", []byte("[verify]\npolicy = \"nowhere.yaml\"\nstate = \"state\"\n"))
		},
		"policy malformed": func(n node) { n.put("policy.yaml", []byte("version: 9\n")) },
		"store missing":    func(n node) { n.remove("trust") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, r, p, "defer")
			breakIt(n)
			if allowed, line, _ := ask(t, "registry.example/x:1", image); allowed || !strings.HasPrefix(line, "refused (policy-invalid): ") {
				t.Errorf("%v %s", allowed, line)
			}
		})
	}
}

func TestDeveloperModeAllowsAndStillRefusesTheBroken(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	unsigned := r.agent(t, "\x00asm\x01\x00\x00\x00")
	var m ocispec.Manifest
	if err := json.Unmarshal(unsigned, &m); err != nil {
		t.Fatal(err)
	}
	m.Annotations[oci.AnnotationAttestation] = "{}"
	n := newNode(t, r, p, "deny")
	n.remove("policy.yaml")
	allowed, line, log := ask(t, r.ref(), r.add(ocispec.MediaTypeImageManifest, unsigned))
	if !allowed || !strings.Contains(line, "untrusted") || !strings.Contains(log, "no policy") {
		t.Errorf("%v %s%s", allowed, line, log)
	}
	if allowed, line, _ := ask(t, r.ref(), r.add(ocispec.MediaTypeImageManifest, marshal(t, m))); allowed {
		t.Error(line)
	}
}

func TestContainerdsContractIsHeldStrictly(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	newNode(t, r, p, "defer")
	d := r.signed(t, p)
	stdin := string(marshal(t, d))
	dgst := string(d.Digest)
	const mt = ocispec.MediaTypeDescriptor
	for name, c := range map[string]struct {
		args  []string
		stdin string
	}{
		"nothing":               {nil, stdin},
		"unknown flag":          {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt, "-force"}, stdin},
		"argument":              {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt, "x"}, stdin},
		"no name":               {[]string{"-digest", dgst, "-stdin-media-type", mt}, stdin},
		"no digest":             {[]string{"-name", r.ref(), "-stdin-media-type", mt}, stdin},
		"malformed digest":      {[]string{"-name", r.ref(), "-digest", "sha256:x", "-stdin-media-type", mt}, stdin},
		"unknown type":          {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt + "2"}, stdin},
		"no type":               {[]string{"-name", r.ref(), "-digest", dgst}, stdin},
		"empty input":           {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt}, ""},
		"malformed input":       {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt}, "{"},
		"oversized input":       {[]string{"-name", r.ref(), "-digest", dgst, "-stdin-media-type", mt}, stdin + strings.Repeat(" ", descriptorBytes)},
		"descriptor of another": {[]string{"-name", r.ref(), "-digest", string(digest.FromString("x")), "-stdin-media-type", mt}, stdin},
		"name without host":     {[]string{"-name", "a b", "-digest", dgst, "-stdin-media-type", mt}, stdin},
	} {
		t.Run(name, func(t *testing.T) {
			if allowed, line, _ := askWith(t, c.args, []byte(c.stdin)); allowed || !strings.HasPrefix(line, "refused (") {
				t.Errorf("%v %s", allowed, line)
			}
		})
	}
}

func TestAnAnswerThatCannotBeGivenRefuses(t *testing.T) {
	if code := (answer{allow: true, line: "yes"}).tell(brokenWriter{}); code != exitRefuse {
		t.Errorf("exit status %d", code)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("closed") }

func TestACredentialProviderIsAskedForAPrivateRegistry(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	signed := r.signed(t, p)
	r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
		if user, secret, _ := req.BasicAuth(); user == "robot$agents+pull" && secret == "right" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return true
	})
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.Contains(line, string(fault.AccessDenied)) {
		t.Fatalf("without credentials: %s", line)
	}
	n.put("config.toml", []byte("[verify]\nstate = \"state\"\nhosts_dir = \"hosts\"\ndocker_config = \"docker.json\"\n"+
		"credential_providers = \"providers.yaml\"\ncredential_provider_dir = \"bin\"\n"))
	host := strings.TrimPrefix(r.URL, "http://")
	provide := func(secret, exit string) {
		n.put("bin/provider", fmt.Appendf(nil, `#!/bin/sh
cat >"$REQUEST"
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"%s":{"username":"robot$agents+pull","password":"%s"}}}'
exit %s
`, host, secret, exit))
		if err := os.Chmod(filepath.Join(n.dir, "bin", "provider"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	request := filepath.Join(n.dir, "request")
	config := fmt.Sprintf(`{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [
  {name: provider, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [%q], defaultCacheDuration: 1h, env: [{name: REQUEST, value: %q}]}]}
`, host+"/agents", request)
	n.put("providers.yaml", []byte(config))
	provide("right", "0")
	if allowed, line, log := ask(t, r.ref(), signed); !allowed {
		t.Errorf("with the provider: %s%s", line, log)
	}
	if asked, err := os.ReadFile(request); err != nil || !strings.Contains(string(asked), `"image":"`+r.repo()+`"`) {
		t.Errorf("it was asked %s: %v", asked, err)
	}
	for _, c := range []struct{ secret, exit string }{{"wrong-secret", "0"}, {"right", "1"}} {
		provide(c.secret, c.exit)
		if allowed, line, log := ask(t, r.ref(), signed); allowed || !strings.Contains(line, string(fault.AccessDenied)) || strings.Contains(line+log, "wrong-secret") {
			t.Errorf("secret %s, exit %s: %s%s", c.secret, c.exit, line, log)
		}
	}
	if err := os.Remove(request); err != nil {
		t.Fatal(err)
	}
	// What docker's configuration knows is used, and no program is run.
	provide("wrong-secret", "0")
	n.put("docker.json", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("robot$agents+pull:right"))))
	if allowed, line, log := ask(t, r.ref(), signed); !allowed {
		t.Errorf("docker's configuration beside a provider: %s%s", line, log)
	}
	if _, err := os.Stat(request); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a provider was run all the same: %v", err)
	}
	n.put("providers.yaml", []byte(strings.Replace(config, "matchImages", "matchImage", 1)))
	if allowed, line, _ := ask(t, r.ref(), signed); allowed || !strings.Contains(line, string(fault.PolicyInvalid)) {
		t.Errorf("with a broken configuration: %s", line)
	}
}
