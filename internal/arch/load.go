package arch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mentatlab/mentat/internal/fault"
)

// listed is the part of `go list -json` that [Load] reads.
type listed struct {
	ImportPath   string
	Name         string
	Dir          string
	Doc          string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	CgoFiles     []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Error        *struct{ Err string }
}

// Root returns the module's directory: the nearest one upwards with a go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fault.New(fault.Internal, "go.mod", "not found upwards of the working directory")
		}
		dir = up
	}
}

// list runs `go list` in the module's root. It looks at Linux with cgo, the
// one target on which every package exists.
func list(ctx context.Context, root string, args ...string) ([]*listed, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-e", "-json=ImportPath,Name,Dir,Doc,Standard,Imports,TestImports,XTestImports,CgoFiles,GoFiles,TestGoFiles,XTestGoFiles,Error"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=1", "GOFLAGS=-mod=readonly", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "go list", "%s", stderr.String())
	}
	var pkgs []*listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "go list", "its output is not JSON")
		}
		pkgs = append(pkgs, p)
	}
}

// Load reads the import graph of the module in root with everything it
// reaches.
func Load(ctx context.Context, root string) (Graph, error) {
	pkgs, err := list(ctx, root, "-deps", "./...")
	if err != nil {
		return nil, err
	}
	g := make(Graph, len(pkgs))
	for _, p := range pkgs {
		if _, ours := own(p.ImportPath); ours && p.Error != nil {
			return nil, fault.New(fault.Internal, p.ImportPath, "%s", p.Error.Err)
		}
		g[p.ImportPath] = &Package{
			Path: p.ImportPath, Imports: p.Imports, TestImports: append(p.TestImports, p.XTestImports...),
			Standard: p.Standard, Cgo: len(p.CgoFiles) > 0,
		}
	}
	return g, nil
}
