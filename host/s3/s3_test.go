package s3

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testnet"
)

const (
	access = "access-CANARY"
	key    = "secret-CANARY-4f19"
)

var secrets = hostdoc.Secrets{"access": access, "key": key}

var _ media.Store = (*Store)(nil)

// server is a running storage with a bucket.
type server struct {
	endpoint, caFile string
	// bucket is the directory that holds the bucket's objects.
	bucket string
}

// start runs a real S3 server over a directory, with TLS.
func start(t *testing.T) *server {
	t.Helper()
	program, err := filepath.Abs("../../bin/tools/versitygw")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("needs bin/tools/versitygw: make bin/tools/versitygw")
	}
	dir := t.TempDir()
	objects, sidecar := filepath.Join(dir, "objects"), filepath.Join(dir, "sidecar")
	s := &server{bucket: filepath.Join(objects, "media")}
	for _, d := range []string{s.bucket, sidecar} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ca := testnet.NewCA(t)
	s.caFile = ca.File
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, ca, certFile, keyFile)

	var log bytes.Buffer
	for range 5 { // a free port may be taken by somebody else meanwhile
		port := freePort(t)
		cmd := exec.CommandContext(t.Context(), program, "--access", access, "--secret", key, "--port", "127.0.0.1:"+port, "--cert", certFile, "--key", keyFile, "--quiet", "posix", "--sidecar", sidecar, objects)
		cmd.Env, cmd.Stdout, cmd.Stderr = []string{"HOME=" + dir}, &log, &log
		cmd.Cancel = func() error { return cmd.Process.Kill() }
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		s.endpoint = "https://s3.example:" + port
		if answers(port, ended) {
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			return s
		}
	}
	t.Fatalf("the storage does not start: %s", log.String())
	return nil
}

func answers(port string, ended <-chan struct{}) bool {
	for {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func writePair(t *testing.T, ca *testnet.CA, certFile, keyFile string) {
	t.Helper()
	pair := ca.Certificate(t, time.Now().Add(time.Hour), "s3.example")
	der, err := testnet.KeyDER(pair)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, endpoint, caFile string, edit func(*hostdoc.MediaS3)) *Store {
	t.Helper()
	c := &hostdoc.MediaS3{Endpoint: endpoint, Bucket: "media", Prefix: "agents/a", AccessKey: "access", SecretKey: "key", CAFile: caFile}
	if edit != nil {
		edit(c)
	}
	s, err := Open(c, secrets, testnet.NewResolver().Set("s3.example", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func read(t *testing.T, s *Store, ref media.Ref) (string, media.Info, error) {
	t.Helper()
	r, info, err := s.Open(t.Context(), ref, limits.MediaItemBytes)
	if err != nil {
		return "", info, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), info, err
}

func put(t *testing.T, s *Store, kind, data string) media.Ref {
	t.Helper()
	ref, err := s.Put(t.Context(), kind, strings.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if ref != media.Sum([]byte(data)) {
		t.Fatalf("stored as %s", ref)
	}
	return ref
}

func TestWhatIsStoredIsRead(t *testing.T) {
	server := start(t)
	s := open(t, server.endpoint, server.caFile, nil)
	for _, data := range []string{"", "hello", strings.Repeat("0123456789abcdef", 2<<20)} {
		ref := put(t, s, "text/plain; charset=utf-8", data)
		got, info, err := read(t, s, ref)
		if err != nil || got != data || info != (media.Info{Size: int64(len(data)), Type: "text/plain; charset=utf-8"}) {
			t.Errorf("%d bytes: got %d, %+v, %v", len(data), len(got), info, err)
		}
		// Again, and with another type: nothing changes.
		put(t, s, "image/png", data)
		if _, info, err := read(t, s, ref); err != nil || info.Type != "text/plain; charset=utf-8" {
			t.Errorf("%+v, %v", info, err)
		}
		if _, err := os.Stat(filepath.Join(server.bucket, "agents", "a", ref.Hex())); err != nil {
			t.Errorf("not under its prefix: %v", err)
		}
	}
	// A reader that cannot go back.
	ref, err := s.Put(t.Context(), "text/plain", io.MultiReader(strings.NewReader("to and "), strings.NewReader("fro")), 10)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := read(t, s, ref); err != nil || got != "to and fro" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAnotherPrefixIsAnotherStore(t *testing.T) {
	server := start(t)
	ref := put(t, open(t, server.endpoint, server.caFile, nil), "text/plain", "mine")
	other := open(t, server.endpoint, server.caFile, func(c *hostdoc.MediaS3) { c.Prefix = "agents/b/" })
	if _, _, err := read(t, other, ref); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

func TestParallelWritersOfOneObjectAllSucceed(t *testing.T) {
	server := start(t)
	s := open(t, server.endpoint, server.caFile, nil)
	data := strings.Repeat("x", 1<<20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Put(t.Context(), "text/plain", strings.NewReader(data), int64(len(data))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, _, err := read(t, s, media.Sum([]byte(data))); err != nil || got != data {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestOtherBytesThanTheDigestsAreAnError(t *testing.T) {
	server := start(t)
	s := open(t, server.endpoint, server.caFile, nil)
	for name, damage := range map[string]func(string) string{
		"changed": func(d string) string { return "X" + d[1:] },
		"longer":  func(d string) string { return d + "x" },
		"shorter": func(d string) string { return d[1:] },
		"empty":   func(string) string { return "" },
	} {
		data := "what was stored: " + name
		ref := put(t, s, "text/plain", data)
		if err := os.WriteFile(filepath.Join(server.bucket, "agents", "a", ref.Hex()), []byte(damage(data)), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, _, err := read(t, s, ref); fault.ReasonOf(err) != fault.DigestMismatch {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// Storing it again heals what has another size.
	ref := media.Sum([]byte("what was stored: shorter"))
	put(t, s, "text/plain", "what was stored: shorter")
	if _, _, err := read(t, s, ref); err != nil {
		t.Errorf("not healed: %v", err)
	}
}

func TestAnObjectThatIsTooLargeIsNotRead(t *testing.T) {
	server := start(t)
	s := open(t, server.endpoint, server.caFile, nil)
	ref := put(t, s, "text/plain", "eleven byte")
	if _, _, err := s.Open(t.Context(), ref, 10); fault.ReasonOf(err) != fault.ResourceLimit {
		t.Errorf("%v", err)
	}
	r, _, err := s.Open(t.Context(), ref, 11)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := s.Put(t.Context(), "text/plain", strings.NewReader("longer than it says"), 3); err == nil {
		t.Error("more bytes than the size are stored")
	}
	if _, err := s.Put(t.Context(), "text/plain", strings.NewReader("short"), 30); err == nil {
		t.Error("fewer bytes than the size are stored")
	}
}

func TestAStorageThatRefusesIsUnavailableAndShowsNoCredential(t *testing.T) {
	server := start(t)
	ref := media.Sum([]byte("x"))
	wrong := hostdoc.Secrets{"access": access, "key": "another-secret-CANARY"}
	stranger, err := Open(&hostdoc.MediaS3{Endpoint: server.endpoint, Bucket: "media", AccessKey: "access", SecretKey: "key", CAFile: server.caFile}, wrong, testnet.NewResolver().Set("s3.example", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for name, c := range map[string]struct {
		s      *Store
		reason fault.Reason
		want   string
	}{
		"no such object":    {open(t, server.endpoint, server.caFile, nil), fault.NotFound, "no such object"},
		"no such bucket":    {open(t, server.endpoint, server.caFile, func(c *hostdoc.MediaS3) { c.Bucket = "other" }), fault.Unavailable, "no such bucket"},
		"a wrong key":       {stranger, fault.Unavailable, "credentials"},
		"another authority": {open(t, server.endpoint, testnet.NewCA(t).File, nil), fault.Unavailable, "no authority"},
		"nobody there":      {open(t, "https://s3.example:1", server.caFile, nil), fault.Unavailable, "refuses the connection"},
		"no such host":      {open(t, "https://nowhere.example", server.caFile, nil), fault.Unavailable, "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := read(t, c.s, ref)
			if fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%v (%s)", err, fault.ReasonOf(err))
			}
			if c.reason == fault.NotFound {
				return
			}
			_, err = c.s.Put(t.Context(), "text/plain", strings.NewReader("x"), 1)
			if fault.ReasonOf(err) != fault.Unavailable || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("put: %v", err)
			}
		})
	}
}

// stub answers every request the same way.
func stub(t *testing.T, h http.HandlerFunc) *Store {
	t.Helper()
	s := testnet.Plain(t, h)
	return open(t, s.At("s3.example", ""), "", nil)
}

func TestAStorageThatMisbehavesIsUnavailable(t *testing.T) {
	ref := media.Sum([]byte("x"))
	for name, h := range map[string]http.HandlerFunc{
		"an error page": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "CANARY", http.StatusInternalServerError) },
		"a broken answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "x")
		},
		"another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
		"an error in body": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, "<Error><Code>X</Code><Message>CANARY</Message></Error>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := read(t, stub(t, h), ref)
			if fault.ReasonOf(err) != fault.Unavailable && fault.ReasonOf(err) != fault.DigestMismatch || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%v (%s)", err, fault.ReasonOf(err))
			}
		})
	}
}

func TestOpeningEndsWithItsContext(t *testing.T) {
	arrived := make(chan struct{}, 10)
	s := stub(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, _, err := s.Open(ctx, media.Sum([]byte("x")), 1); err == nil {
		t.Error("opened")
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, "text/plain", strings.NewReader("x"), 1); err == nil {
		t.Error("stored")
	}
}

func TestTypesThatAreNoneAreAsGoodAsNone(t *testing.T) {
	s := stub(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "no type")
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = io.WriteString(w, "x")
	})
	if got, info, err := read(t, s, media.Sum([]byte("x"))); err != nil || got != "x" || info.Type != media.DefaultType {
		t.Errorf("%q, %+v, %v", got, info, err)
	}
}

func TestAConfigurationThatCannotHoldIsRefused(t *testing.T) {
	for name, edit := range map[string]func(*hostdoc.MediaS3){
		"no endpoint":           func(c *hostdoc.MediaS3) { c.Endpoint = "" },
		"no URL":                func(c *hostdoc.MediaS3) { c.Endpoint = "s3.example" },
		"a path":                func(c *hostdoc.MediaS3) { c.Endpoint = "https://s3.example/bucket" },
		"credentials in it":     func(c *hostdoc.MediaS3) { c.Endpoint = "https://a:b@s3.example" },
		"no access key":         func(c *hostdoc.MediaS3) { c.AccessKey = "none" },
		"no secret":             func(c *hostdoc.MediaS3) { c.SecretKey = "none" },
		"a prefix that climbs":  func(c *hostdoc.MediaS3) { c.Prefix = "a/../b" },
		"a prefix from outside": func(c *hostdoc.MediaS3) { c.Prefix = "/a" },
		"no authorities":        func(c *hostdoc.MediaS3) { c.CAFile = "/nonexistent" },
	} {
		c := &hostdoc.MediaS3{Endpoint: "https://s3.example", Bucket: "media", AccessKey: "access", SecretKey: "key"}
		if _, err := Open(c, secrets, nil); err != nil {
			t.Fatal(err)
		}
		edit(c)
		if s, err := Open(c, secrets, nil); s != nil || fault.ReasonOf(err) != fault.PolicyInvalid || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func TestErrorsOfTheClientAreExplained(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fault.Reason
	}{
		{minio.ErrorResponse{Code: minio.NoSuchKey, StatusCode: 404, Message: "CANARY"}, fault.NotFound},
		{fmt.Errorf("x: %w", minio.ErrorResponse{Code: "SlowDown", StatusCode: 503, Message: "CANARY"}), fault.Unavailable},
		{minio.ErrorResponse{Code: "AccessDenied", StatusCode: 403}, fault.Unavailable},
		{errors.New("CANARY"), fault.Unavailable},
	} {
		if err := explain("x", c.err); fault.ReasonOf(err) != c.want || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}
