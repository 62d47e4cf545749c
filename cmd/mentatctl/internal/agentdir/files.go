package agentdir

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
)

// WriteFile replaces a file, or makes it, in one step: a reader sees the old
// content or the new one.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := atomicfile.Write(path, data, mode); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write")
	}
	return nil
}

// readFile reads at most limit bytes of a regular file.
func readFile(path string, limit int64, what string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, path, "there is no such %s", what)
		}
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the %s", what)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the %s", what)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Usage, path, "not a regular file, a %s is one", what)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the %s", what)
	}
	if int64(len(data)) > limit {
		return nil, fault.New(fault.ResourceLimit, path, "the %s is over %d bytes", what, limit)
	}
	return data, nil
}

// Place moves a new file or directory to where nothing is yet.
func Place(fresh, place string) error {
	if _, err := os.Lstat(place); err == nil {
		return fault.New(fault.Exists, place, "is there already and is not overwritten")
	}
	if err := os.Rename(fresh, place); err != nil {
		return fault.Wrap(err, fault.Internal, place, "cannot write")
	}
	return nil
}
