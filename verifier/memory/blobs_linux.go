package memory

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/owndir"
	"github.com/mentatlab/mentat/oci"
)

// Blobs reads small content from the memory where it can, and keeps what it had
// to ask next for. Content is what its digest says or it is not used.
func (m *Memory) Blobs(next oci.Fetcher) oci.Fetcher { return blobs{m, next} }

type blobs struct {
	*Memory
	next oci.Fetcher
}

// Fetch implements [oci.Fetcher].
func (b blobs) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Digest.Validate() != nil || desc.Size < 0 || desc.Size > owndir.FileBytes {
		return b.next.Fetch(ctx, desc)
	}
	path := filepath.Join(b.dir, "blob-"+strings.ReplaceAll(desc.Digest.String(), ":", "-"))
	if data, _, err := owndir.Read(path); err == nil && int64(len(data)) == desc.Size && desc.Digest.Algorithm().FromBytes(data) == desc.Digest {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	data, err := oci.ReadBlob(ctx, b.next, desc, owndir.FileBytes)
	if err != nil {
		return nil, err
	}
	if owndir.Write(path, data) == nil {
		b.bound()
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
