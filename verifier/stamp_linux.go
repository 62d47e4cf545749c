package verifier

import (
	"fmt"
	"io/fs"
	"syscall"
)

// inode is what a file's size and time do not tell: they can be set at will.
func inode(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf(" %d %d %d.%09d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
}
