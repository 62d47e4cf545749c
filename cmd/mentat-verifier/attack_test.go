package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/envelopes"
)

// Whoever holds one signature back must not hide what is wrong with a sibling.
func TestASignatureThatIsHeldBackHidesNoSibling(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "defer")
	n.accept(r, "defer")
	first := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	gone := r.signature(t, p, first, func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("gone") })
	broken := r.add(ocispec.MediaTypeImageManifest, []byte(strings.Replace(string(r.data[r.signed(t, p).Digest]), "10:30:00Z", "10:30:01Z", 1)))
	index := r.index(t, first, broken)
	var asked atomic.Int32
	for name, spoil := range map[string]func(){
		"one is gone": func() { r.refer(t, &asked, gone) },
		"the list is": func() {
			r.hooked(func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/referrers/") {
					w.WriteHeader(http.StatusForbidden)
					return true
				}
				return false
			})
		},
	} {
		spoil()
		if allowed, line, _ := ask(t, r.ref(), first); !allowed || !strings.HasPrefix(line, "deferred: ") {
			t.Errorf("%s: alone it is no case of this: %s", name, line)
		}
		if allowed, line, _ := ask(t, r.ref(), index); allowed || !strings.HasPrefix(line, "refused (signature-invalid)") {
			t.Errorf("%s: %s", name, line)
		}
	}
}

// The same manifest under another scope's name, signed by another: what one scope
// starts by must not be lost by a pull of the other.
func TestAPullUnderAnotherScopeLosesNoSignature(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "deny")
	host := strings.TrimPrefix(r.URL, "http://")
	n.accept(r, "deny")
	text, err := os.ReadFile(filepath.Join(n.dir, "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n.put("policy.yaml", []byte(strings.Replace(string(text), "scopes:\n", `scopes:
  - name: mirror
    match: ["`+host+`/mirror/**"]
    stores: [agents]
    identities: ["email:mirror@example.com"]
    unsigned_containers: deny
    binding: none
    notation: accept
`, 1)))
	target := r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	mirror := testpki.New(t, testpki.LeafEmails("mirror@example.com"), testpki.LeafSerial(77))
	var asked atomic.Int32
	r.refer(t, &asked, r.signature(t, p, target))
	for range 2 { // a second pull of the same adds nothing
		if allowed, line, _ := ask(t, r.ref(), target); !allowed {
			t.Fatal(line)
		}
	}
	r.refer(t, &asked, r.signature(t, mirror, target))
	if allowed, line, _ := ask(t, host+"/mirror/echo:1.0.0", target); !allowed {
		t.Fatal(line)
	}
	kept := envelopes.In(filepath.Join(n.dir, "state")).Read(target.Digest)
	if len(kept) != 2 || kept[0].Digest() == kept[1].Digest() {
		t.Errorf("kept are %d signatures, want the two by which the two names start", len(kept))
	}
}
