package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// annotationImageName is containerd's full name of an index entry.
const annotationImageName = "io.containerd.image.name"

// Layout is an OCI image layout on disk. It is safe for concurrent use within
// a process; between processes the last writer of index.json wins, and no
// reader ever sees half a file.
type Layout struct {
	dir string
	mu  sync.Mutex // guards index.json's read-change-write
}

// CreateLayout makes an empty layout; dir may exist if it is empty. Errors:
// Exists for a directory that holds anything, else Internal.
func CreateLayout(dir string) (*Layout, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot create the image layout")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot create the image layout")
	}
	if len(entries) != 0 {
		return nil, fault.New(fault.Exists, dir, "is not empty and is not overwritten")
	}
	l := &Layout{dir: dir}
	if err := l.writeIndex(newIndex()); err != nil {
		return nil, err
	}
	// The marker comes last: without it the directory is no layout.
	header, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot encode")
	}
	if err := l.writeFile(ocispec.ImageLayoutFile, bytes.NewReader(header)); err != nil {
		return nil, err
	}
	return l, nil
}

// OpenLayout opens an existing layout and reads its index. Errors: NotFound
// when there is none, ArtifactInvalid when it breaks a rule.
func OpenLayout(dir string) (*Layout, error) {
	header, err := readFile(filepath.Join(dir, ocispec.ImageLayoutFile), limits.OCIManifestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, dir, "is not an OCI image layout: there is no %s", ocispec.ImageLayoutFile)
	}
	if err != nil {
		return nil, asInternal(err, dir, "cannot open the image layout")
	}
	if err := checkLayoutHeader(dir, header); err != nil {
		return nil, err
	}
	l := &Layout{dir: dir}
	if _, err := l.readIndex(); err != nil {
		return nil, err
	}
	return l, nil
}

// Dir is the layout's directory.
func (l *Layout) Dir() string { return l.dir }

func checkLayoutHeader(on string, data []byte) error {
	var h ocispec.ImageLayout
	if err := json.Unmarshal(data, &h); err != nil {
		return fault.Wrap(err, fault.ArtifactInvalid, on, "%s is malformed", ocispec.ImageLayoutFile)
	}
	if h.Version != ocispec.ImageLayoutVersion {
		return fault.New(fault.ArtifactInvalid, on, "image layout version %q, known is %q", h.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

func newIndex() *ocispec.Index {
	return &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
}

func (l *Layout) readIndex() (*ocispec.Index, error) {
	path := filepath.Join(l.dir, ocispec.ImageIndexFile)
	data, err := readFile(path, limits.OCIManifestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.ArtifactInvalid, path, "is missing from the image layout")
	}
	if err != nil {
		return nil, asInternal(err, path, "cannot be read")
	}
	idx, err := ParseIndex(data)
	if err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, path, "is not a layout's index")
	}
	return idx, nil
}

func (l *Layout) writeIndex(idx *ocispec.Index) error {
	data, err := json.Marshal(idx)
	if err != nil {
		return fault.Wrap(err, fault.Internal, l.dir, "cannot encode the index")
	}
	if _, err := ParseIndex(data); err != nil {
		return err // what could not be read back is not written
	}
	return l.writeFile(ocispec.ImageIndexFile, bytes.NewReader(data))
}

// update changes index.json in one step.
func (l *Layout) update(change func(*ocispec.Index) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	idx, err := l.readIndex()
	if err != nil {
		return err
	}
	if err := change(idx); err != nil {
		return err
	}
	return l.writeIndex(idx)
}

// writeFile puts a file into place complete and synced, or not at all. What r
// returns as an error keeps its reason.
func (l *Layout) writeFile(name string, r io.Reader) (err error) {
	path := filepath.Join(l.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	// In the target's own directory, so that the rename cannot cross a mount.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()           // the first error is the one to report
			_ = os.Remove(tmp.Name()) // as above
		}
	}()
	if _, err := io.Copy(tmp, r); err != nil {
		return asInternal(err, path, "cannot write")
	}
	if err := tmp.Chmod(0o644); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	if err := tmp.Sync(); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	if err := tmp.Close(); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	return nil
}

// asInternal keeps a reason that is there already.
func asInternal(err error, on, msg string) error {
	var fe *fault.Error
	if errors.As(err, &fe) {
		return err
	}
	return fault.Wrap(err, fault.Internal, on, "%s", msg)
}

// openRegular opens a plain file; a link, pipe or device in a layout that came
// from elsewhere is refused before it can lead or block anywhere.
func openRegular(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fault.New(fault.ArtifactInvalid, path, "is not a regular file")
	}
	return os.Open(path)
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := limits.Read(f, limit)
	if errors.Is(err, limits.ErrExceeded) {
		err = fault.Wrap(err, fault.ArtifactInvalid, path, "cannot be read")
	}
	return data, err
}

func blobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// Fetch implements [Fetcher]. Errors: NotFound, or ArtifactInvalid for what is
// not a file. The content is not checked here, see [Verified].
func (l *Layout) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, fault.New(fault.ArtifactInvalid, string(desc.Digest), "is neither a sha256 nor a sha512 digest")
	}
	f, err := openRegular(filepath.Join(l.dir, filepath.FromSlash(blobName(desc.Digest))))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, string(desc.Digest), "is not in the image layout %s", l.dir)
	}
	if err != nil {
		return nil, asInternal(err, string(desc.Digest), "cannot open the blob")
	}
	return f, nil
}

// Exists tells whether the blob is there with the right content; a damaged one
// counts as absent, so that it is written again.
func (l *Layout) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	rc, err := l.Fetch(ctx, desc)
	if fault.ReasonOf(err) == fault.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer rc.Close()
	_, err = io.Copy(io.Discard, Verified(rc, desc))
	if fault.ReasonOf(err) == fault.DigestMismatch {
		return false, nil
	}
	return err == nil, err
}

// Push stores a blob; r must hold exactly what desc says, else nothing is kept
// and the error is DigestMismatch, or whatever reading said.
func (l *Layout) Push(_ context.Context, desc ocispec.Descriptor, r io.Reader) error {
	if err := checkDescriptor("blob", desc); err != nil {
		return err
	}
	return l.writeFile(blobName(desc.Digest), Verified(r, desc))
}

// PushBytes stores data as a blob and describes it.
func (l *Layout) PushBytes(ctx context.Context, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := descriptorOf(mediaType, data)
	return desc, l.Push(ctx, desc, bytes.NewReader(data))
}

// bare drops what an index adds to a descriptor.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// Add enters a manifest or index, whose blob is there already, into the
// layout's index without a name, if it is not in it yet.
func (l *Layout) Add(_ context.Context, desc ocispec.Descriptor) error {
	return l.update(func(idx *ocispec.Index) error {
		if !slices.ContainsFunc(idx.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
			idx.Manifests = append(idx.Manifests, bare(desc))
		}
		return nil
	})
}

// Tag names a manifest or index, whose blob is there already. A name that
// pointed elsewhere moves.
func (l *Layout) Tag(_ context.Context, desc ocispec.Descriptor, ref string) error {
	if ref == "" {
		return fault.New(fault.Usage, string(desc.Digest), "a tag must not be empty")
	}
	return l.update(func(idx *ocispec.Index) error {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d ocispec.Descriptor) bool {
			name := d.Annotations[ocispec.AnnotationRefName]
			return name == ref || name == "" && d.Digest == desc.Digest
		})
		named := bare(desc)
		named.Annotations = map[string]string{ocispec.AnnotationRefName: ref}
		idx.Manifests = append(idx.Manifests, named)
		return nil
	})
}

// Resolve finds a manifest or index by its tag, its full image name or its
// digest. Errors: NotFound, or ArtifactInvalid when the name is there twice
// for different content.
func (l *Layout) Resolve(_ context.Context, ref string) (ocispec.Descriptor, error) {
	idx, err := l.readIndex()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return resolve(l.dir, idx, ref)
}

// Root is the one manifest or index that the layout holds, beside what refers to it.
// Errors: NotFound for none, ArtifactInvalid for several.
func (l *Layout) Root() (ocispec.Descriptor, error) {
	idx, err := l.readIndex()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return resolve(l.dir, l.images(idx), "")
}

// resolve finds the one entry that fits ref; every entry fits "".
func resolve(on string, idx *ocispec.Index, ref string) (ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	for _, d := range idx.Manifests {
		fits := ref == "" || ref == string(d.Digest) || ref == d.Annotations[ocispec.AnnotationRefName] || ref == d.Annotations[annotationImageName]
		if fits && !slices.ContainsFunc(found, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			found = append(found, bare(d))
		}
	}
	what := "an image"
	if ref != "" {
		what = fmt.Sprintf("the image %q", ref)
	}
	switch len(found) {
	case 0:
		return ocispec.Descriptor{}, fault.New(fault.NotFound, on, "does not hold %s", what)
	case 1:
		return found[0], nil
	}
	return ocispec.Descriptor{}, fault.New(fault.ArtifactInvalid, on, "holds %d images where one was expected", len(found)).
		WithHint("name one of them by tag or digest")
}

// ReplaceManifest stores raw in the place of the manifest old: every name that
// old had in the layout's index then means raw. The old manifest is removed,
// its blobs stay. Errors: NotFound if old is not in the index.
func (l *Layout) ReplaceManifest(ctx context.Context, old ocispec.Descriptor, raw []byte) (ocispec.Descriptor, error) {
	m, err := ParseManifest(raw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	mediaType := m.MediaType
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageManifest
	}
	desc, err := l.PushBytes(ctx, mediaType, raw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	err = l.update(func(idx *ocispec.Index) error {
		replaced := false
		for i, d := range idx.Manifests {
			if d.Digest == old.Digest {
				replaced = true
				idx.Manifests[i].MediaType, idx.Manifests[i].Digest, idx.Manifests[i].Size = desc.MediaType, desc.Digest, desc.Size
				idx.Manifests[i].Data = nil
			}
		}
		if !replaced {
			return fault.New(fault.NotFound, string(old.Digest), "is not in the index of %s", l.dir)
		}
		return nil
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if old.Digest != desc.Digest {
		if err := l.remove(old.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return desc, nil
}

func (l *Layout) remove(d digest.Digest) error {
	err := os.Remove(filepath.Join(l.dir, filepath.FromSlash(blobName(d))))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Internal, l.dir, "cannot remove the blob %s", d)
	}
	return nil
}

// Verify reads everything that the layout's index leads to and checks it.
// Errors: NotFound for a missing blob, DigestMismatch for a damaged one,
// ArtifactInvalid for a broken rule.
func (l *Layout) Verify(ctx context.Context) error {
	idx, err := l.readIndex()
	if err != nil {
		return err
	}
	for _, root := range idx.Manifests {
		g, err := Walk(ctx, l, bare(root))
		if err != nil {
			return err
		}
		for _, d := range g.Blobs {
			if err := l.verifyBlob(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Layout) verifyBlob(ctx context.Context, d ocispec.Descriptor) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(err, fault.Canceled, l.dir, "verification stopped")
	}
	rc, err := l.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer rc.Close()
	_, err = io.Copy(io.Discard, Verified(rc, d))
	return err
}
