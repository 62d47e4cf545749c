package bundle

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	imagespecs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

func TestASignedAgentRuns(t *testing.T) {
	w := enforcing(t)
	raw := w.sign(w.agent(asking))
	w.create(ref, raw)
	got := w.runs(true)
	if got.Verdict.Trust != verifier.Signed || got.Verdict.Scope != "agents" {
		t.Errorf("verdict %s", got.Verdict.Line())
	}
	doc := w.document()
	want := hostdoc.Agent{
		ID: "mentatlab.echo", Version: "1.0.0", Reference: ref, Trust: "signed", Signer: testpki.Email,
		Manifest: digest.FromBytes(raw).String(), Module: digest.FromString(wasm).String(),
	}
	if doc.Agent != want || doc.Instance != id {
		t.Errorf("the host is told %+v as %s", doc.Agent, doc.Instance)
	}
	if w.held[id] != digest.FromBytes(raw) {
		t.Errorf("held is %q", w.held[id])
	}
}

// Where the policy asks a responder, its word decides at the gate.
func TestTheGateAsksAnOCSPResponder(t *testing.T) {
	w := enforcing(t)
	var answer []byte
	responder := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = rw.Write(answer)
	}))
	t.Cleanup(responder.Close)
	asking := strings.Replace(policy, "revocation:\n", "revocation:\n  ocsp:\n    - {issuer: \"CN=MentatLab Agent CA,O=MentatLab,C=US\", url: \""+responder.URL+"\"}\n", 1)
	if asking == policy {
		t.Fatal("the policy has no revocation")
	}
	w.enforce(asking)
	w.create(ref, w.sign(w.agent("")))
	w.refused(fault.RevocationUnknown) // an empty answer
	answer = w.pki.OCSP()
	w.runs(true)
}

// Every defect of a signed agent, and the reason of its refusal.
func TestTheGateRefusesABrokenOrForeignAgent(t *testing.T) {
	signed := func(w *world) []byte { return w.sign(w.agent("")) }
	for _, tc := range []struct {
		name  string
		knobs []testpki.Knob
		ref   string
		make  func(*world) []byte
		after func(*world)
		want  fault.Reason
	}{
		{name: "unsigned", make: func(w *world) []byte { return w.agent("") }, want: fault.Unsigned},
		{name: "unsigned outside all scopes", ref: outside, make: func(w *world) []byte { return w.agent("") }, want: fault.Unsigned},
		{name: "signed outside all scopes", ref: outside, make: signed, want: fault.PolicyDenied},
		{name: "an unsigned container in an enforced scope", make: func(w *world) []byte { return w.image() }, want: fault.Unsigned},
		{name: "an unsigned container agent", make: func(w *world) []byte { return w.containerAgent() }, want: fault.Unsigned},
		{name: "an unsigned dual agent", make: func(w *world) []byte { return w.dual() }, want: fault.Unsigned},
		{name: "another annotation", make: func(w *world) []byte {
			return changed(w, signed(w), func(m *ocispec.Manifest) { m.Annotations["more"] = "more" })
		}, want: fault.SignatureInvalid},
		{name: "another module", make: func(w *world) []byte {
			return changed(w, signed(w), func(m *ocispec.Manifest) {
				m.Layers[1] = w.add(oci.MediaTypeWASM, []byte(wasm+"\x00\x01x"))
			})
		}, want: fault.SignatureInvalid},
		{name: "a broken block", make: func(w *world) []byte {
			return changed(w, signed(w), func(m *ocispec.Manifest) { m.Annotations[oci.AnnotationAttestation] = "{}" })
		}, want: fault.AttestationFormat},
		{name: "a foreign root", make: func(w *world) []byte {
			other := testpki.New(t, testpki.OtherRoot(t))
			return w.signAs(other.LeafKey, other.Chain(), w.agent(""))
		}, want: fault.ChainUntrusted},
		{name: "revoked", make: signed, after: func(w *world) {
			w.file("agent.crl", w.pki.AgentCRL(testpki.Numbered(2), testpki.Revoking(w.pki.Leaf)))
		}, want: fault.Revoked},
		{name: "the agent CA revoked", make: signed, after: func(w *world) {
			w.file("root.crl", w.pki.RootCRL(testpki.Numbered(2), testpki.Revoking(w.pki.Agent)))
		}, want: fault.Revoked},
		{name: "revocation lists out of date", make: signed, after: func(w *world) {
			w.clock = func() time.Time { return testpki.Now.AddDate(0, 0, 3) }
		}, want: fault.RevocationUnknown},
		{name: "no revocation list", make: signed, after: func(w *world) {
			if err := os.Remove(filepath.Join(w.etc, "agent.crl")); err != nil {
				t.Fatal(err)
			}
		}, want: fault.RevocationUnknown},
		{name: "a certificate that expired", make: signed, after: func(w *world) {
			w.clock = func() time.Time { return testpki.Now.AddDate(1, 0, 0) }
		}, want: fault.OutsideValidity},
		{name: "an attestation that ended", make: func(w *world) []byte {
			return w.sign(w.agent(""), func(r *verifier.SignRequest) {
				end := testpki.Now.Add(-time.Second)
				r.NotAfter = &end
			})
		}, want: fault.OutsideValidity},
		{name: "another identity", knobs: []testpki.Knob{testpki.LeafEmails("eve@example.com")}, make: signed, want: fault.IdentityUntrusted},
		{name: "another repository", ref: "registry.example/agents/other:1.0.0", make: signed, want: fault.BindingMismatch},
		{name: "another agent", make: func(w *world) []byte {
			return w.sign(w.agent(""), func(r *verifier.SignRequest) { r.Subject.ID = "mentatlab.other" })
		}, want: fault.BindingMismatch},
		{name: "another manifest in the store", make: signed, after: func(w *world) { w.tamper(w.images[ref].Digest) }, want: fault.DigestMismatch},
		{name: "another config in the store", make: signed, after: func(w *world) {
			w.tamper(manifestOf(w, w.images[ref]).Config.Digest)
		}, want: fault.DigestMismatch},
		{name: "another agent manifest in the store", make: signed, after: func(w *world) {
			w.tamper(manifestOf(w, w.images[ref]).Layers[0].Digest)
		}, want: fault.DigestMismatch},
		{name: "a shorter manifest in the store", make: signed, after: func(w *world) {
			d := w.images[ref].Digest
			w.blobs[d] = w.blobs[d][:10]
		}, want: fault.DigestMismatch},
		{name: "no config in the store", make: signed, after: func(w *world) {
			delete(w.blobs, manifestOf(w, w.images[ref]).Config.Digest)
		}, want: fault.NotFound},
		{name: "a manifest that is none", make: signed, after: func(w *world) { w.tag(ref, []byte(`{"schemaVersion":2}`)) }, want: fault.ArtifactInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := enforcing(t, tc.knobs...)
			name := tc.ref
			if name == "" {
				name = ref
			}
			w.create(name, tc.make(w))
			if tc.after != nil {
				tc.after(w)
			}
			w.refused(tc.want)
			if len(w.held) != 0 {
				t.Errorf("a refused agent is held: %v", w.held)
			}
		})
	}
}

// changed is a manifest with a change that its signature knows nothing of.
func changed(w *world, raw []byte, change func(*ocispec.Manifest)) []byte {
	w.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		w.Fatal(err)
	}
	change(&m)
	out, err := canonical.Marshal(m)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func manifestOf(w *world, d ocispec.Descriptor) ocispec.Manifest {
	w.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(w.blobs[d.Digest], &m); err != nil {
		w.Fatal(err)
	}
	return m
}

func TestAModuleThatIsNotWhatItsDigestSaysIsNeverCompiled(t *testing.T) {
	w := enforcing(t)
	raw := w.sign(w.build(oci.BuildInput{Agent: w.manifest("wasm\nmodule: agent.wasm"), Module: []byte(wasm + "\x00\x1b\x1a" + rand.Text())}))
	w.create(ref, raw)
	d := manifestOf(w, w.images[ref]).Layers[1].Digest
	good := w.blobs[d]
	w.tamper(d)
	w.refused(fault.DigestMismatch)
	delete(w.blobs, d)
	w.refused(fault.NotFound)
	w.blobs[d] = good
	w.fails["Fetch "+oci.MediaTypeWASM] = fmt.Errorf("gone away: %w", errdefs.ErrUnavailable)
	w.refused(fault.Unavailable)
	w.fails = map[string]error{}
	if got := w.runs(true); !got.Compiled {
		t.Error("it was compiled before")
	}
	if code, err := os.ReadFile(ownMount(t, w.spec(), hostdoc.ModulePath).Source); err != nil || string(code) != string(good) {
		t.Errorf("the container is given %q, %v", code, err)
	}
}

func TestDeveloperModeRunsWhatIsIntact(t *testing.T) {
	for name, make := range map[string]func(*world) []byte{
		"wasm": func(w *world) []byte { return w.agent(asking) },
		"dual": func(w *world) []byte { return w.dual() },
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, make(w))
			got := w.runs(true)
			if got.Verdict.Trust != verifier.Untrusted || !got.Verdict.Developer {
				t.Errorf("verdict %s", got.Verdict.Line())
			}
			if doc := w.document(); len(doc.Grants) != 0 || len(doc.Env) != 0 || len(doc.Preopens) != 0 {
				t.Errorf("an untrusted agent is granted %+v", doc)
			}
			if !strings.Contains(w.log.String(), "no policy is configured") {
				t.Errorf("nobody is warned: %s", w.log.String())
			}
		})
	}
	for name, make := range map[string]func(*world) []byte{
		"image": func(w *world) []byte { return w.image() }, "container agent": func(w *world) []byte { return w.containerAgent() },
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, make(w))
			w.runs(false)
		})
	}
	t.Run("broken", func(t *testing.T) {
		w := developer(t)
		w.pki = testpki.New(t)
		w.create(ref, changed(w, w.sign(w.agent("")), func(m *ocispec.Manifest) { m.Annotations["more"] = "more" }))
		w.refused(fault.SignatureInvalid)
	})
}

func TestOrdinaryContainersFollowThePolicy(t *testing.T) {
	w := enforcing(t)
	w.create(outside, w.image())
	w.runs(false)
	w.create(mixed, w.containerAgent())
	w.runs(false)
	w.create(ref, w.sign(w.containerAgent()))
	w.runs(false)
	w.enforce(strings.Replace(policy, "ordinary_images: allow", "ordinary_images: deny", 1))
	w.create(outside, w.image())
	w.refused(fault.PolicyDenied)
	// A changed policy holds for the next container without a restart.
	w.enforce(policy + "exempt: [" + digest.FromBytes(w.image()).String() + "]\n")
	w.create(ref, w.image())
	w.runs(false)
}

func TestAContainerWithoutAnImageFollowsTheRuleForOrdinaryImages(t *testing.T) {
	w := developer(t)
	w.node.container[id] = Container{}
	w.runs(false)
	if !strings.Contains(w.log.String(), "without an image") {
		t.Errorf("nobody is warned: %s", w.log.String())
	}
	w = enforcing(t)
	w.node.container[id] = Container{}
	w.runs(false)
	w.enforce(strings.Replace(policy, "ordinary_images: allow", "ordinary_images: deny", 1))
	w.refused(fault.PolicyDenied)
}

func TestAPolicyThatCannotBeReadDeniesEverything(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"missing":          func(w *world) { w.config.Verify.Policy += ".gone" },
		"a directory":      func(w *world) { w.config.Verify.Policy = w.etc },
		"an unknown key":   func(w *world) { w.enforce(policy + "surprise: yes\n") },
		"not YAML":         func(w *world) { w.enforce("{") },
		"empty":            func(w *world) { w.enforce("") },
		"no trust store":   func(w *world) { w.config.Verify.Trust += ".gone" },
		"a foreign file":   func(w *world) { w.file("trust/agents/README", []byte("hello")) },
		"a store of leafs": func(w *world) { w.file("trust/agents/root.pem", testpki.PEM(w.pki.Leaf)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.create(ref, w.sign(w.agent("")))
			spoil(w)
			w.refused(fault.PolicyInvalid)
			w.create(outside, w.image())
			w.refused(fault.PolicyInvalid)
			w.node.container[id] = Container{}
			w.refused(fault.PolicyInvalid)
		})
	}
}

func TestAPolicyBesideTheConfigurationCountsWithoutBeingNamed(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.agent(""))
	config, err := nodeconfig.Parse(filepath.Join(w.etc, "config.toml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.config.Verify.Policy = config.Verify.Policy
	w.refused(fault.Unsigned)
	w.config.Verify.Policy = ""
	w.runs(true)
}

func TestATagThatMovedBetweenCreateAndStartIsRefused(t *testing.T) {
	moved := func(w *world) []byte {
		return w.image(func(c *ocispec.Image, _ *ocispec.Manifest) {
			c.RootFS.DiffIDs = []digest.Digest{digest.FromString("another layer")}
		})
	}
	for name, tc := range map[string]struct{ from, to func(*world) []byte }{
		"to other layers":          {func(w *world) []byte { return w.image() }, moved},
		"from a container to WASM": {func(w *world) []byte { return w.image() }, func(w *world) []byte { return w.agent("") }},
		"from WASM to a container": {func(w *world) []byte { return w.agent("") }, func(w *world) []byte { return w.image() }},
		"of a dual agent":          {func(w *world) []byte { return w.dual() }, moved},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, tc.from(w))
			w.tag(ref, tc.to(w))
			w.refused(fault.SnapshotMismatch)
		})
	}
	t.Run("while the bundle is made ready", func(t *testing.T) {
		w := developer(t)
		w.create(ref, w.image())
		to := moved(w)
		w.before = func(call string) {
			if call == "Image" {
				w.tag(ref, to)
			}
		}
		w.refused(fault.SnapshotMismatch)
	})
	t.Run("after the image was found", func(t *testing.T) {
		w := enforcing(t)
		raw := w.sign(w.agent(""))
		w.create(ref, raw)
		evil := w.agent(asking)
		w.before = func(call string) {
			if strings.HasPrefix(call, "Fetch") {
				w.tag(ref, evil)
			}
		}
		w.runs(true)
		if d := w.document().Agent.Manifest; d != digest.FromBytes(raw).String() {
			t.Errorf("what runs is %s, not what was verified", d)
		}
	})
}

// remapped is the name of a chain's copy for a user namespace, as the client of
// containerd 2 computes it.
func remapped(chain digest.Digest, uids, gids string) string {
	return digest.FromString(fmt.Sprintf(`{"Parent":%q,"IDMap":{"UidMap":%s,"GidMap":%s}}`, chain, uids, gids)).String()
}

func TestASnapshotForAUserNamespaceIsKnownByItsExactName(t *testing.T) {
	const uids = `[{"containerID":0,"hostID":100000,"size":1000},{"containerID":1000,"hostID":300000,"size":10}]`
	const gids = `[{"containerID":0,"hostID":200000,"size":65536}]`
	w := developer(t)
	raw := w.image()
	chain := w.read(raw).ChainID()
	spec := plain()
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1000, HostID: 300000, Size: 10}, {ContainerID: 0, HostID: 100000, Size: 1000}}
	spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	w.write(spec)
	w.create(ref, raw)

	for _, parent := range []string{chain.String(), remapped(chain, uids, gids)} {
		w.containerOf(ref, parent)
		w.runs(false)
	}
	other := digest.FromString("another layer")
	for _, parent := range []string{
		"", other.String(), remapped(other, uids, gids), remapped("", uids, gids), remapped(chain, gids, uids), remapped(chain, uids, "null"),
		chain.String() + "-100000-200000", chain.String() + "-0-0", chain.String() + "-remap", chain.String() + " ", strings.ToUpper(chain.String()),
		remapped(chain, uids, gids) + "-remap", chain.Encoded(),
	} {
		w.containerOf(ref, parent)
		w.refused(fault.SnapshotMismatch)
	}
	// Without a user namespace there is no such copy.
	for _, change := range []func(*specs.Spec){
		func(s *specs.Spec) { s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil },
		func(s *specs.Spec) { s.Linux = nil },
	} {
		bare := plain()
		change(bare)
		w.write(bare)
		for _, parent := range []string{remapped(chain, uids, gids), remapped(chain, "null", "null"), remapped(chain, "[]", "[]")} {
			w.containerOf(ref, parent)
			w.refused(fault.SnapshotMismatch)
		}
	}

	// A WASM agent has no layers, but a snapshotter may remap even those.
	raw = w.agent("")
	spec = plain()
	w.write(spec)
	w.create(ref, raw)
	w.containerOf(ref, remapped("", string(encode(t, spec.Linux.UIDMappings)), string(encode(t, spec.Linux.GIDMappings))))
	w.runs(true)
}

func TestARootFileSystemThatIsNoSnapshotIsNotTheVerifiedImages(t *testing.T) {
	w := developer(t)
	scratch := w.image(func(c *ocispec.Image, m *ocispec.Manifest) {
		c.RootFS.DiffIDs, m.Layers = nil, []ocispec.Descriptor{}
	})
	w.create(ref, scratch)
	w.runs(false)
	for _, raw := range [][]byte{scratch, w.image(), w.containerAgent()} {
		w.create(ref, raw)
		w.edit(func(c *Container) { c.Snapshotter, c.SnapshotKey = "", "" })
		w.refused(fault.SnapshotMismatch)
	}
	// The root of a WASM run is our own.
	w.create(ref, w.agent(""))
	w.edit(func(c *Container) { c.Snapshotter, c.SnapshotKey = "", "" })
	w.runs(true)
}

func TestTheDigestThatCRIRecordedWinsOverTheTag(t *testing.T) {
	w := enforcing(t)
	signed, evil := w.sign(w.agent("")), w.agent(asking)
	w.create(ref, signed)
	d := w.images[ref].Digest
	w.edit(func(c *Container) { c.Digest = d })
	w.tag(ref, evil)
	w.runs(true)
	if slices.Contains(w.calls, "Image") {
		t.Error("the tag was looked up")
	}
	// Nor is there a way back to the tag, or to what was held.
	w.tag(ref, signed)
	w.edit(func(c *Container) { c.Digest, c.Held = digest.FromString("gone"), d })
	w.refused(fault.NotFound)
	w.edit(func(c *Container) { c.Digest = digest.FromBytes(evil) })
	w.refused(fault.Unsigned)
}

func TestWhatIsHeldServesWhenTheImageIsGone(t *testing.T) {
	w := enforcing(t)
	raw := w.sign(w.agent(""))
	w.create(ref, raw)
	w.runs(true)
	delete(w.images, ref)
	w.write(plain())
	w.refused(fault.NotFound)
	w.edit(func(c *Container) { c.Held = w.held[id] })
	w.runs(true)
	// What the label names is judged like everything else.
	w.edit(func(c *Container) { c.Held = digest.FromBytes(w.agent("")) })
	w.refused(fault.Unsigned)
	// A tag that is there counts, whatever a label says.
	w.tag(ref, w.agent(""))
	w.edit(func(c *Container) { c.Held = digest.FromBytes(raw) })
	w.refused(fault.Unsigned)
	delete(w.images, ref)
	delete(w.blobs, digest.FromBytes(raw))
	w.refused(fault.NotFound)
}

// entry is an index's descriptor.
func entry(d ocispec.Descriptor, os, arch string) ocispec.Descriptor {
	d.MediaType = ocispec.MediaTypeImageManifest
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	return d
}

func index(w *world, entries ...ocispec.Descriptor) []byte {
	w.Helper()
	raw, err := canonical.Marshal(ocispec.Index{
		Versioned: imagespecs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{}, entries...),
	})
	if err != nil {
		w.Fatal(err)
	}
	return raw
}

func TestOfAnIndexTheManifestOfTheSnapshotIsJudged(t *testing.T) {
	w := enforcing(t)
	absent := entry(ocispec.Descriptor{Digest: digest.FromString("arm64"), Size: 5}, "linux", "arm64")
	agent := w.add("", w.sign(w.agent("")))
	box := w.add("", w.sign(w.containerAgent()))
	chart := w.add("", w.chart())
	chain := w.read(w.blobs[box.Digest]).ChainID().String()
	// An image without layers, and without a signature.
	scratch := w.add("", w.image(func(c *ocispec.Image, m *ocispec.Manifest) {
		c.RootFS.DiffIDs, m.Layers = nil, []ocispec.Descriptor{}
	}))
	half := w.add("", w.image(func(c *ocispec.Image, _ *ocispec.Manifest) { c.Author = "nobody pulled this" }))
	delete(w.blobs, manifestOf(w, half).Config.Digest)

	signedScratch := w.add("", w.sign(w.blobs[scratch.Digest]))

	all := index(w, absent, entry(signedScratch, "linux", "riscv64"), entry(half, "linux", "s390x"), entry(chart, "linux", "ppc64le"), entry(box, "linux", "amd64"), entry(agent, "wasip1", "wasm"))
	for name, tc := range map[string]struct {
		raw    []byte
		parent string
		wasm   bool
		want   fault.Reason
		digest digest.Digest
	}{
		"the WASM entry first":     {raw: all, parent: "", wasm: true, digest: agent.Digest},
		"the container's layers":   {raw: all, parent: chain, digest: box.Digest},
		"nothing fits":             {raw: all, parent: digest.FromString("else").String(), want: fault.SnapshotMismatch},
		"nothing was pulled":       {raw: index(w, absent), parent: "", want: fault.SnapshotMismatch},
		"nothing is in it":         {raw: index(w), parent: "", want: fault.SnapshotMismatch},
		"the unsigned fits too":    {raw: index(w, entry(agent, "wasip1", "wasm"), entry(scratch, "linux", "riscv64")), parent: "", want: fault.Unsigned},
		"the unsigned fits":        {raw: index(w, entry(scratch, "linux", "amd64")), parent: "", want: fault.Unsigned},
		"a chart is no empty root": {raw: index(w, entry(chart, "linux", "amd64")), parent: "", want: fault.SnapshotMismatch},
		"an index in an index":     {raw: index(w, entry(w.add("", index(w, absent)), "linux", "amd64")), parent: "", want: fault.ArtifactInvalid},
		"an entry tampered with": {raw: index(w, entry(func() ocispec.Descriptor {
			d := w.add("", w.image(func(c *ocispec.Image, _ *ocispec.Manifest) { c.Author = "mallory" }))
			w.tamper(d.Digest)
			return d
		}(), "linux", "amd64")), parent: chain, want: fault.DigestMismatch},
		"too many entries": {raw: index(w, slices.Repeat([]ocispec.Descriptor{absent}, limits.IndexManifests+1)...), parent: "", want: fault.ArtifactInvalid},
		"both at once":     {raw: []byte(`{"schemaVersion":2,"manifests":[],"config":{}}`), parent: "", want: fault.ArtifactInvalid},
		"in another case":  {raw: []byte(`{"schemaVersion":2,"Manifests":[]}`), parent: "", want: fault.ArtifactInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			w.TB = t
			w.write(plain())
			if err := os.RemoveAll(filepath.Join(w.dir, privateDir)); err != nil {
				t.Fatal(err)
			}
			w.tag(ref, tc.raw)
			w.containerOf(ref, tc.parent)
			if tc.want != "" {
				w.refused(tc.want)
				return
			}
			if got := w.runs(tc.wasm); got.Verdict.Digest != tc.digest {
				t.Errorf("judged is %s", got.Verdict.Digest)
			}
		})
	}
}

func TestWhatIsNoImageIsNotRun(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(*world) []byte
		want string
	}{
		"a chart":                            {func(w *world) []byte { return w.chart() }, "no image that could be run"},
		"WASM in a root file system":         {func(w *world) []byte { return w.image(entrypoint("/app.wasm")) }, "no application/wasm blob"},
		"WASM by its platform":               {func(w *world) []byte { return w.image(platform("wasip1", "wasm")) }, "no application/wasm blob"},
		"WASM of a type that nobody knows":   {func(w *world) []byte { return w.image(lastLayer("application/vnd.x.WASM")) }, "no application/wasm blob"},
		"native code in the place of WASM":   {func(w *world) []byte { return w.image(lastLayer("application/vnd.wasmtime.cwasm")) }, "no application/wasm blob"},
		"a config of a type nobody knows":    {func(w *world) []byte { return w.image(configType("application/x")) }, "no image that could be run"},
		"an SBOM, found through a reference": {func(w *world) []byte { return w.image(configType("application/vnd.oci.empty.v1+json")) }, "no image that could be run"},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, tc.make(w))
			if text := w.refusal(fault.Unsupported); !strings.Contains(text, tc.want) {
				t.Errorf("got %s", text)
			}
			// A policy that lets unsigned images run does not change that.
			w = enforcing(t)
			w.create(mixed, tc.make(w))
			w.refused(fault.Unsupported)
		})
	}
}

func entrypoint(argv ...string) func(*ocispec.Image, *ocispec.Manifest) {
	return func(c *ocispec.Image, _ *ocispec.Manifest) { c.Config.Entrypoint = argv }
}

func platform(os, arch string) func(*ocispec.Image, *ocispec.Manifest) {
	return func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS, c.Architecture = os, arch }
}

func lastLayer(mediaType string) func(*ocispec.Image, *ocispec.Manifest) {
	return func(_ *ocispec.Image, m *ocispec.Manifest) {
		l := m.Layers[len(m.Layers)-1]
		l.MediaType = mediaType
		m.Layers = append(slices.Clone(m.Layers), l)
	}
}

func configType(mediaType string) func(*ocispec.Image, *ocispec.Manifest) {
	return func(_ *ocispec.Image, m *ocispec.Manifest) { m.Config.MediaType = mediaType }
}

func TestPlainWASMRunsWithItsModuleAndWithoutAnyGrant(t *testing.T) {
	w := enforcing(t)
	w.create(mixed, w.image(func(c *ocispec.Image, m *ocispec.Manifest) {
		c.RootFS.DiffIDs, c.OS, c.Architecture = nil, "wasip1", "wasm"
		m.Layers = []ocispec.Descriptor{w.add(oci.MediaTypeWASM, []byte(wasm))}
	}))
	spec := plain()
	spec.Process.Env = append(spec.Process.Env, "GREETING=hello")
	w.write(spec)
	w.runs(true)
	doc := w.document()
	if len(doc.Env) != 0 || len(doc.Grants) != 0 || doc.Agent.ID != id || doc.Agent.Trust != "untrusted" {
		t.Errorf("document %+v", doc)
	}
}

func TestADualImageIsWASMWhateverItsArgumentsAre(t *testing.T) {
	for _, tc := range []struct{ given, want []string }{
		{[]string{"python", "app.py"}, []string{"python"}},
		{[]string{"python", "app.py", "one", "two"}, []string{"python", "one", "two"}},
		{[]string{"/bin/sh", "-c", "id"}, []string{"agent.wasm", "/bin/sh", "-c", "id"}},
		{[]string{"python"}, []string{"agent.wasm", "python"}},
		{[]string{"/opt/x.wasm", "y"}, []string{"x.wasm", "y"}},
		{nil, []string{"agent.wasm"}},
	} {
		w := enforcing(t)
		w.create(ref, w.sign(w.dual()))
		spec := plain()
		spec.Process.Args = tc.given
		w.write(spec)
		w.runs(true)
		if got := w.document().Args; !slices.Equal(got, tc.want) {
			t.Errorf("%q became %q, want %q", tc.given, got, tc.want)
		}
		safeCommand(t, w.spec().Process.Args)
	}
}

func TestTheCommandOfAnImageWithoutEntrypointIsNoInput(t *testing.T) {
	w := developer(t)
	w.create(ref, w.dual(func(c *ocispec.Image) { c.Config.Entrypoint, c.Config.Cmd = nil, []string{"/app", "-v"} }))
	spec := plain()
	spec.Process.Args = []string{"/app", "-v"}
	w.write(spec)
	w.runs(true)
	if doc := w.document(); !slices.Equal(doc.Args, []string{"app", "-v"}) || doc.Input.Text != "-v" {
		t.Errorf("arguments %q, input %+v", doc.Args, doc.Input)
	}
}

func TestFailuresOfContainerdKeepTheirMeaning(t *testing.T) {
	kinds := map[string]struct {
		err  error
		want fault.Reason
	}{
		"not found":    {absent("it"), fault.NotFound},
		"unavailable":  {fmt.Errorf("no answer: %w", errdefs.ErrUnavailable), fault.Unavailable},
		"canceled":     {fmt.Errorf("stop: %w", context.Canceled), fault.Canceled},
		"too late":     {fmt.Errorf("slow: %w", context.DeadlineExceeded), fault.Deadline},
		"anything":     {errors.New("line one\nline two"), fault.Internal},
		"one of ours":  {fault.New(fault.ArtifactInvalid, "x", "bad"), fault.ArtifactInvalid},
		"a permission": {errdefs.ErrPermissionDenied, fault.Internal},
	}
	for _, call := range []string{"Container", "Image", "SnapshotParent", "Hold"} {
		for name, kind := range kinds {
			t.Run(call+" "+name, func(t *testing.T) {
				w := developer(t)
				w.create(ref, w.agent(""))
				w.fails[call] = kind.err
				w.refused(kind.want)
			})
		}
	}
	t.Run("the whole call", func(t *testing.T) {
		w := enforcing(t)
		w.create(ref, w.sign(w.agent("")))
		ctx, cancel := context.WithCancel(t.Context())
		w.before = func(call string) {
			if call == "Image" {
				cancel()
			}
		}
		before := w.tree()
		_, err := w.preparer().Prepare(ctx, Request{ID: id, Dir: w.dir})
		w.isRefusal(err, fault.Canceled)
		if w.tree() != before {
			t.Error("the bundle changed")
		}
	})
}

func TestABundleWithoutAReadableSpecificationIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		data []byte
		want fault.Reason
	}{
		"empty":       {nil, fault.Usage},
		"not JSON":    {[]byte("{"), fault.Usage},
		"wrong types": {[]byte(`{"process":[]}`), fault.Usage},
		"two values":  {[]byte(`{} {}`), fault.Usage},
		"too large":   {slices.Concat([]byte(`{"ociVersion":"`), slices.Repeat([]byte("x"), specBytes), []byte(`"}`)), fault.ResourceLimit},
		"null":        {[]byte(`null`), fault.Usage},
		"nothing set": {[]byte(`{}`), fault.Usage},
		"no process":  {[]byte(`{"root":{},"linux":{}}`), fault.Usage},
		"no root":     {[]byte(`{"process":{},"linux":{}}`), fault.Usage},
		"no linux":    {[]byte(`{"process":{},"root":{}}`), fault.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, w.agent(""))
			if err := os.WriteFile(filepath.Join(w.dir, specName), tc.data, 0o600); err != nil {
				t.Fatal(err)
			}
			w.refused(tc.want)
		})
	}
	w := developer(t)
	w.create(ref, w.agent(""))
	if err := os.Remove(filepath.Join(w.dir, specName)); err != nil {
		t.Fatal(err)
	}
	w.refused(fault.NotFound)
}

func TestAPreparerNeedsItsParts(t *testing.T) {
	for _, o := range []Options{{}, {Config: &nodeconfig.Config{}}, {Node: newNode()}} {
		if p, err := New(o); p != nil || fault.ReasonOf(err) != fault.Internal {
			t.Errorf("%+v: %v", o, err)
		}
	}
	p, err := New(Options{Config: &nodeconfig.Config{}, Node: newNode()})
	if err != nil || p.Clock == nil || p.Log == nil || filepath.Base(p.host) != "mentat-host" {
		t.Errorf("%+v, %v", p, err)
	}
}

// An ordinary container needs neither mentat-host nor the cache.
func TestABrokenCacheKeepsOnlyAgentsFromStarting(t *testing.T) {
	w := developer(t)
	w.config.Host.Binary = filepath.Join(w.etc, "no-such-host")
	w.config.Cache.Dir = filepath.Join(w.etc, "config.toml/cache")
	w.file("config.toml/..x", nil)
	w.create(ref, w.image())
	w.runs(false)
	w.create(ref, w.agent(""))
	w.config.Cache.Dir = filepath.Join(cacheDir, "modules")
	w.refused(fault.NotFound)
}
