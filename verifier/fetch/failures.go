package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// retryEvery is how long an address that failed is left alone, while what came from
// it before still counts.
const retryEvery = time.Minute

// failures are notes, in a state directory, of the addresses that failed a moment ago.
// Without them every start would wait for a server that does not answer, although it
// has no need of it. They are a help only: what cannot be noted is tried again.
type failures string

// file is the one whose time is that of the last failure.
func (f failures) file(url string) string {
	sum := sha256.Sum256([]byte(url))
	return filepath.Join(string(f), ".tried-"+hex.EncodeToString(sum[:16]))
}

// recent tells whether an address failed a moment ago.
func (f failures) recent(url string, now time.Time) bool {
	info, err := os.Stat(f.file(url))
	if err != nil {
		return false
	}
	age := now.Sub(info.ModTime())
	return age >= 0 && age < retryEvery
}

// note takes a failure of a server down, or that there is none any more.
func (f failures) note(url string, failed error, now time.Time) {
	path := f.file(url)
	switch fault.ReasonOf(failed) {
	case "":
		_ = os.Remove(path)
	case fault.Unavailable, fault.RevocationUnknown:
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		_ = file.Close()
		_ = os.Chtimes(path, now, now)
	}
}
