package filesystem

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

var _ backend.Backend = (*Backend)(nil)

// tree has directories to grant and a secret beside them.
type tree struct {
	root string
	b    *Backend
}

func makeTree(t testing.TB) *tree {
	t.Helper()
	tr := &tree{root: t.TempDir()}
	for _, dir := range []string{"data/sub", "data/pub", "ro", "secret", "data/inner"} {
		if err := os.MkdirAll(tr.at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"data/file": "content", "data/sub/deep": "deep", "data/private": "private", "data/pub/open": "open", "ro/file": "fixed", "secret/key": "secret"} {
		if err := os.WriteFile(tr.at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"data/out": tr.at("secret"), "data/outkey": tr.at("secret/key"), "data/rel": "../secret", "data/relkey": "../secret/key", "data/in": "file", "data/sub/up": "../..",
		"data/proc": "/proc/self/root", "data/pub/escape": "../private", "data/pubs": "pub", "data/pub/within": "open", "data/loop": "loop", "data/newout": "../secret/new",
	} {
		if err := os.Symlink(to, tr.at(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(tr.at("data/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr.b = New([]Dir{{"/data", false, tr.open(t, "data")}, {"/ro", true, tr.open(t, "ro")}, {"/data/inner", true, tr.open(t, "ro")}})
	return tr
}

func (tr *tree) at(name string) string { return filepath.Join(tr.root, name) }

func (tr *tree) open(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(tr.at(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// result is what a call gave.
type result struct {
	code backend.Code
	info Info
	body string
	text string
}

// call opens a capability, makes one call of it and reads the answer.
func (tr *tree) call(t testing.TB, capability, op, head, body string) result {
	t.Helper()
	c, err := manifest.ParseCapability(capability)
	if err != nil {
		t.Fatal(err)
	}
	opened, refused := tr.b.Open(t.Context(), "run", backend.Grant{Capability: c, Rule: "rule"})
	if refused != nil {
		t.Fatal(refused)
	}
	a, refused := opened.Invoke(t.Context(), op, json.RawMessage(head), []byte(body))
	if refused != nil {
		return result{code: refused.Code, text: refused.Reason}
	}
	defer a.Close()
	raw, refused := a.Head()
	if refused != nil {
		return result{code: refused.Code, text: refused.Reason}
	}
	var r result
	if err := json.Unmarshal(raw, &r.info); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(a)
	if err != nil {
		t.Fatal(err)
	}
	r.body = string(out)
	return r
}

func path1(p string) string { return fmt.Sprintf(`{"path":%q}`, p) }

func TestReading(t *testing.T) {
	tr := makeTree(t)
	for head, want := range map[string]string{
		path1("/data/file"): "content", path1("/data/./sub//deep"): "deep", path1("/data/in"): "content", path1("/data/pubs/open"): "open", path1("/data/inner/file"): "fixed",
		`{"path":"/data/file","offset":3}`: "tent", `{"path":"/data/file","offset":7}`: "", `{"path":"/data/file","offset":99}`: "",
	} {
		if r := tr.call(t, "filesystem:read:/data", "read", head, ""); r.code != 0 || r.body != want {
			t.Errorf("%s: %+v", head, r)
		}
	}
	if r := tr.call(t, "filesystem:read:/data/file", "read", path1("/data/file"), ""); r.body != "content" || r.info.Size != 7 || r.info.Mode != "-rw-------" || time.Since(r.info.Mtime) > time.Hour {
		t.Errorf("%+v", r)
	}
}

func TestWriting(t *testing.T) {
	tr := makeTree(t)
	for _, c := range []struct{ head, body, want string }{
		{path1("/data/new"), "hello", "hello"},
		{path1("/data/new"), "bye", "bye"},
		{`{"path":"/data/new","append":true}`, "!", "bye!"},
		{`{"path":"/data/new","offset":1}`, "EE", "bEE!"},
		{`{"path":"/data/new","offset":6}`, "x", "bEE!\x00\x00x"},
		{path1("/data/new"), "", ""},
	} {
		r := tr.call(t, "filesystem:write:/data", "write", c.head, c.body)
		got, err := os.ReadFile(tr.at("data/new"))
		if err != nil || r.code != 0 || string(got) != c.want || r.info.Size != int64(len(c.want)) || r.body != "" {
			t.Errorf("%s: %q, %v, %+v", c.head, got, err, r)
		}
	}
	// Through a link that stays inside, and to a file that alone is granted.
	if r := tr.call(t, "filesystem:read-write:/data", "write", path1("/data/in"), "linked"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := tr.call(t, "filesystem:write:/data/only", "write", path1("/data/only"), "only"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	for name, want := range map[string]string{"data/file": "linked", "data/only": "only"} {
		if got, err := os.ReadFile(tr.at(name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestListingAndDescribing(t *testing.T) {
	tr := makeTree(t)
	r := tr.call(t, "filesystem:read:/data/pub", "list", path1("/data/pub"), "")
	var list []Info
	if err := json.Unmarshal([]byte(r.body), &list); err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprint(e.Name, " ", e.Size, " ", e.Mode))
	}
	if strings.Join(got, ", ") != "escape 10 Lrwxrwxrwx, open 4 -rw-------, within 4 Lrwxrwxrwx" || r.info.Mode[0] != 'd' {
		t.Errorf("%v, %+v", got, r.info)
	}
	for at, mode := range map[string]string{"/data/sub": "drwxr-xr-x", "/data/file": "-rw-------", "/data/fifo": "prw-------", "/data/in": "-rw-------"} {
		if r := tr.call(t, "filesystem:read:/data", "stat", path1(at), ""); r.code != 0 || r.info.Mode != mode || r.body != "" {
			t.Errorf("%s: %+v", at, r)
		}
	}
	if r := tr.call(t, "filesystem:read:/", "list", path1("/data/inner"), ""); r.code != 0 || !strings.Contains(r.body, `"file"`) {
		t.Errorf("%+v", r)
	}
}

func TestALongListIsRefused(t *testing.T) {
	tr := makeTree(t)
	for i := range limits.ListEntries + 1 {
		if err := os.Symlink("x", tr.at(fmt.Sprintf("data/sub/%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if r := tr.call(t, "filesystem:read:/data", "list", path1("/data/sub"), ""); r.code != backend.Limit {
		t.Errorf("code %d, %d bytes", r.code, len(r.body))
	}
}

// What lies outside is neither read, changed, listed nor told of.
func TestNothingLeavesWhatACapabilityNames(t *testing.T) {
	tr := makeTree(t)
	for capability, paths := range map[string][]string{
		"filesystem:read-write:/data": {
			"/data/out/key", "/data/outkey", "/data/rel/key", "/data/relkey", "/data/sub/up/secret/key", "/data/proc/etc/passwd", "/data/loop", "/data/newout",
			"/secret/key", "/ro/file", "/", "/etc/passwd", "/database/x", "/data/pub/../../secret/key", "data/file", "", "/data/\x00",
		},
		"filesystem:read-write:/data/pub":      {"/data/private", "/data/pub/escape", "/data/pub/../private", "/data/publish", "/data", "/data/file"},
		"filesystem:read-write:/data/pubs":     {"/data/pubs/open", "/data/pubs"}, // the granted path is itself a link
		"filesystem:read-write:/data/relkey":   {"/data/relkey"},
		"filesystem:read-write:/data/sub/up":   {"/data/sub/up/secret/key", "/data/sub/up"},
		"filesystem:read-write:/data/out":      {"/data/out/key"},
		"filesystem:read-write:/data/pub/open": {"/data/pub/open/x", "/data/pub", "/data/pub/within"},
		"filesystem:read-write:/elsewhere":     {"/elsewhere/x"},
	} {
		for _, p := range paths {
			for _, op := range []string{"read", "write", "list", "stat"} {
				body := ""
				if op == "write" {
					body = "harm"
				}
				head, err := json.Marshal(map[string]string{"path": p})
				if err != nil {
					t.Fatal(err)
				}
				r := tr.call(t, capability, op, string(head), body)
				if r.code >= 0 || strings.Contains(r.text, tr.root) {
					t.Errorf("%s %s %q: %+v", capability, op, p, r)
				}
			}
		}
	}
	for name, want := range map[string]string{"secret/key": "secret", "data/private": "private", "ro/file": "fixed", "data/pub/open": "open"} {
		if got, err := os.ReadFile(tr.at(name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Lstat(tr.at("secret/new")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was made outside")
	}
}

func TestOnlyFilesAreOpened(t *testing.T) {
	tr := makeTree(t)
	for _, p := range []string{"/data/fifo", "/data/sub"} {
		for _, op := range []string{"read", "write"} {
			if r := tr.call(t, "filesystem:read-write:/data", op, path1(p), ""); r.code != backend.Invalid {
				t.Errorf("%s %s: %+v", op, p, r)
			}
		}
	}
	if r := tr.call(t, "filesystem:read:/data", "list", path1("/data/file"), ""); r.code != backend.Invalid {
		t.Errorf("%+v", r)
	}
	if r := tr.call(t, "filesystem:read:/data", "read", path1("/data/nothing"), ""); r.code != backend.NotFound {
		t.Errorf("%+v", r)
	}
}

func TestAccessIsWhatTheCapabilitySays(t *testing.T) {
	tr := makeTree(t)
	for _, c := range []struct {
		capability, op, path string
		code                 backend.Code
	}{
		{"filesystem:read:/data", "write", "/data/file", backend.Denied},
		{"filesystem:write:/data", "read", "/data/file", backend.Denied},
		{"filesystem:write:/data", "stat", "/data/file", backend.Denied},
		{"filesystem:write:/data", "list", "/data", backend.Denied},
		{"filesystem:read-write:/ro", "write", "/ro/file", backend.Denied},        // given for reading only
		{"filesystem:read-write:/data", "write", "/data/inner/x", backend.Denied}, // a directory of its own
		{"filesystem:read-write:/ro", "read", "/ro/file", 0},
	} {
		body := ""
		if c.op == "write" {
			body = "harm"
		}
		if r := tr.call(t, c.capability, c.op, path1(c.path), body); r.code != c.code {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	if got, err := os.ReadFile(tr.at("data/file")); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCallsThatDoNotFit(t *testing.T) {
	tr := makeTree(t)
	for _, c := range [][3]string{
		{"remove", path1("/data/file"), ""}, {"read", `{}`, ""}, {"read", `{"path":"/data/file","mode":1}`, ""}, {"read", `{"path":1}`, ""},
		{"read", `{"path":"/data/file","offset":-1}`, ""}, {"read", `{"path":"/data/file","append":true}`, ""}, {"stat", `{"path":"/data/file","offset":1}`, ""},
		{"write", `{"path":"/data/file","append":true,"offset":1}`, "x"}, {"read", path1("/data/file"), "x"},
	} {
		if r := tr.call(t, "filesystem:read-write:/data", c[0], c[1], c[2]); r.code != backend.Invalid {
			t.Errorf("%v: %+v", c, r)
		}
	}
}

// A guest that swaps a directory for a link while it reads through it must never
// get what the link leads to.
func TestLinksThatAppearMeanwhileLeadNowhere(t *testing.T) {
	tr := makeTree(t)
	if err := os.WriteFile(tr.at("data/sub/key"), []byte("public"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tr.at("secret"), tr.at("data/trap")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, tr.at("data/sub"), unix.AT_FDCWD, tr.at("data/trap"), unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	seen := map[string]int{}
	for range 1000 {
		r := tr.call(t, "filesystem:read:/data", "read", path1("/data/sub/key"), "")
		seen[r.body]++
		if r := tr.call(t, "filesystem:read:/data/sub", "read", path1("/data/sub/key"), ""); r.body == "secret" {
			seen[r.body]++
		}
	}
	close(stop)
	swapping.Wait()
	if seen["secret"] > 0 {
		t.Errorf("read %v", seen)
	}
	if seen["public"] == 0 {
		t.Logf("the directory was never in its place: %v", seen)
	}
}

// FuzzPaths: whatever path a guest names, nothing but what is granted is read.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/data/file", "/data/../secret/key", "/data/rel/key", "/data/sub/up/secret/key", "/data//out/./key", "/data/proc/proc/1/environ", "data", "/data/\x00"} {
		f.Add(s, int64(0))
	}
	tr := makeTree(f)
	f.Fuzz(func(t *testing.T, p string, offset int64) {
		head, err := json.Marshal(map[string]any{"path": p, "offset": offset})
		if err != nil {
			return
		}
		for _, capability := range []string{"filesystem:read:/data", "filesystem:read:/data/pub"} {
			r := tr.call(t, capability, "read", string(head), "")
			if r.body != "" && !strings.HasSuffix("content", r.body) && !strings.HasSuffix("deep", r.body) && !strings.HasSuffix("private", r.body) && !strings.HasSuffix("open", r.body) && !strings.HasSuffix("fixed", r.body) {
				t.Errorf("%s: %q read %q", capability, p, r.body)
			}
			if capability == "filesystem:read:/data/pub" && r.body != "" && !strings.HasSuffix("open", r.body) {
				t.Errorf("%q read %q", p, r.body)
			}
		}
	})
}
