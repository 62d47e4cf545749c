package lock

import "golang.org/x/sys/unix"

// Verdict is what becomes of a system call.
type Verdict string

const (
	// Allow lets the call through.
	Allow Verdict = "allow"
	// Refuse answers with EPERM: something the host's own code may try and can
	// do without.
	Refuse Verdict = "EPERM"
	// Unknown answers with ENOSYS, as a kernel would that does not have the call;
	// libraries then take another way. It is the answer to every call that is not
	// in the table.
	Unknown Verdict = "ENOSYS"
	// Kill ends the whole process with SIGSYS, status 159: nothing in the host
	// would ever ask for that.
	Kill Verdict = "kill"
)

// Call is one row of the table: system calls with one purpose.
type Call struct {
	// What the calls are for, or would be for.
	What    string
	Verdict Verdict
	Numbers []uint32
	// When names a right of the lock without which Verdict does not hold, and
	// Else does; empty is always.
	When Right
	// If are conditions on the arguments, all of which must hold for Verdict; else
	// the answer is Else. Only says the same in words.
	If   []Condition
	Only string
	Else Verdict
}

// Right is what a lock may leave to the process.
type Right string

// The rights of [hostdoc.Lock]. Network is Dial or Listen.
const (
	Dial    Right = "dial"
	Listen  Right = "listen"
	Network Right = "dial or listen"
	Plugins Right = "plugins"
)

// Condition holds when a 32-bit half of an argument, masked, is one of Values.
type Condition struct {
	// Half is the half's number: twice the argument's number from 0, plus 1 for
	// its upper half.
	Half   int
	Mask   uint32
	Values []uint32
}

func low(argument int) int  { return 2 * argument }
func high(argument int) int { return 2*argument + 1 }

const whole = ^uint32(0)

// threadFlags are the flags with which the C library makes a thread (CLONE_VM to
// CLONE_CHILD_CLEARTID). A process, or a thread in a namespace of its own, has
// others.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD |
	unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// Own stands in [Condition.Values] for the process's own number.
const Own = ^uint32(0) - 1

// Calls is the filter, as it was measured with the engine, Go's runtime and the
// C library.
var Calls = []Call{
	{What: "memory that is not executable", Verdict: Allow, Numbers: []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT},
		If: []Condition{{low(2), unix.PROT_EXEC, []uint32{0}}}, Only: "without PROT_EXEC", Else: Kill},
	{What: "memory", Verdict: Allow, Numbers: []uint32{unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MADVISE, unix.SYS_BRK}},
	{What: "threads", Verdict: Allow, Numbers: []uint32{unix.SYS_CLONE},
		If: []Condition{{low(0), whole, []uint32{threadFlags}}}, Only: "a thread of this process", Else: Kill},
	// Its flags are in memory, where no filter sees them. The C library falls back.
	{What: "clone with flags out of sight", Verdict: Unknown, Numbers: []uint32{unix.SYS_CLONE3}},
	{What: "the life of a thread", Verdict: Allow, Numbers: []uint32{
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_FUTEX, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SCHED_YIELD,
		unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_RESTART_SYSCALL,
	}},
	{What: "names of threads and of memory", Verdict: Allow, Numbers: []uint32{unix.SYS_PRCTL},
		If: []Condition{{low(0), whole, []uint32{unix.PR_SET_NAME, unix.PR_SET_VMA}}}, Only: "PR_SET_NAME, PR_SET_VMA", Else: Refuse},
	{What: "signals within the process", Verdict: Allow, Numbers: []uint32{
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	}},
	{What: "signals to itself", Verdict: Allow, Numbers: []uint32{unix.SYS_TGKILL},
		If: []Condition{{low(0), whole, []uint32{Own}}}, Only: "to this process", Else: Kill},
	{What: "clocks and waiting", Verdict: Allow, Numbers: []uint32{
		unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_TIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_NANOSLEEP,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_EVENTFD2,
	}},
	{What: "who it is", Verdict: Allow, Numbers: []uint32{
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_UNAME, unix.SYS_GETRUSAGE, unix.SYS_GETRLIMIT, unix.SYS_GETCPU, unix.SYS_GETRANDOM,
	}},
	{What: "reading its limits", Verdict: Allow, Numbers: []uint32{unix.SYS_PRLIMIT64},
		If: []Condition{{low(2), whole, []uint32{0}}, {high(2), whole, []uint32{0}}}, Only: "to read", Else: Refuse},
	{What: "files, within the paths of the lock", Verdict: Allow, Numbers: []uint32{
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_NEWFSTATAT, unix.SYS_READLINKAT,
		unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_UTIMENSAT, unix.SYS_GETDENTS64,
	}},
	{What: "open descriptors", Verdict: Allow, Numbers: []uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
		unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_FTRUNCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FADVISE64, unix.SYS_FLOCK, unix.SYS_PIPE2, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_SPLICE,
	}},
	{What: "flags of descriptors", Verdict: Allow, Numbers: []uint32{unix.SYS_FCNTL}, If: []Condition{{low(1), whole, []uint32{
		unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_SETPIPE_SZ, unix.F_GETPIPE_SZ,
	}}}, Only: "flags, F_DUPFD_CLOEXEC, the size of a pipe", Else: Refuse},
	// Not TIOCSTI, which types into the terminal of whoever started the run.
	{What: "asking whether a descriptor is a terminal", Verdict: Allow, Numbers: []uint32{unix.SYS_IOCTL},
		If: []Condition{{low(1), whole, []uint32{unix.TCGETS}}}, Only: "TCGETS", Else: Refuse},

	{What: "opening a socket", Verdict: Allow, Numbers: []uint32{unix.SYS_SOCKET}, When: Dial, If: []Condition{
		{low(0), whole, []uint32{unix.AF_INET, unix.AF_INET6}}, {low(1), 0xf, []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM}},
	}, Only: "TCP and UDP", Else: Refuse},
	{What: "connecting", Verdict: Allow, Numbers: []uint32{unix.SYS_CONNECT}, When: Dial, Else: Refuse},
	{What: "accepting a connection", Verdict: Allow, Numbers: []uint32{unix.SYS_ACCEPT4}, When: Listen, Else: Refuse},
	{What: "using a connection", Verdict: Allow, Numbers: []uint32{
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_SHUTDOWN,
		unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG,
	}, When: Network, Else: Refuse},
	{What: "other sockets", Verdict: Refuse, Numbers: []uint32{unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT}},

	{What: "waiting for a plugin that was started before", Verdict: Allow, Numbers: []uint32{unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_PIDFD_SEND_SIGNAL},
		When: Plugins, Else: Refuse},
	// Landlock and the namespace of processes leave nobody else to be ended.
	{What: "ending a plugin", Verdict: Allow, Numbers: []uint32{unix.SYS_KILL}, When: Plugins,
		If: []Condition{{low(1), whole, []uint32{uint32(unix.SIGKILL)}}}, Only: "by SIGKILL", Else: Kill},

	{What: "starting a program or a process", Verdict: Kill, Numbers: []uint32{unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_FORK, unix.SYS_VFORK}},
	{What: "executable memory by other ways", Verdict: Kill, Numbers: []uint32{
		unix.SYS_PKEY_MPROTECT, unix.SYS_REMAP_FILE_PAGES, unix.SYS_SHMAT, unix.SYS_PERSONALITY, unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET, unix.SYS_USELIB,
		unix.SYS_MODIFY_LDT,
	}},
	{What: "other processes", Verdict: Kill, Numbers: []uint32{
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
		unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	}},
	{What: "namespaces and mounts", Verdict: Kill, Numbers: []uint32{
		unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
		unix.SYS_OPEN_TREE_ATTR, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_MKNOD, unix.SYS_MKNODAT,
	}},
	{What: "rights", Verdict: Kill, Numbers: []uint32{
		unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID,
		unix.SYS_SETGROUPS, unix.SYS_CAPSET,
	}},
	{What: "the kernel's wide interfaces", Verdict: Kill, Numbers: []uint32{
		unix.SYS_BPF, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_USERFAULTFD, unix.SYS_PERF_EVENT_OPEN,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	}},
	{What: "the machine", Verdict: Kill, Numbers: []uint32{
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
		unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SYSLOG, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME,
		unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
	}},
	// Landlock does not hold these (yet), and a file that is only to be read is no
	// less its owner's.
	{What: "owners, modes and attributes of files", Verdict: Refuse, Numbers: []uint32{
		unix.SYS_CHMOD, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_CHOWN, unix.SYS_FCHOWN, unix.SYS_LCHOWN, unix.SYS_FCHOWNAT,
		unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT,
	}},
	{What: "directories of the process", Verdict: Refuse, Numbers: []uint32{unix.SYS_CHDIR, unix.SYS_FCHDIR}},
	{What: "scheduling", Verdict: Refuse, Numbers: []uint32{
		unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETATTR, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET,
		unix.SYS_SETRLIMIT,
	}},
}
