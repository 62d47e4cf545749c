package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/notation"
)

// accept lets the scope accept Notary Project signatures.
func (n node) accept(r *registry, unfetchable string) {
	n.t.Helper()
	text := strings.ReplaceAll(policy, "REGISTRY", strings.TrimPrefix(r.URL, "http://"))
	text = strings.Replace(text, "    unsigned_containers: deny\n", "    unsigned_containers: deny\n    binding: none\n    notation: accept\n", 1)
	n.put("policy.yaml", []byte(strings.ReplaceAll(text, "UNFETCHABLE", unfetchable)))
}

// kept are the names of what the node keeps.
func (n node) kept() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "state", "notation"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// signature puts a signature of the target there, and returns its manifest.
func (r *registry) signature(t *testing.T, p *testpki.PKI, target ocispec.Descriptor, edits ...func(*ocispec.Manifest)) ocispec.Descriptor {
	t.Helper()
	envelope, err := notation.Sign(notation.Request{Target: target, Key: p.LeafKey, Chain: append(p.Chain(), p.Root), Time: testpki.Now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return r.attached(t, target, envelope, edits...)
}

// attached puts an envelope there with a manifest that refers to the target.
func (r *registry) attached(t *testing.T, target ocispec.Descriptor, envelope []byte, edits ...func(*ocispec.Manifest)) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: notation.ArtifactType,
		Config:  r.add(notation.ArtifactType, []byte("{}")),
		Layers:  []ocispec.Descriptor{r.add(notation.MediaType, envelope)},
		Subject: &target,
	}
	for _, edit := range edits {
		edit(&m)
	}
	d := r.add(ocispec.MediaTypeImageManifest, marshal(t, m))
	d.ArtifactType = notation.ArtifactType
	return d
}

// refer answers the referrers API with a list, and counts.
func (r *registry) refer(t *testing.T, asked *atomic.Int32, list ...ocispec.Descriptor) {
	t.Helper()
	index := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{}, list...)})
	r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/referrers/") {
			return false
		}
		asked.Add(1)
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_, _ = w.Write(index)
		return true
	})
}

func TestTheGateAsksTheRegistryForSignatures(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	n.accept(r, "deny")
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	other := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00\x00"))
	good := r.signature(t, p, target)
	stranger := r.signature(t, testpki.New(t, testpki.OtherRoot(t)), target)
	mallory := r.signature(t, testpki.New(t, testpki.LeafEmails("mallory@example.com")), target)
	rubbish := r.attached(t, target, []byte("yes, trust me"))
	swapped := r.signature(t, p, target, func(m *ocispec.Manifest) { m.Subject = &other })
	otherBlob := r.signature(t, p, target, func(m *ocispec.Manifest) {
		m.Layers = []ocispec.Descriptor{r.add(notation.MediaType, []byte("one"))}
		r.data[m.Layers[0].Digest] = []byte("two")
	})
	many := func(last ocispec.Descriptor) []ocispec.Descriptor {
		var all []ocispec.Descriptor
		for i := range limits.Envelopes {
			all = append(all, r.attached(t, target, fmt.Appendf(nil, "rubbish %d", i)))
		}
		return append(all, last)
	}
	for _, c := range []struct {
		name string
		list []ocispec.Descriptor
		want fault.Reason
		says string
	}{
		{"one that counts", []ocispec.Descriptor{good}, "", "as a notation signature says"},
		{"one among others", []ocispec.Descriptor{rubbish, stranger, good}, "", "signed by dev@example.com"},
		{"none", nil, fault.Unsigned, "no Notary Project signature of it is at hand"},
		{"rubbish", []ocispec.Descriptor{rubbish}, fault.AttestationFormat, "1 looked at"},
		{"of another root", []ocispec.Descriptor{stranger}, fault.ChainUntrusted, "1 looked at"},
		{"by one who is not named", []ocispec.Descriptor{rubbish, mallory, stranger}, fault.IdentityUntrusted, "3 looked at; number 2"},
		{"of another agent", []ocispec.Descriptor{r.signature(t, p, other)}, fault.ArtifactInvalid, "refers to another manifest"},
		{"of another agent, said to be of this one", []ocispec.Descriptor{r.signature(t, p, other, func(m *ocispec.Manifest) { m.Subject = &target })}, fault.SignatureInvalid, "is over " + string(other.Digest)},
		{"of this one, said to be of another", []ocispec.Descriptor{swapped}, fault.ArtifactInvalid, "refers to another manifest"},
		{"blob of another digest", []ocispec.Descriptor{otherBlob}, fault.DigestMismatch, "not what its digest says"},
		{"blob too large", []ocispec.Descriptor{r.attached(t, target, make([]byte, limits.EnvelopeBytes+1))}, fault.ArtifactInvalid, "over the limit"},
		{"manifest too large", []ocispec.Descriptor{r.signature(t, p, target, func(m *ocispec.Manifest) {
			m.Annotations = map[string]string{"a": strings.Repeat("a", limits.ReferrerBytes)}
		})}, fault.ArtifactInvalid, "over the limit"},
		{"two blobs", []ocispec.Descriptor{r.signature(t, p, target, func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) })}, fault.ArtifactInvalid, "a signature has one"},
		{"of another type", []ocispec.Descriptor{r.signature(t, p, target, func(m *ocispec.Manifest) { m.ArtifactType = "application/x-test" })}, fault.ArtifactInvalid, "is not of the type"},
		{"manifest of another size", []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: notation.ArtifactType, Digest: good.Digest, Size: good.Size + 1}}, fault.Unavailable, "mismatch Content-Length"},
		{"behind too many", many(good), fault.AttestationFormat, "8 of more looked at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.remove("state")
			var asked atomic.Int32
			r.refer(t, &asked, c.list...)
			allowed, line, log := ask(t, r.ref(), target)
			if allowed != (c.want == "") || c.want != "" && !strings.HasPrefix(line, "refused ("+string(c.want)+"): ") || !strings.Contains(line, c.says) {
				t.Errorf("want %q: %v %s%s", c.want, allowed, line, log)
			}
			if kept := n.kept(); c.want != "" && len(kept) > 0 || c.want == "" && (len(kept) != 1 || kept[0] != target.Digest.Encoded()+".json") {
				t.Errorf("it keeps %q", kept)
			}
			if asked.Load() != 1 {
				t.Errorf("it asked %d times", asked.Load())
			}
		})
	}
}

func TestTheTagThatStandsForTheReferrersIsAskedWhereThereIsNoAPI(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	n.accept(r, "deny")
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	index := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{r.signature(t, p, target)}})
	r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, "/manifests/sha256-"+target.Digest.Encoded()) {
			return false
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(index).String())
		_, _ = w.Write(index)
		return true
	})
	if allowed, line, log := ask(t, r.ref(), target); !allowed {
		t.Error(line, log)
	}
	r.hooked(nil)
	if allowed, line, _ := ask(t, r.ref(), target); allowed || !strings.HasPrefix(line, "refused (unsigned)") {
		t.Error(line)
	}
}

func TestOnlyWhereSignaturesCountIsTheRegistryAsked(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	var asked atomic.Int32
	r.refer(t, &asked, r.signature(t, p, target))
	if allowed, line, _ := ask(t, r.ref(), target); allowed || !strings.HasPrefix(line, "refused (unsigned)") {
		t.Errorf("without notation: accept: %s", line)
	}
	n.accept(r, "deny")
	attested := r.signed(t, p)
	if allowed, line, _ := ask(t, r.ref(), attested); !allowed {
		t.Error(line)
	}
	elsewhere := strings.TrimPrefix(r.URL, "http://") + "/library/thing:1"
	if allowed, line, _ := ask(t, elsewhere, r.image(t, "image")); !allowed {
		t.Error(line)
	}
	if asked.Load() != 0 || len(n.kept()) != 0 {
		t.Errorf("it asked %d times and keeps %q", asked.Load(), n.kept())
	}
	// An attestation that is broken is refused, whatever else is there.
	data := strings.Replace(string(r.data[attested.Digest]), "10:30:00Z", "10:30:01Z", 1)
	broken := r.add(ocispec.MediaTypeImageManifest, []byte(data))
	r.refer(t, &asked, r.signature(t, p, broken))
	if allowed, line, _ := ask(t, r.ref(), broken); allowed || !strings.HasPrefix(line, "refused (signature-invalid)") || asked.Load() != 0 {
		t.Errorf("asked %d times: %s", asked.Load(), line)
	}
}

// A registry that does not tell which signatures there are is one that did not give
// the image: the policy says what becomes of the pull, and nothing starts by it.
func TestARegistryThatDoesNotTellItsSignaturesFollowsThePolicy(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	good := r.signature(t, p, target)
	gone := r.signature(t, p, target, func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("gone") })
	var asked atomic.Int32
	answer := func(do func(w http.ResponseWriter, req *http.Request)) func() {
		return func() {
			r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/referrers/") {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				do(w, req)
				return true
			})
		}
	}
	for name, spoil := range map[string]func(){
		"garbage":   answer(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }),
		"cut off":   answer(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"manifests":[{"digest":"`)) }),
		"forbidden": answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }),
		"no answer": answer(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }),
		"pages for ever": answer(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Link", "<"+req.URL.Path+">; rel=\"next\"")
			_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
		}),
		"a blob is gone": func() { r.refer(t, &asked, gone) },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			n.remove("state")
			n.accept(r, "deny")
			if allowed, line, _ := ask(t, r.ref(), target); allowed || strings.Contains(line, "(unsigned)") {
				t.Errorf("deny: %s", line)
			}
			n.accept(r, "defer")
			if allowed, line, _ := ask(t, r.ref(), target); !allowed || !strings.HasPrefix(line, "deferred: not checked at pull") {
				t.Errorf("defer: %s", line)
			}
			if kept := n.kept(); len(kept) > 0 {
				t.Errorf("it keeps %q", kept)
			}
		})
	}
	// What no signature could change is refused at once.
	r.refer(t, &asked, gone)
	n.accept(r, "defer")
	text, err := os.ReadFile(filepath.Join(n.dir, "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n.put("policy.yaml", append(text, "minimum_versions: {mentatlab.echo: 2.0.0}\n"...))
	if allowed, line, _ := ask(t, r.ref(), target); allowed || !strings.HasPrefix(line, "refused (version-too-low)") {
		t.Errorf("too old: %s", line)
	}
	r.refer(t, &asked, gone, good)
	n.accept(r, "deny")
	if allowed, line, _ := ask(t, r.ref(), target); !allowed {
		t.Errorf("beside a good one: %s", line)
	}
}

func TestASignatureWhoseSignerIsRevokedIsRefusedAtTheNextPull(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	n.accept(r, "deny")
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	var asked atomic.Int32
	r.refer(t, &asked, r.signature(t, p, target))
	if allowed, line, _ := ask(t, r.ref(), target); !allowed {
		t.Fatal(line)
	}
	n.put("agent.crl", p.AgentCRL(testpki.Numbered(2), testpki.Revoking(p.Leaf)))
	if allowed, line, _ := ask(t, r.ref(), target); allowed || !strings.HasPrefix(line, "refused (revoked)") {
		t.Error(line)
	}
}
