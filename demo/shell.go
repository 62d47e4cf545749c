package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// transcript writes what a reader follows.
type transcript struct {
	out    io.Writer
	colour bool
	steps  int
	begun  time.Time // the current step
}

// The few things that are worth a colour.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	indent = "    "
	width  = 110
)

func newTranscript(out *os.File) *transcript {
	t := &transcript{out: out}
	st, err := out.Stat()
	t.colour = err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return t
}

func (t *transcript) paint(code, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (t *transcript) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// step opens a numbered step with its explanation.
func (t *transcript) step(title, why string) {
	t.steps++
	t.begun = time.Now()
	t.printf("\n%s\n", t.paint(bold, fmt.Sprintf("%2d. %s", t.steps, title)))
	for _, line := range fold(why, width-len(indent), "") {
		t.printf("%s%s\n", indent, line)
	}
}

// typed shows a command as one would type it.
func (t *transcript) typed(command string) {
	for i, line := range strings.Split(command, "\n") {
		prompt := "$ "
		if i > 0 {
			prompt = "> "
		}
		t.printf("%s%s\n", indent, t.paint(bold, prompt+line))
	}
}

// said shows what a command printed: at most some lines of it, long ones folded.
func (t *transcript) said(all []string, lines int) {
	var shown []string
	for _, line := range all {
		shown = append(shown, fold(line, width-len(indent)-2, "  ")...)
	}
	for i, line := range shown {
		if i == lines && len(shown) > lines+1 {
			t.printf("%s  %s\n", indent, t.paint(dim, "…"))
			break
		}
		t.printf("%s  %s\n", indent, line)
	}
}

// note shows a line that no command printed.
func (t *transcript) note(format string, args ...any) {
	for _, line := range fold(fmt.Sprintf(format, args...), width-len(indent), "") {
		t.printf("%s%s\n", indent, line)
	}
}

// done closes the step.
func (t *transcript) done(format string, args ...any) {
	t.printf("%s%s %s %s\n", indent, t.paint(green, "✓"), fmt.Sprintf(format, args...), t.paint(dim, "("+took(time.Since(t.begun))+")"))
}

func (t *transcript) failed(err error) {
	t.printf("%s%s %s\n", indent, t.paint(red, "✗"), err)
}

func took(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// cut shortens a line that nobody reads to its end.
func cut(line string, n int) string {
	if utf8.RuneCountInString(line) <= n {
		return line
	}
	return string([]rune(line)[:n]) + "…"
}

// fold breaks a line at spaces. The lines that follow keep its indentation and
// hang by some more.
func fold(line string, n int, hang string) []string {
	var lines []string
	margin := line[:len(line)-len(strings.TrimLeft(line, " "))]
	for utf8.RuneCountInString(line) > n {
		runes := []rune(line)
		at := n
		for at > 0 && runes[at] != ' ' {
			at--
		}
		if strings.TrimSpace(string(runes[:at])) == "" { // one long word
			at = n
		}
		rest := strings.TrimLeft(string(runes[at:]), " ")
		lines = append(lines, strings.TrimRight(string(runes[:at]), " "))
		if len(margin)+len(hang) >= n/2 {
			margin, hang = "", ""
		}
		line = margin + hang + rest
	}
	return append(lines, line)
}

// result is what a command did.
type result struct {
	command        string
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("$ %s\nexit status %d\n--- stdout\n%s--- stderr\n%s", r.command, r.code, r.stdout, r.stderr)
}

// failure is an error with the whole output of the command behind it.
type failure struct {
	why string
	result
}

func (f *failure) Error() string { return f.why }

// patience is how long a command may take; the first compilation of an agent
// compiles Go's standard library.
const patience = 5 * time.Minute

// shell runs a command line as sh does, in its own process group: an interrupt
// at the terminal reaches the demo alone, which then ends things in order.
func shell(ctx context.Context, dir string, env []string, command string) (result, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(limited, "/bin/sh", "-c", command)
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	r := result{command: command, stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case limited.Err() != nil:
		return r, &failure{fmt.Sprintf("not done after %s", patience), r}
	}
	if err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("%s: %w", command, err)
	}
	return r, nil
}
