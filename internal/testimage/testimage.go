package testimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
)

// Config says what the image runs.
type Config struct {
	Entrypoint, Cmd, Env []string
	// Files are added by absolute path; one that begins with "#!" is executable.
	Files map[string][]byte
}

// applets are the busybox commands that the image has names for.
var applets = []string{
	"cat", "dd", "echo", "env", "false", "grep", "head", "httpd", "id", "kill", "ls", "mkdir", "mount",
	"nc", "ps", "rm", "sed", "sh", "sleep", "tail", "touch", "true", "umount", "wc",
}

var directories = []string{"bin", "dev", "etc", "proc", "sys", "tmp"}

// Busybox puts a linux/amd64 image into dst, without a name: one layer with
// the statically linked busybox binary at the given path, links for its
// commands, and the configured files. PATH is /bin unless cfg.Env sets it.
func Busybox(busybox string, cfg Config, dst *oci.Layout) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return none, fault.Wrap(err, fault.NotFound, busybox, "cannot read busybox").WithHint("on Debian it is in the package busybox-static")
	}
	content, err := layer(binary, cfg.Files)
	if err != nil {
		return none, err
	}
	var packed bytes.Buffer
	zw, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return none, err
	}
	if _, err := zw.Write(content); err != nil {
		return none, err
	}
	if err := zw.Close(); err != nil {
		return none, err
	}

	epoch := time.Unix(0, 0).UTC()
	env := cfg.Env
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		env = append([]string{"PATH=/bin"}, env...)
	}
	config, err := canonical.Marshal(ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Env: env, Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, WorkingDir: "/"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(content)}},
	})
	if err != nil {
		return none, err
	}
	ctx := context.Background()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	if m.Config, err = dst.PushBytes(ctx, ocispec.MediaTypeImageConfig, config); err != nil {
		return none, err
	}
	l, err := dst.PushBytes(ctx, ocispec.MediaTypeImageLayerGzip, packed.Bytes())
	if err != nil {
		return none, err
	}
	m.Layers = []ocispec.Descriptor{l}
	raw, err := canonical.Marshal(m)
	if err != nil {
		return none, err
	}
	desc, err := dst.PushBytes(ctx, ocispec.MediaTypeImageManifest, raw)
	if err != nil {
		return none, err
	}
	return desc, dst.Add(ctx, desc)
}

// layer is the root file system as a tar.
func layer(busybox []byte, files map[string][]byte) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data []byte) error {
		h.Size, h.ModTime, h.Format = int64(len(data)), time.Unix(0, 0), tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	made := map[string]bool{".": true}
	var mkdir func(string) error
	mkdir = func(dir string) error {
		if made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir)); err != nil {
			return err
		}
		made[dir] = true
		mode := int64(0o755)
		if dir == "tmp" {
			mode = 0o1777
		}
		return add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode}, nil)
	}
	for _, d := range directories {
		if err := mkdir(d); err != nil {
			return nil, err
		}
	}
	if err := add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox); err != nil {
		return nil, err
	}
	for _, a := range applets {
		if err := add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		rel := strings.TrimPrefix(path.Clean("/"+name), "/")
		if !path.IsAbs(name) || rel == "" {
			return nil, fault.New(fault.Usage, name, "a file in the image needs an absolute path")
		}
		if err := mkdir(path.Dir(rel)); err != nil {
			return nil, err
		}
		mode := int64(0o644)
		if bytes.HasPrefix(files[name], []byte("#!")) {
			mode = 0o755
		}
		if err := add(tar.Header{Typeflag: tar.TypeReg, Name: rel, Mode: mode}, files[name]); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
