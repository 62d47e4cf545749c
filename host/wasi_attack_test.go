package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// One grant's directory can lie in another's, where an earlier run could make
// links. With /proc as its directory a guest would write the host's memory.
func TestAGrantIsNotLedElsewhereByALink(t *testing.T) {
	work := t.TempDir()
	if err := os.Mkdir(filepath.Join(work, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"proc": "/proc", "root": "/", "up": "..", "real/in": "..", "dangling": "/nonexistent"} {
		if err := os.Symlink(to, filepath.Join(work, link)); err != nil {
			t.Fatal(err)
		}
	}
	grant := func(host string) func(*hostdoc.Document) {
		return asCommand(func(d *hostdoc.Document) { d.Preopens = []hostdoc.Preopen{{Host: host, Guest: "/data"}} })
	}
	guest := command(`(call $proc_exit (i32.const 0))`)
	setup{wat: guest, edit: grant(work + "/real")}.run(t).wants(t, 0, "")
	setup{wat: guest, edit: grant(work + "/real/../real/")}.run(t).wants(t, 0, "")
	for _, host := range []string{"proc", "proc/self", "root", "root/etc", "up", "real/in", "dangling", "proc/self/fd"} {
		setup{wat: guest, edit: grant(filepath.Join(work, host))}.run(t).wants(t, fault.ExitHostFailure, fault.Internal)
	}
}

// The exit is told in files that others may have a hand in.
func TestTheExitIsNotWrittenThroughALinkNorIntoAPipe(t *testing.T) {
	dir := t.TempDir()
	victim, link, pipe := filepath.Join(dir, "victim"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	err := errors.Join(os.WriteFile(victim, []byte("as it was"), 0o600), os.Symlink(victim, link), unix.Mkfifo(pipe, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, pipe} {
		done := make(chan error, 1)
		go func() {
			done <- Report(&hostdoc.Document{ExitFile: path, Termination: path}, hostdoc.Exit{Status: 1, Message: "m"})
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s: was written", path)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: waits", path)
		}
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "as it was" {
		t.Errorf("%q, %v", data, err)
	}
}
