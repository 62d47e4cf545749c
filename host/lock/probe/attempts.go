package main

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call and closes the descriptor that it may give.
func call(number uintptr, args ...uintptr) error {
	_, err := result(number, args...)
	return err
}

func result(number uintptr, args ...uintptr) (uintptr, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return 0, e
	}
	return r, nil
}

func descriptor(number uintptr, args ...uintptr) error {
	fd, err := result(number, args...)
	if err == nil {
		err = unix.Close(int(fd))
	}
	return err
}

func socket(domain, kind, protocol int) func(string) error {
	return func(string) error {
		return descriptor(unix.SYS_SOCKET, uintptr(domain), uintptr(kind), uintptr(protocol))
	}
}

// open opens a file and closes it.
func open(flags int) func(string) error {
	return func(path string) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
}

// page is memory that may be written, for what wants to make it executable.
func page() []byte {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return b
}

func protect(number uintptr, more ...uintptr) func(string) error {
	return func(string) error {
		b := page()
		return call(number, append([]uintptr{uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.PROT_READ | unix.PROT_EXEC}, more...)...)
	}
}

// child makes a process by a call that returns twice; the child ends at once.
func child(number uintptr, flags uintptr) func(string) error {
	return func(string) error {
		pid, _, e := unix.RawSyscall6(number, flags, 0, 0, 0, 0, 0)
		if e != 0 {
			return e
		}
		if pid == 0 {
			for {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
		var ws unix.WaitStatus
		_, err := unix.Wait4(int(pid), &ws, 0, nil)
		return err
	}
}

func memory(number uintptr) func(string) error {
	return func(string) error {
		from, to := make([]byte, 1), make([]byte, 1)
		local := unix.Iovec{Base: &to[0], Len: 1}
		remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&from[0])), Len: 1}
		return call(number, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	}
}

// threads makes as many at a time as it is told, or more than the runtime has
// idle.
func threads(arg string) error {
	many := 16
	if arg != "" {
		var err error
		if many, err = strconv.Atoi(arg); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	together := make(chan struct{})
	for range many {
		all.Add(1)
		go func() {
			runtime.LockOSThread()
			all.Done()
			<-together
		}()
	}
	all.Wait()
	close(together)
	return nil
}

var plugin *exec.Cmd

// attempts are named for what a guest that owns its host would want.
var attempts = map[string]func(string) error{
	"nothing": func(string) error { return nil },
	// Any call by its number, with arguments that no call can use.
	"number": func(arg string) error {
		n, err := strconv.ParseUint(arg, 0, 32)
		if err != nil {
			return err
		}
		const bad = ^uintptr(0)
		return call(uintptr(n), bad, bad, bad, bad, bad, bad)
	},
	"x32":      func(string) error { return call(0x40000000 | unix.SYS_GETPID) },
	"old-gate": func(string) error { return oldGate() },

	// A plugin: a program that is started in time and ended later.
	"start": func(path string) error { return exec.Command(path, "started").Run() },
	"start-waiting": func(path string) error {
		plugin = exec.Command(path, "waits")
		plugin.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return plugin.Start()
	},
	"end-waiting": func(string) error {
		err := errors.Join(unix.Kill(-plugin.Process.Pid, unix.SIGKILL), plugin.Process.Kill())
		if _, werr := plugin.Process.Wait(); err == nil {
			err = werr
		}
		return err
	},
	// Until whoever started this closes its input.
	"wait": func(string) error {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	},

	"exec": func(string) error { return unix.Exec("/proc/self/exe", []string{"probe", "started"}, nil) },
	"execveat": func(string) error {
		self, word := []byte("/proc/self/exe\x00"), []byte("started\x00")
		argv := []*byte{&self[0], &word[0], nil}
		return call(unix.SYS_EXECVEAT, 0, uintptr(unsafe.Pointer(&self[0])), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&argv[2])), 0)
	},
	"fork":          child(unix.SYS_FORK, 0),
	"clone-process": child(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
	"clone3":        func(string) error { return call(unix.SYS_CLONE3, 0, 0) },
	"threads":       threads,

	"map-executable": func(string) error {
		return call(unix.SYS_MMAP, 0, uintptr(os.Getpagesize()), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON, ^uintptr(0), 0)
	},
	"make-executable":      protect(unix.SYS_MPROTECT),
	"make-executable-pkey": protect(unix.SYS_PKEY_MPROTECT, ^uintptr(0)),
	"memfd": func(string) error {
		return descriptor(unix.SYS_MEMFD_CREATE, uintptr(unsafe.Pointer(&[]byte("x\x00")[0])), 0)
	},
	"personality": func(string) error { return call(unix.SYS_PERSONALITY, 0x0400000) },

	"trace":        func(string) error { return call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1<<30) }, // no number goes so far
	"read-memory":  memory(unix.SYS_PROCESS_VM_READV),
	"write-memory": memory(unix.SYS_PROCESS_VM_WRITEV),
	"own-memory":   func(string) error { return open(unix.O_RDWR)("/proc/self/mem") },
	"kill-parent":  func(string) error { return call(unix.SYS_KILL, uintptr(os.Getppid()), 0) },
	"tgkill-parent": func(string) error {
		return call(unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid()), 0)
	},
	"signal-itself": func(string) error { return call(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(unix.Gettid()), 0) },
	"end-parent":    func(string) error { return call(unix.SYS_KILL, uintptr(os.Getppid()), uintptr(unix.SIGKILL)) },
	"pidfd":         func(string) error { return descriptor(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0) },

	"unshare-user": func(string) error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWUTS) },
	"setns": func(string) error {
		fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
		if err != nil {
			fd = -1
		}
		return call(unix.SYS_SETNS, uintptr(fd), 0)
	},
	"mount":     func(string) error { return unix.Mount("none", "/nonexistent", "tmpfs", 0, "") },
	"chroot":    func(string) error { return unix.Chroot("/nonexistent") },
	"io_uring":  func(string) error { return call(unix.SYS_IO_URING_SETUP, 0, 0) },
	"bpf":       func(string) error { return call(unix.SYS_BPF, 0, 0, 0) },
	"userfault": func(string) error { return descriptor(unix.SYS_USERFAULTFD, 1) },
	"perf":      func(string) error { return call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0) },
	"keyring":   func(string) error { return call(unix.SYS_KEYCTL, 0, ^uintptr(0), 0) },
	"set-user":  func(string) error { return call(unix.SYS_SETUID, uintptr(os.Getuid())) },

	"dumpable": func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"thread-name": func(string) error {
		return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("probe\x00")[0])), 0, 0, 0)
	},
	"second-filter":   func(string) error { return call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0) },
	"type-into-tty":   func(string) error { return unix.IoctlSetPointerInt(0, unix.TIOCSTI, 'x') },
	"raise-limit":     func(string) error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) },
	"read-limit":      func(string) error { return unix.Getrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) },
	"async-signals":   func(string) error { _, err := unix.FcntlInt(0, unix.F_SETOWN, os.Getpid()); return err },
	"processor-clock": func(string) error { return unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &unix.Timespec{}) },

	"read":     open(unix.O_RDONLY),
	"write":    open(unix.O_WRONLY),
	"truncate": open(unix.O_WRONLY | unix.O_TRUNC),
	"create":   open(unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL),
	"list":     open(unix.O_RDONLY | unix.O_DIRECTORY),
	"mkdir":    func(path string) error { return unix.Mkdirat(unix.AT_FDCWD, path, 0o700) },
	"remove":   func(path string) error { return unix.Unlinkat(unix.AT_FDCWD, path, 0) },
	"symlink":  func(path string) error { return unix.Symlinkat("/etc", unix.AT_FDCWD, path) },
	"link":     func(path string) error { return unix.Linkat(unix.AT_FDCWD, path, unix.AT_FDCWD, path+".link", 0) },
	"rename":   func(path string) error { return unix.Renameat(unix.AT_FDCWD, path, unix.AT_FDCWD, path+".moved") },
	"link-into": func(pair string) error {
		from, to, _ := strings.Cut(pair, ",")
		return unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0)
	},
	"rename-into": func(pair string) error {
		from, to, _ := strings.Cut(pair, ",")
		return unix.Renameat(unix.AT_FDCWD, from, unix.AT_FDCWD, to)
	},
	"chmod": func(path string) error { return unix.Fchmodat(unix.AT_FDCWD, path, 0o777, 0) },
	"xattr": func(path string) error { return unix.Setxattr(path, "user.x", []byte("x"), 0) },
	"fifo":  func(path string) error { return unix.Mknod(path, unix.S_IFIFO|0o600, 0) },

	"tcp":        socket(unix.AF_INET, unix.SOCK_STREAM, 0),
	"tcp6":       socket(unix.AF_INET6, unix.SOCK_STREAM, 0),
	"udp":        socket(unix.AF_INET, unix.SOCK_DGRAM, 0),
	"unix":       socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
	"raw":        socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
	"packet":     socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
	"netlink":    socket(unix.AF_NETLINK, unix.SOCK_RAW, 0),
	"vsock":      socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"alg":        socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
	"socketpair": func(string) error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"connect":    connect,
	"bind": func(string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Close(fd))
	},
}

// connect makes a TCP connection and says which call failed.
func connect(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		var e syscall.Errno
		if errors.As(err, &e) {
			return e
		}
		return err
	}
	return c.Close()
}
