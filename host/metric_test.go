package host

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// measure is the code of one call of record_metric.
func measure(d *data, at int, name string, kind int, value, attributes string) string {
	return fmt.Sprintf(`(call $record_metric %s (i32.const %d) (f64.const %s) %s)`, d.at(at, name), kind, value, d.at(at+100, attributes))
}

func TestMetricsOfAllRunsAddUp(t *testing.T) {
	var d data
	r := metrics.New()
	doc := document(t, agent(
		expect(1, measure(&d, 0, "requests", 0, "2", `{"path":"/a"}`), 0)+
			expect(2, measure(&d, 300, "level", 1, "-0.5", ``), 0)+
			expect(3, measure(&d, 600, "seconds", 2, "0.2", ``), 0)+`(i32.const 0)`, d.segments.String()))
	p := load1(t, doc, Options{Metrics: r})
	for range 3 {
		if exit, err := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); err != nil || exit.Status != 0 {
			t.Fatalf("%+v, %v", exit, err)
		}
	}
	f := r.Families()
	if len(f) != 3 || f[0].Series[0].Value != -.5 || f[1].Series[0].Value != 6 || f[1].Series[0].Attributes[0] != (metrics.Attribute{Key: "path", Value: "/a"}) || f[2].Series[0].Count != 3 {
		t.Errorf("%+v", f)
	}
}

func TestMetricsByTheWrongArguments(t *testing.T) {
	var d data
	var e events
	runIn(t, agent(
		expect(1, measure(&d, 0, "", 0, "1", ""), codeInvalid)+
			expect(2, measure(&d, 300, "a b", 0, "1", ""), codeInvalid)+
			expect(3, measure(&d, 600, "x\xff", 0, "1", ""), codeInvalid)+
			expect(4, measure(&d, 900, "x", 3, "1", ""), codeInvalid)+
			expect(5, measure(&d, 1200, "x", -1, "1", ""), codeInvalid)+
			expect(6, measure(&d, 1500, "x", 1, "nan", ""), codeInvalid)+
			expect(7, measure(&d, 1800, "x", 1, "inf", ""), codeInvalid)+
			expect(8, measure(&d, 2100, "x", 0, "-1", ""), codeInvalid)+
			expect(9, measure(&d, 2400, "x", 0, "1", "[]"), codeInvalid)+
			expect(10, measure(&d, 2700, "x", 0, "1", `{"a":null}`), codeInvalid)+
			expect(11, fmt.Sprintf(`(call $record_metric %s (i32.const 0) (f64.const 1) (i32.const 10000) (i32.const %d))`, d.at(3000, "x"), limits.MetricAttributesBytes+1), codeLimit)+
			expect(12, measure(&d, 3300, "x", 0, "1", ""), 0)+
			expect(13, measure(&d, 3600, "x", 1, "1", ""), codeConflict)+
			`(i32.const 0)`, d.segments.String()), &e).wants(t, 0, "")
}

func TestAGuestCannotMakeEndlesslyManySeries(t *testing.T) {
	var d data
	r := metrics.New()
	call := measure(&d, 100, "m", 0, "1", `{"a":"0000"}`)
	doc := document(t, agent(fmt.Sprintf(`
    ;; the attribute's value is a number that grows
    (loop $again
      (i32.store8 (i32.const 206) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (local.get $n) (i32.const 1000)) (i32.const 10))))
      (i32.store8 (i32.const 207) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (local.get $n) (i32.const 100)) (i32.const 10))))
      (i32.store8 (i32.const 208) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (local.get $n) (i32.const 10)) (i32.const 10))))
      (i32.store8 (i32.const 209) (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
      (local.set $h %s)
      (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 3000))))
    (i32.sub (i32.const 0) (local.get $h))`, call), d.segments.String()))
	p := load1(t, doc, Options{Metrics: r})
	for range 2 {
		if exit, _ := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{})}); exit.Status != -codeLimit {
			t.Errorf("%+v", exit)
		}
	}
	if n := len(r.Families()[0].Series); n != limits.MetricSeries {
		t.Errorf("%d series", n)
	}
}

func TestMetricsOfOneRunAreEventsOrLogLines(t *testing.T) {
	var d data
	text := agent(
		expect(1, measure(&d, 0, "requests", 0, "2", `{"path":"/a"}`), 0)+
			expect(2, measure(&d, 0, "requests", 0, "3", `{"path":"/a"}`), 0)+
			expect(3, measure(&d, 300, "seconds", 2, "0.2", ``), 0)+`(i32.const 0)`, d.segments.String())
	// The guest is told nothing of where they go.
	setup{wat: text, edit: func(d *hostdoc.Document) { d.Framing = hostdoc.FramingNDJSON }}.run(t).wants(t, 0, "").output(t,
		`{"event":"metric","name":"requests","kind":"counter","value":2,"attributes":{"path":"/a"}}
{"event":"metric","name":"requests","kind":"counter","value":3,"attributes":{"path":"/a"}}
{"event":"metric","name":"seconds","kind":"histogram","value":0.2}
{"event":"exit","status":0}
`)
	o := setup{wat: text, edit: func(d *hostdoc.Document) { d.LogFormat = "json" }}.run(t).wants(t, 0, "").output(t, "")
	var lines []string
	for line := range strings.Lines(o.stderr) {
		_, rest, _ := strings.Cut(line, `"msg":`)
		lines = append(lines, rest)
	}
	want := []string{
		`"a metric of the run","metric":{"name":"requests","kind":"counter","value":5,"count":2,"attributes":{"path":"/a"}}}` + "\n",
		`"a metric of the run","metric":{"name":"seconds","kind":"histogram","value":0.2,"count":1}}` + "\n",
	}
	if strings.Join(lines, "") != strings.Join(want, "") {
		t.Errorf("logged %q", o.stderr)
	}
	// People at a terminal did not ask for them.
	if o := runWAT(t, text); o.stderr != "" {
		t.Errorf("logged %q", o.stderr)
	}
	// A registry that somebody else reads is not logged.
	var errs bytes.Buffer
	doc := document(t, text)
	doc.LogFormat = "json"
	if _, err := Once(t.Context(), doc, Options{Metrics: metrics.New()}, Streams{Stderr: &errs}); err != nil || errs.Len() > 0 {
		t.Errorf("%v, logged %q", err, errs.String())
	}
}
