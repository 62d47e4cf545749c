package oci

import (
	"context"

	_ "crypto/sha512" // go-digest finds its algorithms among the linked ones
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
)

// Fetcher reads content by descriptor. It has the shape of oras-go's
// content.Fetcher, so that stores of that library fit. What it returns is not
// trusted: read it through [ReadBlob] or [Verified].
type Fetcher interface {
	Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// ReadBlob reads a whole blob of at most limit bytes and checks size and
// digest. Errors: ArtifactInvalid for a bad descriptor or an oversized blob,
// DigestMismatch for other content than promised, Unavailable for content that
// broke off, else what the fetcher said.
func ReadBlob(ctx context.Context, f Fetcher, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor("blob", desc); err != nil {
		return nil, err
	}
	if desc.Size > limit {
		return nil, fault.New(fault.ArtifactInvalid, string(desc.Digest), "%d bytes of type %q are over the limit of %d bytes", desc.Size, desc.MediaType, limit)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, asFault(err, string(desc.Digest), "cannot be fetched")
	}
	defer rc.Close()
	data, err := io.ReadAll(Verified(rc, desc))
	if err != nil {
		return nil, asFault(err, string(desc.Digest), "cannot be read")
	}
	return data, nil
}

// Verified wraps r so that reading ends with io.EOF only if exactly the
// described bytes came, and with a DigestMismatch fault otherwise. It reads at
// most one byte more than desc.Size. What was read is trustworthy only after
// io.EOF.
func Verified(r io.Reader, desc ocispec.Descriptor) io.Reader {
	if err := checkDigest(desc.Digest); err != nil || desc.Size < 0 {
		return errReader{fault.New(fault.ArtifactInvalid, string(desc.Digest), "the descriptor is malformed")}
	}
	// One byte more than promised is enough to tell that there is too much.
	return &verifiedReader{r: io.LimitReader(r, desc.Size+1), desc: desc, hash: desc.Digest.Verifier()}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type verifiedReader struct {
	r    io.Reader
	desc ocispec.Descriptor
	hash digest.Verifier
	n    int64
	err  error
}

func (v *verifiedReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.n += int64(n)
	on := string(v.desc.Digest)
	if v.n > v.desc.Size {
		v.err = fault.New(fault.DigestMismatch, on, "the content is longer than the %d bytes that its descriptor says", v.desc.Size)
		return 0, v.err
	}
	_, _ = v.hash.Write(p[:n]) // a hash never fails to write
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		v.err = asFault(err, on, "the content broke off after %d of %d bytes", v.n, v.desc.Size)
	case v.n < v.desc.Size:
		v.err = fault.New(fault.DigestMismatch, on, "the content ends after %d of %d bytes", v.n, v.desc.Size)
	case !v.hash.Verified():
		v.err = fault.New(fault.DigestMismatch, on, "the content is not what its digest says")
	default:
		v.err = io.EOF
	}
	return n, v.err
}

// asFault keeps a reason that is there already and calls everything else
// unavailable.
func asFault(err error, on, format string, args ...any) error {
	var fe *fault.Error
	if errors.As(err, &fe) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fault.Wrap(err, fault.Canceled, on, format, args...)
	}
	return fault.Wrap(err, fault.Unavailable, on, format, args...)
}

// checkDigest admits sha256 and sha512 only: others are either weak or not
// verified by everything that handles an image.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	switch d.Algorithm() {
	case digest.SHA256, digest.SHA512:
		return nil
	}
	return digest.ErrDigestUnsupported
}
