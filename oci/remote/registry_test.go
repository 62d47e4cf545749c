package remote

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
)

// fakeRegistry is as much of the distribution API as a well-behaved registry
// needs; spoil makes it misbehave and tells whether it has answered.
type fakeRegistry struct {
	mu        sync.Mutex
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by digest or tag
	types     map[string]string
	requests  []*http.Request
	spoil     func(w http.ResponseWriter, r *http.Request) bool
	user      string // if set, basic authentication as user:secret
}

func newRegistry() *fakeRegistry {
	return &fakeRegistry{blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.Clone(r.Context()))
	if f.user != "" {
		if u, p, _ := r.BasicAuth(); u != f.user || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
	}
	if f.spoil != nil && f.spoil(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fakeRegistry) serve(w http.ResponseWriter, r *http.Request) {
	_, last := splitLast(r.URL.Path)
	send := func(data []byte, mediaType string, ok bool) {
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Header().Set("Docker-Content-Digest", digestOf(data))
		if r.Method == http.MethodGet {
			_, _ = w.Write(data)
		}
	}
	body := func() []byte {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
		return data
	}
	switch read := r.Method == http.MethodGet || r.Method == http.MethodHead; {
	case r.URL.Path == "/v2/":
	case read && strings.Contains(r.URL.Path, "/manifests/"):
		data, ok := f.manifests[last]
		send(data, f.types[digestOf(data)], ok)
	case read && strings.Contains(r.URL.Path, "/blobs/"):
		data, ok := f.blobs[last]
		send(data, "application/octet-stream", ok)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/blobs/uploads/"):
		w.Header().Set("Location", r.URL.Path+"1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/"):
		data := body()
		if r.URL.Query().Get("digest") != digestOf(data) {
			http.Error(w, `{"errors":[{"code":"DIGEST_INVALID","message":"wrong"}]}`, http.StatusBadRequest)
			return
		}
		f.blobs[digestOf(data)] = data
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		data := body()
		f.manifests[last], f.manifests[digestOf(data)] = data, data
		f.types[digestOf(data)] = r.Header.Get("Content-Type")
		w.Header().Set("Docker-Content-Digest", digestOf(data))
		w.WriteHeader(http.StatusCreated)
	default:
		http.NotFound(w, r)
	}
}

func splitLast(path string) (string, string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

// start serves the registry in plain HTTP and gives its host.
func start(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func client(t *testing.T, opts Options) *Client {
	t.Helper()
	if opts.DockerConfig == "" {
		opts.DockerConfig = t.TempDir() + "/config.json" // never the real one
	}
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// agentLayout holds one WASM agent whose module has the given size.
func agentLayout(t *testing.T, size int) *oci.Layout {
	t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.test\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		t.Fatal(err)
	}
	l := emptyLayout(t)
	module := append([]byte("\x00asm\x01\x00\x00\x00"), make([]byte, size)...)
	if _, err := oci.Build(t.Context(), oci.BuildInput{Agent: m, Module: module}, l); err != nil {
		t.Fatal(err)
	}
	return l
}

func emptyLayout(t *testing.T) *oci.Layout {
	t.Helper()
	l, err := oci.CreateLayout(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return l
}
