package wasi

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/internal/engine"
)

// lone is a host that gives nothing and serves no file.
type lone struct{}

func (lone) Read([]byte, bool) (int, Errno)  { return 0, Success }
func (lone) Write(int, []byte) Errno         { return Success }
func (lone) Wait(time.Duration, bool) bool   { return true }
func (lone) Over() bool                      { return false }
func (lone) ServeFile(int, int, bool, bool)  {}
func (lone) ForgetFile(int)                  {}
func (lone) RefusedBy() (none syscall.Errno) { return none }
func u32s(list ...uint32) (v []engine.Value) {
	for _, n := range list {
		var one engine.Value
		one.SetI64(int64(n))
		v = append(v, one)
	}
	return v
}

// Descriptors are the process's: when guests have their half of them, the next one
// is told so, whoever it is, and one that is closed is there again.
func TestGuestsShareHalfOfTheProcesssDescriptors(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(root+"/file", []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := Config{Preopens: []Preopen{{Dir: d, Guest: "/data"}}}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	g := New(c, lone{}, lone{})
	memory := make([]byte, 4096)
	copy(memory[100:], "file")
	call := func(f Function, args ...uint32) Errno {
		t.Helper()
		e, outside := g.Serve(f, Call{Values: u32s(args...), Memory: memory})
		if outside != nil {
			t.Fatalf("outside: %+v", outside)
		}
		return e
	}
	open := func() Errno { return call(pathOpen, 3, 0, 100, 4, 0, rightRead, 0, 0, 0) }
	before := held.Load()
	taken := mostHeld() - before - 1
	held.Add(taken)
	defer held.Add(-taken)
	if e := open(); e != Success {
		t.Fatalf("the last one: %d", e)
	}
	number := le.Uint32(memory)
	if e := open(); e != NFile {
		t.Errorf("one more: %d, want %d", e, NFile)
	}
	if e := call(fdReaddir, 3, 200, 1000, 0, 8); e != NFile {
		t.Errorf("a place in a preopen: %d, want %d", e, NFile)
	}
	if e := call(fdClose, number); e != Success {
		t.Errorf("closing: %d", e)
	}
	if e := call(fdReaddir, 3, 200, 1000, 0, 8); e != Success {
		t.Errorf("after one was closed: %d", e)
	}
	g.Close()
	if now := held.Load() - taken; now != before {
		t.Errorf("%d are counted after the end, before %d", now, before)
	}
}
