//go:build unix

package keyfile

import (
	"io/fs"
	"os"
	"syscall"
)

// mine tells whether the file is the running user's.
func mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
