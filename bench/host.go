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

// measureHost runs mentat-host by itself, without a container around it, on
// modules that the cache has compiled.
func measureHost(ctx context.Context, m *machine, pairs int) ([]Result, error) {
	dir := filepath.Join(m.dir, "host")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	// A copy, so that no other mentat-host on the machine shares its pages and
	// makes an idle one look smaller than it is.
	bin, _ := node.Binaries()
	host := filepath.Join(dir, "mentat-host")
	if err := copyProgram(filepath.Join(bin, "mentat-host"), host); err != nil {
		return nil, err
	}
	cache, err := aot.Open(aot.Options{Dir: filepath.Join(dir, "modules"), Memory: filepath.Join(dir, "checked"), HostBinary: host})
	if err != nil {
		return nil, err
	}
	// command is the host's command line for a module, locked as in a container.
	command := func(name string, module []byte) ([]string, error) {
		entry, err := cache.Module(ctx, digest.FromBytes(module), func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(module)), nil
		})
		if err != nil {
			return nil, err
		}
		path, exit := filepath.Join(dir, name+".json"), filepath.Join(dir, name+".exit")
		if err := os.WriteFile(exit, nil, 0o600); err != nil {
			return nil, err
		}
		doc := hostdoc.Document{
			Agent:    hostdoc.Agent{ID: "org.example." + name, Version: "1.0.0", Module: digest.FromBytes(module).String(), Trust: "signed"},
			Instance: name, Module: entry.Path, Input: hostdoc.Input{Kind: hostdoc.InputStdin}, Args: []string{"agent.wasm"},
			Limits:   hostdoc.Limits{MemoryBytes: limits.DefaultGuestMemory, InputBytes: limits.InputBytes, OutputBytes: limits.OutputBytes},
			ExitFile: exit, LogFormat: "json",
			Lock: &hostdoc.Lock{Read: []string{path, entry.Path}, Write: []string{exit}},
		}
		data, err := doc.Marshal()
		if err != nil {
			return nil, err
		}
		return hostdoc.Command(host, path, doc.Lock), os.WriteFile(path, data, 0o600)
	}
	first, err := command("first", guestFirst)
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
		words, err := command(guest.name, guest.module)
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
