package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Host is a mentat-host to check.
type Host struct {
	// Path is the program, Dir an existing directory for what runs need.
	Path, Dir string
}

// Guest is a guest that a host has compiled.
type Guest struct {
	// Name is for messages.
	Name   string
	module string
}

// Compile makes a guest of a WASM module.
func (h *Host) Compile(ctx context.Context, name string, wasm []byte) (*Guest, error) {
	module := filepath.Join(h.Dir, hashed(wasm)+".cwasm")
	out, err := os.OpenFile(module, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, module, "cannot keep the compiled guest")
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path, "compile")
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(wasm), &errs, []*os.File{out}
	err = cmd.Run()
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, fault.Wrap(err, fault.CompileFailed, name, "%s", errs.String())
	}
	return &Guest{name, module}, nil
}

func hashed(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Run runs the guest through the case; an error says how it differs.
func (h *Host) Run(ctx context.Context, g *Guest, c *Case) (err error) {
	dir, err := os.MkdirTemp(h.Dir, "case-")
	if err != nil {
		return fault.Wrap(err, fault.Internal, h.Dir, "cannot make a directory for the run")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	doc, err := c.document(dir, g)
	if err != nil {
		return err
	}
	data, err := doc.Marshal()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "host.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write the document")
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path, "run", "--document", path)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if c.hasInput {
		cmd.Stdin = bytes.NewReader([]byte(c.input))
	}
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		return fault.Wrap(err, fault.Internal, h.Path, "cannot run the host")
	}
	if err := c.check(out.Bytes(), cmd.ProcessState.ExitCode()); err != nil {
		return fault.Wrap(err, fault.Internal, c.File+" "+c.Name, "guest %s, stderr %q", g.Name, errs.String())
	}
	return nil
}

// document is the case as the host reads it, with what it needs in dir.
func (c *Case) document(dir string, g *Guest) (*hostdoc.Document, error) {
	doc := &hostdoc.Document{
		Agent:     hostdoc.Agent{ID: "conformance", Version: "1.0.0"},
		Instance:  "conformance",
		Module:    g.module,
		Input:     hostdoc.Input{Kind: hostdoc.InputStdin},
		Config:    map[string]string{ScriptKey: c.Script()},
		Env:       c.env,
		Framing:   hostdoc.FramingNDJSON,
		LogFormat: "json",
		Limits: hostdoc.Limits{
			MemoryBytes: c.limit("memory", 64*limits.MiB), InputBytes: c.limit("input", limits.MiB), OutputBytes: c.limit("output", limits.MiB),
			// A guest that never ends fails its case.
			DeadlineMillis: c.limit("deadline", 60_000),
		},
	}
	if c.command {
		doc.Entry = hostdoc.EntryCommand
		doc.Args = []string{"conformance"}
	}
	for k, v := range c.config {
		doc.Config[k] = v
	}
	for _, g := range c.grants {
		doc.Grants = append(doc.Grants, hostdoc.Grant{Capability: g, Rule: "grant"})
	}
	for _, d := range c.denials {
		doc.Denials = append(doc.Denials, hostdoc.Denial{Capability: d, Rule: "deny", Reason: "the case denies it"})
	}
	if err := c.makeDirs(dir, doc); err != nil {
		return nil, err
	}
	return doc, c.makeMedia(dir, doc)
}

func (c *Case) limit(name string, otherwise int64) int64 {
	if n, ok := c.limits[name]; ok {
		return n
	}
	return otherwise
}

// makeDirs makes the directories and files that the guest may use.
func (c *Case) makeDirs(dir string, doc *hostdoc.Document) error {
	root := filepath.Join(dir, "root")
	for _, d := range c.dirs {
		at := filepath.Join(root, d.guest)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fault.Wrap(err, fault.Internal, at, "cannot make a directory of the case")
		}
		doc.Preopens = append(doc.Preopens, hostdoc.Preopen{Host: at, Guest: d.guest, ReadOnly: d.readOnly})
	}
	for name, text := range c.files {
		at := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o600))
		if err != nil {
			return fault.Wrap(err, fault.Internal, at, "cannot make a file of the case")
		}
	}
	return nil
}

// makeMedia makes a media store with what the case keeps and gives.
func (c *Case) makeMedia(dir string, doc *hostdoc.Document) error {
	if c.media == nil {
		return nil
	}
	doc.Media = &hostdoc.Media{Dir: filepath.Join(dir, "media"), ItemBytes: c.media.item, TotalBytes: c.media.total}
	if err := os.Mkdir(doc.Media.Dir, 0o755); err != nil {
		return fault.Wrap(err, fault.Internal, doc.Media.Dir, "cannot make the media store")
	}
	for _, text := range append(c.media.kept, c.media.given...) {
		at := filepath.Join(doc.Media.Dir, hashed([]byte(text)))
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			return fault.Wrap(err, fault.Internal, at, "cannot store the case's media")
		}
	}
	for _, text := range c.media.given {
		doc.Media.Given = append(doc.Media.Given, "media:sha256:"+hashed([]byte(text)))
	}
	return nil
}
