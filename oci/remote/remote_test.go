package remote

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
)

func wantReason(t *testing.T, err error, want fault.Reason) {
	t.Helper()
	if got := fault.ReasonOf(err); got != want {
		t.Errorf("reason %q, want %q: %v", got, want, err)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\r\n") {
		t.Errorf("more than one line: %q", err)
	}
}

// published starts a registry that holds an agent under the returned reference.
func published(t *testing.T, size int) (*fakeRegistry, string, ocispec.Descriptor) {
	t.Helper()
	reg := newRegistry()
	ref := start(t, reg) + "/agents/test:1.0.0"
	desc, err := client(t, Options{}).Push(t.Context(), agentLayout(t, size), ref)
	if err != nil {
		t.Fatal(err)
	}
	return reg, ref, desc
}

func TestWhatIsPushedIsPulledByteForByte(t *testing.T) {
	src := agentLayout(t, 1<<20)
	reg := newRegistry()
	ref := start(t, reg) + "/agents/test:1.0.0"
	events := map[digest.Digest][]Event{}
	c := client(t, Options{Progress: func(e Event) { events[e.Digest] = append(events[e.Digest], e) }})
	pushed, err := c.Push(t.Context(), src, ref)
	if err != nil {
		t.Fatal(err)
	}
	checkEvents(t, events, OpPush, 3)
	resolved, err := c.Resolve(t.Context(), ref)
	if err != nil || resolved.Digest != pushed.Digest || resolved.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("resolved %+v, %v", resolved, err)
	}
	clear(events)
	dst := emptyLayout(t)
	pulled, err := c.Pull(t.Context(), ref, dst)
	if err != nil {
		t.Fatal(err)
	}
	checkEvents(t, events, OpPull, 3)
	if err := dst.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if named, err := dst.Resolve(t.Context(), ref); err != nil || named.Digest != pulled.Digest || pulled.Digest != pushed.Digest {
		t.Errorf("pushed %s, pulled %s, named %s: %v", pushed.Digest, pulled.Digest, named.Digest, err)
	}
	raw, _, err := c.Manifest(t.Context(), ref, pushed.Digest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Fetcher(ref)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := oci.Read(t.Context(), f, raw); err != nil || a.Form != oci.FormWASM {
		t.Errorf("read through the registry: %v", err)
	}

	clear(events)
	if _, err := c.Push(t.Context(), src, ref); err != nil {
		t.Fatal(err)
	}
	checkEvents(t, events, OpSkip, 3)
	clear(events)
	if _, err := c.Pull(t.Context(), ref, dst); err != nil {
		t.Fatal(err)
	}
	checkEvents(t, events, OpSkip, 3)
}

func checkEvents(t *testing.T, events map[digest.Digest][]Event, op string, blobs int) {
	t.Helper()
	if len(events) != blobs {
		t.Errorf("%s: events about %d blobs, want %d", op, len(events), blobs)
	}
	for d, es := range events {
		done := int64(0)
		for _, e := range es {
			if e.Op != op || e.Done < done || e.Total != es[0].Total {
				t.Errorf("%s: events %+v", d, es)
			}
			done = e.Done
		}
		if last := es[len(es)-1]; last.Done != last.Total {
			t.Errorf("%s: ends at %d of %d", d, last.Done, last.Total)
		}
	}
}

func TestAnIndexIsCopiedWithAllItsManifests(t *testing.T) {
	src := agentLayout(t, 10)
	child, err := src.Root()
	if err != nil {
		t.Fatal(err)
	}
	child.Platform = &ocispec.Platform{OS: "wasip1", Architecture: "wasm"}
	raw, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{child}})
	if err != nil {
		t.Fatal(err)
	}
	idx, err := src.PushBytes(t.Context(), ocispec.MediaTypeImageIndex, raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Add(t.Context(), idx); err != nil {
		t.Fatal(err)
	}
	ref := start(t, newRegistry()) + "/agents/test:1.0.0"
	if err := src.Tag(t.Context(), idx, ref); err != nil {
		t.Fatal(err)
	}
	c := client(t, Options{})
	if _, err := c.Push(t.Context(), src, ref); err != nil {
		t.Fatal(err)
	}
	dst := emptyLayout(t)
	if _, err := c.Pull(t.Context(), ref, dst); err != nil {
		t.Fatal(err)
	}
	if err := dst.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if root, err := dst.Root(); err != nil || root.Digest != idx.Digest {
		t.Errorf("root %v, %v", root, err)
	}
}

func TestMisbehavingRegistriesGetTheirReason(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, `{"errors":[{"code":"X","message":"because\nof this"}]}`, code)
			return true
		}
	}
	// on applies a fault to blobs (or manifests) only.
	on := func(kind string, f func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			hit := strings.Contains(r.URL.Path, kind)
			if hit {
				f(w, r)
			}
			return hit
		}
	}
	answer := func(mediaType, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			_, _ = io.WriteString(w, body)
		}
	}
	truncated := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Content-Length", "100000")
		_, _ = io.WriteString(w, `{"schemaVersion":2,`)
	}
	silent := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "{")
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		<-r.Context().Done()
	}
	const silence = "nothing was received"
	mt := ocispec.MediaTypeImageManifest
	for name, c := range map[string]struct {
		spoil func(http.ResponseWriter, *http.Request) bool
		want  fault.Reason
		text  string
	}{
		"401":                {status(401), fault.AccessDenied, "check the credentials"},
		"403":                {status(403), fault.AccessDenied, "because of this"},
		"404":                {status(404), fault.NotFound, "does not have it"},
		"500":                {status(500), fault.Unavailable, "answered 500"},
		"502":                {status(502), fault.Unavailable, "answered 502"},
		"429":                {status(429), fault.Unavailable, "answered 429"},
		"418":                {status(418), fault.Unavailable, "answered 418"},
		"404 for a blob":     {on("/blobs/", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }), fault.NotFound, "does not have it"},
		"a web page":         {on("/manifests/", answer("text/html", "<html>log in</html>")), fault.Unavailable, "text/html"},
		"no content type":    {on("/manifests/", answer("", "{}")), fault.Unavailable, "Content-Type"},
		"not JSON":           {on("/manifests/", answer(mt, "x")), fault.ArtifactInvalid, "not a JSON object"},
		"other kind inside":  {on("/manifests/", answer(mt, `{"mediaType":"application/vnd.oci.image.index.v1+json"}`)), fault.ArtifactInvalid, "says"},
		"truncated manifest": {on("/manifests/", truncated), fault.Unavailable, "broke off"},
		"truncated blob":     {on("/blobs/", truncateBlob), fault.Unavailable, "broke off"},
		"wrong blob length":  {on("/blobs/", answer("application/octet-stream", "short")), fault.Unavailable, "Content-Length"},
		"wrong blob": {on("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush() // chunked: the length says nothing
			_, _ = io.WriteString(w, "something else entirely")
		}), fault.DigestMismatch, ""},
		"silent manifest": {on("/manifests/", silent), fault.Unavailable, silence},
		"silent blob":     {on("/blobs/", silentBlob), fault.Unavailable, silence},
		"oversized manifest": {on("/manifests/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(limits.OCIManifestBytes+10))
			w.Header().Set("Docker-Content-Digest", digestOf(nil))
			answer(mt, strings.Repeat(" ", limits.OCIManifestBytes+10))(w, r)
		}), fault.ArtifactInvalid, "over the limit"},
		"oversized manifest without digest": {on("/manifests/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(limits.OCIManifestBytes+10))
			answer(mt, strings.Repeat(" ", limits.OCIManifestBytes+10))(w, r)
		}), fault.ArtifactInvalid, "over the limit"},
		"redirect in a circle": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, fault.Unavailable, "redirects"},
		"wrong blob behind a redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.URL.Query().Get("signature") != "":
				answer("application/octet-stream", "short")(w, r)
			case strings.Contains(r.URL.Path, "/blobs/"):
				http.Redirect(w, r, "/elsewhere?signature=hush", http.StatusTemporaryRedirect)
			default:
				return false
			}
			return true
		}, fault.Unavailable, "Content-Length"},
		"redirect out of the machine": {on("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://198.51.100.1/x?signature=hush", http.StatusTemporaryRedirect)
		}), fault.Unavailable, "not followed"},
	} {
		t.Run(name, func(t *testing.T) {
			reg, ref, _ := published(t, 1000)
			reg.spoil = c.spoil
			cl := client(t, Options{})
			if c.text == silence {
				cl.stall = 200 * time.Millisecond // on a busy machine others are silent for so long, too
			}
			dst := emptyLayout(t)
			_, err := cl.Pull(t.Context(), ref, dst)
			wantReason(t, err, c.want)
			if err != nil && (!strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "hush")) {
				t.Errorf("%q does not say %q, or says too much", err, c.text)
			}
			if _, err := dst.Root(); fault.ReasonOf(err) != fault.NotFound {
				t.Errorf("a failed pull is in the index: %v", err)
			}
		})
	}
}

func truncateBlob(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Transfer-Encoding", "chunked")
	_, _ = io.WriteString(w, "{")
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func silentBlob(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "{")
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func TestManifestByDigestIsCheckedAgainstThatDigest(t *testing.T) {
	reg, ref, desc := published(t, 10)
	c := client(t, Options{})
	raw, got, err := c.Manifest(t.Context(), ref, desc.Digest)
	if err != nil || got.Digest != desc.Digest || digest.FromBytes(raw) != desc.Digest {
		t.Fatalf("%+v, %v", got, err)
	}
	evil := bytes.Replace(raw, []byte("mentatlab.test"), []byte("mentatlab.evil"), 1)
	reg.spoil = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		_, _ = w.Write(evil)
		return true
	}
	_, _, err = c.Manifest(t.Context(), ref, desc.Digest)
	if r := fault.ReasonOf(err); r != fault.DigestMismatch && r != fault.Unavailable {
		t.Errorf("another manifest without a header: %v", err)
	}
	reg.spoil = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", string(desc.Digest))
		_, _ = w.Write(evil)
		return true
	}
	_, _, err = c.Manifest(t.Context(), ref, desc.Digest)
	wantReason(t, err, fault.DigestMismatch)
	_, err = c.Resolve(t.Context(), ref)
	wantReason(t, err, fault.DigestMismatch)
	_, _, err = c.Manifest(t.Context(), ref, "sha256:x")
	wantReason(t, err, fault.Usage)
}

func TestServersThatAreNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]Options{"probed": {}, "plain": {PlainHTTP: true}} {
		_, err = client(t, opts).Resolve(t.Context(), addr+"/x:1")
		wantReason(t, err, fault.Unavailable)
		if !strings.Contains(err.Error(), "connection refused") && runtime.GOOS == "linux" {
			t.Errorf("%s: %v", name, err)
		}
	}
	reg := newRegistry()
	host := start(t, reg)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = client(t, Options{PlainHTTP: true}).Resolve(ctx, strings.TrimPrefix(s.URL, "http://")+"/x:1")
	wantReason(t, err, fault.Unavailable)
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	_, err = client(t, Options{PlainHTTP: true}).Resolve(cancelled, host+"/x:1")
	wantReason(t, err, fault.Canceled)
}

func TestRetriesSurviveAShortHiccup(t *testing.T) {
	reg, ref, desc := published(t, 10)
	failures := 2
	reg.spoil = func(w http.ResponseWriter, _ *http.Request) bool {
		failures--
		if failures >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return failures >= 0
	}
	if got, err := client(t, Options{}).Resolve(t.Context(), ref); err != nil || got.Digest != desc.Digest {
		t.Errorf("%v, %v", got, err)
	}
}

// tlsRegistry serves reg over TLS with a private authority, whose file it returns.
func tlsRegistry(t *testing.T, reg http.Handler) (host, caFile string) {
	t.Helper()
	s := httptest.NewUnstartedServer(reg)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(caFile, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(s.URL, "https://"), caFile
}

func TestAPrivateAuthorityMustBeNamed(t *testing.T) {
	host, ca := tlsRegistry(t, newRegistry())
	ref := host + "/agents/test:1"
	_, err := client(t, Options{}).Push(t.Context(), agentLayout(t, 10), ref)
	wantReason(t, err, fault.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "--ca-file") {
		t.Errorf("no hint: %v", err)
	}
	c := client(t, Options{CAFile: ca})
	if _, err := c.Push(t.Context(), agentLayout(t, 10), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), ref, emptyLayout(t)); err != nil {
		t.Error(err)
	}
	_, err = client(t, Options{CAFile: ca, PlainHTTP: true}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.Unavailable)
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = New(Options{CAFile: bad})
	wantReason(t, err, fault.Usage)
	_, err = New(Options{CAFile: filepath.Join(t.TempDir(), "none")})
	wantReason(t, err, fault.NotFound)
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.9.8.7:5000": true, "localhost": true, "localhost:5000": true, "[::1]:5000": true, "[::1]": true,
		"[::ffff:127.0.0.1]:1": true, "127.0.0.1.example": false, "localhost.example": false, "10.0.0.1:5000": false,
		"registry.example:5000": false, "[::]:5000": false, "0.0.0.0:5000": false, "128.0.0.1": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	c := client(t, Options{})
	eps, err := c.endpoints(t.Context(), "registry.example:5000")
	if err != nil || eps[0].plain {
		t.Errorf("a distant host in plain HTTP: %v", err)
	}
	eps, err = client(t, Options{PlainHTTP: true}).endpoints(t.Context(), "registry.example:5000")
	if err != nil || !eps[0].plain {
		t.Errorf("PlainHTTP is not honoured: %v", err)
	}
}

func TestCredentialsComeFromTheOptionsOrFromDocker(t *testing.T) {
	reg, ref, _ := published(t, 10)
	reg.user = "dev"
	host, _, _ := strings.Cut(ref, "/")
	_, err := client(t, Options{}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.AccessDenied)
	if !strings.Contains(err.Error(), "log in to "+host) {
		t.Errorf("no hint: %v", err)
	}
	_, err = client(t, Options{Username: "dev", Password: "wrong"}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.AccessDenied)
	if _, err := client(t, Options{Username: "dev", Password: "secret"}).Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
	config := filepath.Join(t.TempDir(), "config.json")
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("dev:secret")))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, Options{DockerConfig: config}).Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
	t.Setenv("DOCKER_CONFIG", filepath.Dir(config))
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(t.Context(), ref); err != nil {
		t.Errorf("through DOCKER_CONFIG: %v", err)
	}
	if err := os.WriteFile(config, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = client(t, Options{DockerConfig: config}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.AccessDenied)
	reg.user = ""
	if _, err := client(t, Options{DockerConfig: config}).Resolve(t.Context(), ref); err != nil {
		t.Errorf("a broken configuration got in the way of a public image: %v", err)
	}
}

func TestCredentialHelpersAreAsked(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("the helper of this test is a shell script")
		return
	}
	reg, ref, _ := published(t, 10)
	reg.user = "dev"
	host, _, _ := strings.Cut(ref, "/")
	dir := t.TempDir()
	helper := "#!/bin/sh\nread server\n[ \"$1 $server\" = \"get " + host + "\" ] || { echo credentials not found in native keychain; exit 1; }\n" +
		"echo '{\"Username\":\"dev\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	config := filepath.Join(dir, "config.json")
	write := func(text string) {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf(`{"credHelpers":{%q:"test"}}`, host))
	if _, err := client(t, Options{DockerConfig: config}).Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
	write(`{"credsStore":"missing-helper"}`)
	_, err := client(t, Options{DockerConfig: config}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.AccessDenied)
	if err == nil || !strings.Contains(err.Error(), "missing-helper") {
		t.Errorf("does not name the helper: %v", err)
	}
}

func TestCredentialsDoNotFollowARedirect(t *testing.T) {
	reg, ref, _ := published(t, 10)
	blobs := reg.blobs
	var leaked []string
	elsewhere := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked = append(leaked, a)
		}
		_, last := splitLast(r.URL.Path)
		_, _ = w.Write(blobs[last])
	}))
	reg.user = "dev"
	reg.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		hit := strings.Contains(r.URL.Path, "/blobs/")
		if hit {
			http.Redirect(w, r, "http://"+elsewhere+r.URL.Path, http.StatusTemporaryRedirect)
		}
		return hit
	}
	dst := emptyLayout(t)
	if _, err := client(t, Options{Username: "dev", Password: "secret"}).Pull(t.Context(), ref, dst); err != nil {
		t.Error(err)
	}
	if len(leaked) != 0 {
		t.Errorf("credentials went to another host: %v", leaked)
	}
}

func TestLoginStoresOnlyWhatTheRegistryAccepts(t *testing.T) {
	reg := newRegistry()
	reg.user = "dev"
	host := start(t, reg)
	config := filepath.Join(t.TempDir(), "docker", "config.json")
	c := client(t, Options{DockerConfig: config})
	wantReason(t, c.Login(t.Context(), host, "dev", "wrong"), fault.AccessDenied)
	if _, err := os.Stat(config); err == nil {
		t.Error("refused credentials were stored")
	}
	if err := c.Login(t.Context(), host, "dev", "secret"); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(config)
	if err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if _, err := client(t, Options{DockerConfig: config}).Push(t.Context(), agentLayout(t, 10), host+"/x:1"); err != nil {
		t.Errorf("after logging in: %v", err)
	}
	if err := c.Logout(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	_, err = client(t, Options{DockerConfig: config}).Resolve(t.Context(), host+"/x:1")
	wantReason(t, err, fault.AccessDenied)
	for _, bad := range []string{"", "a/b", "http://x", "a b"} {
		wantReason(t, c.Login(t.Context(), bad, "dev", "secret"), fault.Usage)
		wantReason(t, c.Logout(t.Context(), bad), fault.Usage)
	}
	wantReason(t, c.Login(t.Context(), host, "", "secret"), fault.Usage)
}

func TestPushNamesNothingThatIsIncomplete(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(http.ResponseWriter, *http.Request) bool
		want  fault.Reason
	}{
		"denied": {func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(403); return true }, fault.AccessDenied},
		"down":   {func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true }, fault.Unavailable},
		"blob refused": {func(w http.ResponseWriter, r *http.Request) bool {
			hit := r.Method == "PUT" && strings.Contains(r.URL.Path, "/blobs/")
			if hit {
				w.WriteHeader(400)
			}
			return hit
		}, fault.Unavailable},
		"immutable tag": {func(w http.ResponseWriter, r *http.Request) bool {
			hit := r.Method == "PUT" && strings.Contains(r.URL.Path, "/manifests/")
			if hit {
				w.WriteHeader(412)
			}
			return hit
		}, fault.Exists},
		"upload lured away": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "POST" {
				return false
			}
			w.Header().Set("Location", "http://198.51.100.1/upload")
			w.WriteHeader(202)
			return true
		}, fault.Unavailable},
	} {
		reg := newRegistry()
		reg.spoil = c.spoil
		_, err := client(t, Options{}).Push(t.Context(), agentLayout(t, 100), start(t, reg)+"/agents/test:1")
		if got := fault.ReasonOf(err); got != c.want {
			t.Errorf("%s: %q: %v", name, got, err)
		}
		if len(reg.manifests) != 0 {
			t.Errorf("%s: a manifest was pushed", name)
		}
	}
}

func TestADamagedLayoutIsNotPushed(t *testing.T) {
	l := agentLayout(t, 100)
	var m ocispec.Manifest
	root, err := l.Root()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := oci.ReadBlob(t.Context(), l, root, limits.OCIManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.Dir(), "blobs", "sha256", m.Layers[1].Digest.Encoded())
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), int(m.Layers[1].Size)), 0o644); err != nil {
		t.Fatal(err)
	}
	reg := newRegistry()
	_, err = client(t, Options{}).Push(t.Context(), l, start(t, reg)+"/agents/test:1")
	wantReason(t, err, fault.DigestMismatch)
	if len(reg.manifests) != 0 {
		t.Error("a manifest was pushed")
	}
}

func TestReferencesAreCheckedFirst(t *testing.T) {
	c := client(t, Options{})
	l := agentLayout(t, 1)
	for _, ref := range []string{"", "x", "agents/test:1", "UPPER.example/X:1", "r.example/x", "r.example/x:bad tag", "r.example/x@sha256:zz", "https://r.example/x:1"} {
		_, err := c.Resolve(t.Context(), ref)
		wantReason(t, err, fault.Usage)
		_, err = c.Pull(t.Context(), ref, emptyLayout(t))
		wantReason(t, err, fault.Usage)
		_, err = c.Push(t.Context(), l, ref)
		wantReason(t, err, fault.Usage)
	}
	_, err := c.Push(t.Context(), l, "r.example/x@sha256:"+strings.Repeat("0", 64))
	wantReason(t, err, fault.Usage)
	_, err = c.Fetcher("x")
	wantReason(t, err, fault.Usage)
}

func TestWhatIsAttachedIsFoundByItsSubject(t *testing.T) {
	_, ref, desc := published(t, 10)
	c := client(t, Options{})
	config, layer := []byte("{}"), []byte("signature")
	describe := func(data []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: "application/x-test", Digest: digest.FromBytes(data), Size: int64(len(data))}
	}
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-test",
		Config: describe(config), Layers: []ocispec.Descriptor{describe(layer)}, Subject: &desc,
	}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again changes nothing
		if _, err := c.Attach(t.Context(), ref, raw, [][]byte{config, layer}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := parseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := orasremote.NewRepository(r.Registry + "/" + r.Repository)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	var found []ocispec.Descriptor
	err = repo.Referrers(t.Context(), desc, "application/x-test", func(list []ocispec.Descriptor) error {
		found = append(found, list...)
		return nil
	})
	if err != nil || len(found) != 1 || found[0].Digest != digest.FromBytes(raw) {
		t.Errorf("%v, %v", found, err)
	}
	m.Subject = nil
	if raw, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	_, err = c.Attach(t.Context(), ref, raw, nil)
	wantReason(t, err, fault.Internal)
	_, err = c.Attach(t.Context(), ref, []byte("rubbish"), nil)
	wantReason(t, err, fault.ArtifactInvalid)
}

func TestProvidedCredentialsAreForTheNamedRegistryOnly(t *testing.T) {
	mirror, own := newRegistry(), newRegistry()
	mirror.user, own.user = "dev", "dev"
	mirrorHost, ownHost := start(t, mirror), start(t, own)
	hosts := t.TempDir()
	write := func(text string) {
		dir := filepath.Join(hosts, "registry.example")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	c := Options{HostsDir: hosts, Provide: func(context.Context) (string, string, bool, error) {
		asked++
		return "dev", "secret", true, nil
	}}
	write(fmt.Sprintf("server = \"http://%s\"\n", mirrorHost))
	_, err := client(t, c).Resolve(t.Context(), "registry.example/x:1")
	wantReason(t, err, fault.AccessDenied)
	if asked != 0 {
		t.Errorf("asked %d times for a server of another name", asked)
	}
	for _, r := range mirror.requests {
		if r.Header.Get("Authorization") != "" {
			t.Error("a mirror was sent credentials")
		}
	}
	_, err = client(t, c).Resolve(t.Context(), ownHost+"/x:1")
	wantReason(t, err, fault.NotFound) // it let us in
	if asked == 0 {
		t.Error("the registry's own credentials were not asked for")
	}
	c.Provide = func(context.Context) (string, string, bool, error) {
		return "", "", false, fault.New(fault.AccessDenied, "provider", "broken")
	}
	_, err = client(t, c).Resolve(t.Context(), ownHost+"/x:1")
	wantReason(t, err, fault.AccessDenied)
}
