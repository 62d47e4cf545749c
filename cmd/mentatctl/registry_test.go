package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"
)

// registry is as much of the distribution API as mentatctl uses.
type registry struct {
	mu    sync.Mutex
	blobs map[string][]byte // by repository@digest; guarded by mu
	types map[string]string // of manifests; guarded by mu
	tags  map[string]string // repository:tag to digest; guarded by mu
	// user and password, if set, are asked for.
	user, password string
}

// startRegistry is `registry VARIABLE [USER PASSWORD]`; the variable receives
// the registry's host.
func startRegistry(ts *testscript.TestScript, _ bool, args []string) {
	r := &registry{blobs: map[string][]byte{}, types: map[string]string{}, tags: map[string]string{}}
	if len(args) > 1 {
		r.user, r.password = args[1], args[2]
	}
	srv := httptest.NewServer(r)
	ts.Defer(srv.Close)
	ts.Setenv(args[0], strings.TrimPrefix(srv.URL, "http://"))
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, _ := req.BasicAuth(); user != r.user || password != r.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || path == "" {
		return
	}
	if strings.Contains(path, "/referrers/") {
		fail(w, http.StatusNotFound, "UNSUPPORTED")
		return
	}
	for _, kind := range []string{"/blobs/uploads/", "/blobs/", "/manifests/"} {
		if repo, name, ok := strings.Cut(path, kind); ok {
			r.serve(w, req, kind, repo, name)
			return
		}
	}
	fail(w, http.StatusNotFound, "NAME_UNKNOWN")
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request, kind, repo, name string) {
	switch {
	case kind == "/blobs/uploads/" && req.Method == http.MethodPost:
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPut:
		data, err := io.ReadAll(req.Body)
		if err != nil {
			fail(w, http.StatusBadRequest, "SIZE_INVALID")
			return
		}
		d := digest.FromBytes(data).String()
		if want := req.URL.Query().Get("digest"); want != "" && want != d {
			fail(w, http.StatusBadRequest, "DIGEST_INVALID")
			return
		}
		r.blobs[repo+"@"+d] = data
		if kind == "/manifests/" {
			r.types[d] = req.Header.Get("Content-Type")
			r.tags[repo+":"+name] = d
		}
		w.Header().Set("Docker-Content-Digest", d)
		w.WriteHeader(http.StatusCreated)
	default:
		if tagged, ok := r.tags[repo+":"+name]; ok {
			name = tagged
		}
		data, ok := r.blobs[repo+"@"+name]
		if !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
			return
		}
		w.Header().Set("Docker-Content-Digest", name)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Header().Set("Content-Type", "application/octet-stream")
		if t := r.types[name]; t != "" {
			w.Header().Set("Content-Type", t)
		}
		if req.Method == http.MethodGet {
			_, _ = w.Write(data) // a client that went away is its own matter
		}
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"test"}]}`, code)
}
