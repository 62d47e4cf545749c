package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An expectation says what of a command's output is shown and what must be in it.
type expectation struct {
	lines  int
	pick   func([]string) []string
	wanted string
}

type option func(*expectation)

// first shows the first line, cut to the page.
func first(e *expectation) {
	e.pick = func(lines []string) []string {
		for i, line := range lines {
			lines[i] = cut(line, width-len(indent)-3)
		}
		return lines[:min(1, len(lines))]
	}
}

// only shows the lines that match.
func only(pattern string) option {
	re := regexp.MustCompile(pattern)
	return func(e *expectation) {
		e.pick = func(lines []string) []string {
			var kept []string
			for _, line := range lines {
				if re.MatchString(line) {
					kept = append(kept, line)
				}
			}
			if len(kept) < len(lines) {
				kept = append(kept, "…")
			}
			return kept
		}
	}
}

// silent shows nothing: ctr draws its progress table as often as it likes.
func silent(e *expectation) { e.pick = func([]string) []string { return nil } }

// summary shows how a pull ended, if ctr drew that before it left.
func summary(e *expectation) {
	e.pick = func(lines []string) []string {
		for _, line := range slices.Backward(lines) {
			if strings.HasPrefix(line, "Completed") {
				line, _, _ = strings.Cut(columns.ReplaceAllString(line, "$1  "), "B/s")
				return []string{strings.TrimRight(line[:max(0, strings.LastIndexByte(line, '('))], " ")}
			}
		}
		return nil
	}
}

var columns = regexp.MustCompile(`(\S)\s{3,}`)

// wants requires a text on standard output.
func wants(text string) option { return func(e *expectation) { e.wanted = text } }

// run types a command that must succeed.
func (d *demo) run(command string, options ...option) (result, error) {
	e := expectation{lines: 12}
	for _, o := range options {
		o(&e)
	}
	d.typed(command)
	r, err := shell(d.ctx, d.dir, d.env, command)
	if err != nil {
		return r, err
	}
	d.show(r, e)
	if r.code != 0 {
		return r, &failure{fmt.Sprintf("exit status %d", r.code), r}
	}
	if !strings.Contains(r.stdout, e.wanted) {
		return r, &failure{fmt.Sprintf("the output does not say %q", e.wanted), r}
	}
	return r, nil
}

// refuses types a command that must be refused for a reason, and whose guest
// must not have run.
func (d *demo) refuses(command, reason string) (result, error) {
	d.typed(command)
	r, err := shell(d.ctx, d.dir, d.env, command)
	if err != nil {
		return r, err
	}
	d.show(r, expectation{lines: 6})
	switch {
	case r.code == 0:
		return r, &failure{"it was not refused", r}
	case strings.Contains(r.stdout+r.stderr, marker):
		return r, &failure{"the guest ran", r}
	case !strings.Contains(r.stderr+r.stdout, reason):
		return r, &failure{fmt.Sprintf("it was refused, but not for its %s", reason), r}
	}
	return r, nil
}

// set types the assignment of a variable for the commands that follow.
func (d *demo) set(name, value string) error {
	d.typed(name + `="` + value + `"`)
	r, err := shell(d.ctx, d.dir, d.env, `printf %s "`+value+`"`)
	d.env = append(d.env, name+"="+r.stdout)
	return err
}

// quiet runs a command that the transcript does not show.
func (d *demo) quiet(command string) (result, error) {
	r, err := shell(d.ctx, d.dir, d.env, command)
	if err == nil && r.code != 0 {
		err = &failure{fmt.Sprintf("exit status %d", r.code), r}
	}
	return r, err
}

func (d *demo) show(r result, e expectation) {
	var lines []string
	for line := range strings.Lines(r.stdout + r.stderr) {
		// A progress line ends with the last thing that was written over it.
		line = strings.TrimRight(line, "\r\n")
		line = line[strings.LastIndexByte(line, '\r')+1:]
		if line = strings.TrimRight(escapes.ReplaceAllString(line, ""), " "); line != "" {
			lines = append(lines, d.shorten(line))
		}
	}
	if e.pick != nil {
		lines = e.pick(lines)
	}
	d.said(lines, e.lines)
}

var (
	digests = regexp.MustCompile(`sha256:([0-9a-f]{12})[0-9a-f]{52}`)
	escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)
)

// shorten makes a line readable without changing what it says.
func (d *demo) shorten(line string) string {
	line = digests.ReplaceAllString(line, "sha256:$1…")
	line = strings.ReplaceAll(line, d.node.Etc, "$NODE")
	line = strings.ReplaceAll(line, filepath.Join(d.node.Root, "home"), "~")
	return strings.ReplaceAll(line, "\t", "  ")
}

// verdict finds what containerd logged about an image that the verifier judged.
func (d *demo) verdict(ref string) (string, error) {
	data, err := os.ReadFile(filepath.Join(d.node.Root, "containerd.log"))
	if err != nil {
		return "", err
	}
	if verdict := verdictIn(string(data), ref); verdict != "" {
		return d.shorten(verdict), nil
	}
	return "", fmt.Errorf("containerd did not log a verdict about %s", ref)
}

func verdictIn(log, ref string) string {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "Image verifier allowed pull") || !strings.Contains(line, strconv.Quote(ref)) {
			continue
		}
		_, after, _ := strings.Cut(line, "reason=")
		if reason, err := strconv.Unquote(quoted.FindString(after)); err == nil {
			return reason
		}
	}
	return ""
}

var quoted = regexp.MustCompile(`^"(?:[^"\\]|\\.)*"`)
