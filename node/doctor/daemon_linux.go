package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// clockTicks is the unit of /proc/PID/stat, the same on every Linux that Go runs on.
	clockTicks = 100
	// programTime bounds what the doctor waits for a program that answers at once.
	programTime = 30 * time.Second
	outputBytes = 4 * limits.MiB
)

// findDaemon asks the kernel who listens at the socket, and /proc how that process
// was started: files on disk do not tell what a running daemon does.
func findDaemon(ctx context.Context, address string) (*Daemon, error) {
	pid, err := listener(ctx, address)
	if err != nil {
		return nil, err
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	d := &Daemon{PID: pid, exe: filepath.Join(proc, "exe")}
	if d.Program, err = os.Readlink(d.exe); err != nil {
		return nil, err
	}
	args, err := readList(filepath.Join(proc, "cmdline"))
	if err != nil {
		return nil, err
	}
	if d.env, err = readList(filepath.Join(proc, "environ")); err != nil {
		return nil, err
	}
	cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
	if err != nil {
		return nil, err
	}
	d.Config = configOf(args)
	if !filepath.IsAbs(d.Config) {
		d.Config = filepath.Join(cwd, d.Config)
	}
	d.Started, err = startOf(proc)
	return d, err
}

// listener is the process at the other end of a socket.
func listener(ctx context.Context, address string) (int, error) {
	var dialer net.Dialer
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn() //nolint:forcetypeassert // a unix socket was dialled
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	if cred.Pid <= 0 {
		return 0, fmt.Errorf("%s: its listener is in another process namespace", address)
	}
	return int(cred.Pid), nil
}

const defaultContainerdConfig = "/etc/containerd/config.toml"

// configOf finds the configuration file in containerd's arguments.
func configOf(args []string) string {
	for i, a := range args {
		if i == 0 {
			continue
		}
		name, value, joined := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || name != "config" && name != "c" {
			continue
		}
		if joined {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return defaultContainerdConfig
}

func readList(path string) ([]string, error) {
	data, err := limits.ReadFile(path, outputBytes)
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(data), "\x00"), "\x00"), nil
}

// startOf is when a process was started.
func startOf(proc string) (time.Time, error) {
	data, err := limits.ReadFile(filepath.Join(proc, "stat"), limits.PolicyBytes)
	if err != nil {
		return time.Time{}, err
	}
	// The name in parentheses may hold spaces and parentheses itself.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const starttime = 22 - 3 // field 22, and the first three are before
	if len(fields) <= starttime {
		return time.Time{}, fmt.Errorf("%s/stat has only %d fields", proc, len(fields))
	}
	ticks, err := strconv.ParseInt(fields[starttime], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/clockTicks)
	return time.Now().Add(-age).UTC(), nil
}

// lookup finds a variable of an environment, whose last word counts.
func lookup(env []string, name string) string {
	for _, kv := range slices.Backward(env) {
		if key, value, ok := strings.Cut(kv, "="); ok && key == name {
			return value
		}
	}
	return ""
}

// find looks a program up as containerd does: on its PATH, then beside itself.
func find(env []string, beside, name string) (string, error) {
	for _, dir := range append(filepath.SplitList(lookup(env, "PATH")), beside) {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); dir != "" && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is neither on PATH (%s) nor in %s", name, lookup(env, "PATH"), beside)
}

// output runs a program that answers at once and returns what it printed.
func output(ctx context.Context, env []string, stdin, program string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...) // #nosec G204 -- the node's own programs are what is looked at
	cmd.Env = env
	cmd.WaitDelay = time.Second
	var out, errs bounded
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	room := max(outputBytes-b.Len(), 0)
	b.Buffer.Write(p[:min(room, len(p))])
	return len(p), nil
}
