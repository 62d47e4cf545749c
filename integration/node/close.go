package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Leaks is what of a node exists beside its containerd and registries.
type Leaks struct {
	// Shims are processes that serve this node's tasks or run in its cgroups.
	Shims []string
	// Mounts are mount points below the node's directory.
	Mounts []string
	// Cgroups are the cgroup directories of the node's containers. The parent
	// that runc makes for them stays until Close.
	Cgroups []string
	// Sockets are unix sockets and FIFOs below the node's directory, beside
	// containerd's own.
	Sockets []string
	// State are runc's state directories of the node's namespace.
	State []string
	// Descriptors counts containerd's open files; it is no leak by itself.
	Descriptors int
}

// None says whether nothing is left.
func (l Leaks) None() bool {
	return len(l.Shims)+len(l.Mounts)+len(l.Cgroups)+len(l.Sockets)+len(l.State) == 0
}

// String lists what is left, one thing a line.
func (l Leaks) String() string {
	var b strings.Builder
	for _, kind := range []struct {
		name  string
		items []string
	}{{"process", l.Shims}, {"mount", l.Mounts}, {"cgroup", l.Cgroups}, {"socket", l.Sockets}, {"runc state", l.State}} {
		for _, item := range kind.items {
			fmt.Fprintf(&b, "%s %s\n", kind.name, item)
		}
	}
	return b.String()
}

// Leaks counts what tasks have left behind. A task that still runs counts too:
// call it when none should.
func (n *Node) Leaks() (Leaks, error) {
	var l Leaks
	for pid, cmdline := range n.processes() {
		l.Shims = append(l.Shims, strconv.Itoa(pid)+" "+cmdline)
	}
	sort.Strings(l.Shims)
	var err error
	if l.Mounts, err = n.mounts(); err != nil {
		return l, err
	}
	for _, dir := range n.cgroups() {
		if filepath.Base(dir) != n.Namespace {
			l.Cgroups = append(l.Cgroups, dir)
		}
	}
	err = filepath.WalkDir(n.Root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // going away while we look
			return nil
		case err != nil:
			return err
		case d.IsDir() && (path == n.path("lib") || strings.HasPrefix(path, n.path("registry"))):
			return fs.SkipDir // contents, not state
		case d.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 && !strings.HasPrefix(path, n.Socket):
			l.Sockets = append(l.Sockets, path)
		}
		return nil
	})
	if err != nil {
		return l, err
	}
	if l.State, err = filepath.Glob(filepath.Join(runDir, "runc", n.Namespace, "*")); err != nil {
		return l, err
	}
	if n.containerd != nil {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.containerd.pid()))
		if err != nil {
			return l, err
		}
		l.Descriptors = len(fds)
	}
	return l, nil
}

// Settled waits until nothing is left; a shim ends a moment after its task. It
// returns what there is when the time is up.
func (n *Node) Settled(within time.Duration) (Leaks, error) {
	deadline := time.Now().Add(within)
	for {
		l, err := n.Leaks()
		if err != nil || l.None() || time.Now().After(deadline) {
			return l, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// processes returns the shims that serve this node's containerd and whatever
// runs in its cgroups, by process id.
func (n *Node) processes() map[int]string {
	found := make(map[int]string)
	own := []int{os.Getpid()}
	if n.containerd != nil {
		own = append(own, n.containerd.pid())
	}
	for _, r := range n.registries {
		own = append(own, r.process.pid())
	}
	add := func(pid int, cmdline string) {
		if !slices.Contains(own, pid) {
			found[pid] = cmdline
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil { // the pattern is a constant
		panic(err)
	}
	for _, path := range dirs {
		data, err := os.ReadFile(path)
		if err != nil { // it ended
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		for i, arg := range args {
			if arg == n.Socket && i > 0 && args[i-1] == "-address" {
				if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
					add(pid, strings.Join(args, " "))
				}
			}
		}
	}
	for _, dir := range n.cgroups() {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid != 0 {
				add(pid, "in "+dir)
			}
		}
	}
	return found
}

// mounts returns the mount points below Root, the innermost first.
func (n *Node) mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 4 && strings.HasPrefix(f[4], n.Root+"/") {
			found = append(found, f[4])
		}
	}
	slices.Reverse(found)
	return found, lines.Err()
}

// cgroups returns the node's cgroup directories in every hierarchy, the
// innermost first.
func (n *Node) cgroups() []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, err := filepath.Glob(pattern + n.Namespace)
		if err != nil { // the namespace holds no pattern characters
			panic(err)
		}
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					found = append(found, path)
				}
				return nil // cgroups come and go
			})
		}
	}
	slices.Reverse(found)
	return found
}

// closeWithin bounds how long the orderly part of Close may take.
const closeWithin = 20 * time.Second

// shimsWithin bounds how long shims may take to end once their tasks are gone.
const shimsWithin = 3 * time.Second

// Close removes everything: tasks and containers in order, then what is left by
// force. It may be called twice and after a failed [Start].
func (n *Node) Close() error {
	var errs []error
	if n.containerd != nil && n.containerd.running() {
		ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
		n.removeTasks(ctx)
		cancel()
		// A shim whose caller was interrupted ends by itself and cleans up.
		for deadline := time.Now().Add(shimsWithin); len(n.processes()) > 0 && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		errs = append(errs, n.containerd.stop())
	}
	for _, r := range n.registries {
		errs = append(errs, r.process.stop())
	}
	if n.Namespace != "" {
		errs = append(errs, n.sweep())
	}
	if n.ownRoot {
		errs = append(errs, os.RemoveAll(n.Root))
	}
	return errors.Join(errs...)
}

// removeTasks is best effort: sweep follows, and reports.
func (n *Node) removeTasks(ctx context.Context) {
	namespaces, err := n.Ctr(ctx, "namespaces", "ls", "-q")
	if err != nil {
		return
	}
	for ns := range strings.FieldsSeq(namespaces) {
		tasks, _ := n.Ctr(ctx, "-n", ns, "tasks", "ls", "-q")
		for id := range strings.FieldsSeq(tasks) {
			_, _ = n.Ctr(ctx, "-n", ns, "tasks", "kill", "-a", "-s", "SIGKILL", id)
			_, _ = n.Ctr(ctx, "-n", ns, "tasks", "rm", "-f", id)
		}
		containers, _ := n.Ctr(ctx, "-n", ns, "containers", "ls", "-q")
		for id := range strings.FieldsSeq(containers) {
			_, _ = n.Ctr(ctx, "-n", ns, "containers", "rm", id)
		}
	}
}

// sweep ends and removes by force what is still there.
func (n *Node) sweep() error {
	var errs []error
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := n.processes()
		for pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("processes do not end: %v", left))
			break
		}
	}
	mounts, err := n.mounts()
	errs = append(errs, err)
	for _, target := range mounts {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", target, err))
		}
	}
	for _, dir := range n.cgroups() {
		if err := removeCgroup(dir); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(runDir, "runc", n.Namespace)))
	for _, dir := range slices.Backward(n.made) {
		_ = os.Remove(dir)
	}
	return errors.Join(errs...)
}

// removeCgroup retries: the kernel takes a moment after the last process.
func removeCgroup(dir string) error {
	var err error
	for range 100 {
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
