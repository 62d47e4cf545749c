package remote

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/limits"
)

// Whoever may attach can make a list too long to be read to its end, and must not
// thereby hide what stands at its beginning.
func TestWhatAListWithoutEndBeginsWithIsFound(t *testing.T) {
	reg, ref, desc := published(t, 10)
	one := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-test", Digest: digest.FromString("one"), Size: 3}
	pages := 0
	reg.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		var index ocispec.Index
		if pages++; pages == 1 {
			index.Manifests = append(index.Manifests, one)
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.Header().Set("Link", "<"+r.URL.Path+">; rel=\"next\"")
		_ = json.NewEncoder(w).Encode(index)
		return true
	}
	found, err := client(t, Options{}).Referrers(t.Context(), ref, desc, "application/x-test", 8)
	if err != nil || len(found) != 1 || found[0].Digest != one.Digest || pages != limits.ReferrerPages {
		t.Errorf("%v after %d pages: %v", found, pages, err)
	}
}
