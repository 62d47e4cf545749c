package media

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Dir is a store in a directory, which any number of processes may share, also
// of several users if it has the sticky bit. An object lies in a file named by its
// digest, its type in a file beside it.
type Dir struct{ root *os.Root }

// tempAge is the age at which a half-written file is nobody's any more.
const tempAge = 24 * time.Hour

const (
	tempPrefix = ".new-"
	typeSuffix = ".type"
)

// OpenDir opens a store in a directory that exists.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, path, "cannot open the media store")
	}
	return &Dir{root}, nil
}

// Sweep removes what killed writers left and, unless keep is 0, the objects that
// were last stored before now-keep. It is for the store's owner. It returns how many files it
// removed; an error says that some could not be.
func (d *Dir) Sweep(now time.Time, keep time.Duration) (removed int, err error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return 0, fault.Wrap(err, fault.Unavailable, d.root.Name(), "cannot list the media store")
	}
	for _, e := range entries {
		age := keep
		if strings.HasPrefix(e.Name(), tempPrefix) {
			age = tempAge
		} else if keep <= 0 {
			continue
		} else if _, err := ParseRef(prefix + strings.TrimSuffix(e.Name(), typeSuffix)); err != nil {
			continue // not the store's
		}
		info, ierr := e.Info()
		if ierr == nil && now.Sub(info.ModTime()) > age {
			ierr = d.root.Remove(e.Name())
			removed++
		}
		// Somebody else may sweep, too.
		if ierr != nil && !errors.Is(ierr, fs.ErrNotExist) {
			err = errors.Join(err, fault.Wrap(ierr, fault.Unavailable, e.Name(), "cannot sweep the media store"))
		}
	}
	return removed, err
}

// Close frees the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Open opens an object. A file whose size is not the object's is found out at
// its end, as are other bytes.
func (d *Dir) Open(ctx context.Context, ref Ref, most int64) (io.ReadCloser, Info, error) {
	f, err := d.root.OpenFile(ref.Hex(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Info{}, fault.New(fault.NotFound, ref.String(), "no such object is stored")
	}
	if err != nil {
		return nil, Info{}, fault.Wrap(err, fault.Unavailable, ref.String(), "cannot read the object")
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		err = fault.Wrap(err, fault.Unavailable, ref.String(), "cannot read the object")
	case !st.Mode().IsRegular():
		err = fault.New(fault.DigestMismatch, ref.String(), "the stored object is not a file")
	case st.Size() > most:
		err = fault.New(fault.ResourceLimit, ref.String(), "the object has %d bytes, the limit is %d", st.Size(), most)
	}
	if err != nil {
		return nil, Info{}, errors.Join(err, f.Close())
	}
	return Verify(&fileReader{whileWanted{ctx, f}, f}, ref, st.Size()), Info{Size: st.Size(), Type: d.typeOf(ref)}, nil
}

type fileReader struct {
	whileWanted
	io.Closer
}

// typeOf reads an object's type. One that is missing or no type is as good as
// none: it says nothing about the bytes.
func (d *Dir) typeOf(ref Ref) string {
	f, err := d.root.OpenFile(ref.Hex()+typeSuffix, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return DefaultType
	}
	defer f.Close()
	data, err := limits.Read(f, limits.MediaTypeBytes)
	if err != nil {
		return DefaultType
	}
	mediaType, err := CheckType(string(data))
	if err != nil {
		return DefaultType
	}
	return mediaType
}

// Put writes an object beside its place and moves it there, so that a reader
// finds it whole or not at all.
func (d *Dir) Put(ctx context.Context, mediaType string, r io.Reader, size int64) (ref Ref, err error) {
	temp, ref, err := d.write(ctx, r, size)
	if err != nil {
		return Ref{}, fault.Wrap(err, fault.Unavailable, "", "cannot store the object")
	}
	if err := d.place(temp, mediaType, ref); err != nil {
		return Ref{}, fault.Wrap(errors.Join(err, d.root.Remove(temp)), fault.Unavailable, ref.String(), "cannot store the object")
	}
	return ref, nil
}

func (d *Dir) write(ctx context.Context, r io.Reader, size int64) (temp string, ref Ref, err error) {
	temp = tempPrefix + rand.Text()
	// Other agents read it, in containers of other users.
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", Ref{}, err
	}
	ref, err = Copy(ctx, f, r, size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", Ref{}, errors.Join(err, d.root.Remove(temp))
	}
	return temp, ref, nil
}

func (d *Dir) place(temp, mediaType string, ref Ref) error {
	if err := d.writeType(mediaType, ref); err != nil {
		return err
	}
	// The bytes are the same, so that replacing them harms nobody, and heals a
	// file that is damaged.
	err := d.root.Rename(temp, ref.Hex())
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// It is another user's, so it is there.
	return d.root.Remove(temp)
}

// writeType records the type of a new object. The first type stays: one's object
// does not change by what another says.
func (d *Dir) writeType(mediaType string, ref Ref) error {
	f, err := d.root.OpenFile(ref.Hex()+typeSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(f, mediaType)
	return errors.Join(err, f.Close())
}
