package extension

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// The test binary is an extension, too, when it is started with this argument
// and what to do.
const asProgram = "-as-extension="

func TestMain(m *testing.M) {
	for _, arg := range os.Args[1:] {
		if role, ok := strings.CutPrefix(arg, asProgram); ok {
			play(role)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// play is a program that behaves as its role says.
func play(role string) {
	say := func(text string) { fmt.Println(text) }
	switch role {
	case "silent":
		time.Sleep(time.Hour)
	case "ends":
		return
	case "babbles":
		say("hello")
	case "other":
		say(`{"mentat":"extension/1","name":"other"}`)
	case "future":
		say(`{"mentat":"extension/2","name":"x"}`)
	case "stubborn":
		say(`{"mentat":"extension/1","name":"x"}`)
		time.Sleep(time.Hour) // its input's end means nothing to it
	}
	say(`{"mentat":"extension/1","name":"x"}`)
	if role == "deaf" {
		time.Sleep(time.Hour)
	}
	if role == "env" {
		fmt.Fprintf(os.Stderr, "env %d\n", len(os.Environ()))
	}
	var out sync.Mutex
	write := func(text string) {
		out.Lock()
		defer out.Unlock()
		say(text)
	}
	canceled := map[int64]chan struct{}{}
	read := bufio.NewReaderSize(os.Stdin, 1<<20)
	window, more := int64(limits.ExtensionUnreadBytes), make(chan int64, 100)
	for {
		line, err := read.ReadBytes('\n')
		if err != nil {
			return
		}
		var m struct {
			Call, Cancel, Read, Bytes int64
			Op                        string
			Head                      json.RawMessage
			Body                      []byte
		}
		if json.Unmarshal(line, &m) != nil {
			os.Exit(9)
		}
		if m.Cancel > 0 {
			if c := canceled[m.Cancel]; c != nil {
				close(c)
			}
			continue
		}
		if m.Read > 0 {
			more <- m.Bytes
			continue
		}
		stop := make(chan struct{})
		canceled[m.Call] = stop
		reply := func(rest string) { write(fmt.Sprintf(`{"call":%d,%s}`, m.Call, rest)) }
		switch m.Op {
		case "echo":
			reply(fmt.Sprintf(`"head":{"op":%q,"head":%s}`, m.Op, m.Head))
			body, _ := json.Marshal(m.Body)
			reply(`"body":` + string(body))
			reply(`"end":true`)
		case "slowly":
			go func() {
				for i := range 3 {
					reply(fmt.Sprintf(`"body":%q`, "MQ=="))
					if i < 2 {
						time.Sleep(10 * time.Millisecond)
					}
				}
				reply(`"end":true`)
			}()
		case "never":
			go func() {
				<-stop
				fmt.Fprintln(os.Stderr, "canceled")
			}()
		case "crash":
			os.Exit(3)
		case "hang":
			time.Sleep(time.Hour) // it reads nothing any more
		case "garbage":
			write("this is no message")
		case "wrong":
			reply(string(m.Body))
		case "long":
			write(strings.Repeat("x", limits.ExtensionLineBytes+1))
		case "guess":
			for id := range int64(1000) {
				write(fmt.Sprintf(`{"call":%d,"head":{"guess":true}}`, m.Call+id+1))
			}
			reply(`"end":true`)
		case "flood", "large":
			go func() {
				chunk, _ := json.Marshal(bytes.Repeat([]byte("x"), 256<<10))
				for range 80 { // 20 MiB
					for m.Op == "large" && window < 256<<10 {
						window += <-more
					}
					window -= 256 << 10
					reply(`"body":` + string(chunk))
				}
				reply(`"end":true`)
			}()
		}
	}
}

func self(t *testing.T, name, role string) hostdoc.Extension {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return hostdoc.Extension{Name: name, Command: []string{exe, asProgram + role}}
}

// said keeps log lines.
type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) log(name, line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, name+": "+line)
}

func (s *said) has(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.lines, line)
}

func begun(t *testing.T, role string) (*Backend, *said) {
	t.Helper()
	s := &said{}
	b, err := Start(t.Context(), []hostdoc.Extension{self(t, "x", role)}, s.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, s
}

func open(t *testing.T, b *Backend, name string) backend.Capability {
	t.Helper()
	c, refusal := b.Open(t.Context(), "run", backend.Grant{Capability: manifest.Capability{Kind: manifest.KindExtension, Name: name}})
	if refusal != nil {
		t.Fatal(refusal)
	}
	return c
}

type answer struct {
	head, body string
	refusal    *backend.Refusal
}

func read(t *testing.T, got backend.Answer) answer {
	t.Helper()
	defer got.Close()
	head, refusal := got.Head()
	if refusal != nil {
		return answer{refusal: refusal}
	}
	body, err := io.ReadAll(got)
	a := answer{head: string(head), body: string(body)}
	if err != nil && !errors.As(err, &a.refusal) {
		t.Fatalf("%v is no refusal", err)
	}
	return a
}

func ask(t *testing.T, b *Backend, op, head, body string) answer {
	t.Helper()
	got, refusal := open(t, b, "x").Invoke(t.Context(), op, json.RawMessage(head), []byte(body))
	if refusal != nil {
		return answer{refusal: refusal}
	}
	return read(t, got)
}

func (a answer) wants(t *testing.T, code backend.Code, word string) {
	t.Helper()
	if a.refusal == nil || a.refusal.Code != code || !strings.Contains(a.refusal.Reason, word) {
		t.Errorf("%+v, %+v; want %d %q", a, a.refusal, code, word)
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

func TestACallIsPassedOnAndAnswered(t *testing.T) {
	b, _ := begun(t, "good")
	body := string([]byte{0, 1, 255}) + strings.Repeat("x", 100_000)
	if a := ask(t, b, "echo", `{"a":[1,"ü"]}`, body); a.refusal != nil || a.head != `{"op":"echo","head":{"a":[1,"ü"]}}` || a.body != body {
		t.Errorf("%.200s, %d bytes, %v", a.head, len(a.body), a.refusal)
	}
	if a := ask(t, b, "slowly", "", ""); a.refusal != nil || a.head != "{}" || a.body != "111" {
		t.Errorf("%+v", a)
	}
}

func TestCallsRunSideBySide(t *testing.T) {
	b, _ := begun(t, "good")
	waiting, refusal := open(t, b, "x").Invoke(t.Context(), "never", nil, nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			text := fmt.Sprint("call ", i)
			if a := ask(t, b, "echo", "{}", text); a.refusal != nil || a.body != text {
				t.Errorf("%+v", a)
			}
		})
	}
	wg.Wait()
	waiting.Close()
}

func TestALargeAnswerFlowsAsItIsRead(t *testing.T) {
	b, _ := begun(t, "good")
	if a := ask(t, b, "large", "{}", ""); a.refusal != nil || len(a.body) != 20<<20 {
		t.Errorf("%d bytes, %v", len(a.body), a.refusal)
	}
	// Who sends without looking loses the call, not the host its memory.
	got, refusal := open(t, b, "x").Invoke(t.Context(), "flood", nil, nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := got.Head(); refusal != nil {
		t.Fatal(refusal)
	}
	within(t, "the call is given up", func() bool {
		c := got.(*call)
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.over
	})
	a := read(t, got)
	a.wants(t, backend.Limit, "were not read")
	if len(a.body) > limits.ExtensionUnreadBytes {
		t.Errorf("%d bytes were kept", len(a.body))
	}
	if a := ask(t, b, "echo", "{}", "x"); a.refusal != nil {
		t.Errorf("the others: %v", a.refusal)
	}
}

func TestAnEndedCallIsCanceledInTheProgram(t *testing.T) {
	for name, end := range map[string]struct {
		cause error
		code  backend.Code
	}{"canceled": {nil, backend.Canceled}, "deadline": {context.DeadlineExceeded, backend.Deadline}, "closed": {nil, backend.Canceled}} {
		b, s := begun(t, "good")
		ctx, cancel := context.WithCancelCause(t.Context())
		got, refusal := open(t, b, "x").Invoke(ctx, "never", nil, nil)
		if refusal != nil {
			t.Fatal(refusal)
		}
		within(t, "the program has the call", func() bool {
			c := got.(*call)
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.sent
		})
		if name == "closed" {
			got.Close()
		} else {
			cancel(end.cause)
		}
		if a := read(t, got); a.refusal == nil || a.refusal.Code != end.code {
			t.Errorf("%s: %+v", name, a.refusal)
		}
		within(t, "the program hears of it", func() bool { return s.has("x: canceled") })
		cancel(nil)
	}
}

func TestAProgramThatHangsMakesDeadlines(t *testing.T) {
	for _, role := range []string{"deaf", "good"} {
		b, _ := begun(t, role)
		b.programs["x"].idle = 50 * time.Millisecond
		ask(t, b, "hang", "{}", strings.Repeat("x", 1<<20)).wants(t, backend.Deadline, "said nothing for 50ms")
		ask(t, b, "echo", "{}", "").wants(t, backend.Deadline, "said nothing for 50ms")
	}
}

func TestAProgramThatEndsMakesItUnavailable(t *testing.T) {
	b, _ := begun(t, "good")
	owed, refusal := open(t, b, "x").Invoke(t.Context(), "never", nil, nil)
	if refusal != nil {
		t.Fatal(refusal)
	}
	ask(t, b, "crash", "{}", "").wants(t, backend.Unavailable, "the extension x ")
	read(t, owed).wants(t, backend.Unavailable, "the extension x ")
	ask(t, b, "echo", "{}", "").wants(t, backend.Unavailable, "the extension x ")
}

func TestWhatBreaksTheProtocolEndsTheProgram(t *testing.T) {
	for _, c := range []struct{ op, body string }{
		{"garbage", ""}, {"long", ""},
		{"wrong", `"head":7`}, {"wrong", `"body":"*"`}, {"wrong", `"end":true,"body":"eA=="`}, {"wrong", `"x":1`}, {"wrong", `"end":false`}, {"wrong", `"end":true,"end":true`},
		{"wrong", `"error":{"code":"OOPS","reason":"x"}`}, {"wrong", `"error":{"code":"CANCELED","reason":"x"}`}, {"wrong", `"error":"x"`},
		{"wrong", `"head":{"x":"` + strings.Repeat("x", limits.ResponseHeadBytes) + `"}`},
	} {
		b, _ := begun(t, "good")
		ask(t, b, c.op, "{}", c.body).wants(t, backend.Unavailable, "does not speak the protocol")
		p := b.programs["x"]
		<-p.gone
		if p.cmd.ProcessState == nil {
			t.Errorf("%s %.40s: it goes on", c.op, c.body)
		}
	}
	b, _ := begun(t, "good")
	ask(t, b, "wrong", "{}", `"error":{"code":"NOT_FOUND","reason":"no\nsuch thing","retry_after_ms":1500}`).wants(t, backend.NotFound, "no such thing")
	ask(t, b, "guess", "{}", "")
	if a := ask(t, b, "echo", "{}", "x"); a.refusal != nil || strings.Contains(a.head, "guess") {
		t.Errorf("%+v", a)
	}
}

func TestAProgramThatDoesNotStartIsRefused(t *testing.T) {
	for _, role := range []string{"ends", "babbles", "other", "future"} {
		b, err := Start(t.Context(), []hostdoc.Extension{self(t, "x", role)}, nil)
		if b != nil || fault.ReasonOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "extension x") {
			t.Errorf("%s: %v", role, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if b, err := Start(ctx, []hostdoc.Extension{self(t, "x", "silent")}, nil); b != nil || fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("silent: %v", err)
	}
	for _, e := range []hostdoc.Extension{{Name: "x", Command: []string{"/nonexistent"}}, {Name: "x"}} {
		if b, err := Start(t.Context(), []hostdoc.Extension{e}, nil); b != nil || err == nil {
			t.Errorf("%v: %v", e, err)
		}
	}
	if b, err := Start(t.Context(), []hostdoc.Extension{self(t, "x", "good"), self(t, "x", "good")}, nil); b != nil || fault.ReasonOf(err) != fault.Internal {
		t.Errorf("twice: %v", err)
	}
}

func TestNothingOfTheHostIsTheProgramsAndNoProgramIsLeft(t *testing.T) {
	t.Setenv("CANARY", "x")
	before := runtime.NumGoroutine()
	for _, role := range []string{"env", "stubborn"} {
		s := &said{}
		b, err := Start(t.Context(), []hostdoc.Extension{self(t, "x", role)}, s.log)
		if err != nil {
			t.Fatal(err)
		}
		if role == "env" {
			within(t, "the program tells of its environment", func() bool { return s.has("x: env 0") })
		}
		pid := b.programs["x"].cmd.Process.Pid
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: process %d: %v", role, pid, err)
		}
		ask(t, b, "echo", "{}", "").wants(t, backend.Unavailable, "was ended")
	}
	within(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestCallsAreBounded(t *testing.T) {
	b, _ := begun(t, "good")
	c := open(t, b, "x")
	if _, refusal := c.Invoke(t.Context(), "echo", nil, make([]byte, limits.ExtensionRequestBytes+1)); refusal == nil || refusal.Code != backend.Limit {
		t.Errorf("%v", refusal)
	}
	for _, head := range []string{`[]`, `{"a":1,"a":2}`, `{`, `7`} {
		if _, refusal := c.Invoke(t.Context(), "echo", json.RawMessage(head), nil); refusal == nil || refusal.Code != backend.Invalid {
			t.Errorf("%s: %v", head, refusal)
		}
	}
	for range limits.QueuedCalls {
		if _, refusal := c.Invoke(t.Context(), "never", nil, nil); refusal != nil {
			t.Fatal(refusal)
		}
	}
	if _, refusal := c.Invoke(t.Context(), "echo", nil, nil); refusal == nil || refusal.Code != backend.Limit {
		t.Errorf("%v", refusal)
	}
}

func TestOnlyWhatIsThereIsOpened(t *testing.T) {
	b, _ := begun(t, "good")
	for _, g := range []backend.Grant{
		{Capability: manifest.Capability{Kind: manifest.KindExtension, Name: "y"}},
		{Capability: manifest.Capability{Kind: manifest.KindLLM, Name: "x"}},
		{Capability: manifest.Capability{Kind: manifest.KindExtension, Name: "x"}, Args: json.RawMessage(`{"a":1}`)},
	} {
		if _, refusal := b.Open(t.Context(), "run", g); refusal == nil {
			t.Errorf("%+v is opened", g)
		}
	}
}

func TestTheSampleKeepsNotes(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sample")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./sample")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := Start(t.Context(), []hostdoc.Extension{{Name: "notes", Command: []string{program}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := open(t, b, "notes")
	for _, s := range []struct {
		op, head, body, wantHead, wantBody string
		code                               backend.Code
	}{
		{"get", `{"key":"a"}`, "", "", "", backend.NotFound},
		{"put", `{"key":"a"}`, "first", "{}", "", 0},
		{"get", `{"key":"a"}`, "", `{"size":5}`, "first", 0},
		{"list", `{}`, "", `{"keys":["a"]}`, "", 0},
		{"put", `{}`, "", "", "", backend.Invalid},
		{"drop", `{"key":"a"}`, "", "", "", backend.Unsupported},
	} {
		got, refusal := c.Invoke(t.Context(), s.op, json.RawMessage(s.head), []byte(s.body))
		if refusal != nil {
			t.Fatal(refusal)
		}
		a := read(t, got)
		if s.code != 0 {
			a.wants(t, s.code, "")
		} else if a.refusal != nil || a.head != s.wantHead || a.body != s.wantBody {
			t.Errorf("%s %s: %+v", s.op, s.head, a)
		}
	}
}

// Whatever a program writes, a message is a whole one or the end of it.
func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"call":1,"head":{"a":1}}` + "\n" + `{"call":1,"body":"eA=="}` + "\n" + `{"call":1,"end":true}` + "\n"))
	f.Add([]byte(`{"call":1,"error":{"code":"LIMIT","reason":"x"}}`))
	f.Add([]byte("{\"call\":1,\"end\":true,\"end\":true}\n\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLines(bytes.NewReader(data))
		for {
			var r reply
			if err := l.next(&r); err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errProtocol) {
					t.Fatalf("%q: %v", data, err)
				}
				return
			}
			if r.check() != nil {
				return
			}
			if r.Call <= 0 || r.Error != nil && r.Error.refusal("x").Code == 0 {
				t.Fatalf("%q: %+v", data, r)
			}
			again, err := encode(&r)
			if err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			var same reply
			if err := newLines(bytes.NewReader(again)).next(&same); err != nil || same.check() != nil || same.Call != r.Call || !bytes.Equal(same.Body, r.Body) {
				t.Fatalf("%q is %+v, written %q: %v", data, r, again, err)
			}
		}
	})
}
