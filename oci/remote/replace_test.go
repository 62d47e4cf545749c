package remote

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
)

func TestATagIsReplacedOnlyWhereItStillMeansTheSame(t *testing.T) {
	reg, ref, desc := published(t, 10)
	c := client(t, Options{})
	raw, _, err := c.Manifest(t.Context(), ref, desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	other := []byte(strings.Replace(string(raw), `"annotations":{`, `"annotations":{"a":"b",`, 1))
	third := []byte(strings.Replace(string(raw), `"annotations":{`, `"annotations":{"a":"c",`, 1))
	reg.mu.Lock()
	reg.requests = nil
	reg.mu.Unlock()
	got, err := c.Replace(t.Context(), ref, desc.Digest, other)
	if err != nil || got.Digest != digest.FromBytes(other) || got.MediaType != desc.MediaType {
		t.Fatalf("%v, %v", got, err)
	}
	for _, r := range reg.requests {
		if r.Method != http.MethodGet && r.Method != http.MethodHead && !strings.HasSuffix(r.URL.Path, "/manifests/1.0.0") {
			t.Errorf("%s %s, although no blob is new", r.Method, r.URL)
		}
	}
	// Somebody who still believes in the first.
	_, err = c.Replace(t.Context(), ref, desc.Digest, third)
	wantReason(t, err, fault.Exists)
	for ref, want := range map[string]fault.Reason{
		strings.TrimSuffix(ref, ":1.0.0"):                             fault.Usage,
		strings.TrimSuffix(ref, ":1.0.0") + "@" + got.Digest.String(): fault.Usage,
		strings.TrimSuffix(ref, "1.0.0") + "none":                     fault.NotFound,
	} {
		_, err = c.Replace(t.Context(), ref, got.Digest, third)
		wantReason(t, err, want)
	}
	_, err = c.Replace(t.Context(), ref, got.Digest, []byte("rubbish"))
	wantReason(t, err, fault.ArtifactInvalid)
	if now, err := c.Resolve(t.Context(), ref); err != nil || now.Digest != got.Digest {
		t.Errorf("the tag means %s: %v", now.Digest, err)
	}
}
