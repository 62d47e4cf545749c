package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
)

// ExportTar writes what [Layout.Resolve] finds for ref (the layout's one image
// if ref is empty) as an OCI archive that `ctr images import` and `docker load`
// take, under the name ref. Equal content gives equal bytes. Every blob is
// checked while it is written; after an error w holds half an archive.
func (l *Layout) ExportTar(w io.Writer, ref string) error {
	ctx := context.Background()
	root, err := l.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	g, err := Walk(ctx, l, root)
	if err != nil {
		return err
	}
	idx := newIndex()
	entry := root
	if ref != "" && ref != string(root.Digest) {
		entry.Annotations = map[string]string{annotationImageName: ref, ocispec.AnnotationRefName: tagOf(ref)}
	}
	idx.Manifests = []ocispec.Descriptor{entry}

	tw := tar.NewWriter(w)
	if err := addJSON(tw, ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := addJSON(tw, ocispec.ImageIndexFile, idx); err != nil {
		return err
	}
	if err := addDockerManifest(tw, g, ref); err != nil {
		return err
	}
	all := g.all()
	slices.SortFunc(all, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	for _, d := range all {
		rc, err := l.Fetch(ctx, d)
		if err != nil {
			return err
		}
		err = addFile(tw, blobName(d.Digest), d.Size, Verified(rc, d))
		_ = rc.Close() // only read from
		if err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fault.Wrap(err, fault.Internal, ref, "cannot write the archive")
	}
	return nil
}

// addDockerManifest adds the file that docker's older image store reads, for
// what such a store can hold: one image with tar layers.
func addDockerManifest(tw *tar.Writer, g *Graph, ref string) error {
	if len(g.Documents) != 1 {
		return nil
	}
	m, err := ParseManifest(g.Documents[0].Raw)
	if err != nil {
		return err
	}
	type dockerImage struct {
		Config           string
		RepoTags, Layers []string
	}
	img := dockerImage{Config: blobName(m.Config.Digest)}
	for _, d := range m.Layers {
		if tarLayers[d.MediaType] != "" {
			img.Layers = append(img.Layers, blobName(d.Digest))
		}
	}
	if len(img.Layers) == 0 {
		return nil
	}
	if strings.Contains(path.Base(ref), ":") && !strings.Contains(ref, "@") {
		img.RepoTags = []string{ref}
	}
	return addJSON(tw, "manifest.json", []dockerImage{img})
}

// tagOf is the last part of a reference, as OCI layouts name entries.
func tagOf(ref string) string {
	if i := strings.LastIndexByte(ref, '@'); i >= 0 {
		return ref[i+1:]
	}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[i+1:]
	}
	return ref
}

func addJSON(tw *tar.Writer, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(err, fault.Internal, name, "cannot encode")
	}
	return addFile(tw, name, int64(len(data)), bytes.NewReader(data))
}

func addFile(tw *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size >= 8<<30 { // more than the older header can say
		h.Format = tar.FormatPAX
	}
	if err := tw.WriteHeader(h); err != nil {
		return fault.Wrap(err, fault.Internal, name, "cannot write the archive")
	}
	if _, err := io.Copy(tw, r); err != nil {
		return asInternal(err, name, "cannot write the archive")
	}
	return nil
}
