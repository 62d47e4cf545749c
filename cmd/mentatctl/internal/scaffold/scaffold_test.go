package scaffold

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
)

func TestANewAgentHasAValidManifest(t *testing.T) {
	for _, image := range []string{"", "registry.example.com/agents/x:1.0.0"} {
		dir := filepath.Join(t.TempDir(), "x")
		names, err := Make(Options{Dir: dir, ID: "example.x", Image: image})
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, manifest.FileName))
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Parse(manifest.FileName, text)
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != "example.x" || m.Image != image || len(m.Lint()) > 0 {
			t.Errorf("got %+v, lint %v", m, m.Lint())
		}
		if len(names) != 7 {
			t.Errorf("files %v", names)
		}
	}
}

func TestTextThatWouldChangeTheManifestIsRefused(t *testing.T) {
	for _, o := range []Options{
		{ID: "example.x\ndescription: other"},
		{ID: "example.x # y"},
		{ID: ""},
		{ID: "example.x", Image: "registry.example.com/a:1\nmodule: other.wasm"},
	} {
		o.Dir = filepath.Join(t.TempDir(), "x")
		if _, err := Make(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
		if _, err := os.Lstat(o.Dir); err == nil {
			t.Errorf("%+v left a directory", o)
		}
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(Options{Dir: dir, ID: "example.x"}); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestAnIDIsMadeOfADirectoryName(t *testing.T) {
	for dir, want := range map[string]string{
		"/a/hello": "example.hello", "/a/My Agent!": "example.my-agent", "/a/x_1": "example.x-1", "/": "", "/a/---": "",
	} {
		if got := IDFor(dir); got != want {
			t.Errorf("IDFor(%q) = %q, want %q", dir, got, want)
		}
	}
}
