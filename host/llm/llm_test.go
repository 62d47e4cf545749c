package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testnet"
	"github.com/mentatlab/mentat/manifest"
)

const canary = "sk-CANARY-4f19/x+y"

// endpointServer checks the protocol, and answers as a test wants.
type endpointServer struct {
	t  *testing.T
	mu sync.Mutex
	// bodies are the requests that came in.
	bodies []map[string]any
	serve  func(w http.ResponseWriter, body map[string]any)
}

func (e *endpointServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return // the chat was ended before it began
	}
	if err := json.Unmarshal(data, &body); err != nil {
		e.t.Errorf("the request is no JSON: %v", err)
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" || r.URL.RawQuery != "" {
		e.t.Errorf("%s %s", r.Method, r.RequestURI)
	}
	if r.Header.Get("Authorization") != "Bearer "+canary || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Accept") != "text/event-stream" {
		e.t.Errorf("headers %v", r.Header)
	}
	options, _ := body["stream_options"].(map[string]any)
	if body["stream"] != true || options["include_usage"] != true || len(options) != 1 || body["n"] != nil {
		e.t.Errorf("body %v", body)
	}
	e.mu.Lock()
	e.bodies = append(e.bodies, body)
	e.mu.Unlock()
	e.serve(w, body)
}

func (e *endpointServer) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.bodies)
}

func (e *endpointServer) last() map[string]any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bodies[len(e.bodies)-1]
}

// says streams events as they are.
func says(texts ...string) func(http.ResponseWriter, map[string]any) {
	return func(w http.ResponseWriter, _ map[string]any) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for _, text := range texts {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func event(content string) string {
	return `data: {"id":"c1","object":"chat.completion.chunk","model":"m-2026","choices":[{"index":0,"delta":{"content":` + quote(content) + `},"logprobs":null,"finish_reason":null}]}` + "\n\n"
}

func quote(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(data)
}

const (
	finished = `data: {"model":"m-2026","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	counted  = `data: {"model":"m-2026","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}` + "\n\n"
	done     = "data: [DONE]\n\n"
)

// meter keeps what it is told.
type meter struct {
	mu   sync.Mutex
	seen []backend.Usage
}

func (m *meter) tell(u backend.Usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = append(m.seen, u)
}

func (m *meter) all() []backend.Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen)
}

type world struct {
	*Backend
	server *endpointServer
	meter  *meter
}

func newWorld(t *testing.T, edit func(*Config)) *world {
	t.Helper()
	w := &world{server: &endpointServer{t: t, serve: says(event("Hel"), event("lo"), finished, counted, done)}, meter: &meter{}}
	ca := testnet.NewCA(t)
	s := ca.Secure(t, w.server, nil, "llm.example")
	c := Config{
		Document: &hostdoc.Document{
			Grants: []hostdoc.Grant{{Capability: "llm:m-*", Rule: "r"}},
			LLM:    &hostdoc.LLM{Providers: []hostdoc.LLMProvider{{Name: "main", URL: s.At("LLM.example", "/v1"), Models: []string{"m-*"}, Secret: "key"}}, CAFile: ca.File},
		},
		Secrets:  hostdoc.Secrets{"key": canary},
		Resolver: testnet.NewResolver().Set("llm.example", "127.0.0.1"), // the operator's endpoint may be private
		Meters:   &backend.Meters{},
	}
	if edit != nil {
		edit(&c)
	}
	c.Meters.Add(w.meter.tell)
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	w.Backend = b
	return w
}

func (w *world) open(t *testing.T, run, capability, args string) backend.Capability {
	t.Helper()
	c, err := manifest.ParseCapability(capability)
	if err != nil {
		t.Fatal(err)
	}
	got, refusal := w.Open(t.Context(), run, backend.Grant{Capability: c, Args: json.RawMessage(args)})
	if refusal != nil {
		t.Fatal(refusal)
	}
	return got
}

type answer struct {
	head, lines string
	refusal     *backend.Refusal
}

func read(t *testing.T, got backend.Answer) answer {
	t.Helper()
	defer got.Close()
	head, refusal := got.Head()
	if refusal != nil {
		return answer{refusal: refusal}
	}
	a := answer{head: string(head)}
	lines, err := io.ReadAll(got)
	a.lines = string(lines)
	if err != nil && !errors.As(err, &a.refusal) {
		t.Fatalf("%v is no refusal", err)
	}
	return a
}

const hello = `{"model":"m-1","messages":[{"role":"user","content":"Hello there"}]}`

func ask(t *testing.T, c backend.Capability, body string) answer {
	t.Helper()
	got, refusal := c.Invoke(t.Context(), "chat", json.RawMessage(`{}`), []byte(body))
	if refusal != nil {
		return answer{refusal: refusal}
	}
	return read(t, got)
}

func (w *world) ask(t *testing.T, body string) answer {
	t.Helper()
	return ask(t, w.open(t, "run", "llm:m-*", ""), body)
}

func (a answer) wants(t *testing.T, code backend.Code, word string) {
	t.Helper()
	if a.refusal == nil || a.refusal.Code != code || !strings.Contains(a.refusal.Reason+" "+a.refusal.Rule, word) {
		t.Errorf("%q, %+v; want %d %q", a.lines, a.refusal, code, word)
	}
}

func TestAChatStreamsItsLines(t *testing.T) {
	w := newWorld(t, nil)
	a := w.ask(t, hello)
	want := `{"delta":{"content":"Hel"}}
{"delta":{"content":"lo"}}
{"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}
{"finish":"stop"}
`
	if a.refusal != nil || a.head != `{"model":"m-2026"}` || a.lines != want {
		t.Errorf("%+v", a)
	}
	if got := w.meter.all(); len(got) != 1 || got[0] != (backend.Usage{Run: "run", Provider: "main", Model: "m-1", Prompt: 7, Completion: 2}) {
		t.Errorf("%+v", got)
	}
}

func TestEveryLineComesAsSoonAsItsEvent(t *testing.T) {
	w := newWorld(t, nil)
	next := make(chan string)
	w.server.serve = func(rw http.ResponseWriter, _ map[string]any) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for text := range next {
			_, _ = io.WriteString(rw, text)
			_ = http.NewResponseController(rw).Flush()
		}
	}
	got, refusal := w.open(t, "run", "llm:m-*", "").Invoke(t.Context(), "chat", nil, []byte(hello))
	if refusal != nil {
		t.Fatal(refusal)
	}
	defer got.Close()
	for i, text := range []string{"one", "two", "three"} {
		next <- event(text)
		if i == 0 {
			if _, refusal := got.Head(); refusal != nil {
				t.Fatal(refusal)
			}
		}
		want := `{"delta":{"content":"` + text + `"}}` + "\n"
		p := make([]byte, 1000)
		n, err := io.ReadAtLeast(got, p, len(want))
		if err != nil || string(p[:n]) != want {
			t.Fatalf("%q, %v", p[:n], err)
		}
	}
	next <- finished + counted + done
	close(next)
	if rest, err := io.ReadAll(got); err != nil || strings.Count(string(rest), "\n") != 2 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestToolCallsAndReasoningArePassedOn(t *testing.T) {
	w := newWorld(t, nil)
	w.server.serve = says(
		`data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"hm"}}]}`+"\n\n",
		`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\""}}]}},{"index":1,"delta":{"content":"another"}}]}`+"\n\n",
		`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}`+"\n\n", counted, done)
	a := w.ask(t, `{"model":"m-1","messages":[{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":[{"id":"t0","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"t0","content":"y"}],
		"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`)
	want := `{"delta":{"role":"assistant","reasoning_content":"hm"}}
{"delta":{"tool_calls":[{"index":0,"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\""}}]}}
{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}
{"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}
{"finish":"tool_calls"}
`
	if a.refusal != nil || a.lines != want {
		t.Errorf("%+v", a)
	}
	if body := w.server.last(); len(body["tools"].([]any)) != 1 || len(body["messages"].([]any)) != 3 {
		t.Errorf("%v", body)
	}
}

func TestStreamsAreReadAsTheFormatSays(t *testing.T) {
	one, end := event("x"), finished+counted+done
	for name, text := range map[string]string{
		"as usual":           one + end,
		"CR LF":              strings.ReplaceAll(one+end, "\n", "\r\n"),
		"CR":                 strings.ReplaceAll(one+end, "\n", "\r"),
		"comments":           ": ping\n\n" + one + ":\n: more\n\n" + end,
		"other fields":       "event: chunk\nid: 7\nretry: 1\n" + one + "event: ping\n\n" + end,
		"no space":           strings.ReplaceAll(one+end, "data: ", "data:"),
		"several lines":      strings.Replace(one, `,"object"`, "\ndata: ,\"object\"", 1) + end,
		"no end mark":        one + finished + counted,
		"empty events":       "\n\n\n" + one + "\n\n" + end,
		"an unfinished line": one + end + "data: {\"x",
	} {
		for _, cut := range []int{1, 7, 1 << 20} {
			w := newWorld(t, nil)
			var pieces []string
			for rest := text; rest != ""; rest = rest[min(cut, len(rest)):] {
				pieces = append(pieces, rest[:min(cut, len(rest))])
			}
			if cut == 1 {
				// Byte by byte without a connection.
				tr := &translator{c: &call{o: &opened{b: w.Backend}, p: w.providers[0], model: "m", ledger: newLedger(nil)}, events: newEvents(iotest.OneByteReader(strings.NewReader(text)))}
				got, err := io.ReadAll(tr)
				if err != nil || !strings.HasPrefix(string(got), `{"delta":{"content":"x"}}`+"\n") || !strings.HasSuffix(string(got), `{"finish":"stop"}`+"\n") {
					t.Errorf("%s: %q, %v", name, got, err)
				}
				continue
			}
			w.server.serve = says(pieces...)
			if a := w.ask(t, hello); a.refusal != nil || !strings.HasPrefix(a.lines, `{"delta":{"content":"x"}}`+"\n{\"usage") {
				t.Errorf("%s cut at %d: %+v", name, cut, a)
			}
		}
	}
}

func TestStreamsThatAreNoneAreRefused(t *testing.T) {
	long := strings.Repeat("x", limits.LLMEventBytes)
	for name, c := range map[string]struct {
		text string
		code backend.Code
		want string
	}{
		"nothing":         {"", backend.Unavailable, "before its answer was complete"},
		"broken off":      {event("x"), backend.Unavailable, "before its answer was complete"},
		"no JSON":         {"data: hello\n\n", backend.Unavailable, "none of the protocol"},
		"a wrong type":    {`data: {"choices":[{"delta":{"content":7}}]}` + "\n\n", backend.Unavailable, "none of the protocol"},
		"a key twice":     {`data: {"choices":[],"choices":[]}` + "\n\n", backend.Unavailable, "none of the protocol"},
		"an error inside": {event("x") + `data: {"error":{"message":"the model fell over","code":500}}` + "\n\n", backend.Unavailable, "the model fell over"},
		"no more inside":  {`data: {"error":{"message":"x","type":"rate_limit_error"}}` + "\n\n", backend.Limit, "no more requests"},
		"a key inside":    {`data: {"error":{"message":"Incorrect API key provided: sk-CA***x/y","code":"invalid_api_key"}}` + "\n\n", backend.Unavailable, "the node's credentials"},
		"a long line":     {"data: " + long + "\n\n", backend.Limit, "more than may be"},
		"a long event":    {"data: " + long[:len(long)/2] + "\ndata: " + long[:len(long)/2] + "\n\n", backend.Limit, "more than may be"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.server.serve = says(c.text)
			w.ask(t, hello).wants(t, c.code, c.want)
		})
	}
	w := newWorld(t, nil)
	w.server.serve = func(rw http.ResponseWriter, _ map[string]any) {
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, `{"choices":[{"message":{"content":"x"}}]}`)
	}
	w.ask(t, hello).wants(t, backend.Unavailable, "stream of events")
}

func TestWhatActsBeyondTheModelIsNotPassedOn(t *testing.T) {
	w := newWorld(t, nil)
	with := func(more string) string { return strings.Replace(hello, `"messages"`, more+`,"messages"`, 1) }
	content := func(parts string) string {
		return `{"model":"m-1","messages":[{"role":"user","content":` + parts + `}]}`
	}
	for _, body := range []string{
		``, `null`, `[]`, `{}`, `{"model":"m-1"}`, `{"model":"m-1","messages":[]}`, hello + `{}`, `{"model":"m-1","messages":[{"role":"user","content":"x"}],"messages":[]}`,
		"{\"model\":\"m-1\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}",
		// Gateways take these for another endpoint, key or answer.
		with(`"api_base":"http://169.254.169.254"`), with(`"base_url":"http://x"`), with(`"api_key":"x"`), with(`"extra_headers":{}`), with(`"mock_response":"x"`), with(`"fallbacks":[]`), with(`"Model":"other"`),
		// These use the node's account, or tools of the provider.
		with(`"store":true`), with(`"metadata":{}`), with(`"web_search_options":{}`), with(`"service_tier":"priority"`), with(`"user":"x"`), with(`"prediction":{}`), with(`"audio":{}`),
		with(`"tools":[{"type":"mcp","server_url":"http://169.254.169.254"}]`), with(`"tools":[{"type":"web_search"}]`), with(`"tools":[{"type":"function","function":{"name":"f"},"server_url":"x"}]`),
		with(`"tool_choice":{"type":"mcp"}`), with(`"tool_choice":{"type":"function","function":{"name":"f","url":"x"}}`), with(`"tool_choice":7`),
		with(`"n":2`), with(`"n":0`), with(`"max_tokens":0`), with(`"max_tokens":-1`), with(`"max_completion_tokens":0`), with(`"max_tokens":"1"`), with(`"stream":"yes"`),
		content(`[{"type":"file","file":{"file_id":"f-1"}}]`), content(`[{"type":"text","text":"x","cache_control":{}}]`), content(`[{"type":"text"}]`), content(`[{"type":"image_url"}]`), content(`7`), content(`{"type":"text","text":"x"}`),
		content(`[{"type":"text","text":"x","image_url":{"url":"data:,x"}}]`), content(`[{"type":"input_audio"}]`), content(`[{"type":"video_url","video_url":{"url":"data:,x"}}]`),
		`{"model":"m-1","messages":[{"role":"root","content":"x"}]}`, `{"model":"m-1","messages":[{"role":"assistant","audio":{"id":"x"}}]}`,
	} {
		if a := w.ask(t, body); a.refusal == nil || a.refusal.Code != backend.Invalid {
			t.Errorf("%.120s: %+v", body, a)
		}
	}
	for _, url := range []string{"http://169.254.169.254/", "https://x.example/a.png", "file:///etc/passwd", "HTTP://x", "//x/a", "gs://x", ""} {
		w.ask(t, content(`[{"type":"image_url","image_url":{"url":"`+url+`"}}]`)).wants(t, backend.Denied, "on the agent's behalf")
	}
	if w.server.count() != 0 {
		t.Errorf("%d requests were sent", w.server.count())
	}
	full := `{"model":"m-1","messages":[{"role":"system","content":"s"},{"role":"user","name":"n","content":[{"type":"text","text":"t"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}},{"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}}]}],
		"temperature":0.5,"top_p":1,"presence_penalty":0,"frequency_penalty":0,"seed":-7,"stop":["a"],"logit_bias":{"1":2},"response_format":{"type":"json_object"},"reasoning_effort":"low","verbosity":"low",
		"parallel_tool_calls":false,"tool_choice":"auto","max_tokens":100,"max_completion_tokens":50,"n":1,"stream":false,"stream_options":{"include_usage":false}}`
	if a := w.ask(t, full); a.refusal != nil {
		t.Fatal(a.refusal)
	}
	if got := w.server.last(); got["seed"] != -7.0 || got["max_tokens"] != 100.0 || got["temperature"] != 0.5 || got["tool_choice"] != "auto" {
		t.Errorf("%v", got)
	}
}

func TestAModelMustBeGrantedAndOffered(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Document.Grants = append(c.Document.Grants, hostdoc.Grant{Capability: "llm:x", Rule: "r"})
		c.Document.Holes = []hostdoc.Hole{{Capability: "llm:m-9*", Rule: "no-nine"}, {Capability: "llm:m-soon", Rule: "soon", DryRun: true}}
	})
	model := func(name string) string { return strings.Replace(hello, "m-1", name, 1) }
	narrow := w.open(t, "run", "llm:m-1", "")
	ask(t, narrow, model("m-2")).wants(t, backend.Denied, "does not cover")
	all := w.open(t, "run", "llm:m-*", "")
	ask(t, all, model("m-9-big")).wants(t, backend.Denied, "no-nine")
	ask(t, all, model("n-1")).wants(t, backend.Denied, "does not cover")
	ask(t, all, model("m-*")).wants(t, backend.Invalid, "no model's name")
	ask(t, all, model("m 1")).wants(t, backend.Invalid, "no model's name")
	ask(t, w.open(t, "run", "llm:x", ""), model("x")).wants(t, backend.NotFound, "no provider")
	for _, c := range []manifest.Capability{{Kind: manifest.KindLLM, Name: "other"}, {Kind: manifest.KindEnv, Name: "X"}} {
		if _, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: c}); refusal == nil {
			t.Errorf("%s is opened", c)
		}
	}
	for _, args := range []string{`{"tokens":0}`, `{"tokens":-1}`, `{"models":[]}`, `[]`} {
		if _, refusal := w.Open(t.Context(), "run", backend.Grant{Capability: manifest.Capability{Kind: manifest.KindLLM, Name: "m-1"}, Args: json.RawMessage(args)}); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%s: %v", args, refusal)
		}
	}
	if _, refusal := all.Invoke(t.Context(), "embed", nil, []byte(hello)); refusal == nil || refusal.Code != backend.Unsupported {
		t.Errorf("%v", refusal)
	}
	if _, refusal := all.Invoke(t.Context(), "chat", json.RawMessage(`{"x":1}`), []byte(hello)); refusal == nil || refusal.Code != backend.Invalid {
		t.Errorf("%v", refusal)
	}
	if _, refusal := all.Invoke(t.Context(), "chat", nil, make([]byte, limits.LLMRequestBytes+1)); refusal == nil || refusal.Code != backend.Limit {
		t.Errorf("%v", refusal)
	}
	if w.server.count() != 0 {
		t.Errorf("%d requests were sent", w.server.count())
	}
	ask(t, narrow, hello)
	if w.server.count() != 1 {
		t.Errorf("%d requests", w.server.count())
	}
	var counted []string
	ctx := backend.WithCounter(t.Context(), func(used manifest.Capability, rules []string) {
		counted = append(counted, used.String()+" "+rules[0])
	})
	got, refusal := all.Invoke(ctx, "chat", json.RawMessage(`{}`), []byte(model("m-soon")))
	if refusal != nil {
		t.Fatal(refusal)
	}
	if a := read(t, got); a.refusal != nil || len(counted) != 1 || counted[0] != "llm:m-soon soon" {
		t.Errorf("counted %q, %+v", counted, a)
	}
}

func TestTheFirstProviderThatOffersAModelIsAsked(t *testing.T) {
	second := testnet.Plain(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.URL.Path != "/base/chat/completions" {
			t.Errorf("%s with %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		says(event("second"), finished, done)(rw, nil)
	}))
	w := newWorld(t, func(c *Config) {
		c.Document.LLM.Providers[0].Models = []string{"m-1"}
		c.Document.LLM.Providers = append(c.Document.LLM.Providers, hostdoc.LLMProvider{Name: "second", URL: second.URL + "/base/", Models: []string{"m-*"}})
	})
	if a := w.ask(t, hello); !strings.Contains(a.lines, "Hel") {
		t.Errorf("%+v", a)
	}
	if a := w.ask(t, strings.Replace(hello, "m-1", "m-2", 1)); !strings.Contains(a.lines, "second") {
		t.Errorf("%+v", a)
	}
}

func TestRefusalsOfTheProviderAreTold(t *testing.T) {
	status := func(code int, retry, body string) func(http.ResponseWriter, map[string]any) {
		return func(w http.ResponseWriter, _ map[string]any) {
			if retry != "" {
				w.Header().Set("Retry-After", retry)
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	for _, c := range []struct {
		status int
		retry  string
		body   string
		code   backend.Code
		want   string
		wait   time.Duration
	}{
		{401, "", `{"error":{"message":"wrong key ` + canary + `"}}`, backend.Unavailable, "credentials", 0},
		{403, "", ``, backend.Unavailable, "credentials", 0},
		{404, "", `{"error":{"message":"no such model"}}`, backend.NotFound, "no model m-1", 0},
		{429, "7", ``, backend.Limit, "no more requests", 7 * time.Second},
		{429, "0.5", ``, backend.Limit, "", 500 * time.Millisecond},
		{429, "1e99", ``, backend.Limit, "", time.Hour},
		{429, "-5", ``, backend.Limit, "", 0},
		{429, "soon", ``, backend.Limit, "", 0},
		{400, "", `{"error":{"message":"too\nmany words ` + canary + `"}}`, backend.Invalid, "too many words ****", 0},
		{422, "", `{"error":"plainly wrong"}`, backend.Invalid, "plainly wrong", 0},
		{413, "", `{"error":7}`, backend.Invalid, "does not accept", 0},
		{400, "", strings.Repeat("x", 1<<20), backend.Invalid, "does not accept", 0},
		{500, "", `{"error":{"message":"` + canary + `"}}`, backend.Unavailable, "status 500", 0},
		{503, "9", ``, backend.Unavailable, "status 503", 9 * time.Second},
		{302, "", ``, backend.Unavailable, "status 302", 0},
		{201, "", ``, backend.Unavailable, "status 201", 0},
	} {
		w := newWorld(t, func(c *Config) { c.Document.LLM.Tokens = 1000 })
		w.server.serve = status(c.status, c.retry, c.body)
		a := w.ask(t, hello)
		a.wants(t, c.code, c.want)
		if a.refusal != nil && (a.refusal.RetryAfter != c.wait || strings.Contains(fmt.Sprintf("%+v", *a.refusal), "CANARY")) {
			t.Errorf("%d: %+v", c.status, *a.refusal)
		}
		if left := w.budget("run").left(); left != 1000 || len(w.meter.all()) != 0 {
			t.Errorf("%d: %d tokens are left, %v", c.status, left, w.meter.all())
		}
	}
}

func TestARunHasABudgetOfTokens(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Document.LLM.Tokens = 20 })
	c := w.open(t, "a", "llm:m-*", "")
	for range 2 {
		if a := ask(t, c, hello); a.refusal != nil { // 9 each
			t.Fatal(a.refusal)
		}
	}
	sent := w.server.count()
	ask(t, c, hello).wants(t, backend.Limit, "token budget") // 2 left, 4 for the prompt
	if w.server.count() != sent {
		t.Error("a request was sent")
	}
	// Another run has its own, and so has the same id when its run is over.
	if a := ask(t, w.open(t, "b", "llm:m-*", ""), hello); a.refusal != nil {
		t.Error(a.refusal)
	}
	w.Done("a")
	if a := ask(t, w.open(t, "a", "llm:m-*", ""), hello); a.refusal != nil {
		t.Error(a.refusal)
	}
	// Arguments make it tighter.
	narrow := w.open(t, "c", "llm:m-*", `{"tokens":3}`)
	ask(t, narrow, hello).wants(t, backend.Limit, "budget of 3")
	if left := w.budget("c").left(); left != 20 {
		t.Errorf("%d left of the run's budget", left)
	}
}

func TestACompletionStopsWhereTheBudgetEnds(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Document.LLM.Tokens = 10 })
	gone := make(chan struct{})
	w.server.serve = func(rw http.ResponseWriter, body map[string]any) {
		if body["max_tokens"] != 6.0 { // 4 are the prompt's
			t.Errorf("max_tokens is %v", body["max_tokens"])
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		for {
			if _, err := io.WriteString(rw, event("token")); err != nil {
				break
			}
			if http.NewResponseController(rw).Flush() != nil {
				break
			}
		}
		close(gone)
	}
	a := w.ask(t, strings.Replace(hello, `"messages"`, `"max_tokens":1000,"messages"`, 1))
	a.wants(t, backend.Limit, "token budget")
	if n := strings.Count(a.lines, "delta"); n != 5 { // the fifth makes it 25 bytes, which are 7 tokens
		t.Errorf("%d events came through", n)
	}
	<-gone // the provider is hung up on
	within(t, "the chat is metered", func() bool { return len(w.meter.all()) > 0 })
	got := w.meter.all()
	if len(got) != 1 || !got[0].Estimated || got[0].Completion < 6 || got[0].Prompt != 4 {
		t.Errorf("%+v", got)
	}
	if left := w.budget("run").left(); left > 0 {
		t.Errorf("%d left", left)
	}
}

func TestTokensAreEstimatedWhereNobodyCounts(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Document.LLM.Tokens = 1000 })
	w.server.serve = says(event("a"), event("b"), event(strings.Repeat("x", 37)), finished, done)
	a := w.ask(t, hello)
	// 11 and two quotes are 4 tokens; 39 bytes are 10.
	if a.refusal != nil || !strings.Contains(a.lines, `{"usage":{"prompt_tokens":4,"completion_tokens":10,"total_tokens":14,"estimated":true}}`) {
		t.Errorf("%+v", a)
	}
	if got := w.meter.all(); len(got) != 1 || !got[0].Estimated || w.budget("run").left() != 986 {
		t.Errorf("%+v, %d left", got, w.budget("run").left())
	}
	// Short events are a token each; an image is a lump.
	w.server.serve = says(event("a"), event("b"), event("c"), finished, done)
	a = w.ask(t, `{"model":"m-1","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,`+strings.Repeat("A", 100_000)+`"}}]}]}`)
	a.wants(t, backend.Limit, "token budget") // 1000 for the image
	a = w.ask(t, hello)
	if a.refusal != nil || !strings.Contains(a.lines, `"completion_tokens":3`) {
		t.Errorf("%+v", a)
	}
}

func TestAnEndedChatHangsUpAndCountsWhatItHeard(t *testing.T) {
	for name, end := range map[string]func(backend.Answer, context.CancelCauseFunc){
		"closed":   func(a backend.Answer, _ context.CancelCauseFunc) { a.Close() },
		"canceled": func(_ backend.Answer, cancel context.CancelCauseFunc) { cancel(nil) },
		"deadline": func(_ backend.Answer, cancel context.CancelCauseFunc) { cancel(context.DeadlineExceeded) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Document.LLM.Tokens = 1000 })
			gone := make(chan struct{})
			w.server.serve = func(rw http.ResponseWriter, _ map[string]any) {
				says(event("12345678"))(rw, nil)
				for {
					if _, err := io.WriteString(rw, ": ping\n\n"); err != nil || http.NewResponseController(rw).Flush() != nil {
						close(gone)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			got, refusal := w.open(t, "run", "llm:m-*", "").Invoke(ctx, "chat", nil, []byte(hello))
			if refusal != nil {
				t.Fatal(refusal)
			}
			if _, refusal := got.Head(); refusal != nil {
				t.Fatal(refusal)
			}
			end(got, cancel)
			a := read(t, got)
			want := backend.Canceled
			if name == "deadline" {
				want = backend.Deadline
			}
			if a.refusal == nil || a.refusal.Code != want {
				t.Errorf("%+v", a)
			}
			<-gone
			within(t, "the chat is metered", func() bool { return len(w.meter.all()) == 1 })
			if u := w.meter.all()[0]; !u.Estimated || u.Prompt != 4 || u.Completion != 2 {
				t.Errorf("%+v", u)
			}
			if left := w.budget("run").left(); left != 994 {
				t.Errorf("%d left", left)
			}
		})
	}
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("does not happen: " + what)
}

func TestASilentProviderIsGivenUp(t *testing.T) {
	w := newWorld(t, nil)
	w.idle = 50 * time.Millisecond
	stop := make(chan struct{})
	defer close(stop)
	w.server.serve = func(http.ResponseWriter, map[string]any) { <-stop }
	w.ask(t, hello).wants(t, backend.Unavailable, "said nothing for 50ms")
}

func TestChatsRunInParallelUpToTheirNumber(t *testing.T) {
	w := newWorld(t, nil)
	stop := make(chan struct{})
	w.server.serve = func(rw http.ResponseWriter, _ map[string]any) {
		<-stop
		says(event("x"), finished, done)(rw, nil)
	}
	c := w.open(t, "run", "llm:m-*", "")
	var answers []backend.Answer
	for range limits.LLMConcurrent + 3 {
		got, refusal := c.Invoke(t.Context(), "chat", nil, []byte(hello))
		if refusal != nil {
			t.Fatal(refusal)
		}
		answers = append(answers, got)
	}
	within(t, "all that may run do", func() bool { return w.server.count() == limits.LLMConcurrent })
	close(stop)
	for _, got := range answers {
		if a := read(t, got); a.refusal != nil {
			t.Error(a.refusal)
		}
	}
}

func TestTheSecretShowsNowhere(t *testing.T) {
	w := newWorld(t, nil)
	for _, serve := range []func(http.ResponseWriter, map[string]any){
		says(event("your key is "+canary), event(canary[:9]), event(canary[9:]), `data: {"model":"`+canary+`","choices":[]}`+"\n\n", finished, counted, done),
		says(strings.ReplaceAll(event("x"), "m-2026", canary), finished, done),
		says(`data: {"error":{"message":"key ` + canary + ` expired"}}` + "\n\n"),
		says(`data: ` + canary + "\n\n"),
	} {
		w.server.serve = serve
		a := w.ask(t, hello)
		text := fmt.Sprintf("%+v %+v", a, a.refusal)
		if strings.Contains(text, canary) || strings.Contains(text, "CANARY") && !strings.Contains(text, quote(canary[:9])) {
			t.Errorf("%s", text)
		}
	}
	if text := fmt.Sprintf("%+v", w.meter.all()); strings.Contains(text, "CANARY") {
		t.Error(text)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	w := newWorld(t, nil)
	w.ask(t, hello)
	before := runtime.NumGoroutine()
	c := w.open(t, "run", "llm:m-*", "")
	for i := range 100 {
		got, refusal := c.Invoke(t.Context(), "chat", nil, []byte(hello))
		if refusal != nil {
			t.Fatal(refusal)
		}
		if i%2 == 0 {
			_, _ = got.Head()
		}
		got.Close()
	}
	within(t, "the goroutines of 100 chats end", func() bool {
		w.providers[0].transport.CloseIdleConnections()
		return runtime.NumGoroutine() <= before+5
	})
}

func TestAConfigurationThatCannotHoldIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*Config)
		reason fault.Reason
	}{
		"no providers":         {func(c *Config) { c.Document.LLM.Providers = nil }, fault.Internal},
		"a negative budget":    {func(c *Config) { c.Document.LLM.Tokens = -1 }, fault.Internal},
		"nothing":              {func(c *Config) { c.Document.LLM = nil }, fault.Internal},
		"a broken hole":        {func(c *Config) { c.Document.Holes = []hostdoc.Hole{{Capability: "llm:"}} }, fault.Internal},
		"no authorities":       {func(c *Config) { c.Document.LLM.CAFile = "/nonexistent" }, fault.PolicyInvalid},
		"no URL":               {func(c *Config) { c.Document.LLM.Providers[0].URL = "llm.example" }, fault.PolicyInvalid},
		"another scheme":       {func(c *Config) { c.Document.LLM.Providers[0].URL = "ftp://llm.example" }, fault.PolicyInvalid},
		"a URL with a secret":  {func(c *Config) { c.Document.LLM.Providers[0].URL = "https://u:p@llm.example" }, fault.PolicyInvalid},
		"a URL with a query":   {func(c *Config) { c.Document.LLM.Providers[0].URL = "https://llm.example/v1?key=x" }, fault.PolicyInvalid},
		"no models":            {func(c *Config) { c.Document.LLM.Providers[0].Models = nil }, fault.PolicyInvalid},
		"a broken model":       {func(c *Config) { c.Document.LLM.Providers[0].Models = []string{"a*b"} }, fault.PolicyInvalid},
		"a secret that lacks":  {func(c *Config) { c.Secrets = nil }, fault.PolicyInvalid},
		"a secret with a line": {func(c *Config) { c.Secrets = hostdoc.Secrets{"key": "long enough\n"} }, fault.PolicyInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{
				Document: &hostdoc.Document{LLM: &hostdoc.LLM{Providers: []hostdoc.LLMProvider{{Name: "p", URL: "https://llm.example/v1", Models: []string{"m"}, Secret: "key"}}}},
				Secrets:  hostdoc.Secrets{"key": canary},
			}
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			c.edit(&cfg)
			if b, err := New(cfg); b != nil || fault.ReasonOf(err) != c.reason || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%v, %v", b, err)
			}
		})
	}
}

// What is accepted is written anew with nothing but what is known, and says
// stream.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,x"}}]}],"tools":[{"type":"function","function":{"name":"f"}}]}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user"}],"api_base":"http://x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, refusal := parseRequest(data)
		if refusal != nil {
			return
		}
		r.bound(10)
		sent, err := r.encode()
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		again, refusal := parseRequest(sent)
		if refusal != nil || again.estimate() != r.estimate() || again.Model != r.Model || len(again.Messages) != len(r.Messages) {
			t.Fatalf("%q is written %q: %v", data, sent, refusal)
		}
		var body map[string]any
		if err := json.Unmarshal(sent, &body); err != nil || body["stream"] != true || body["api_base"] != nil {
			t.Fatalf("%q is written %q, %v", data, sent, err)
		}
		if strings.Contains(strings.ToLower(string(sent)), `"image_url":{"url":"http`) {
			t.Fatalf("%q", sent)
		}
	})
}

// Whatever an endpoint streams, the lines are JSON, and they end properly or
// with a refusal.
func FuzzTranslator(f *testing.F) {
	f.Add([]byte(event("x") + finished + counted + done))
	f.Add([]byte("data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\r\rdata: [DONE]\r\n\r\n"))
	f.Add([]byte("data\ndata:\n\n:x\nevent:y\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &call{o: &opened{b: &Backend{}}, p: &provider{name: "p"}, model: "m", ledger: newLedger([]*budget{newBudget(100)}), over: func() error { return nil }}
		got, err := io.ReadAll(&translator{c: c, events: newEvents(strings.NewReader(string(data)))})
		for line := range strings.Lines(string(got)) {
			var v map[string]any
			if json.Unmarshal([]byte(line), &v) != nil || len(v) != 1 || !strings.HasSuffix(line, "\n") {
				t.Fatalf("%q gives the line %q", data, line)
			}
		}
		if err == nil && !strings.Contains(string(got), `{"finish":`) {
			t.Fatalf("%q ends without a finish: %q", data, got)
		}
	})
}
