package display

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/mentatlab/mentat/internal/fault"
)

// Header opens every JSON result. The number in it changes when a field
// changes its meaning or goes away; a new field does not change it.
type Header struct {
	MediaType string `json:"mediaType"`
}

// Head returns the header of version 1 of the results of a command.
func Head(command string) Header {
	return Header{MediaType: "application/vnd.mentatlab.mentatctl." + command + ".v1+json"}
}

// Result is what a command found out: its exported fields are its JSON form.
type Result interface {
	// Text writes the form for people.
	Text(w *Writer)
}

// Printer prints a command's results and errors.
type Printer struct {
	Out, Err io.Writer
	Format   Format
}

// Result prints a result to stdout.
func (p *Printer) Result(r Result) error {
	if p.Format != JSON {
		w := &Writer{w: p.Out}
		r.Text(w)
		return w.err
	}
	return p.document(p.Out, r)
}

func (p *Printer) document(to io.Writer, v any) error {
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Note prints one line to stderr, whatever the format.
func (p *Printer) Note(format string, args ...any) {
	fmt.Fprintf(p.Err, "mentatctl: %s\n", fault.OneLine(fmt.Sprintf(format, args...)))
}

// Problem is one error as JSON.
type Problem struct {
	Reason  fault.Reason `json:"reason"`
	Code    int          `json:"code"`
	On      string       `json:"on,omitempty"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

type failure struct {
	Header
	Error    Problem   `json:"error"`
	Problems []Problem `json:"problems,omitempty"`
}

// Problems splits an error into its problems; it returns nil for nil.
func Problems(err error) []Problem {
	if err == nil {
		return nil
	}
	var ps []Problem
	for _, e := range split(err) {
		p := Problem{Reason: fault.ReasonOf(e), Code: fault.CLICode(e), Message: fault.OneLine(e.Error())}
		if fe, ok := e.(*fault.Error); ok { //nolint:errorlint // a wrapped one keeps its whole text
			p.On, p.Hint = fault.OneLine(fe.On), fault.OneLine(fe.Hint)
			bare := *fe
			bare.On, bare.Hint = "", ""
			p.Message = bare.Error()
		}
		ps = append(ps, p)
	}
	return ps
}

// Fail prints an error: one line for each problem on stderr, or one JSON
// document on stdout.
func (p *Printer) Fail(err error) {
	if p.Format == JSON {
		p.FailJSON(p.Out, err)
		return
	}
	for _, e := range split(err) {
		fmt.Fprintf(p.Err, "mentatctl: %s\n", fault.OneLine(e.Error()))
	}
}

// FailJSON prints an error as a JSON document. The first problem decides the
// exit code and is what "error" holds.
func (p *Printer) FailJSON(to io.Writer, err error) {
	ps := Problems(err)
	f := failure{Header: Head("error"), Error: ps[0]}
	if len(ps) > 1 {
		f.Problems = ps
	}
	_ = p.document(to, f) // there is nowhere left to report to
}

// split opens joined errors. A *fault.Error also unwraps to several errors, but
// it is one problem.
func split(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	if _, one := err.(*fault.Error); one { //nolint:errorlint // see above
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, split(e)...)
	}
	return all
}

// Writer writes the text form of a result.
type Writer struct {
	w   io.Writer
	err error
}

// Line writes one line.
func (w *Writer) Line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintln(w.w, fault.OneLine(fmt.Sprintf(format, args...)))
	}
}

// Field writes an indented name and its value; nothing for an empty value.
func (w *Writer) Field(name, format string, args ...any) {
	value := fmt.Sprintf(format, args...)
	if value == "" || w.err != nil {
		return
	}
	_, w.err = fmt.Fprintf(w.w, "  %-11s %s\n", name, fault.OneLine(value))
}

// List writes a field with one value a line.
func (w *Writer) List(name string, values []string) {
	for i, v := range values {
		if i > 0 {
			name = ""
		}
		w.Field(name, "%s", v)
	}
}

// Table writes rows in columns.
func (w *Writer) Table(header []string, rows [][]string) {
	if w.err != nil {
		return
	}
	t := tabwriter.NewWriter(w.w, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = fault.OneLine(c)
		}
		if _, w.err = fmt.Fprintln(t, strings.Join(cells, "\t")); w.err != nil {
			return
		}
	}
	w.err = t.Flush()
}
