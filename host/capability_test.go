package host

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// fake is a backend under a test's control.
type fake struct {
	open   func(backend.Grant) *backend.Refusal
	invoke func(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal)

	opened, invoked, closed atomic.Int32
	mu                      sync.Mutex
	done                    []string
}

func (f *fake) Open(_ context.Context, _ string, g backend.Grant) (backend.Capability, *backend.Refusal) {
	f.opened.Add(1)
	if f.open != nil {
		if refused := f.open(g); refused != nil {
			return nil, refused
		}
	}
	return fakeCapability{f}, nil
}

func (f *fake) Done(run string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, run)
}

func (f *fake) Close() error { return nil }

type fakeCapability struct{ f *fake }

func (c fakeCapability) Invoke(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
	c.f.invoked.Add(1)
	if c.f.invoke != nil {
		return c.f.invoke(ctx, op, head, body)
	}
	return &fakeAnswer{f: c.f, Reader: strings.NewReader(op + " " + string(head) + " " + string(body))}, nil
}

type fakeAnswer struct {
	f       *fake
	head    json.RawMessage
	refused *backend.Refusal
	// wait, if not nil, is waited for before the head, or the context.
	wait <-chan struct{}
	ctx  context.Context //nolint:containedctx // the call's own
	io.Reader
}

func (a *fakeAnswer) Head() (json.RawMessage, *backend.Refusal) {
	if a.wait != nil {
		select {
		case <-a.wait:
		case <-a.ctx.Done():
			return nil, &backend.Refusal{Code: backend.Canceled, Reason: "canceled"}
		}
	}
	return a.head, a.refused
}

func (a *fakeAnswer) Close() error {
	a.f.closed.Add(1)
	return nil
}

// records keeps what a recorder is told.
type records struct {
	mu         sync.Mutex
	decisions  []Decision
	executions []Execution
}

func (r *records) Decision(d Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decisions = append(r.decisions, d)
}

func (r *records) Execution(e Execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.executions = append(r.executions, e)
}

const granted = "network:https:*.example.com"

// with grants the capability and serves it.
func with(f *fake) (Options, func(*hostdoc.Document)) {
	return Options{Backends: map[string]backend.Backend{"network": f}}, func(d *hostdoc.Document) {
		d.Grants = []hostdoc.Grant{{Capability: "extension:other", Rule: "another"}, {Capability: granted, Rule: "web"}}
	}
}

// data puts texts into a guest's memory and tells where they are.
type data struct{ segments strings.Builder }

func (d *data) at(offset int, text string) string {
	var escaped strings.Builder
	for i := range len(text) {
		fmt.Fprintf(&escaped, `\%02x`, text[i])
	}
	fmt.Fprintf(&d.segments, "(data (i32.const %d) \"%s\")\n", offset, escaped.String())
	return fmt.Sprintf("(i32.const %d) (i32.const %d)", offset, len(text))
}

// framed is a request with a head and a body.
func framed(head, body string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(head)))) + head + body
}

// asking is a guest that opens the capability as $h before its code.
func asking(code string, d *data) string {
	name := d.at(0, granted)
	return agent(`
    (local.set $h (call $request_capability `+name+` (i32.const 0) (i32.const 0)))
    (if (i32.lt_s (local.get $h) (i32.const 0)) (then (return (i32.const 200))))
`+code, d.segments.String())
}

func TestAnswersComeInTheABIsFrame(t *testing.T) {
	var d data
	f := &fake{}
	o, edit := with(f)
	op, request := d.at(100, "fetch"), d.at(200, framed(`{"a":1}`, "body"))
	r := &records{}
	o.Recorder = r
	setup{wat: asking(`
    (call $drain (call $invoke_capability (local.get $h) `+op+` `+request+`))
    (call $drain (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))
    (i32.const 0)`, &d), o: o, edit: edit}.run(t).wants(t, 0, "").
		output(t, framed("{}", `fetch {"a":1} body`)+framed("{}", "fetch {} "))
	if f.closed.Load() != 2 || len(f.done) != 1 || f.done[0] != "i1" {
		t.Errorf("%d answers closed, done %v", f.closed.Load(), f.done)
	}
	var got []string
	for _, d := range r.decisions {
		got = append(got, fmt.Sprintf("%s %s %q %v %s", d.Run, d.Capability, d.Operation, d.Allowed, d.Rule))
	}
	want := []string{"i1 " + granted + ` "" true web`, "i1 " + granted + ` "fetch" true web`, "i1 " + granted + ` "fetch" true web`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("decisions %q", got)
	}
	e := r.executions[0]
	if len(r.executions) != 1 || e.Run != "i1" || e.Exit.Status != 0 || e.Checks != 3 || e.Grants != 3 || e.Denials != 0 || e.MemoryBytes != 65536 ||
		len(e.Requested) != 1 || e.Requested[0] != granted || e.OutputBytes == 0 || e.Began.IsZero() || e.Duration <= 0 {
		t.Errorf("%+v", e)
	}
}

// A rule in dry run is told of what it would deny, at the request and at a use, and
// denies nothing.
func TestARuleInDryRunIsCounted(t *testing.T) {
	var d data
	f := &fake{}
	f.invoke = func(ctx context.Context, op string, head json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
		used, err := manifest.ParseCapability("network:https:api.example.com/admin")
		if err != nil {
			t.Error(err)
		}
		backend.Count(ctx, used, []string{"no-admin"})
		backend.Count(ctx, used, nil)
		return &fakeAnswer{f: f, Reader: strings.NewReader("")}, nil
	}
	o, edit := with(f)
	r := &records{}
	o.Recorder = r
	op := d.at(100, "fetch")
	setup{wat: asking(`
    (call $drain (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))
    (i32.const 0)`, &d), o: o, edit: func(doc *hostdoc.Document) {
		edit(doc)
		doc.Holes = []hostdoc.Hole{{Capability: granted, Rule: "soon", DryRun: true}}
	}}.run(t).wants(t, 0, "")
	var got []string
	for _, d := range r.decisions {
		if d.DryRun {
			got = append(got, fmt.Sprintf("%s %s %q %v %s", d.Run, d.Capability, d.Operation, d.Allowed, d.Rule))
		}
	}
	want := []string{"i1 " + granted + ` "" true soon`, `i1 network:https:api.example.com/admin "use" true no-admin`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("decisions %q", got)
	}
	if e := r.executions[0]; e.Checks != 2 || e.Grants != 2 || e.Denials != 0 {
		t.Errorf("%+v", e)
	}
}

func TestAnswersThatAreLongComeWhole(t *testing.T) {
	var d data
	long := strings.Repeat("0123456789abcdef", 20_000)
	f := &fake{}
	f.invoke = func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
		return &fakeAnswer{f: f, head: json.RawMessage(`{"status":200}`), Reader: strings.NewReader(long)}, nil
	}
	o, edit := with(f)
	op := d.at(100, "fetch")
	setup{wat: asking(`
    (local.set $h (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))`+
		expect(1, `(i32.wrap_i64 (call $size (local.get $h)))`, codeUnsupported)+`
    (call $drain (local.get $h))`+
		expect(2, `(i32.wrap_i64 (call $size (local.get $h)))`, 4+14+len(long))+
		expect(3, `(call $read (local.get $h) (i32.const 0) (i32.const 5))`, 0)+
		`(i32.const 0)`, &d), o: o, edit: edit}.run(t).wants(t, 0, "").output(t, framed(`{"status":200}`, long))
}

// What a guest asks for beyond its grants never reaches a backend.
func TestOnlyWhatIsGrantedIsOpened(t *testing.T) {
	for name, c := range map[string]struct {
		want string
		code int
		rule string
		hint string
	}{
		"narrower":       {"network:https:api.example.com/v1", 0, "", ""},
		"the same":       {granted, 0, "", ""},
		"another host":   {"network:https:example.org", codeDenied, "manifest", "add to wasm.capabilities: - network:https:example.org"},
		"the bare name":  {"network:https:example.com", codeDenied, "manifest", "wasm.capabilities"},
		"another scheme": {"network:http:api.example.com", codeDenied, "manifest", "wasm.capabilities"},
		"any scheme":     {"network:*:api.example.com", codeDenied, "manifest", "wasm.capabilities"},
		"another port":   {"network:https:api.example.com:8443", codeDenied, "manifest", "wasm.capabilities"},
		"denied":         {"llm:gpt-4", codeDenied, "no-llm", "policy explain"},
		"part denied":    {"llm:gpt-*", codeDenied, "manifest", "- llm:gpt-*"},
		"another kind":   {"extension:x", codeDenied, "manifest", "- extension:x"},
		"unserved":       {"extension:other", codeUnsupported, "", ""},
		"nonsense":       {"network", codeInvalid, "", ""},
		"unknown kind":   {"exec:/bin/sh", codeInvalid, "", ""},
		"empty":          {"", codeInvalid, "", ""},
		"no text":        {"env:\xff", codeInvalid, "", ""},
		"long":           {"env:" + strings.Repeat("A", 2000), codeInvalid, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var d data
			f := &fake{}
			o, edit := with(f)
			r := &records{}
			o.Recorder = r
			span := d.at(0, c.want)
			out := setup{wat: agent(`
    (local.set $n (call $request_capability `+span+` (i32.const 0) (i32.const 0)))
    (if (i32.ge_s (local.get $n) (i32.const 0)) (then (return (i32.const 0))))
    (call $drain (call $last_error))
    (i32.sub (i32.const 0) (local.get $n))`, d.segments.String()), o: o, edit: func(d *hostdoc.Document) {
				edit(d)
				d.Denials = []hostdoc.Denial{{Capability: "llm:gpt-4", Rule: "no-llm", Reason: "not on this node"}}
			}}.run(t).wants(t, -c.code, "")
			if opened := f.opened.Load(); (opened == 1) != (c.code == 0) {
				t.Errorf("opened %d times", opened)
			}
			if want := c.code != codeInvalid; (len(r.decisions) == 1) != want || want && r.decisions[0].Allowed == (c.code == codeDenied) {
				t.Errorf("decisions %+v", r.decisions)
			}
			if c.code != codeDenied {
				return
			}
			var got detail
			if err := json.Unmarshal([]byte(out.stdout), &got); err != nil {
				t.Fatal(err)
			}
			if got.Capability != c.want || got.Rule != c.rule || got.Reason == "" || !strings.Contains(got.Hint, c.hint) {
				t.Errorf("%+v", got)
			}
			if e := r.executions[0]; e.Denials != 1 || e.Grants != 0 || r.decisions[0].Rule != c.rule {
				t.Errorf("%+v, %+v", e, r.decisions)
			}
		})
	}
}

func TestADenialCutsAHoleIntoAGrantAndFullReachesEveryHost(t *testing.T) {
	for _, c := range []struct {
		name, mode, want string
		code             int
		rule             string
	}{
		{"a hole", hostdoc.NetworkRestricted, "network:https:api.example.com", codeDenied, "no-api"},
		{"beside it", hostdoc.NetworkRestricted, "network:https:www.example.com", 0, ""},
		{"around it", hostdoc.NetworkRestricted, granted, 0, ""},
		{"restricted", hostdoc.NetworkRestricted, "network:http:example.org", codeDenied, "manifest"},
		{"full", hostdoc.NetworkFull, "network:http:example.org", 0, ""},
		{"a hole in full", hostdoc.NetworkFull, "network:https:api.example.com", codeDenied, "no-api"},
		{"another kind in full", hostdoc.NetworkFull, "llm:x", codeDenied, "manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d data
			f := &fake{}
			o, edit := with(f)
			span := d.at(0, c.want)
			out := setup{wat: agent(`
    (local.set $n (call $request_capability `+span+` (i32.const 0) (i32.const 0)))
    (if (i32.ge_s (local.get $n) (i32.const 0)) (then (return (i32.const 0))))
    (call $drain (call $last_error))
    (i32.sub (i32.const 0) (local.get $n))`, d.segments.String()), o: o, edit: func(d *hostdoc.Document) {
				edit(d)
				d.Network = &hostdoc.Network{Mode: c.mode}
				d.Holes = []hostdoc.Hole{{Capability: "network:*:api.example.com", Rule: "no-api"}}
			}}.run(t).wants(t, -c.code, "")
			if opened := f.opened.Load(); (opened == 1) != (c.code == 0) {
				t.Errorf("opened %d times", opened)
			}
			if c.code != 0 && !strings.Contains(out.stdout, `"rule":"`+c.rule+`"`) {
				t.Errorf("%s", out.stdout)
			}
		})
	}
}

// A host's name may lead to an address that is denied: that is a decision, too.
func TestADenialThatComesWithTheAnswerIsRecorded(t *testing.T) {
	var d data
	f := &fake{}
	f.invoke = func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
		return &fakeAnswer{f: f, refused: &backend.Refusal{Code: backend.Denied, Rule: "addresses", Reason: "leads inside"}, Reader: strings.NewReader("")}, nil
	}
	o, edit := with(f)
	r := &records{}
	o.Recorder = r
	op := d.at(100, "fetch")
	setup{wat: asking(`
    (local.set $h (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))`+
		expect(1, `(call $read (local.get $h) (i32.const 0) (i32.const 5))`, codeDenied)+
		`(i32.const 0)`, &d), o: o, edit: edit}.run(t).wants(t, 0, "")
	if n := len(r.decisions); n != 3 || r.decisions[2].Allowed || r.decisions[2].Rule != "addresses" || r.executions[0].Denials != 1 {
		t.Errorf("%+v", r.decisions)
	}
}

func TestABackendsRefusalReachesTheGuest(t *testing.T) {
	refusal := &backend.Refusal{Code: backend.Limit, Reason: "too\nmany", Rule: "budget", Hint: "wait", RetryAfter: 1500 * time.Millisecond}
	want := detail{Code: codeLimit, Capability: granted, Reason: "too many", Rule: "budget", Hint: "wait", RetryAfterMS: 1500}
	for name, f := range map[string]*fake{
		"open": {open: func(backend.Grant) *backend.Refusal { return refusal }},
		"invoke": {invoke: func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
			return nil, refusal
		}},
		"head": {}, "body": {},
	} {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "head":
				f.invoke = func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
					return &fakeAnswer{f: f, refused: refusal}, nil
				}
			case "body":
				f.invoke = func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
					return &fakeAnswer{f: f, Reader: io.MultiReader(strings.NewReader("abc"), failingReader{refusal})}, nil
				}
			}
			var d data
			name, op := d.at(0, granted), d.at(100, "fetch")
			o, edit := with(f)
			// The failure is there as often as the guest asks.
			out := setup{wat: agent(`
    (local.set $h (call $request_capability `+name+` (i32.const 0) (i32.const 0)))
    (if (i32.ge_s (local.get $h) (i32.const 0)) (then
      (local.set $h (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))
      (if (i32.ge_s (local.get $h) (i32.const 0)) (then
        (loop $again
          (br_if $again (i32.gt_s (local.tee $n (call $read (local.get $h) (i32.const 1000) (i32.const 100))) (i32.const 0))))
        (local.set $h (call $read (local.get $h) (i32.const 1000) (i32.const 100)))
        (if (i32.ne (local.get $n) (local.get $h)) (then (return (i32.const 99))))))))
    (call $drain (call $last_error))
    (i32.sub (i32.const 0) (local.get $h))`, d.segments.String()), o: o, edit: edit}.run(t).wants(t, -codeLimit, "")
			var got detail
			if err := json.Unmarshal([]byte(out.stdout), &got); err != nil || got != want {
				t.Errorf("%+v, %v", got, err)
			}
			if f.closed.Load() != map[string]int32{"head": 1, "body": 1}[t.Name()[strings.LastIndex(t.Name(), "/")+1:]] {
				t.Errorf("%d answers closed", f.closed.Load())
			}
		})
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

func TestArgumentsReachTheBackendAsTheyAre(t *testing.T) {
	for args, code := range map[string]int{
		"": 0, `{"max":1}`: 0, " {}": 0, "[]": codeInvalid, "1": codeInvalid, "{": codeInvalid, `{"a":1}x`: codeInvalid, "{\"\xff\":1}": codeInvalid,
		`{"a":"` + strings.Repeat("x", limits.CapabilityArgsBytes) + `"}`: codeLimit,
	} {
		var d data
		var got []string
		f := &fake{open: func(g backend.Grant) *backend.Refusal {
			got = append(got, g.Capability.String()+"|"+g.Rule+"|"+string(g.Args))
			return nil
		}}
		o, edit := with(f)
		name, span := d.at(0, granted), d.at(100, args)
		setup{wat: agent(`(local.set $n (call $request_capability `+name+` `+span+`))
    (select (i32.const 0) (i32.sub (i32.const 0) (local.get $n)) (i32.ge_s (local.get $n) (i32.const 0)))`, d.segments.String()), o: o, edit: edit}.run(t).wants(t, -code, "")
		if want := granted + "|web|" + args; code == 0 && (len(got) != 1 || got[0] != want) || code != 0 && len(got) > 0 {
			t.Errorf("%q: %q", args, got)
		}
	}
}

func TestCallsByTheWrongArguments(t *testing.T) {
	for name, c := range map[string]struct {
		capability, op, request string
		code                    int
	}{
		"the input":       {"(i32.const 0)", "fetch", "", codeBadHandle},
		"refused before":  {"(i32.const -2)", "fetch", "", codeBadHandle},
		"never opened":    {"(i32.const 77)", "fetch", "", codeBadHandle},
		"no operation":    {"(local.get $h)", "", "", codeInvalid},
		"a long one":      {"(local.get $h)", strings.Repeat("x", limits.OperationBytes+1), "", codeInvalid},
		"a line break":    {"(local.get $h)", "fe\ntch", "", codeInvalid},
		"a space":         {"(local.get $h)", "fe tch", "", codeInvalid},
		"no text":         {"(local.get $h)", "\xff", "", codeInvalid},
		"no length":       {"(local.get $h)", "fetch", "abc", codeInvalid},
		"a head too long": {"(local.get $h)", "fetch", "\x05\x00\x00\x00{}", codeInvalid},
		"a huge head":     {"(local.get $h)", "fetch", "\xff\xff\xff\xff{}", codeInvalid},
		"no object":       {"(local.get $h)", "fetch", framed("[]", ""), codeInvalid},
		"no JSON":         {"(local.get $h)", "fetch", framed("{,}", ""), codeInvalid},
		"a head of bytes": {"(local.get $h)", "fetch", framed("{\"\xff\":1}", ""), codeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			var d data
			f := &fake{}
			o, edit := with(f)
			op, request := d.at(100, c.op), d.at(300, c.request)
			setup{wat: asking(`
    (i32.sub (i32.const 0) (call $invoke_capability `+c.capability+` `+op+` `+request+`))`, &d), o: o, edit: edit}.run(t).wants(t, -c.code, "")
			if f.invoked.Load() > 0 {
				t.Error("the backend was called")
			}
		})
	}
	// A capability is closed like every handle, and no longer one then.
	var d data
	f := &fake{}
	o, edit := with(f)
	op := d.at(100, "fetch")
	setup{wat: asking(
		expect(1, `(call $read (local.get $h) (i32.const 1000) (i32.const 1))`, codeBadHandle)+
			expect(2, `(i32.wrap_i64 (call $size (local.get $h)))`, codeBadHandle)+
			expect(3, `(call $write_stream (local.get $h) (i32.const 1000) (i32.const 1))`, codeBadHandle)+
			expect(4, `(call $close (local.get $h))`, 0)+
			`(i32.sub (i32.const 0) (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))`, &d), o: o, edit: edit}.run(t).wants(t, -codeBadHandle, "")
	if f.invoked.Load() > 0 {
		t.Error("the backend was called")
	}
}

// A guest with one thread has several calls going on.
func TestCallsRunSideBySide(t *testing.T) {
	const calls = 8
	var d data
	all, n := make(chan struct{}), atomic.Int32{}
	f := &fake{}
	f.invoke = func(ctx context.Context, _ string, _ json.RawMessage, body []byte) (backend.Answer, *backend.Refusal) {
		// No answer comes before every call was made.
		if n.Add(1) == calls {
			close(all)
		}
		return &fakeAnswer{f: f, ctx: ctx, wait: all, Reader: strings.NewReader(string(body))}, nil
	}
	o, edit := with(f)
	op := d.at(100, "fetch")
	code := ""
	for i := range calls {
		code += fmt.Sprintf("(i32.store (i32.const %d) (call $invoke_capability (local.get $h) %s %s))\n", 1000+4*i, op, d.at(200+10*i, framed("{}", fmt.Sprint(i))))
	}
	want := ""
	for i := range calls {
		code += fmt.Sprintf("(call $drain (i32.load (i32.const %d)))\n", 1000+4*(calls-1-i))
		want += framed("{}", fmt.Sprint(calls-1-i))
	}
	setup{wat: asking(code+`(i32.const 0)`, &d), o: o, edit: edit}.run(t).wants(t, 0, "").output(t, want)
}

func TestCallsAndRequestsAreBounded(t *testing.T) {
	hang := func(f *fake) {
		f.invoke = func(ctx context.Context, _ string, _ json.RawMessage, _ []byte) (backend.Answer, *backend.Refusal) {
			return &fakeAnswer{f: f, ctx: ctx, wait: make(chan struct{})}, nil
		}
	}
	var d data
	f := &fake{}
	hang(f)
	o, edit := with(f)
	op := d.at(100, "fetch")
	invoke := `(call $invoke_capability (local.get $h) ` + op + ` (i32.const 0) (i32.const 0))`
	setup{wat: asking(fmt.Sprintf(`
    (loop $again
      (if (i32.lt_s (local.tee $n %s) (i32.const 0)) (then
        (if (i32.ne (local.get $n) (i32.const %d)) (then (return (i32.const 1))))
        (return (i32.const 0))))
      (br $again))
    (i32.const 2)`, invoke, codeLimit), &d), o: o, edit: edit}.run(t).wants(t, 0, "")
	if n := f.invoked.Load(); n != limits.Calls {
		t.Errorf("%d calls", n)
	}
	if n := f.closed.Load(); n != limits.Calls {
		t.Errorf("%d answers closed", n)
	}

	// One that is closed makes room, as soon as it has ended.
	d, f = data{}, &fake{}
	hang(f)
	o, edit = with(f)
	d.at(100, "fetch")
	setup{wat: asking(fmt.Sprintf(`
    (local.set $n (i32.const %d))
    (loop $more
      (i32.store (i32.const 1000) %s)
      (br_if $more (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (drop (call $close (i32.load (i32.const 1000))))
    (loop $again
      (br_if $again (i32.eq (local.tee $n %[2]s) (i32.const %d))))
    (i32.lt_s (local.get $n) (i32.const 0))`, limits.Calls, invoke, codeLimit), &d), o: o, edit: func(d *hostdoc.Document) {
		edit(d)
		d.Limits.DeadlineMillis = 60_000
	}}.run(t).wants(t, 0, "")

	// The host keeps so many bytes for a guest, and no more.
	d, f = data{}, &fake{}
	hang(f)
	o, edit = with(f)
	op = d.at(100, "fetch")
	page := limits.RequestBytes / 65536
	big := fmt.Sprintf(`(call $invoke_capability (local.get $h) `+op+` (i32.const 65536) (i32.const %d))`, limits.RequestBytes/2+4)
	roomy := strings.NewReplacer("1 64)", "1 300)")
	setup{wat: roomy.Replace(asking(fmt.Sprintf(`
    (drop (memory.grow (i32.const %d)))
    (if (i32.lt_s %s (i32.const 0)) (then (return (i32.const 1))))
    (if (i32.lt_s %[2]s (i32.const 0)) (then (return (i32.const 2))))
    (i32.sub (i32.const 0) (call $invoke_capability (local.get $h) %s (i32.const 65536) (i32.const 5)))`, page, big, op), &d)), o: o, edit: func(d *hostdoc.Document) {
		edit(d)
		d.Limits.MemoryBytes = 64 * limits.MiB
	}}.run(t).wants(t, -codeLimit, "")
	if n := f.invoked.Load(); n != 2 {
		t.Errorf("%d calls", n)
	}
}

// However a run ends, its calls end with it.
func TestCallsEndWithTheirRun(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, c := range map[string]struct {
		code   string
		status int
		reason fault.Reason
	}{
		"returns":     {`(i32.const 3)`, 3, ""},
		"traps":       {`(unreachable)`, fault.ExitTrap, fault.Trap},
		"hangs":       {`(loop $again (br $again)) (i32.const 0)`, fault.ExitDeadline, fault.Deadline},
		"waits":       {`(call $read (local.get $h) (i32.const 1000) (i32.const 1))`, fault.ExitDeadline, fault.Deadline},
		"reads twice": {`(drop (call $read (local.get $h) (i32.const 1000) (i32.const 1))) (call $read (local.get $h) (i32.const 1000) (i32.const 1))`, fault.ExitDeadline, fault.Deadline},
	} {
		t.Run(name, func(t *testing.T) {
			var d data
			f := &fake{}
			ended := make(chan struct{})
			f.invoke = func(ctx context.Context, _ string, _ json.RawMessage, _ []byte) (backend.Answer, *backend.Refusal) {
				context.AfterFunc(ctx, func() { close(ended) })
				return &fakeAnswer{f: f, ctx: ctx, wait: make(chan struct{})}, nil
			}
			o, edit := with(f)
			op := d.at(100, "fetch")
			setup{wat: asking(`
    (local.set $h (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)))`+c.code, &d), o: o, edit: func(d *hostdoc.Document) {
				edit(d)
				if c.reason == fault.Deadline {
					brief(d)
				}
			}}.run(t).wants(t, c.status, c.reason)
			<-ended
			if f.closed.Load() != 1 || len(f.done) != 1 {
				t.Errorf("%d answers closed, done %v", f.closed.Load(), f.done)
			}
		})
	}
	eventually(t, "the calls' goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestAGuestThatWaitsForAnAnswerIsToldOfTheEnd(t *testing.T) {
	var d data
	f := &fake{}
	f.invoke = func(ctx context.Context, _ string, _ json.RawMessage, _ []byte) (backend.Answer, *backend.Refusal) {
		return &fakeAnswer{f: f, ctx: ctx, wait: make(chan struct{})}, nil
	}
	o, edit := with(f)
	op := d.at(100, "fetch")
	setup{wat: asking(`
    (i32.sub (i32.const 0) (call $read (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0)) (i32.const 1000) (i32.const 1)))`, &d),
		o: o, edit: edit, cause: errBroken}.run(t).wants(t, -codeCanceled, "")
}

func TestABackendThatIgnoresItsContextDoesNotHoldTheRun(t *testing.T) {
	var d data
	f, release := &fake{}, make(chan struct{})
	f.invoke = func(context.Context, string, json.RawMessage, []byte) (backend.Answer, *backend.Refusal) {
		return &fakeAnswer{f: f, ctx: context.WithoutCancel(t.Context()), wait: release}, nil
	}
	o, edit := with(f)
	op := d.at(100, "fetch")
	setup{wat: asking(`(drop (call $invoke_capability (local.get $h) `+op+` (i32.const 0) (i32.const 0))) (i32.const 4)`, &d), o: o, edit: edit}.run(t).wants(t, 4, "")
	close(release)
	eventually(t, "the answer is closed", func() bool { return f.closed.Load() == 1 })
}

func TestGrantsOfADocumentMustBeCapabilities(t *testing.T) {
	for name, edit := range map[string]func(*hostdoc.Document){
		"grant":  func(d *hostdoc.Document) { d.Grants = []hostdoc.Grant{{Capability: "network"}} },
		"denial": func(d *hostdoc.Document) { d.Denials = []hostdoc.Denial{{Capability: "network"}} },
		"media":  func(d *hostdoc.Document) { d.Media = &hostdoc.Media{Dir: t.TempDir(), Given: []string{"x"}} },
		"no dir": func(d *hostdoc.Document) { d.Media = &hostdoc.Media{Dir: "/nonexistent/media"} },
		"S3":     func(d *hostdoc.Document) { d.Media = &hostdoc.Media{S3: &hostdoc.MediaS3{Bucket: "b"}} },
	} {
		doc := document(t, agent(`(i32.const 0)`))
		edit(doc)
		if p, err := Load(doc, Options{}); err == nil {
			t.Errorf("%s: loaded %v", name, p)
		}
	}
}

// FuzzUnframe: what is taken apart is what was put together, and nothing else is
// taken for a frame.
func FuzzUnframe(f *testing.F) {
	for _, s := range []string{"", "abc", framed("{}", "body"), framed("", "body"), framed("[]", ""), "\xff\xff\xff\xff{}", "\x03\x00\x00\x00{}", framed(`{"a":1}`, "\x00")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		head, body, problem := unframe(request)
		if problem != "" {
			if head != nil || body != nil {
				t.Error("a part of what is no frame")
			}
			return
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(head, &object); err != nil {
			t.Errorf("head %q: %v", head, err)
		}
		again, refused := frame(head)
		if refused != nil {
			t.Fatal(refused)
		}
		if got := string(again) + string(body); got != string(request) && len(request) > 0 && binary.LittleEndian.Uint32(request) > 0 {
			t.Errorf("%q came back as %q", request, got)
		}
	})
}

// The capabilities that need nothing but the document.
func TestVariablesAndFilesAreServedFromTheDocument(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var d data
	use := func(at int, capability, op, request string) string {
		return `
    (local.set $h (call $request_capability ` + d.at(at, capability) + ` (i32.const 0) (i32.const 0)))
    (if (i32.lt_s (local.get $h) (i32.const 0)) (then (return (i32.sub (i32.const 0) (local.get $h)))))
    (local.set $n (call $invoke_capability (local.get $h) ` + d.at(at+200, op) + ` ` + d.at(at+300, request) + `))
    (if (i32.lt_s (local.get $n) (i32.const 0)) (then (return (i32.sub (i32.const 0) (local.get $n)))))
    (call $drain (local.get $n))`
	}
	text := agent(
		use(0, "env:KEY", "get", "")+
			use(1000, "filesystem:write:/data/new", "write", framed(`{"path":"/data/new"}`, "written"))+
			use(2000, "filesystem:read:/data", "read", framed(`{"path":"/data/new"}`, ""))+`(i32.const 0)`, d.segments.String())
	grants := func(list ...string) func(*hostdoc.Document) {
		return func(d *hostdoc.Document) {
			d.Env = []string{"KEY=value"}
			d.Preopens = []hostdoc.Preopen{{Host: dir, Guest: "/data"}}
			for _, g := range list {
				d.Grants = append(d.Grants, hostdoc.Grant{Capability: g, Rule: "r"})
			}
		}
	}
	o := setup{wat: text, edit: grants("env:KEY", "filesystem:read-write:/data")}.run(t).wants(t, 0, "")
	if !strings.HasPrefix(o.stdout, framed("{}", "value")) || !strings.HasSuffix(o.stdout, "}written") {
		t.Errorf("output %q", o.stdout)
	}
	setup{wat: text, edit: grants("filesystem:read-write:/data")}.run(t).wants(t, -codeDenied, "").output(t, "")
	setup{wat: text, edit: grants("env:KEY", "filesystem:read:/data")}.run(t).wants(t, -codeDenied, "").output(t, framed("{}", "value"))
}
