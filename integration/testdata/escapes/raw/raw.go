//go:build wasip1

// Package raw is the guest's side of WASI and of the mentat ABI as it is, with no
// library between that would be too polite.
package raw

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"
)

//go:wasmimport wasi_snapshot_preview1 path_open
func pathOpen(fd int32, lookup int32, path unsafe.Pointer, n uint32, open int32, rights, inherited uint64, flags int32, out unsafe.Pointer) int32

//go:wasmimport wasi_snapshot_preview1 fd_read
func fdRead(fd int32, iovs unsafe.Pointer, n uint32, out unsafe.Pointer) int32

//go:wasmimport wasi_snapshot_preview1 fd_write
func fdWrite(fd int32, iovs unsafe.Pointer, n uint32, out unsafe.Pointer) int32

//go:wasmimport wasi_snapshot_preview1 fd_close
func fdClose(fd int32) int32

//go:wasmimport wasi_snapshot_preview1 fd_filestat_set_size
func fdSetSize(fd int32, size uint64) int32

//go:wasmimport wasi_snapshot_preview1 fd_filestat_set_times
func fdSetTimes(fd int32, atime, mtime uint64, flags int32) int32

//go:wasmimport wasi_snapshot_preview1 path_filestat_set_times
func pathSetTimes(fd int32, lookup int32, path unsafe.Pointer, n uint32, atime, mtime uint64, flags int32) int32

//go:wasmimport wasi_snapshot_preview1 path_rename
func pathRename(fd int32, from unsafe.Pointer, nfrom uint32, to int32, name unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 path_link
func pathLink(fd int32, lookup int32, from unsafe.Pointer, nfrom uint32, to int32, name unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 path_symlink
func pathSymlink(old unsafe.Pointer, nold uint32, fd int32, name unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 path_unlink_file
func pathUnlink(fd int32, path unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 path_remove_directory
func pathRmdir(fd int32, path unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 path_create_directory
func pathMkdir(fd int32, path unsafe.Pointer, n uint32) int32

//go:wasmimport wasi_snapshot_preview1 fd_prestat_get
func prestat(fd int32, out unsafe.Pointer) int32

//go:wasmimport wasi_snapshot_preview1 fd_prestat_dir_name
func prestatName(fd int32, path unsafe.Pointer, n uint32) int32

//go:wasmimport mentat request_capability
func requestCapability(name unsafe.Pointer, n uint32, args unsafe.Pointer, nargs uint32) int32

//go:wasmimport mentat invoke_capability
func invokeCapability(cap int32, op unsafe.Pointer, nop uint32, req unsafe.Pointer, nreq uint32) int32

//go:wasmimport mentat read
func read(h int32, ptr unsafe.Pointer, n uint32) int32

//go:wasmimport mentat close
func closeHandle(h int32) int32

//go:wasmimport mentat last_error
func lastError() int32

func ptr(s string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(s)), uint32(len(s))
}

// Flags of path_open, and WASI's rights to read and to write.
const (
	Create, Directory, Exclusive, Truncate = 1, 2, 4, 8
	Read, Write                            = 1 << 1, 1<<1 | 1<<6
	All                                    = 1<<30 - 1
)

// Preopened is the descriptor of a directory by the guest's name for it.
func Preopened(name string) int32 {
	for fd := int32(3); ; fd++ {
		var stat [2]uint32
		if prestat(fd, unsafe.Pointer(&stat)) != 0 {
			fmt.Println("there is no directory", name)
			os.Exit(70)
		}
		got := make([]byte, stat[1])
		if prestatName(fd, unsafe.Pointer(&got[0]), stat[1]) == 0 && string(got) == name {
			return fd
		}
	}
}

// Open returns a descriptor, or the negated errno.
func Open(fd int32, path string, follow bool, open int32, rights uint64) int32 {
	var out, lookup int32
	if follow {
		lookup = 1
	}
	p, n := ptr(path)
	if e := pathOpen(fd, lookup, p, n, open, rights, All, 0, unsafe.Pointer(&out)); e != 0 {
		return -e
	}
	return out
}

func Close(fd int32) int32 { return fdClose(fd) }

// Content reads a descriptor's first bytes, or "".
func Content(fd int32) string {
	buf := make([]byte, 256)
	iov := [2]uint32{uint32(uintptr(unsafe.Pointer(&buf[0]))), uint32(len(buf))}
	var n uint32
	if fdRead(fd, unsafe.Pointer(&iov), 1, unsafe.Pointer(&n)) != 0 {
		return ""
	}
	return string(buf[:n])
}

// Put writes a byte to a descriptor.
func Put(fd int32) int32 {
	buf := []byte("x")
	iov := [2]uint32{uint32(uintptr(unsafe.Pointer(&buf[0]))), 1}
	var n uint32
	return fdWrite(fd, unsafe.Pointer(&iov), 1, unsafe.Pointer(&n))
}

func SetSize(fd int32, size uint64) int32 { return fdSetSize(fd, size) }

func SetTimes(fd int32) int32 { return fdSetTimes(fd, 1, 1, 1|4) }

func PathSetTimes(fd int32, path string) int32 {
	p, n := ptr(path)
	return pathSetTimes(fd, 1, p, n, 1, 1, 1|4)
}

func Rename(fd int32, from string, to int32, name string) int32 {
	a, na := ptr(from)
	b, nb := ptr(name)
	return pathRename(fd, a, na, to, b, nb)
}

func Link(fd int32, follow bool, from string, to int32, name string) int32 {
	a, na := ptr(from)
	b, nb := ptr(name)
	var lookup int32
	if follow {
		lookup = 1
	}
	return pathLink(fd, lookup, a, na, to, b, nb)
}

func Symlink(old string, fd int32, name string) int32 {
	a, na := ptr(old)
	b, nb := ptr(name)
	return pathSymlink(a, na, fd, b, nb)
}

func Unlink(fd int32, path string) int32 {
	p, n := ptr(path)
	return pathUnlink(fd, p, n)
}

func Rmdir(fd int32, path string) int32 {
	p, n := ptr(path)
	return pathRmdir(fd, p, n)
}

func Mkdir(fd int32, path string) int32 {
	p, n := ptr(path)
	return pathMkdir(fd, p, n)
}

// Request opens a capability, or returns the code.
func Request(name string) int32 {
	p, n := ptr(name)
	return requestCapability(p, n, nil, 0)
}

// Invoke calls a capability and returns its answer, or the detail of the error.
func Invoke(cap int32, op, head string) (answer string, ok bool) {
	frame := append(binary.LittleEndian.AppendUint32(nil, uint32(len(head))), head...)
	o, n := ptr(op)
	h := invokeCapability(cap, o, n, unsafe.Pointer(&frame[0]), uint32(len(frame)))
	if h < 0 {
		return Detail(), false
	}
	defer closeHandle(h)
	text, ok := all(h)
	if !ok {
		return Detail(), false
	}
	return text, true
}

// Detail is what last_error says.
func Detail() string {
	h := lastError()
	if h < 0 {
		return ""
	}
	defer closeHandle(h)
	text, _ := all(h)
	return text
}

func all(h int32) (string, bool) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n := read(h, unsafe.Pointer(&buf[0]), uint32(len(buf)))
		if n < 0 {
			return "", false
		}
		if n == 0 {
			return string(text), true
		}
		text = append(text, buf[:n]...)
	}
}
