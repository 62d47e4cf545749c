package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	skips := flag.String("skips", "", "file that names the tests which may be skipped, with the reason")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, *skips, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtests:", err)
	}
	if err != nil || !ok {
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func run(ctx context.Context, skips string, args []string) (bool, error) {
	allowed, err := readSkips(skips)
	if err != nil {
		return false, err
	}
	t := &tally{out: os.Stdout, started: time.Now(), allowed: allowed}
	for len(args) > 0 {
		n := slices.Index(args, "--")
		suite := args
		args = nil
		if n >= 0 {
			suite, args = suite[:n], suite[n+1:]
		}
		if err := t.suite(ctx, suite); err != nil {
			return false, err
		}
	}
	return t.close(), nil
}

// readSkips reads lines of the form `TestName: reason`. A name covers its
// subtests.
func readSkips(name string) (map[string]string, error) {
	if name == "" {
		return nil, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	allowed := make(map[string]string)
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		test, reason, ok := strings.Cut(line, ": ")
		if !ok || !strings.HasPrefix(test, "Test") || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: want `TestName: reason`", name, i+1)
		}
		allowed[test] = strings.TrimSpace(reason)
	}
	return allowed, nil
}

// event is a line of `go test -json` (see `go doc test2json`).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output, instead of Package
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

type tally struct {
	out     io.Writer
	started time.Time
	allowed map[string]string

	passed, failed int
	broken         []string // packages that failed without a failed test
	skipped        []skip
}

type skip struct {
	pkg, test, reason string
	allowed           bool
}

// suite runs one `go test -json` and takes its events in.
func (t *tally) suite(ctx context.Context, args []string) error {
	// -C must come first, even before -json.
	at := 0
	if len(args) > 1 && args[0] == "-C" {
		at = 2
	}
	args = slices.Concat([]string{"test"}, args[:at], []string{"-json"}, args[at:])
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute // integration tests clean up
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	events, err := t.read(stdout)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	// A failed test is in the count; any other failure is not.
	if err := cmd.Wait(); err != nil && (t.failed == 0 && len(t.broken) == 0 || events == 0) {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (t *tally) read(r io.Reader) (events int, err error) {
	output := make(map[[2]string][]string) // of package and test, until we know how it went
	failures := make(map[string]int)
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(t.out, "%s", line)
			} else {
				events++
				t.take(e, output, failures)
			}
		}
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return events, err
		}
	}
}

func (t *tally) take(e event, output map[[2]string][]string, failures map[string]int) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.out, e.Output)
	case "output":
		output[key] = append(output[key], e.Output)
	case "pass":
		if e.Test != "" {
			t.passed++
		} else {
			t.summary(e, output[key])
		}
		delete(output, key)
	case "skip":
		if e.Test != "" {
			t.skip(e, output[key])
		} else {
			t.summary(e, output[key])
		}
		delete(output, key)
	case "fail":
		if e.Test != "" {
			t.failed++
			failures[e.Package]++
		} else if failures[e.Package] == 0 {
			t.broken = append(t.broken, e.Package)
		}
		t.show(output, key)
		if e.Test == "" { // a crash leaves tests without a verdict
			for k := range output {
				if k[0] == e.Package {
					t.show(output, k)
				}
			}
		}
	}
}

// show prints what plain `go test` would of a failed test.
func (t *tally) show(output map[[2]string][]string, key [2]string) {
	for _, line := range output[key] {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(t.out, line)
		}
	}
	delete(output, key)
}

// summary shows the line of a package that is well.
func (t *tally) summary(e event, output []string) {
	for _, line := range slices.Backward(output) {
		if strings.Contains(line, e.Package) {
			fmt.Fprint(t.out, line)
			return
		}
	}
}

func (t *tally) skip(e event, output []string) {
	s := skip{pkg: e.Package, test: e.Test}
	for _, line := range output {
		// The reason is the log line: "    file_test.go:1: reason".
		if f := strings.SplitN(strings.TrimSpace(line), ": ", 2); len(f) == 2 && strings.Contains(f[0], ".go:") {
			s.reason = f[1]
		}
	}
	for test := e.Test; test != ""; {
		if _, ok := t.allowed[test]; ok {
			s.allowed = true
		}
		i := strings.LastIndexByte(test, '/')
		test = test[:max(i, 0)]
	}
	t.skipped = append(t.skipped, s)
}

// close prints what is to be said at the end and says whether all is well.
func (t *tally) close() bool {
	forbidden := 0
	for _, s := range t.skipped {
		mark := "skipped"
		if !s.allowed {
			mark = "SKIPPED, but it must run"
			forbidden++
		}
		fmt.Fprintf(t.out, "%s: %s %s: %s\n", mark, s.pkg, s.test, s.reason)
	}
	for _, pkg := range t.broken {
		fmt.Fprintf(t.out, "FAILED: %s\n", pkg)
	}
	fmt.Fprintf(t.out, "%d passed, %d failed, %d skipped in %s\n",
		t.passed, t.failed+len(t.broken), len(t.skipped), time.Since(t.started).Round(time.Second))
	if t.passed == 0 {
		fmt.Fprintln(t.out, "no test ran")
	}
	return t.passed > 0 && t.failed == 0 && len(t.broken) == 0 && forbidden == 0
}
