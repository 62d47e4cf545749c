package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
)

// refers answers the referrers API with n manifests.
func refers(n int) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		var index ocispec.Index
		for i := range n {
			index.Manifests = append(index.Manifests, ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-test", Digest: digest.FromString(fmt.Sprint(i)), Size: 1,
			})
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-other", Digest: digest.FromString("x"), Size: 1})
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(index)
		return true
	}
}

func TestReferrersAreOfOneTypeAndBounded(t *testing.T) {
	reg, ref, desc := published(t, 10)
	for n, want := range map[int]int{0: 0, 2: 2, 3: 3, 100: 3} {
		reg.spoil = refers(n)
		found, err := client(t, Options{}).Referrers(t.Context(), ref, desc, "application/x-test", 2)
		if err != nil || len(found) != want {
			t.Errorf("of %d: %d, %v", n, len(found), err)
		}
	}
	for name, spoil := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"garbage": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = w.Write([]byte("<html>"))
			return true
		},
		"pages without end": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			w.Header().Set("Link", "<"+r.URL.Path+">; rel=\"next\"")
			_, _ = w.Write([]byte("{}"))
			return true
		},
	} {
		reg.spoil = spoil
		found, err := client(t, Options{}).Referrers(t.Context(), ref, desc, "application/x-test", 2)
		if found != nil {
			t.Errorf("%s: %v", name, found)
		}
		wantReason(t, err, fault.Unavailable)
	}
}

func TestAMirrorWithoutReferrersDoesNotSpeakForTheRegistry(t *testing.T) {
	mirror, own := newRegistry(), newRegistry()
	mirrorHost, ownHost := start(t, mirror), start(t, own)
	hosts := t.TempDir()
	dir := filepath.Join(hosts, "registry.example")
	text := "server = \"http://" + ownHost + "\"\n[host.\"http://" + mirrorHost + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	target := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("target"), Size: 6}
	list := func() ([]ocispec.Descriptor, error) {
		return client(t, Options{HostsDir: hosts}).Referrers(t.Context(), "registry.example/agents/echo:1", target, "application/x-test", 8)
	}
	mirror.spoil, own.spoil = refers(0), refers(1)
	if found, err := list(); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	mirror.spoil, own.spoil = refers(2), refers(1)
	if found, err := list(); err != nil || len(found) != 2 {
		t.Errorf("%v, %v", found, err)
	}
	// One that could not be asked could have known.
	mirror.spoil, own.spoil = refers(0), func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	_, err := list()
	wantReason(t, err, fault.AccessDenied)
}
