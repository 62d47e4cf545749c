package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	notationgo "github.com/notaryproject/notation-go"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/signer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
	"github.com/mentatlab/mentat/verifier/notation"
)

// accept writes a policy whose scope accepts Notary Project signatures.
func (g *guarded) accept() {
	g.t.Helper()
	g.policy("")
	text, err := os.ReadFile(g.PolicyFile())
	if err == nil {
		err = g.WritePolicy(strings.Replace(string(text), "    unsigned_containers: deny\n", "    unsigned_containers: deny\n    binding: none\n    notation: accept\n", 1))
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// notationSigns lets notation's own client sign what a reference means.
func (g *guarded) notationSigns(ref, mediaType string) {
	g.t.Helper()
	by, err := signer.NewGenericSigner(g.pki.LeafKey, append(g.pki.Chain(), g.pki.Root))
	if err != nil {
		g.t.Fatal(err)
	}
	name, tag, _ := strings.Cut(strings.TrimPrefix(ref, g.registry.Host+"/"), ":")
	repository, err := orasremote.NewRepository(g.registry.Host + "/" + name)
	if err != nil {
		g.t.Fatal(err)
	}
	repository.PlainHTTP = true
	found, err := repository.Resolve(g.t.Context(), tag)
	if err != nil {
		g.t.Fatal(err)
	}
	_, err = notationgo.Sign(g.t.Context(), by, notationregistry.NewRepository(repository), notationgo.SignOptions{
		ArtifactReference: g.registry.Host + "/" + name + "@" + found.Digest.String(),
		SignerSignOptions: notationgo.SignerSignOptions{SignatureMediaType: mediaType},
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// attach attaches a signature over one manifest to another in the registry.
func (g *guarded) attach(ref string, signed, to ocispec.Descriptor) {
	g.t.Helper()
	chain := append(g.pki.Chain(), g.pki.Root)
	envelope, err := notation.Sign(notation.Request{Target: signed, Key: g.pki.LeafKey, Chain: chain, Time: testpki.Now})
	if err != nil {
		g.t.Fatal(err)
	}
	raw, blobs, err := notation.Referrer(to, envelope, chain, testpki.Now)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := remote.New(remote.Options{})
	if err == nil {
		_, err = c.Attach(g.t.Context(), ref, raw, blobs)
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// unsigned publishes an agent that nobody attested.
func (g *guarded) unsigned(name string, code int) (*oci.Layout, string) {
	g.t.Helper()
	l, _ := g.build(name, assemble(g.t, guestMarker(code)), "")
	g.push(l, g.ref(name))
	return l, g.ref(name)
}

// starts tells whether the marker of a guest was seen, and what was said.
func (g *guarded) starts(ref string) (bool, string) {
	g.t.Helper()
	got := g.run("", ref, g.id())
	return got.code == 0 && got.stdout == marker+"\n", fmt.Sprintf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
}

// refuses wants a container not to start, for a reason, with nothing of the guest.
func (g *guarded) refuses(ref, reason string) {
	g.t.Helper()
	got := g.run("", ref, g.id())
	if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, reason) {
		g.t.Errorf("want %q: status %d, stdout %q, stderr %q", reason, got.code, got.stdout, got.stderr)
	}
}

func TestWhatNotationSignedRunsWhereThePolicyAcceptsIt(t *testing.T) {
	g := newGuarded(t)
	layout, ref := g.unsigned("notation", 1)
	g.notationSigns(ref, notation.MediaType)

	// The control: without the policy's word both gates refuse.
	if err := g.pull(ref); err == nil || !strings.Contains(err.Error(), "unsigned") {
		t.Errorf("a pull without notation: accept: %v", err)
	}
	g.load(layout, ref)
	g.refuses(ref, "carries no attestation")

	// With it, the gate before the start still knows no signature that nobody pulled.
	g.accept()
	g.refuses(ref, "no Notary Project signature of it is at hand")
	if out, err := g.Command(t.Context(), "mentatctl", "node", "accept", ref).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if ok, said := g.starts(ref); !ok {
		t.Error(said)
	}
	if err := os.RemoveAll(filepath.Join(g.Root, "revocation", "notation")); err != nil {
		t.Fatal(err)
	}
	g.refuses(ref, "no Notary Project signature of it is at hand")
	// A pull does the same.
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if ok, said := g.starts(ref); !ok {
		t.Error(said)
	}
	// The command line of a runtime is the same gate.
	got := g.runWith("", "--runtime", runcRuntime, "--runc-binary", "mentat", ref, g.id())
	if got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("mentat: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	// It needs no registry.
	if err := g.registry.Stop(); err != nil {
		t.Fatal(err)
	}
	if ok, said := g.starts(ref); !ok {
		t.Error(said)
	}

	// And nothing that is kept is believed for lying there.
	root, err := layout.Root()
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(g.Root, "revocation", "notation", root.Digest.Encoded()+".json")
	data, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	put := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(kept, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put([]byte(strings.Replace(string(data), `"data":"`, `"data":"AAAA`, 1)))
	g.refuses(ref, "is no JWS envelope")
	put(data)
	g.policy("")
	g.refuses(ref, "carries no attestation")
	g.accept()
	if ok, said := g.starts(ref); !ok {
		t.Error(said)
	}
	g.trust(g.pki, testpki.Revoking(g.pki.Leaf), testpki.Numbered(2))
	g.refuses(ref, "revoked")
}

func TestAnAttestationThatIsStrippedIsNotMadeUpForByItsSignature(t *testing.T) {
	g := newGuarded(t)
	g.accept()
	// As `sign --also notation` does: the further signature is over the attested manifest.
	l, _ := g.build("stripped", assemble(t, guestMarker(1)), "")
	g.sign(l, g.pki, "stripped", g.registry.Host+"/agents/stripped", nil)
	attested, _ := g.raw(l)
	g.edit(l, func(m map[string]any) { delete(annotate(m), oci.AnnotationAttestation) })
	stripped, _ := g.raw(l)
	ref := g.ref("stripped")
	g.push(l, ref)
	g.attach(ref, attested, stripped)
	if err := g.pull(ref); err == nil || !strings.Contains(err.Error(), "signature-invalid") {
		t.Errorf("by a signature over another manifest: %v", err)
	}
	g.load(l, ref)
	g.refuses(ref, "no Notary Project signature of it is at hand")
	// Our own tool's signature over the very manifest does.
	g.attach(ref, stripped, stripped)
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if ok, said := g.starts(ref); !ok {
		t.Error(said)
	}
	// The envelope that is no JSON, too.
	_, other := g.unsigned("cose", 2)
	g.notationSigns(other, notation.MediaTypeCOSE)
	if err := g.pull(other); err != nil {
		t.Fatal(err)
	}
	if ok, said := g.starts(other); !ok {
		t.Error(said)
	}
}
