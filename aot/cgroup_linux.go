package aot

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// group is the compiler's cgroup. A nil group is none: every method does
// nothing.
type group struct {
	v1 cgroup1.Cgroup
	v2 *cgroup2.Manager
}

// compilerPids bounds threads: the engine compiles with one per processor.
const compilerPids = 2048

// groupPrefix begins the name of every compiler's cgroup.
const groupPrefix = "mentat-compile-"

// groupName names the cgroup of the compiler of one entry. Whoever holds the
// entry's lock can thus find what an earlier holder left.
func (c *Cache) groupName(key string) string {
	return groupPrefix + hex.EncodeToString(sum(c.opts.Dir))[:16] + "-" + key
}

// leftGroups returns the directories of a group, or of all of a prefix, in
// every hierarchy.
func leftGroups(name string) []string {
	var dirs []string
	for _, top := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(top + name)
		if err != nil { // a name has no pattern characters of its own
			panic(err)
		}
		dirs = append(dirs, found...)
	}
	return dirs
}

// clearGroup ends and removes a group whose maker was killed.
func clearGroup(name string) error {
	var errs []error
	for _, dir := range leftGroups(name) {
		err := os.Remove(dir)
		// A killed process takes its time to go on a busy machine.
		for range 300 {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			data, readErr := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(data)) {
				if pid, convErr := strconv.Atoi(field); convErr == nil && pid > 0 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			if readErr == nil {
				time.Sleep(10 * time.Millisecond)
			}
			err = os.Remove(dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// newGroup puts pid into a cgroup of its own. It is made at the top, as that is
// the only place whose controllers can be counted on: on version 2 the caller's
// own group holds processes and so can have no limited children.
func newGroup(name string, pid int, memory int64) (*group, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root makes cgroups")
	}
	name = "/" + name
	pids := int64(compilerPids)
	switch cgroups.Mode() {
	case cgroups.Unified:
		m, err := cgroup2.NewManager("/sys/fs/cgroup", name, &cgroup2.Resources{
			Memory: &cgroup2.Memory{Max: &memory}, Pids: &cgroup2.Pids{Max: pids},
		})
		if err != nil {
			return nil, err
		}
		return (&group{v2: m}).joined(m.AddProc(uint64(pid)))
	case cgroups.Legacy, cgroups.Hybrid:
		limited := func() ([]cgroup1.Subsystem, error) {
			all, err := cgroup1.Default()
			var some []cgroup1.Subsystem
			for _, s := range all {
				if s.Name() == cgroup1.Memory || s.Name() == cgroup1.Pids {
					some = append(some, s)
				}
			}
			if len(some) != 2 {
				err = errors.Join(err, errors.New("no memory and pids controllers"))
			}
			return some, err
		}
		required := cgroup1.WithHierarchy(limited)
		cg, err := cgroup1.New(cgroup1.StaticPath(name), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids},
		}, required)
		if err != nil {
			if half, lerr := cgroup1.Load(cgroup1.StaticPath(name), required); lerr == nil {
				_ = half.Delete()
			}
			return nil, err
		}
		return (&group{v1: cg}).joined(cg.Add(cgroup1.Process{Pid: pid}))
	}
	return nil, errors.New("no cgroups here")
}

// joined removes the group again if the process could not be put into it.
func (g *group) joined(err error) (*group, error) {
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// kill kills whatever is left in the group.
func (g *group) kill() {
	if g == nil {
		return
	}
	if g.v2 != nil {
		_ = g.v2.Kill()
		return
	}
	left, err := g.v1.Processes(cgroup1.Memory, true)
	if err != nil {
		return
	}
	for _, p := range left {
		if process, err := os.FindProcess(p.Pid); err == nil {
			_ = process.Kill()
		}
	}
}

// outOfMemory tells whether the kernel killed for the group's memory limit.
func (g *group) outOfMemory() bool {
	switch {
	case g == nil:
		return false
	case g.v2 != nil:
		m, err := g.v2.Stat()
		return err == nil && m.GetMemoryEvents().GetOomKill() > 0
	}
	m, err := g.v1.Stat(cgroup1.IgnoreNotExist)
	return err == nil && m.GetMemory().GetUsage().GetFailcnt() > 0
}

// close removes the group; killed processes may take a moment to leave it.
func (g *group) close() {
	if g == nil {
		return
	}
	for range 20 {
		var err error
		if g.v2 != nil {
			err = g.v2.Delete()
		} else {
			err = g.v1.Delete()
		}
		if err == nil || errors.Is(err, cgroup1.ErrCgroupDeleted) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
