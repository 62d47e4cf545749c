package media

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"mime"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// prefix begins every reference.
const prefix = "media:sha256:"

// Ref names an object. The zero value names none.
type Ref struct{ digest [sha256.Size]byte }

// ParseRef reads a reference, media:sha256: and 64 lower-case hexadecimal
// digits. Errors are [fault.Usage].
func ParseRef(s string) (Ref, error) {
	var r Ref
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) != 2*sha256.Size || strings.ToLower(digits) != digits {
		return Ref{}, fault.New(fault.Usage, "", "not a media reference: it is %s and 64 hexadecimal digits", prefix)
	}
	if _, err := hex.Decode(r.digest[:], []byte(digits)); err != nil {
		return Ref{}, fault.Wrap(err, fault.Usage, "", "not a media reference")
	}
	return r, nil
}

// Sum is the reference of data.
func Sum(data []byte) Ref { return Ref{sha256.Sum256(data)} }

// String is what [ParseRef] reads.
func (r Ref) String() string { return prefix + r.Hex() }

// Hex is the digest in 64 lower-case digits, safe in paths and keys.
func (r Ref) Hex() string { return hex.EncodeToString(r.digest[:]) }

// Info is what is known of an object beside its bytes.
type Info struct {
	Size int64
	// Type is the media type that it was first stored with; it is what a writer
	// said, not a promise about the bytes.
	Type string
}

// DefaultType is the type of an object that was stored without one.
const DefaultType = "application/octet-stream"

// CheckType brings a media type into the form that is stored; empty becomes
// [DefaultType]. Errors are [fault.Usage].
func CheckType(s string) (string, error) {
	if s == "" {
		return DefaultType, nil
	}
	if len(s) > limits.MediaTypeBytes {
		return "", fault.New(fault.Usage, "", "the media type is over %d bytes", limits.MediaTypeBytes)
	}
	kind, params, err := mime.ParseMediaType(s)
	if err != nil || !strings.Contains(kind, "/") {
		return "", fault.New(fault.Usage, "", "not a media type like image/png")
	}
	out := mime.FormatMediaType(kind, params)
	if out == "" || len(out) > limits.MediaTypeBytes {
		return "", fault.New(fault.Usage, "", "not a media type like image/png")
	}
	return out, nil
}

// Store keeps objects. It may be used from several goroutines. Errors are
// [fault.Error]: [fault.NotFound] for an object that is not there,
// [fault.DigestMismatch] for one whose bytes are others, [fault.ResourceLimit],
// and [fault.Unavailable] for all else. Every method returns soon after ctx is
// cancelled.
type Store interface {
	// Open opens an object, no longer than most bytes. The reader fails rather than end
	// if what it returned was not the object; see [Verify]. ctx holds for reading,
	// too.
	Open(ctx context.Context, ref Ref, most int64) (io.ReadCloser, Info, error)
	// Put stores the size bytes of r, whole or not at all, with a type from
	// [CheckType]. Storing what is there already is no error.
	Put(ctx context.Context, mediaType string, r io.Reader, size int64) (Ref, error)
	// Close frees what the store holds.
	Close() error
}

// Verify wraps a reader so that its end is an error, [fault.DigestMismatch],
// unless what was read has the reference's digest and the given size. Not a byte
// more than that is returned.
func Verify(r io.ReadCloser, ref Ref, size int64) io.ReadCloser {
	return &verified{r: r, ref: ref, left: size, hash: sha256.New()}
}

type verified struct {
	r    io.ReadCloser
	ref  Ref
	left int64
	hash hash.Hash
	err  error // io.EOF or the mismatch, once known
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil || len(p) == 0 {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	if int64(n) > v.left {
		v.err = v.mismatch("it is longer")
		return 0, v.err
	}
	v.left -= int64(n)
	_, _ = v.hash.Write(p[:n]) // never fails
	if err == io.EOF {         //nolint:errorlint // io.Reader says it is not wrapped
		err = v.end()
	}
	v.err = err
	return n, err
}

// end judges the whole.
func (v *verified) end() error {
	switch {
	case v.left > 0:
		return v.mismatch("it is shorter")
	case subtle.ConstantTimeCompare(v.hash.Sum(nil), v.ref.digest[:]) != 1:
		return v.mismatch("its bytes are others")
	}
	return io.EOF
}

func (v *verified) mismatch(how string) error {
	return fault.New(fault.DigestMismatch, v.ref.String(), "the stored object is not what its reference names: %s", how)
}

func (v *verified) Close() error { return v.r.Close() }

// Copy copies exactly size bytes and returns their reference. It is for stores:
// it stops when ctx is cancelled.
func Copy(ctx context.Context, w io.Writer, r io.Reader, size int64) (Ref, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), &whileWanted{ctx, io.LimitReader(r, size+1)})
	if err != nil {
		return Ref{}, err
	}
	if n != size {
		return Ref{}, fmt.Errorf("%d bytes instead of %d", n, size)
	}
	var ref Ref
	h.Sum(ref.digest[:0])
	return ref, nil
}

type whileWanted struct {
	ctx context.Context //nolint:containedctx // it is the copy's own
	r   io.Reader
}

func (w *whileWanted) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}
