package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/integration/node"
)

// thread is one of a running host's, held by this test: what it is made to call
// is what a guest could call that has taken the host over. All of its methods
// belong to one thread of the test, which the kernel knows as the tracer.
type thread struct {
	t   *testing.T
	tid int
}

// hold stops a thread of another process. A thread that has ended is none.
func hold(t *testing.T, tid int) *thread {
	t.Helper()
	if err := unix.PtraceAttach(tid); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		t.Fatalf("attach to %d: %v", tid, err)
	}
	th := &thread{t, tid}
	if ws := th.wait(); !ws.Stopped() {
		t.Fatalf("thread %d: %v", tid, ws)
	}
	return th
}

func (th *thread) wait() (ws unix.WaitStatus) {
	th.t.Helper()
	for {
		_, err := unix.Wait4(th.tid, &ws, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			th.t.Fatalf("wait for %d: %v", th.tid, err)
		}
		return ws
	}
}

// gate is the address of an instruction that makes a system call.
func (th *thread) gate(pid int) uint64 {
	th.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		th.t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		from, to, _ := strings.Cut(f[0], "-")
		first, err1 := strconv.ParseUint(from, 16, 64)
		last, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || !strings.HasPrefix(f[1], "r-x") {
			continue
		}
		code := make([]byte, min(last-first, 8<<20))
		if _, err := unix.PtracePeekData(th.tid, uintptr(first), code); err != nil {
			continue
		}
		if i := strings.Index(string(code), "\x0f\x05"); i >= 0 {
			return first + uint64(i)
		}
	}
	th.t.Fatal("the host has no instruction for system calls")
	return 0
}

// call makes the thread call, and puts it back as it was. A string becomes its
// address. ended tells that there is no thread any more, and by which signal.
func (th *thread) call(gate uint64, number uint64, args ...any) (result int64, ended unix.Signal) {
	th.t.Helper()
	var before unix.PtraceRegs
	if err := unix.PtraceGetRegs(th.tid, &before); err != nil {
		th.t.Fatal(err)
	}
	regs := before
	regs.Rip, regs.Rax, regs.Orig_rax = gate, number, ^uint64(0)
	into := []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9}
	free := before.Rsp - 4096 // far below what is in use
	for i, a := range args {
		switch v := a.(type) {
		case string:
			if _, err := unix.PtracePokeData(th.tid, uintptr(free), append([]byte(v), 0)); err != nil {
				th.t.Fatal(err)
			}
			*into[i] = free
			free += uint64(len(v)) + 8
		case int:
			*into[i] = uint64(v)
		}
	}
	if err := unix.PtraceSetRegs(th.tid, &regs); err != nil {
		th.t.Fatal(err)
	}
	for {
		if err := unix.PtraceSingleStep(th.tid); err != nil {
			th.t.Fatal(err)
		}
		ws := th.wait()
		if ws.Signaled() {
			return 0, ws.Signal()
		}
		if err := unix.PtraceGetRegs(th.tid, &regs); err != nil {
			th.t.Fatal(err)
		}
		if regs.Rip != gate { // any other stop is a signal before the call
			break
		}
	}
	if err := unix.PtraceSetRegs(th.tid, &before); err != nil {
		th.t.Fatal(err)
	}
	return int64(regs.Rax), 0
}

// TestARunningHostIsHeldOnEveryThread makes every thread of a real mentat-host,
// with a guest in it, call what a guest would call that owns it.
func TestARunningHostIsHeldOnEveryThread(t *testing.T) {
	w := newWorld(t, node.Config{})
	ref := w.agent("sleep", guestSleep, "")
	for name, last := range map[string]struct {
		number uint64
		args   []any
	}{
		"a program":         {unix.SYS_EXECVE, []any{"/run/mentat/host", 0, 0}},
		"a process":         {unix.SYS_CLONE, []any{int(unix.SIGCHLD), 0, 0, 0, 0}},
		"executable memory": {unix.SYS_MMAP, []any{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANON, -1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			tk := w.start(ref)
			eventually(t, "the guest's first output", func() bool { return strings.Contains(tk.output(), marker) })
			pid := tk.pid()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
			if err != nil || len(tasks) < 4 {
				t.Fatalf("threads %v, %v", tasks, err)
			}
			var held []*thread
			for _, task := range tasks {
				status, err := os.ReadFile(task + "/status")
				if err != nil {
					continue // it ended
				}
				for _, line := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n"} {
					if !strings.Contains(string(status), line) {
						t.Errorf("%s lacks %q", task, line)
					}
				}
				tid, err := strconv.Atoi(filepath.Base(task))
				if err != nil {
					t.Fatal(err)
				}
				if th := hold(t, tid); th != nil {
					held = append(held, th)
				}
			}
			gate := held[0].gate(pid)
			for _, th := range held {
				for what, c := range map[string]struct {
					want   unix.Errno
					number uint64
					args   []any
				}{
					"read /proc/self/status": {unix.EACCES, unix.SYS_OPENAT, []any{unix.AT_FDCWD, "/proc/self/status", unix.O_RDONLY, 0}},
					"write its own memory":   {unix.EACCES, unix.SYS_OPENAT, []any{unix.AT_FDCWD, "/proc/self/mem", unix.O_RDWR, 0}},
					"list the root":          {unix.EACCES, unix.SYS_OPENAT, []any{unix.AT_FDCWD, "/", unix.O_RDONLY | unix.O_DIRECTORY, 0}},
					"write its document":     {unix.EACCES, unix.SYS_OPENAT, []any{unix.AT_FDCWD, "/run/mentat/host.json", unix.O_RDWR, 0}},
					"run its own program":    {unix.EACCES, unix.SYS_OPENAT, []any{unix.AT_FDCWD, "/run/mentat/host", unix.O_RDONLY, 0}},
					"open a socket":          {unix.EPERM, unix.SYS_SOCKET, []any{unix.AF_INET, unix.SOCK_STREAM, 0}},
					"change a mode":          {unix.EPERM, unix.SYS_FCHMODAT, []any{unix.AT_FDCWD, "/run/mentat/state", 0o777}},
					"be readable again":      {unix.EPERM, unix.SYS_PRCTL, []any{unix.PR_SET_DUMPABLE, 1, 0, 0, 0}},
					"make a thread unseen":   {unix.ENOSYS, unix.SYS_CLONE3, []any{0, 0}},
					"be itself":              {0, unix.SYS_GETPID, nil},
				} {
					got, ended := th.call(gate, c.number, c.args...)
					if ended != 0 || c.want != 0 && got != -int64(c.want) || c.want == 0 && got != 1 {
						t.Errorf("thread %d: %s: %d (signal %v), want %v", th.tid, what, got, ended, c.want)
					}
				}
			}
			// The last one ends the process, and with it all the others.
			th := held[len(held)-1]
			if got, ended := th.call(gate, last.number, last.args...); ended != unix.SIGSYS {
				t.Errorf("%s: %d, signal %v", name, got, ended)
			}
			// Each is told to its tracer, and some only when the others were.
			left := held[:len(held)-1]
			eventually(t, "the end of every thread", func() bool {
				left = slices.DeleteFunc(left, func(other *thread) bool {
					var ws unix.WaitStatus
					got, err := unix.Wait4(other.tid, &ws, unix.WALL|unix.WNOHANG, nil)
					if err != nil || got == other.tid && (!ws.Signaled() || ws.Signal() != unix.SIGSYS) {
						t.Errorf("thread %d: %v, %v", other.tid, ws, err)
					}
					return got != 0
				})
				return len(left) == 0
			})
			eventually(t, "the task's end", func() bool { return tk.state() == "STOPPED" })
			if code := tk.exitCode(); code != 159 {
				t.Errorf("the task's status is %d", code)
			}
			tk.remove()
			eventually(t, "that the shim tells it", func() bool { return strings.Contains(w.Logs(), "ended by its host's own filter") })
		})
	}
}

// pid is the process of a running task.
func (tk *task) pid() int {
	tk.t.Helper()
	client, ctx := tk.client()
	c, err := client.LoadContainer(ctx, tk.id)
	if err != nil {
		tk.t.Fatal(err)
	}
	found, err := c.Task(ctx, nil)
	if err != nil {
		tk.t.Fatal(err)
	}
	return int(found.Pid())
}

// exitCode is how a stopped task ended.
func (tk *task) exitCode() uint32 {
	tk.t.Helper()
	client, ctx := tk.client()
	c, err := client.LoadContainer(ctx, tk.id)
	if err != nil {
		tk.t.Fatal(err)
	}
	found, err := c.Task(ctx, nil)
	if err != nil {
		tk.t.Fatal(err)
	}
	s, err := found.Status(ctx)
	if err != nil {
		tk.t.Fatal(err)
	}
	return s.ExitStatus
}
