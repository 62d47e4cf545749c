package toolchain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
)

// Kind is a toolchain.
type Kind string

// The toolchains. None packs a module that something else built.
const (
	Auto  Kind = "auto"
	Go    Kind = "go"
	Cargo Kind = "cargo"
	None  Kind = "none"
)

// String returns the kind's name.
func (k *Kind) String() string { return string(*k) }

// Set accepts the name of a kind.
func (k *Kind) Set(s string) error {
	switch Kind(s) {
	case Auto, Go, Cargo, None:
		*k = Kind(s)
		return nil
	}
	return fault.New(fault.Usage, "", "%q is not a toolchain, allowed are auto, go, cargo and none", s)
}

// Type is shown in help texts.
func (k *Kind) Type() string { return "auto|go|cargo|none" }

// Detect tells how a directory is built: by Go with a go.mod, by Cargo with a
// Cargo.toml, else not at all. A directory with both must be told.
func Detect(dir string) (Kind, error) {
	found := None
	for file, kind := range map[string]Kind{"go.mod": Go, "Cargo.toml": Cargo} {
		info, err := os.Stat(filepath.Join(dir, file))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", fault.Wrap(err, fault.BuildFailed, filepath.Join(dir, file), "cannot tell how the agent is built")
		case !info.Mode().IsRegular():
			continue
		case found != None:
			return "", fault.New(fault.Usage, dir, "there is a go.mod and a Cargo.toml").WithHint("choose with --toolchain go or --toolchain cargo")
		}
		found = kind
	}
	return found, nil
}

// Options describe one build.
type Options struct {
	Kind Kind
	// Dir holds the sources.
	Dir string
	// Out is the file to write, which must not exist.
	Out string
	// Offline forbids the tools to fetch anything.
	Offline bool
	// Environ is the environment that the tools inherit in part.
	Environ []string
}

// Failure is what a toolchain said when it failed.
type Failure struct {
	// Log is its output, as it wrote it.
	Log   string
	cause *fault.Error
}

func (f *Failure) Error() string { return f.cause.Error() }

// Unwrap exposes the reason.
func (f *Failure) Unwrap() error { return f.cause }

// Build compiles the sources into o.Out and returns the files below o.Dir that
// the module was made from although [IsSource] does not know them, such as
// embedded texts, as slash-separated paths relative to o.Dir. A failure of the
// compiler is a [*Failure] with its output.
func Build(ctx context.Context, o Options) ([]string, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, o.Dir, "cannot resolve the path")
	}
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return nil, fault.Wrap(err, fault.Internal, o.Out, "cannot resolve the path")
	}
	var inputs []string
	switch o.Kind {
	case Go:
		inputs, err = golang(ctx, o)
	case Cargo:
		inputs, err = cargo(ctx, o)
	default:
		err = fault.New(fault.Internal, o.Dir, "toolchain %q builds nothing", o.Kind)
	}
	if err != nil {
		return nil, err
	}
	return below(dir, o.Kind, inputs), nil
}

// below keeps what lies in dir and is no source by its name, relative to dir.
func below(dir string, kind Kind, files []string) []string {
	var kept []string
	for _, f := range files {
		if !filepath.IsAbs(f) {
			f = filepath.Join(dir, f)
		}
		rel, err := filepath.Rel(dir, f)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		if rel = filepath.ToSlash(rel); !IsSource(kind, rel) && !slices.Contains(kept, rel) {
			kept = append(kept, rel)
		}
	}
	slices.Sort(kept)
	return kept
}

// IsSource tells by its slash-separated path whether a file is a source of a
// toolchain.
func IsSource(kind Kind, path string) bool {
	name := path[strings.LastIndexByte(path, '/')+1:]
	switch kind {
	case Go:
		return name == "go.mod" || name == "go.sum" || path == "vendor/modules.txt" || strings.HasSuffix(name, ".s") ||
			strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
	case Cargo:
		return name == "Cargo.toml" || name == "Cargo.lock" || strings.HasSuffix(name, ".rs") || strings.HasPrefix(path, ".cargo/")
	}
	return false
}

func golang(ctx context.Context, o Options) ([]string, error) {
	env := goEnv(o)
	if _, err := run(ctx, o.Dir, env, "go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", o.Out, "."); err != nil {
		return nil, err
	}
	const embedded = `{{if not .Standard}}{{$d := .Dir}}{{range .EmbedFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}`
	listed, err := run(ctx, o.Dir, env, "go", "list", "-deps", "-f", embedded, ".")
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(listed), func(r rune) bool { return r == '\n' || r == '\r' }), nil
}

// goEnv is the environment of a Go build. What would change the module beside
// the sources is set here; where modules come from stays the user's.
func goEnv(o Options) []string {
	env := without(o.Environ, "GOFLAGS", "GOWORK", "GOOS", "GOARCH", "GOWASM", "GOEXPERIMENT", "CGO_ENABLED", "GO111MODULE")
	env = append(env, "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off", "GO111MODULE=on",
		// An empty GOFLAGS would let the one of `go env -w` through.
		"GOFLAGS=-buildvcs=false")
	if o.Offline {
		env = append(without(env, "GOPROXY", "GOTOOLCHAIN"), "GOPROXY=off", "GOTOOLCHAIN=local")
	}
	return env
}

// cargoTargets are the names of one target: the second is what Rust before 1.78
// calls it.
var cargoTargets = []string{"wasm32-wasip1", "wasm32-wasi"}

func cargo(ctx context.Context, o Options) ([]string, error) {
	env := without(o.Environ, "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")
	var first error
	for _, target := range cargoTargets {
		args := []string{"build", "--release", "--target", target, "--message-format", "json-render-diagnostics"}
		if o.Offline {
			args = append(args, "--offline")
		}
		messages, err := run(ctx, o.Dir, env, "cargo", args...)
		if err == nil {
			return cargoResult(o, artifacts(messages))
		}
		if first == nil {
			first = err
		}
		var failure *Failure
		if !errors.As(err, &failure) || !strings.Contains(failure.Log, "target") {
			break
		}
	}
	return nil, first
}

func cargoResult(o Options, made []string) ([]string, error) {
	if len(made) != 1 {
		return nil, fault.New(fault.BuildFailed, o.Dir, "cargo made %d WASM modules, an agent has one", len(made)).
			WithHint(`a package with one [lib] of crate-type "cdylib", or with one binary, makes one module`)
	}
	data, err := os.ReadFile(made[0])
	if err != nil {
		return nil, fault.Wrap(err, fault.BuildFailed, made[0], "cannot read the module that cargo made")
	}
	if err := writeNew(o.Out, data); err != nil {
		return nil, err
	}
	return dependencies(strings.TrimSuffix(made[0], ".wasm") + ".d"), nil
}

// dependencies reads what cargo noted as the inputs of a module. It is a help
// for noticing changes; without it only the sources by name are watched.
func dependencies(path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	_, list, _ := strings.Cut(string(data), ": ")
	list, _, _ = strings.Cut(list, "\n")
	const space = "\x00"
	files := strings.Fields(strings.ReplaceAll(list, `\ `, space))
	for i, f := range files {
		files[i] = strings.ReplaceAll(f, space, " ")
	}
	return files
}

// artifacts finds the modules in cargo's messages.
func artifacts(messages []byte) []string {
	var made []string
	for line := range bytes.Lines(messages) {
		var m struct {
			Reason    string   `json:"reason"`
			Filenames []string `json:"filenames"`
		}
		if json.Unmarshal(line, &m) != nil || m.Reason != "compiler-artifact" {
			continue
		}
		for _, f := range m.Filenames {
			if strings.HasSuffix(f, ".wasm") && !slices.Contains(made, f) {
				made = append(made, f)
			}
		}
	}
	return made
}

func run(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fault.New(fault.BuildFailed, dir, "%s is not on PATH, it compiles this agent", name).
			WithHint("install it, or build the module yourself and use --toolchain none")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = dir, env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fault.Wrap(context.Cause(ctx), fault.Canceled, dir, "the build was interrupted")
		}
		return nil, &Failure{
			Log:   stderr.String(),
			cause: fault.Wrap(err, fault.BuildFailed, dir, "%s %s failed", name, args[0]),
		}
	}
	return stdout.Bytes(), nil
}

func without(env []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(names, name)
	})
}

func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fault.Wrap(err, fault.BuildFailed, path, "cannot write the module")
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return fault.Wrap(err, fault.BuildFailed, path, "cannot write the module")
	}
	return nil
}
