package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"golang.org/x/tools/txtar"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
)

//go:generate go test -run TestTheSDKInsideIsTheSDKBesideIt -update .

//go:embed template/go
var templates embed.FS

//go:embed sdk-go.txtar
var sdkGo []byte

// sdkDir is where the SDK goes in an agent's directory.
const sdkDir = "sdk-go"

// Options describe a new agent.
type Options struct {
	// Dir is the directory to make; it may exist if it is empty.
	Dir string
	// ID is the agent's id, Image where it is to be published, or "".
	ID, Image string
}

// files returns the new agent's files by slash-separated path.
func (o Options) files() (map[string][]byte, error) {
	made := make(map[string][]byte)
	data := struct{ ID, Name, Module, Image string }{o.ID, o.ID[strings.LastIndexByte(o.ID, '.')+1:], moduleName(o.ID), o.Image}
	const dir = "template/go"
	entries, err := templates.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		t, err := template.ParseFS(templates, path.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		if err := t.Execute(&text, data); err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(e.Name(), ".tmpl")
		if name == "gitignore" {
			name = ".gitignore"
		}
		made[name] = text.Bytes()
	}
	m, err := manifest.Parse(manifest.FileName, made[manifest.FileName])
	if err != nil {
		return nil, err
	}
	if m.ID != o.ID || m.Image != o.Image {
		return nil, fault.New(fault.Usage, "", "%q and %q cannot stand in a manifest", o.ID, o.Image)
	}
	for _, f := range txtar.Parse(sdkGo).Files {
		made[path.Join(sdkDir, f.Name)] = f.Data
	}
	return made, nil
}

// moduleName makes a Go module path of an agent's id.
func moduleName(id string) string { return "agents.example/" + id }

// notInID is what an agent's id cannot hold.
var notInID = regexp.MustCompile(`[^a-z0-9]+`)

// IDFor makes an agent's id of a directory's name, "" when there is nothing in
// it to make one of.
func IDFor(dir string) string {
	name := strings.Trim(notInID.ReplaceAllString(strings.ToLower(filepath.Base(dir)), "-"), "-")
	if name == "" {
		return ""
	}
	return "example." + name
}

// Make makes the directory and returns the names of its files, the SDK's
// excepted.
func Make(o Options) ([]string, error) {
	entries, err := os.ReadDir(o.Dir)
	exists := err == nil
	switch {
	case exists && len(entries) > 0:
		return nil, fault.New(fault.Exists, o.Dir, "the directory is not empty").WithHint("name a new one")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(err, fault.Exists, o.Dir, "cannot make the agent's directory")
	}
	files, err := o.files()
	if err != nil {
		return nil, err
	}
	if err := place(o.Dir, exists, files); err != nil {
		return nil, fault.Wrap(err, fault.Internal, o.Dir, "cannot make the agent")
	}
	var names []string
	for name := range files {
		if !strings.HasPrefix(name, sdkDir+"/") {
			names = append(names, name)
		}
	}
	return names, nil
}

// place writes the files beside the directory and moves them in.
func place(dir string, exists bool, files map[string][]byte) error {
	parent := filepath.Dir(dir)
	if exists {
		parent = dir // it may be a mount or the working directory, which cannot be replaced
	} else if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(parent, ".mentat-init-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	for name, data := range files {
		to := filepath.Join(fresh, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	if !exists {
		if err := os.Chmod(fresh, 0o755); err != nil {
			return err
		}
		return os.Rename(fresh, dir)
	}
	top, err := os.ReadDir(fresh)
	if err != nil {
		return err
	}
	for _, e := range top {
		if err := os.Rename(filepath.Join(fresh, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
