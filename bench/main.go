package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mentatlab/mentat/internal/version"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == plainHandler {
		if err := servePlain(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// Report is the JSON that a run writes.
type Report struct {
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Kernel  string    `json:"kernel"`
	// Load is the machine's load average before the run, over one minute: on a
	// busy machine only the ratios mean something.
	Load     string   `json:"load"`
	Pairs    int      `json:"pairs"`
	Results  []Result `json:"results"`
	Problems []string `json:"problems,omitempty"`
}

// machine is what the measurements share.
type machine struct {
	// dir is a directory to put things into.
	dir       string
	authority *authority
}

// parts are what is measured, in this order.
var parts = []struct {
	name    string
	measure func(context.Context, *machine, int) ([]Result, error)
}{{"verify", measureVerify}, {"host", measureHost}, {"compute", measureCompute}, {"serve", measureServe}, {"tasks", measureTasks}}

func names() []string {
	var all []string
	for _, p := range parts {
		all = append(all, p.name)
	}
	return all
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	pairs := flags.Int("pairs", 30, "interleaved pairs of each comparison")
	file := flags.String("json", "", "write the report to this file")
	only := flags.String("only", "", "measure only "+strings.Join(names(), ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *pairs < 1 || flags.NArg() > 0 {
		return errors.New("-pairs must be at least 1, and there are no arguments")
	}
	if *only != "" && !slices.Contains(names(), *only) {
		return fmt.Errorf("-only %s: there are %s", *only, strings.Join(names(), ", "))
	}
	report := Report{Version: version.Version, Time: time.Now().UTC(), CPU: processor(), CPUs: runtime.NumCPU(), Kernel: firstField("/proc/sys/kernel/osrelease"), Load: firstField("/proc/loadavg"), Pairs: *pairs}
	fmt.Fprintf(out, "MentatLab %s on %d × %s, Linux %s, load %s; %d pairs\n\n", report.Version, report.CPUs, report.CPU, report.Kernel, report.Load, report.Pairs)
	m := &machine{}
	if m.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(m.dir)) }()
	if m.authority, err = newAuthority(filepath.Join(m.dir, "pki")); err != nil {
		return err
	}
	table := table{out}
	table.head()
	for _, what := range parts {
		if *only != "" && *only != what.name {
			continue
		}
		results, err := what.measure(ctx, m, *pairs)
		for _, r := range results {
			table.row(r)
		}
		if err != nil {
			report.Problems = append(report.Problems, what.name+": "+err.Error())
			fmt.Fprintf(out, "NOT MEASURED: %s: %v\n", what.name, err)
		}
		report.Results = append(report.Results, results...)
	}
	if *file != "" {
		data, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(*file, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if len(report.Problems) > 0 {
		return fmt.Errorf("%d measurements failed", len(report.Problems))
	}
	return nil
}

// firstField is the first word of a file of the kernel's, "?" without one.
func firstField(name string) string {
	data, err := os.ReadFile(name)
	if fields := strings.Fields(string(data)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "?"
}

func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(data)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
