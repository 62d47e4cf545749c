package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// computeRuns bounds the runs of each program, which take half a second a side.
const computeRuns = 10

// measureCompute compares programs as WASM in mentat-host with the same sources
// as native programs, from exec to exit, so with all that a start costs.
func measureCompute(ctx context.Context, m *machine, pairs int) ([]Result, error) {
	h, err := newHost(m, "compute", "mentat-host")
	if err != nil {
		return nil, err
	}
	c, err := newCompiler(h.dir)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, p := range []struct {
		name, title string
		flags       []string
		goal        float64 // 0 for none
	}{
		{"words", "simple: words and letters", nil, 1.5},
		{"hash", "SHA-256", nil, 2},
		{"json", "JSON, read and written", nil, 2},
		{"matrix", "matrices, as a textbook does", nil, 2},
		{"sort", "quicksort and heapsort", nil, 2},
		{"vector", "matrices, a loop for vectors (-msimd128)", []string{"-msimd128"}, 0},
	} {
		r, err := compareCompute(ctx, h, c, p.name, min(pairs, computeRuns), p.flags)
		if err != nil {
			return results, err
		}
		r.Name = "compute: " + p.title + ", processor time"
		if p.goal > 0 {
			r = r.goal(ratio, p.goal)
		}
		results = append(results, r)
	}
	for _, f := range []struct {
		title, block string
		goal         float64
	}{
		{"files: 64 read, changed, written", "1048576", 1.2},
		{"files: the same in blocks of 64 KiB", "65536", 0},
	} {
		r, err := compareFiles(ctx, h, c, pairs, "-DBLOCK="+f.block)
		if err != nil {
			return results, err
		}
		r.Name = f.title + ", wall time"
		if f.goal > 0 {
			r = r.goal(ratio, f.goal)
		}
		results = append(results, r)
	}
	return results, nil
}

func compareCompute(ctx context.Context, h *hostProgram, c *compiler, name string, runs int, flags []string) (Result, error) {
	native, err := c.native(ctx, name)
	if err != nil {
		return Result{}, err
	}
	module, err := c.wasm(ctx, name, flags...)
	if err != nil {
		return Result{}, err
	}
	words, err := h.command(ctx, h.program, name, module, nil)
	if err != nil {
		return Result{}, err
	}
	return compare(runs, processorTime,
		func() *exec.Cmd { return exec.CommandContext(ctx, words[0], words[1:]...) },
		func() *exec.Cmd { return exec.CommandContext(ctx, native) })
}

// compareFiles is the I/O-bound one: wall time, for waiting counts.
func compareFiles(ctx context.Context, h *hostProgram, c *compiler, runs int, block string) (Result, error) {
	native, err := c.native(ctx, "files", block)
	if err != nil {
		return Result{}, err
	}
	module, err := c.wasm(ctx, "files", block)
	if err != nil {
		return Result{}, err
	}
	dir := filepath.Join(h.dir, "files")
	if err := makeFiles(dir); err != nil {
		return Result{}, err
	}
	words, err := h.command(ctx, h.program, "files", module, func(d *hostdoc.Document) {
		d.Preopens = []hostdoc.Preopen{{Host: dir, Guest: "/data"}}
	})
	if err != nil {
		return Result{}, err
	}
	return compare(runs, wallTime,
		func() *exec.Cmd { return exec.CommandContext(ctx, words[0], words[1:]...) },
		func() *exec.Cmd {
			cmd := exec.CommandContext(ctx, native)
			cmd.Dir = dir
			return cmd
		})
}

// makeFiles makes 64 files of 1 MiB of letters, and a place for what becomes of
// them.
func makeFiles(dir string) error {
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "in"), 0o700), os.MkdirAll(filepath.Join(dir, "out"), 0o700)); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // letters
	data := make([]byte, 1<<20)
	for i := range 64 {
		for j := range data {
			data[j] = byte(' ' + random.IntN(95))
		}
		if err := os.WriteFile(filepath.Join(dir, "in", fmt.Sprintf("%02d", i)), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// compare runs both sides in turn, in either order, and holds what they print
// against each other: they did the same.
func compare(runs int, measure func(*exec.Cmd) (float64, []byte, error), ours, theirs func() *exec.Cmd) (Result, error) {
	var a, b []float64
	for i := range runs + 1 {
		sides := []struct {
			cmd  func() *exec.Cmd
			took *[]float64
		}{{ours, &a}, {theirs, &b}}
		var said [][]byte
		for j := range sides {
			s := sides[(i+j)%2]
			took, out, err := measure(s.cmd())
			if err != nil {
				return Result{}, err
			}
			said = append(said, out)
			if i > 0 { // the first warms caches
				*s.took = append(*s.took, took)
			}
		}
		if len(said[0]) == 0 || !bytes.Equal(said[0], said[1]) {
			return Result{}, fmt.Errorf("the two sides say %q and %q", said[0], said[1])
		}
	}
	return result("", "ms", a).versus("native", a, b), nil
}

// processorTime is what a program took of the processor, user and system.
func processorTime(cmd *exec.Cmd) (float64, []byte, error) {
	_, out, err := wallTime(cmd)
	if err != nil {
		return 0, nil, err
	}
	return millis(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()), out, nil
}

// wallTime is the time from a program's start to its end.
func wallTime(cmd *exec.Cmd) (float64, []byte, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Writer(&out), &stderr
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w\n%s", cmd.Path, err, stderr.Bytes())
	}
	return millis(took), out.Bytes(), nil
}
