package testimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
)

func build(t *testing.T, busybox string, cfg Config) (*oci.Layout, *oci.Artifact) {
	t.Helper()
	l, err := oci.CreateLayout(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := Busybox(busybox, cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := oci.ReadBlob(t.Context(), l, desc, limits.OCIManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	a, err := oci.Read(t.Context(), l, raw)
	if err != nil {
		t.Fatal(err)
	}
	return l, a
}

func TestBusyboxIsAnOrdinaryReproducibleImage(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(bin, []byte("\x7fELF stand-in"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Entrypoint: []string{"/run.sh"}, Cmd: []string{"x"}, Env: []string{"A=b"}, Files: map[string][]byte{
		"/run.sh": []byte("#!/bin/sh\necho $1\n"), "/data/deep/note": []byte("note"),
	}}
	l, a := build(t, bin, cfg)
	_, again := build(t, bin, cfg)
	if a.Digest != again.Digest {
		t.Errorf("two builds differ: %s, %s", a.Digest, again.Digest)
	}
	if a.Form != oci.FormImage || a.ChainID() == "" || a.Config.Config.Entrypoint[0] != "/run.sh" || !slices.Contains(a.Config.Config.Env, "PATH=/bin") {
		t.Errorf("form %s, chain %s, config %+v", a.Form, a.ChainID(), a.Config.Config)
	}
	packed, err := oci.ReadBlob(t.Context(), l, a.Manifest.Layers[0], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		modes[h.Name] = h.Mode
	}
	for name, mode := range map[string]int64{"bin/busybox": 0o755, "bin/sh": 0o777, "tmp/": 0o1777, "run.sh": 0o755, "data/deep/": 0o755, "data/deep/note": 0o644} {
		if modes[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, modes[name], mode)
		}
	}
}

func TestBusyboxSaysWhatIsMissing(t *testing.T) {
	l, err := oci.CreateLayout(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Busybox(filepath.Join(t.TempDir(), "none"), Config{}, l); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("missing busybox: %v", err)
	}
}
