package audit

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
)

// few tells without reading the directory that there are not too many runs: most
// file systems count a directory's directories in its links. False is no word.
func (s Spools) few() (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(string(s), runDir), &st); err != nil {
		return false, err
	}
	return st.Nlink >= 2 && st.Nlink-2 <= limits.AuditRuns, nil
}
