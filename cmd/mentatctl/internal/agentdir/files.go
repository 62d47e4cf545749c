package agentdir

import (
	"errors"
	"io/fs"
	"os"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
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
	data, err := limits.ReadFile(path, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, path, "there is no such %s", what)
	case errors.Is(err, limits.ErrExceeded):
		return nil, fault.Wrap(err, fault.ResourceLimit, path, "cannot read the %s", what)
	case err != nil:
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the %s", what)
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
