package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest/module"
)

// What a fuzzed parameter can be.
const (
	pickByte    = iota // a small number
	pickOpened         // what an earlier call put into a place for numbers
	pickNumbers        // such a place
	pickRoom           // memory that is the guest's
	pickPath           // a path, in two parameters
	pickEdge           // memory at the end of what the guest has
	pickWhole          // any number
	picks
)

// fuzzedScript makes calls of bytes: the function, then for each parameter what it
// is to be and which of it.
func fuzzedScript(in []byte) *calls {
	const most, places = 100, 8
	s := new(calls)
	numbers, room := s.room(8*places), s.room(8<<10)
	paths := trickyPaths()
	next := func() int {
		if len(in) == 0 {
			return 0
		}
		b := in[0]
		in = in[1:]
		return int(b)
	}
	var functions []module.Function
	for _, f := range module.ABI {
		if f.Module == module.ModuleWASI && f.Name != "proc_exit" {
			functions = append(functions, f)
		}
	}
	for len(in) > 0 && len(s.names) < most {
		f := functions[next()%len(functions)]
		var args []any
		n := len(f.Types[0].Params)
		for i := 0; i < n; i++ {
			what, which := next()%picks, next()
			switch {
			case what == pickOpened:
				args = append(args, ref(numbers+8*uint32(which%places)))
			case what == pickNumbers:
				args = append(args, numbers+8*uint32(which%places))
			case what == pickRoom:
				args = append(args, room+32*uint32(which))
			case what == pickPath && i+1 < n:
				args = append(args, paths[which%len(paths)])
				i++
			case what == pickEdge:
				args = append(args, uint32(scriptPages<<16-which))
			case what == pickWhole:
				var v [8]byte
				for j := range v {
					v[j] = byte(next())
				}
				args = append(args, binary.LittleEndian.Uint64(v[:]))
			default:
				args = append(args, which)
			}
		}
		if len(s.data) > 100<<10 {
			break
		}
		s.call(f.Name, args...)
	}
	return s
}

// oneCall is the bytes of one call: the function, and pairs of what and which.
func oneCall(name string, args ...byte) []byte {
	i := 0
	for _, f := range module.ABI {
		if f.Module != module.ModuleWASI || f.Name == "proc_exit" {
			continue
		}
		if f.Name == name {
			return append([]byte{byte(i)}, args...)
		}
		i++
	}
	panic(name)
}

func pathSeed(path string) byte { return byte(slices.Index(trickyPaths(), path)) }

// heldOf tells what of a yard a guest must not change: all that is outside, and a
// directory that it may only read.
func heldOf(t *testing.T, root string) string {
	t.Helper()
	text := ""
	for _, name := range []string{"canary", "shut"} {
		text += listing(t, filepath.Join(root, name))
	}
	for _, name := range []string{"canary/secret", "shut/file", "shut"} {
		st, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintln(name, st.ModTime(), st.Mode())
	}
	return text
}

// FuzzWhatAGuestCallsStaysInside: whatever calls of WASI a guest makes, in whatever
// order, it ends by itself, by a trap or by its deadline, and the host does not fail;
// nothing outside of its directories is changed, nothing in one that it may only
// read, and no descriptor stays.
func FuzzWhatAGuestCallsStaysInside(f *testing.F) {
	open := func(dir, oflags, rights, to byte, path string) []byte {
		return oneCall("path_open", pickByte, dir, pickByte, 1, pickPath, pathSeed(path), pickByte, oflags, pickByte, rights, pickByte, rights, pickByte, 0, pickNumbers, to)
	}
	link := oneCall("path_symlink", pickPath, pathSeed("../canary/secret"), pickByte, 3, pickPath, pathSeed("new"))
	for _, calls := range [][][]byte{
		{},
		{open(3, create, canRead|canWrite, 0, "new"), oneCall("fd_write", pickOpened, 0, pickRoom, 0, pickByte, 3, pickNumbers, 1), oneCall("fd_seek", pickOpened, 0, pickByte, 0, pickByte, 0, pickNumbers, 1), oneCall("fd_read", pickOpened, 0, pickRoom, 0, pickByte, 3, pickNumbers, 1)},
		{link, open(3, truncate, canWrite, 0, "new"), oneCall("fd_write", pickOpened, 0, pickRoom, 0, pickByte, 3, pickNumbers, 1)},
		{open(4, truncate, canWrite, 0, "file"), open(4, 0, canRead, 0, "file"), oneCall("fd_filestat_set_size", pickOpened, 0, pickByte, 0)},
		{oneCall("path_rename", pickByte, 3, pickPath, pathSeed("file"), pickByte, 4, pickPath, pathSeed("new")), oneCall("path_link", pickByte, 4, pickByte, 0, pickPath, pathSeed("file"), pickByte, 3, pickPath, pathSeed("new"))},
		{open(3, 0, canRead, 0, "file"), oneCall("fd_renumber", pickOpened, 0, pickByte, 3), oneCall("fd_pread", pickByte, 3, pickEdge, 8, pickByte, 1, pickByte, 0, pickNumbers, 1), oneCall("fd_close", pickByte, 3), oneCall("fd_read", pickByte, 3, pickRoom, 0, pickByte, 1, pickNumbers, 1)},
		{open(3, 0, canRead, 0, "file"), oneCall("fd_read", pickOpened, 0, pickEdge, 7, pickByte, 1, pickNumbers, 1)},
		{oneCall("fd_readdir", pickByte, 3, pickRoom, 0, pickByte, 200, pickWhole, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, pickNumbers, 1)},
		{oneCall("poll_oneoff", pickRoom, 0, pickRoom, 100, pickByte, 3, pickNumbers, 1)},
		{oneCall("path_filestat_set_times", pickByte, 4, pickByte, 1, pickPath, pathSeed("out"), pickByte, 1, pickByte, 1, pickByte, 5)},
	} {
		f.Add(bytes.Join(calls, nil))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := fuzzedScript(in)
		root := yard(t)
		shut := filepath.Join(root, "shut")
		if err := errors.Join(os.MkdirAll(filepath.Join(shut, "dir"), 0o700), os.WriteFile(filepath.Join(shut, "file"), []byte("shut"), 0o600), os.Symlink("../canary/secret", filepath.Join(shut, "out"))); err != nil {
			t.Fatal(err)
		}
		before, open := heldOf(t, root), len(descriptors(t))
		doc := document(t, scriptGuest())
		doc.Preopens = []hostdoc.Preopen{{Host: filepath.Join(root, "granted"), Guest: "/data"}, {Host: shut, Guest: "/shut", ReadOnly: true}}
		doc.Limits.DeadlineMillis = 500 // one may ask to wait
		var out bytes.Buffer
		p, err := Load(doc, Options{})
		if err != nil {
			t.Fatal(err)
		}
		exit, _ := p.Run(t.Context(), IO{Input: bytes.NewReader(s.bytes()), Sink: output.NewRaw(&out)})
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		switch fault.Reason(exit.Reason) {
		case "", fault.Trap, fault.Deadline, fault.ResourceLimit:
		default:
			t.Errorf("ended with %+v", exit)
		}
		if now := heldOf(t, root); now != before {
			t.Errorf("what is held was\n%s, now\n%s", before, now)
		}
		eventually(t, "no more descriptors are open than before", func() bool { return len(descriptors(t)) <= open })
	})
}
