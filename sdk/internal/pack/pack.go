package pack

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/tools/txtar"
)

// Archive packs the files of fsys in order, those of its tests excepted.
func Archive(fsys fs.FS) ([]byte, error) {
	var a txtar.Archive
	err := fs.WalkDir(fsys, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == "testdata":
			return fs.SkipDir
		case !e.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		data, err := fs.ReadFile(fsys, name)
		a.Files = append(a.Files, txtar.File{Name: name, Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	packed := txtar.Format(&a)
	back := txtar.Parse(packed)
	if len(back.Files) != len(a.Files) {
		return nil, fmt.Errorf("%d files become %d", len(a.Files), len(back.Files))
	}
	for i, f := range a.Files {
		if back.Files[i].Name != f.Name || !bytes.Equal(back.Files[i].Data, f.Data) {
			return nil, fmt.Errorf("%s does not survive the archive: it must be text and end with a line break", f.Name)
		}
	}
	return packed, nil
}
