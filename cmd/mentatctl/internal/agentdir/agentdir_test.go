package agentdir

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/toolchain"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
)

const text = "id: example.a\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"

func agent(t *testing.T, files map[string]string) *Dir {
	t.Helper()
	dir := t.TempDir()
	files[manifest.FileName] = text
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheSourcesDigestFollowsSourcesAndNothingElse(t *testing.T) {
	inputs := []string{"prompt.txt"}
	base := func() map[string]string {
		return map[string]string{"main.go": "a", "prompt.txt": "p", "README.md": "r", ".git/x.go": "g", ".mentat/y.go": "m"}
	}
	want, err := agent(t, base()).sourceDigest(toolchain.Go, inputs)
	if err != nil {
		t.Fatal(err)
	}
	for change, c := range map[string]struct {
		file, content string
		same          bool
	}{
		"a source":          {"main.go", "b", false},
		"a new source":      {"sub/new.go", "a", false},
		"an embedded file":  {"prompt.txt", "q", false},
		"another file":      {"README.md", "s", true},
		"a new other file":  {"out.json", "{}", true},
		"a test":            {"main_test.go", "t", true},
		"version control":   {".git/x.go", "h", true},
		"our own directory": {".mentat/y.go", "n", true},
	} {
		files := base()
		files[c.file] = c.content
		got, err := agent(t, files).sourceDigest(toolchain.Go, inputs)
		if err != nil {
			t.Fatal(err)
		}
		if (got == want) != c.same {
			t.Errorf("%s: same = %v", change, got == want)
		}
	}
}

func TestInputsOfALockFileStayInTheDirectory(t *testing.T) {
	d := agent(t, map[string]string{"main.go": "a"})
	if _, err := d.sourceDigest(toolchain.Go, []string{"../../etc/passwd"}); err == nil {
		t.Error("a path outside was read")
	}
}

func TestALockFileIsReadStrictly(t *testing.T) {
	for content, want := range map[string]fault.Reason{
		`{"version":1,"id":"a","release":"1","toolchain":"none","packed":"sha256:x"}`: "",
		`{"version":2}`:             fault.Unsupported,
		`{"version":1,"unknown":1}`: fault.ManifestInvalid,
		`{`:                         fault.ManifestInvalid,
		``:                          fault.ManifestInvalid,
		`{"version":1}{}`:           fault.ManifestInvalid,
	} {
		d := agent(t, map[string]string{".mentat/lock.json": content})
		if _, err := d.ReadLock(); fault.ReasonOf(err) != want {
			t.Errorf("%s: %v", content, err)
		}
	}
	if l, err := agent(t, map[string]string{}).ReadLock(); l != nil || err != nil {
		t.Errorf("no lock file: %v, %v", l, err)
	}
}

func TestWriteFileKeepsTheModeAndLeavesNothingBeside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, mode := range []fs.FileMode{0o600, 0o644} {
		if err := WriteFile(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestOnlyAManifestOrADirectoryIsAnAgent(t *testing.T) {
	d := agent(t, map[string]string{"agent.wasm": "x"})
	for path, want := range map[string]fault.Reason{
		d.Path:                                "",
		d.ManifestPath():                      "",
		filepath.Join(d.Path, "agent.wasm"):   fault.Usage,
		filepath.Join(d.Path, "none"):         fault.NotFound,
		filepath.Join(d.Path, "none/x.yaml"):  fault.NotFound,
		filepath.Join(d.Path, "missing.yaml"): fault.NotFound,
	} {
		if _, err := Open(path); fault.ReasonOf(err) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzLock(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"a","release":"1","toolchain":"go","sources":"sha256:x","inputs":["a"],"packed":"sha256:x"}`))
	f.Add([]byte(`{"version":1,"container":{"reference":"r","digest":"d"}}`))
	f.Add([]byte(`{"version":1}{}`))
	f.Add([]byte(`{"version":1,"inputs":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseLock("lock", data)
		if err != nil {
			if l != nil {
				t.Error("a lock came with an error")
			}
			return
		}
		text, err := l.marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseLock("lock", text)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := again.marshal(); err != nil || !bytes.Equal(same, text) {
			t.Errorf("%s became %s: %v", text, same, err)
		}
	})
}
