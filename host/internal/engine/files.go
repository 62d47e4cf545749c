package engine

/*
#include "engine.h"
*/
import "C"

import (
	"syscall"

	"github.com/mentatlab/mentat/internal/limits"
)

// Both sides count the same.
var _ = [1]struct{}{}[limits.GuestFiles-C.MT_FILES]

// ServeFile lets the guest read and write the regular file fd under a number
// below [limits.GuestFiles] without the host. The file must stay open until it is
// forgotten. Like the guest's other calls it belongs to the goroutine that runs the
// guest.
func (r *Run) ServeFile(number, fd int, read, write bool) {
	f := C.struct_mt_file{fd: C.int(fd)}
	if read {
		f.may |= C.MT_MAY_READ
	}
	if write {
		f.may |= C.MT_MAY_WRITE
	}
	r.p.files[number] = f
}

// ForgetFile ends what [Run.ServeFile] began.
func (r *Run) ForgetFile(number int) { r.p.files[number] = C.struct_mt_file{} }

// RefusedBy is what the system said to a call for a file that therefore comes to
// the host, 0 if it came for another reason. It is told once.
func (r *Run) RefusedBy() syscall.Errno {
	e := syscall.Errno(r.p.io_error)
	r.p.io_error = 0
	return e
}
