package scaffold

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/sdk"
)

// Options describe a new agent.
type Options struct {
	// Dir is the directory to make; it may exist if it is empty.
	Dir string
	// ID is the agent's id, Image where it is to be published, or "".
	ID, Image string
}

// files returns the new agent's files by slash-separated path.
func (o Options) files() (map[string][]byte, error) {
	made, err := sdk.Template("go", o.ID, o.Image)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(manifest.FileName, made[manifest.FileName])
	if err != nil {
		return nil, err
	}
	if m.ID != o.ID || m.Image != o.Image {
		return nil, fault.New(fault.Usage, "", "%q and %q cannot stand in a manifest", o.ID, o.Image)
	}
	return made, nil
}

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
		if !strings.HasPrefix(name, sdk.GoDir+"/") {
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
