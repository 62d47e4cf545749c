package wasi

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Errno is an error number of preview 1.
type Errno uint16

// The error numbers that are returned.
const (
	Success     Errno = 0
	TooBig      Errno = 1
	Access      Errno = 2
	Again       Errno = 6
	BadF        Errno = 8
	Busy        Errno = 10
	Canceled    Errno = 11
	Deadlock    Errno = 16
	Quota       Errno = 19
	Exist       Errno = 20
	Fault       Errno = 21
	FBig        Errno = 22
	IlSeq       Errno = 25
	Intr        Errno = 27
	Inval       Errno = 28
	IO          Errno = 29
	IsDir       Errno = 31
	Loop        Errno = 32
	MFile       Errno = 33
	MLink       Errno = 34
	NameTooLong Errno = 37
	NFile       Errno = 41
	NoDev       Errno = 43
	NoEnt       Errno = 44
	NoLock      Errno = 46
	NoMem       Errno = 48
	NoSpc       Errno = 51
	NoSys       Errno = 52
	NotDir      Errno = 54
	NotEmpty    Errno = 55
	NotSock     Errno = 57
	NotSup      Errno = 58
	NXIO        Errno = 60
	Overflow    Errno = 61
	Perm        Errno = 63
	Pipe        Errno = 64
	ROFS        Errno = 69
	SPipe       Errno = 70
	Stale       Errno = 72
	TimedOut    Errno = 73
	TxtBsy      Errno = 74
	XDev        Errno = 75

	// traps is no number of WASI's: the guest is to end.
	traps Errno = 0xffff
)

var errnos = map[unix.Errno]Errno{
	unix.E2BIG: TooBig, unix.EACCES: Access, unix.EAGAIN: Again, unix.EBADF: BadF, unix.EBUSY: Busy, unix.EDEADLK: Deadlock,
	unix.EDQUOT: Quota, unix.EEXIST: Exist, unix.EFAULT: Fault, unix.EFBIG: FBig, unix.EILSEQ: IlSeq, unix.EINTR: Intr,
	unix.EINVAL: Inval, unix.EIO: IO, unix.EISDIR: IsDir, unix.ELOOP: Loop, unix.EMFILE: MFile, unix.EMLINK: MLink,
	unix.ENAMETOOLONG: NameTooLong, unix.ENFILE: NFile, unix.ENODEV: NoDev, unix.ENOENT: NoEnt, unix.ENOLCK: NoLock,
	unix.ENOMEM: NoMem, unix.ENOSPC: NoSpc, unix.ENOSYS: NoSys, unix.ENOTDIR: NotDir, unix.ENOTEMPTY: NotEmpty,
	unix.EOPNOTSUPP: NotSup, unix.ENXIO: NXIO, unix.EOVERFLOW: Overflow, unix.EPERM: Perm, unix.EPIPE: Pipe, unix.EROFS: ROFS,
	unix.ESPIPE: SPipe, unix.ESTALE: Stale, unix.ETIMEDOUT: TimedOut, unix.ETXTBSY: TxtBsy, unix.EXDEV: XDev,
}

// errnoOf is what a guest is told of an error of the system's.
func errnoOf(err error) Errno {
	if err == nil {
		return Success
	}
	var e unix.Errno
	if errors.As(err, &e) {
		if n, ok := errnos[e]; ok {
			return n
		}
	}
	return IO
}
