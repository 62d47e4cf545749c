package doctor

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/nodeconfig"
)

const module = "github.com/mentatlab/mentat"

// runnable tells why a file could not be executed.
func runnable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("it is %s", info.Mode())
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("its mode is %04o", info.Mode().Perm())
	}
	return noexec(path)
}

func noexec(path string) error {
	flags, err := mountFlags(path)
	if err != nil {
		return err
	}
	if flags&unix.ST_NOEXEC != 0 {
		return errors.New("its file system is mounted noexec")
	}
	return nil
}

// mountFlags are those of the file system that a path is on. Tests have none of
// their own to mount.
var mountFlags = func(path string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return st.Flags, err
}

// isProgram tells by what the linker wrote whether a file is one of our programs.
func isProgram(path, name string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == module+"/cmd/"+name
}

// buildOf is what tells one build from another: compiler, module version, and the
// versions of all that was linked, as far as two programs share it.
func buildOf(path string) (map[string]string, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parts := map[string]string{"go": info.GoVersion, info.Main.Path: info.Main.Version}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		parts[d.Path] = d.Version + " " + d.Sum
	}
	return parts, nil
}

// differ names what two builds do not share.
func differ(a, b map[string]string) []string {
	var names []string
	for name, x := range a {
		if y, both := b[name]; both && x != y {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// program is one of ours and where it was found.
type program struct{ name, path string }

// checkOurs looks at the programs that decide: that they are what their names say,
// that they are of one build, and that nobody but root can replace them.
func checkOurs(r *Report, found []program) {
	var first program
	var build map[string]string
	one := true
	for _, p := range found {
		if err := runnable(p.path); err != nil {
			r.fail(checkPrograms, p.path, "cannot be executed: "+err.Error(), "agents do not start without it", "install "+p.name+" of this release")
			continue
		}
		parts, err := buildOf(p.path)
		if err != nil || !isProgram(p.path, p.name) {
			r.fail(checkPrograms, p.path, "is not "+p.name, "something else decides, or runs, in its place", "install "+p.name+" of this release")
			continue
		}
		r.ok(checkPrograms, p.path, "%s", p.name)
		checkPath(r, p.path)
		if build == nil {
			first, build = p, parts
			continue
		}
		if d := differ(build, parts); len(d) > 0 {
			one = false
			r.fail(checkBuild, p.path, fmt.Sprintf("is of another build than %s: they differ in %s", first.path, strings.Join(d, ", ")),
				"gates of two builds may decide differently, and a host refuses another shim's document", "install all programs of one release")
		}
	}
	if one && build != nil {
		r.ok(checkBuild, first.path, "%d programs share what they were built from", len(found))
	}
}

// checkPath: who can write a file, or any directory above it, decides instead of it.
func checkPath(r *Report, path string) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		r.fail(checkOwner, path, "cannot be followed: "+err.Error(), "what it leads to decides", "repair it")
		return
	}
	for _, start := range []string{target, filepath.Dir(path)} {
		for at := start; ; at = filepath.Dir(at) {
			if why := loose(at); why != "" {
				r.fail(checkOwner, at, why, "who can change it decides what "+path+" is", "chown root, chmod go-w: "+at)
				return
			}
			if at == filepath.Dir(at) {
				break
			}
		}
	}
	r.ok(checkOwner, path, "only root can change it")
}

// checkTree is [checkPath] for everything in a directory.
func checkTree(r *Report, dir string) {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if why := loose(path); why != "" && path != dir {
			r.fail(checkOwner, path, why, "who can change it decides whom this node trusts", "chown root, chmod go-w: "+path)
		}
		return nil
	})
	if err != nil {
		r.fail(checkOwner, dir, err.Error(), "whom this node trusts cannot be told", "repair it")
		return
	}
	checkPath(r, dir)
}

// loose tells in what way others than root can change a file, "" if they cannot.
func loose(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "cannot be looked at: " + err.Error()
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0; {
	case !ok:
		return "does not say whose it is"
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case info.Mode().Perm()&0o022 != 0 && !sticky:
		return fmt.Sprintf("has the mode %04o", info.Mode().Perm())
	}
	return ""
}

// checkCaches looks at the directories whose content is believed: compiled modules
// and what was already checked, which are the node's own and nobody else's.
func checkCaches(r *Report, cfg *nodeconfig.Config) {
	private := []struct{ key, dir string }{
		{"cache.dir", cfg.Cache.Dir}, {"cache.memory", cfg.Cache.Memory}, {"verify.memory", cfg.Verify.Memory},
	}
	for _, p := range private {
		if p.dir != "" {
			checkPrivate(r, p.key, p.dir)
		}
	}
	if at := existing(cfg.Cache.Dir); cfg.Cache.Dir != "" {
		if err := noexec(at); err != nil {
			r.fail(checkCache, cfg.Cache.Dir, err.Error(), "compiled modules are mapped executable: no WASM agent starts", "set cache.dir to a directory on a file system mounted exec")
		}
	}
	if info, err := os.Stat(cfg.Verify.State); err == nil && !info.IsDir() {
		r.fail(checkCache, cfg.Verify.State, "is no directory", "revocation lists cannot be kept", "remove it")
	} else {
		checkPath(r, existing(cfg.Verify.State))
	}
}

func checkPrivate(r *Report, key, dir string) {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.ok(checkCache, dir, "%s is made when it is needed", key)
		checkPath(r, existing(dir))
		return
	case err != nil:
		r.fail(checkCache, dir, err.Error(), "it cannot be told who writes it", "repair it")
		return
	case !info.IsDir():
		r.fail(checkCache, dir, "is no directory", key+" is believed only if it is the node's own", "remove it")
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || int(st.Uid) != os.Geteuid():
		r.fail(checkCache, dir, "belongs to another user", "its content is believed: agents do not start from a cache of others", "remove it; it is made again")
	case info.Mode().Perm()&0o077 != 0:
		r.fail(checkCache, dir, fmt.Sprintf("its mode %04o lets others in", info.Mode().Perm()), "agents do not start from a cache that others reach", "chmod 700 "+dir)
	default:
		r.ok(checkCache, dir, "%s, the node's own", key)
	}
}

// existing is the path itself or the nearest directory above it that is there.
func existing(path string) string {
	for at := path; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			return at
		}
	}
}
