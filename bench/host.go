package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/aot"
	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// busybox is Debian's busybox-static.
const busybox = "/bin/busybox"

// idleRuns bounds the runs that wait a second each.
const idleRuns = 5

// hostProgram is a host by itself, without a container around it, with a cache of
// its own.
type hostProgram struct {
	dir, program string
	cache        *aot.Cache
}

func newHost(m *machine, dir, program string) (*hostProgram, error) {
	h := &hostProgram{dir: filepath.Join(m.dir, dir)}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		return nil, err
	}
	// A copy, so that no other host on the machine shares its pages and makes an
	// idle one look smaller than it is.
	bin, _ := node.Binaries()
	h.program = filepath.Join(h.dir, program)
	if err := copyProgram(filepath.Join(bin, program), h.program); err != nil {
		return nil, err
	}
	var err error
	h.cache, err = aot.Open(aot.Options{Dir: filepath.Join(h.dir, "modules"), Memory: filepath.Join(h.dir, "checked"), HostBinary: h.program})
	return h, err
}

// command compiles a module and writes the document of its runs; it is the
// command line of a program that runs it, locked as in a container.
func (h *hostProgram) command(ctx context.Context, program, name string, module []byte, edit func(*hostdoc.Document)) ([]string, error) {
	entry, err := h.cache.Module(ctx, digest.FromBytes(module), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(module)), nil
	})
	if err != nil {
		return nil, err
	}
	doc := hostdoc.Document{
		Agent:    hostdoc.Agent{ID: "org.example." + name, Version: "1.0.0", Module: digest.FromBytes(module).String(), Trust: "signed"},
		Instance: name, Module: entry.Path, Input: hostdoc.Input{Kind: hostdoc.InputStdin}, Args: []string{"agent.wasm"},
		Limits:   hostdoc.Limits{MemoryBytes: limits.DefaultGuestMemory, InputBytes: limits.InputBytes, OutputBytes: limits.OutputBytes},
		ExitFile: filepath.Join(h.dir, name+".exit"), LogFormat: "json",
	}
	if edit != nil {
		edit(&doc)
	}
	path := filepath.Join(h.dir, name+".json")
	doc.Lock = doc.LeastLock(path)
	data, err := doc.Marshal()
	if err != nil {
		return nil, err
	}
	return hostdoc.Command(program, path, doc.Lock), os.WriteFile(path, data, 0o600)
}

// measureHost runs mentat-host by itself, without a container around it, on
// modules that the cache has compiled.
func measureHost(ctx context.Context, m *machine, pairs int) ([]Result, error) {
	h, err := newHost(m, "host", "mentat-host")
	if err != nil {
		return nil, err
	}
	first, err := h.command(ctx, h.program, "first", guestFirst, nil)
	if err != nil {
		return nil, err
	}
	var ours, floor []float64
	for i := range 10 * (pairs + 1) {
		a, err := firstByte(exec.CommandContext(ctx, first[0], first[1:]...))
		if err != nil {
			return nil, err
		}
		b, err := firstByte(exec.CommandContext(ctx, busybox, "echo", "x"))
		if err != nil {
			return nil, err
		}
		if i >= 10 { // the first ones warm the page cache
			ours, floor = append(ours, a), append(floor, b)
		}
	}
	results := []Result{result("mentat-host: exec to first output, warm", "ms", ours).goal(median, 5).
		versus("busybox echo, statically linked C", ours, floor)}
	for _, guest := range []struct {
		name, title string
		module      []byte
	}{
		{"idle", "mentat-host: PSS idle in read, 1 s after start", guestIdle},
		{"idle-wasi", "mentat-host: the same, WASI command in fd_read", guestIdleWASI},
	} {
		words, err := h.command(ctx, h.program, guest.name, guest.module, nil)
		if err != nil {
			return results, err
		}
		var sizes []float64
		for range min(pairs, idleRuns) {
			size, err := idlePSS(exec.CommandContext(ctx, words[0], words[1:]...))
			if err != nil {
				return results, err
			}
			sizes = append(sizes, size)
		}
		results = append(results, result(guest.title, "MB", sizes).goal(median, 3))
	}
	return results, nil
}

func copyProgram(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // a program
}

// firstByte is the time from before a program is started to the first byte of
// its output, in milliseconds.
func firstByte(cmd *exec.Cmd) (float64, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, readErr := out.Read(make([]byte, 64))
	took := time.Since(begin)
	if err := cmd.Wait(); err != nil || n == 0 {
		return 0, fmt.Errorf("%s: %w\n%s", cmd.Path, errors.Join(err, readErr), stderr.Bytes())
	}
	return millis(took), nil
}

// idlePSS is the proportional set size of a program that waits for its input,
// a second after its start, in megabytes of 10^6 bytes.
func idlePSS(cmd *exec.Cmd) (size float64, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		if e := errors.Join(in.Close(), cmd.Wait()); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w\n%s", cmd.Path, e, stderr.Bytes()))
		}
	}()
	time.Sleep(time.Second)
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "Pss:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, errors.New("the kernel reports no PSS")
}
