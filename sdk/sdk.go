package sdk

import (
	"bytes"
	"embed"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/tools/txtar"

	"github.com/mentatlab/mentat/internal/fault"
)

//go:generate go run ./gen

//go:embed embedded/go.txtar
var goArchive []byte

//go:embed template
var templates embed.FS

// Go is the Go SDK's source, module github.com/mentatlab/sdk-go, without its
// tests.
func Go() fs.FS {
	fsys, err := txtar.FS(txtar.Parse(goArchive))
	if err != nil {
		// The archive is ours and a test reads it: this is a broken build.
		panic("sdk: embedded/go.txtar: " + err.Error())
	}
	return fsys
}

// Languages are those that [Template] knows.
var Languages = []string{"go"}

// GoDir is where the Go SDK goes in an agent's directory.
const GoDir = "sdk-go"

var (
	validID = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	// validImage keeps to what needs no quoting in YAML; whether it is a
	// reference is for the manifest's parser to say.
	validImage = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*$`)
)

// maxID is the length of an agent's id that a manifest allows.
const maxID = 128

// Template returns the files of a new agent by slash-separated path: a manifest,
// a program with its test, a sample input and the SDK. image is where it is to
// be published, or "". Errors: usage.
func Template(lang, id, image string) (map[string][]byte, error) {
	switch {
	case !slices.Contains(Languages, lang):
		return nil, fault.New(fault.Usage, lang, "there is no SDK for this language, allowed are %s", strings.Join(Languages, ", "))
	case len(id) > maxID || !validID.MatchString(id):
		return nil, fault.New(fault.Usage, id, "not an agent's id, wanted are up to %d characters: words of a-z and 0-9 joined by one of . _ -", maxID)
	case image != "" && !validImage.MatchString(image):
		return nil, fault.New(fault.Usage, image, "not an image reference")
	}
	files := make(map[string][]byte)
	data := struct{ ID, Name, Image, Module string }{
		ID: id, Name: id[strings.LastIndexByte(id, '.')+1:], Image: image,
		// A path that no registry serves and no standard package has.
		Module: "agents.example/" + id,
	}
	dir := path.Join("template", lang)
	entries, err := templates.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "the template is not in this build")
	}
	for _, e := range entries {
		t, err := template.ParseFS(templates, path.Join(dir, e.Name()))
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, e.Name(), "the template is damaged")
		}
		var text bytes.Buffer
		if err := t.Execute(&text, data); err != nil {
			return nil, fault.Wrap(err, fault.Internal, e.Name(), "the template is damaged")
		}
		name := strings.TrimSuffix(e.Name(), ".tmpl")
		if name == "gitignore" {
			name = ".gitignore" // the go command does not embed what begins with a dot
		}
		files[name] = text.Bytes()
	}
	source := Go()
	err = fs.WalkDir(source, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files[path.Join(GoDir, name)], err = fs.ReadFile(source, name)
		return err
	})
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, GoDir, "the SDK is not in this build")
	}
	for name, data := range files {
		if len(data) == 0 {
			return nil, fault.New(fault.Internal, name, "the file is empty in this build")
		}
	}
	return files, nil
}
