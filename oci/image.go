package oci

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// ContainerImage is an ordinary container image that becomes part of an agent.
type ContainerImage struct {
	// Config are the image config's bytes, which are kept as they are.
	Config []byte
	// Layers are the tar layers, from the bottom.
	Layers []ocispec.Descriptor
	// Source has the layers' content.
	Source Fetcher
}

// LoadImage reads the container image that root leads to; of an index it takes
// the manifest for the platform. Errors: NotFound when there is none for the
// platform, ArtifactInvalid for what is not an ordinary container image.
func LoadImage(ctx context.Context, f Fetcher, root ocispec.Descriptor, platform ocispec.Platform) (*ContainerImage, error) {
	for range limits.IndexDepth {
		if !IsIndex(root.MediaType) {
			break
		}
		raw, err := ReadBlob(ctx, f, root, limits.OCIManifestBytes)
		if err != nil {
			return nil, err
		}
		idx, err := ParseIndex(raw)
		if err != nil {
			return nil, err
		}
		if root, err = Select(idx, platform); err != nil {
			return nil, err
		}
	}
	if !IsManifest(root.MediaType) {
		return nil, fault.New(fault.ArtifactInvalid, string(root.Digest), "media type %q is not an image manifest's", root.MediaType)
	}
	raw, err := ReadBlob(ctx, f, root, limits.OCIManifestBytes)
	if err != nil {
		return nil, err
	}
	a, err := Read(ctx, f, raw)
	if err != nil {
		return nil, err
	}
	if a.Form != FormImage {
		return nil, fault.New(fault.ArtifactInvalid, string(a.Digest), "is of the form %q, not an ordinary container image", a.Form)
	}
	if a.Config.OS != platform.OS || a.Config.Architecture != platform.Architecture {
		return nil, fault.New(fault.NotFound, string(a.Digest), "the image is for %s, not for %s", formatPlatform(a.Config.Platform), formatPlatform(platform))
	}
	config, err := ReadBlob(ctx, f, a.Manifest.Config, limits.ImageConfigBytes)
	if err != nil {
		return nil, err
	}
	img := &ContainerImage{Config: config, Source: f}
	for _, l := range a.Manifest.Layers {
		mediaType, ok := tarLayers[l.MediaType]
		if !ok {
			return nil, fault.New(fault.ArtifactInvalid, string(l.Digest), "layer type %q is not that of a container image", l.MediaType)
		}
		img.Layers = append(img.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: l.Digest, Size: l.Size})
	}
	if n := len(a.Config.RootFS.DiffIDs); n != len(img.Layers) {
		return nil, fault.New(fault.ArtifactInvalid, string(a.Digest), "%d layers, but the config names %d", len(img.Layers), n)
	}
	return img, nil
}

// OpenImage reads a container image from an OCI layout: a directory, or an
// uncompressed tar of one (an "oci-archive"; `docker save` writes such files
// too). ref chooses among several images; empty expects exactly one. The closer
// must be called once the image's layers are no longer read.
func OpenImage(ctx context.Context, path, ref string, platform ocispec.Platform) (*ContainerImage, io.Closer, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fault.New(fault.NotFound, path, "no such image layout or archive")
	}
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, path, "cannot open the image")
	}
	if fi.IsDir() {
		l, err := OpenLayout(path)
		if err != nil {
			return nil, nil, err
		}
		root, err := l.Resolve(ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		img, err := LoadImage(ctx, l, root, platform)
		return img, io.NopCloser(nil), err
	}
	a, err := openArchive(path)
	if err != nil {
		return nil, nil, err
	}
	root, err := a.resolve(ref)
	if err == nil {
		var img *ContainerImage
		if img, err = LoadImage(ctx, a, root, platform); err == nil {
			return img, a, nil
		}
	}
	_ = a.Close() // only read from; the first error is the one to report
	return nil, nil, err
}

// archive is a tar of an OCI layout, read in place.
type archive struct {
	*os.File
	path  string
	files map[string]section
}

type section struct{ offset, size int64 }

func openArchive(file string) (*archive, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, file, "cannot open the image archive")
	}
	a := &archive{File: f, path: file, files: map[string]section{}}
	if err := a.scan(); err != nil {
		_ = f.Close() // only read from; the first error is the one to report
		return nil, err
	}
	return a, nil
}

func (a *archive) scan() error {
	var magic [4]byte
	if n, err := a.ReadAt(magic[:], 0); n == len(magic) && err == nil {
		if string(magic[:2]) == "\x1f\x8b" || string(magic[:]) == "\x28\xb5\x2f\xfd" {
			return fault.New(fault.ArtifactInvalid, a.path, "is compressed; an image archive is a plain tar").WithHint("decompress it first")
		}
	}
	tr := tar.NewReader(a.File)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Wrap(err, fault.ArtifactInvalid, a.path, "is neither an image layout directory nor an image archive")
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		offset, err := a.Seek(0, io.SeekCurrent)
		if err != nil {
			return fault.Wrap(err, fault.Internal, a.path, "cannot read the image archive")
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if _, twice := a.files[name]; twice {
			return fault.New(fault.ArtifactInvalid, a.path, "has the member %q twice", name)
		}
		if len(a.files) == limits.ArchiveMembers {
			return fault.New(fault.ArtifactInvalid, a.path, "has more than %d members", limits.ArchiveMembers)
		}
		a.files[name] = section{offset: offset, size: h.Size}
	}
	header, err := a.read(ocispec.ImageLayoutFile)
	if err != nil {
		return err
	}
	return checkLayoutHeader(a.path, header)
}

func (a *archive) read(name string) ([]byte, error) {
	s, ok := a.files[name]
	if !ok {
		return nil, fault.New(fault.ArtifactInvalid, a.path, "is not an OCI image archive: there is no %s", name)
	}
	if s.size > limits.OCIManifestBytes {
		return nil, fault.New(fault.ArtifactInvalid, a.path, "its %s is over the limit of %d bytes", name, limits.OCIManifestBytes)
	}
	data, err := io.ReadAll(io.NewSectionReader(a.File, s.offset, s.size))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, a.path, "cannot read the image archive")
	}
	return data, nil
}

func (a *archive) resolve(ref string) (ocispec.Descriptor, error) {
	data, err := a.read(ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	idx, err := ParseIndex(data)
	if err != nil {
		return ocispec.Descriptor{}, fault.Wrap(err, fault.ArtifactInvalid, a.path, "its %s", ocispec.ImageIndexFile)
	}
	return resolve(a.path, idx, ref)
}

// Fetch implements [Fetcher].
func (a *archive) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, fault.New(fault.ArtifactInvalid, string(desc.Digest), "is neither a sha256 nor a sha512 digest")
	}
	s, ok := a.files[blobName(desc.Digest)]
	if !ok {
		return nil, fault.New(fault.NotFound, string(desc.Digest), "is not in the image archive %s", a.path)
	}
	return io.NopCloser(io.NewSectionReader(a.File, s.offset, s.size)), nil
}
