package host

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/filesystem"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
)

// runDirs are the directories as one run sees them: the program's, but where the
// document says that each run has a new one.
type runDirs struct {
	p    *Program
	dirs []*os.File
	// name is that of the run's own directories, in each of those below which it
	// has one; "" has none.
	name string
	// backends are the program's, with the files' own.
	backends map[string]backend.Backend
}

func (p *Program) newRunDirs() (*runDirs, error) {
	s := &runDirs{p: p, dirs: p.dirs, backends: p.backends}
	if !p.fresh {
		return s, nil
	}
	// Numbers do not come again while a guest that was left behind uses one.
	s.name = fmt.Sprintf("run-%d", p.serial.Add(1))
	s.dirs = make([]*os.File, len(p.dirs))
	for i, d := range p.doc.Preopens {
		if s.dirs[i] = p.dirs[i]; !d.Fresh {
			continue
		}
		own, err := makeDir(p.dirs[i], s.name)
		if err != nil {
			return nil, errors.Join(fault.Wrap(err, fault.Internal, d.Guest, "cannot make the run's own directory"), s.remove())
		}
		s.dirs[i] = own
	}
	if p.backends[manifest.KindFilesystem] != nil {
		s.backends = map[string]backend.Backend{}
		for kind, b := range p.backends {
			s.backends[kind] = b
		}
		s.backends[manifest.KindFilesystem] = filesystem.New(p.filesOf(s.dirs))
	}
	return s, nil
}

// makeDir makes a directory in another and opens it as [openDir] does.
func makeDir(in *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(in.Fd()), name, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(in.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// remove removes the run's own directories with all that is in them.
func (s *runDirs) remove() error {
	if s.name == "" {
		return nil
	}
	var errs []error
	for i, d := range s.dirs {
		if d == nil || d == s.p.dirs[i] {
			continue
		}
		_ = d.Close() // only a handle
		root, err := os.OpenRoot(fdPath(s.p.dirs[i]))
		if err == nil {
			err = errors.Join(root.RemoveAll(s.name), root.Close())
		}
		if err != nil {
			errs = append(errs, fault.Wrap(err, fault.Internal, s.p.doc.Preopens[i].Guest, "cannot remove the run's own directory"))
		}
	}
	return errors.Join(errs...)
}

// filesOf are the directories of a filesystem backend.
func (p *Program) filesOf(dirs []*os.File) []filesystem.Dir {
	files := make([]filesystem.Dir, len(dirs))
	for i, pre := range p.doc.Preopens {
		files[i] = filesystem.Dir{Guest: path.Clean(pre.Guest), ReadOnly: pre.ReadOnly, File: dirs[i]}
	}
	return files
}
