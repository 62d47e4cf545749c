package llm

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

const serverRules = `
streaming: {chunkSize: 4, chunkIntervalMs: 5}
rules:
  - path: "/v1/chat/completions"
    match: "@"
    response:
      status: 200
      content: '{"id":"c1","object":"chat.completion","model":"{{jmes request body.model}}","choices":[{"message":{"role":"assistant","content":"{{jmes request body.messages[-1].content}}"},"finish_reason":"stop"}]}'
  - path: "/v1/chat/completions"
    match: "contains(body.messages[-1].content, 'too often')"
    response: {status: 429, content: '{"error":{"message":"slow down","type":"rate_limit_error"}}'}
  - path: "/v1/chat/completions"
    match: "contains(body.messages[-1].content, 'stranger')"
    response: {status: 401, content: '{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error"}}'}
`

// A server of the protocol that somebody else wrote.
func TestAChatWithAServerOfOthers(t *testing.T) {
	program, err := filepath.Abs("../../bin/tools/llm/node_modules/.bin/mock-llm")
	if err != nil {
		t.Fatal(err)
	}
	node, err := exec.LookPath("node")
	if _, there := os.Stat(program); err != nil || there != nil {
		t.Skip("needs node and bin/tools/llm: scripts/llm.sh installs it")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mock-llm.yaml"), []byte(serverRules), 0o600); err != nil {
		t.Fatal(err)
	}
	url := startServer(t, node, program, dir)
	w := newWorld(t, func(c *Config) {
		c.Document.LLM = &hostdoc.LLM{Providers: []hostdoc.LLMProvider{{Name: "theirs", URL: url + "/v1", Models: []string{"m-*"}, Secret: "key"}}, Tokens: 1000}
	})
	said := func(content string) string {
		return `{"model":"m-1","messages":[{"role":"system","content":"be brief"},{"role":"user","content":` + quote(content) + `}],"temperature":0.5}`
	}
	a := w.ask(t, said("say these words again"))
	if a.refusal != nil || a.head != `{"model":"m-1"}` || !strings.HasSuffix(a.lines, "{\"finish\":\"stop\"}\n") {
		t.Fatalf("%+v, %+v", a, a.refusal)
	}
	var text strings.Builder
	deltas := 0
	for line := range strings.Lines(a.lines) {
		var l struct {
			Delta *struct{ Content string }
			Usage *usage
		}
		if json.Unmarshal([]byte(line), &l) != nil {
			t.Fatalf("line %q", line)
		}
		if l.Delta != nil {
			deltas++
			text.WriteString(l.Delta.Content)
		}
		if l.Usage != nil && (!l.Usage.Estimated || l.Usage.Completion <= 0) {
			t.Errorf("%+v", l.Usage)
		}
	}
	if text.String() != "say these words again" || deltas < 5 {
		t.Errorf("%q in %d pieces", text.String(), deltas)
	}
	w.ask(t, said("too often")).wants(t, backend.Limit, "no more requests")
	w.ask(t, said("a stranger")).wants(t, backend.Unavailable, "credentials")
}

// startServer starts it on a free port.
func startServer(t *testing.T, node, program, dir string) (url string) {
	t.Helper()
	var log bytes.Buffer
	for range 5 { // a free port may be taken by somebody else meanwhile
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), node, program)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, []string{"HOST=127.0.0.1", "PORT=" + port, "PATH=/nonexistent", "HOME=" + dir}, &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		for alive := true; alive; {
			resp, err := http.Get("http://" + addr + "/health")
			if err == nil {
				resp.Body.Close()
				return "http://" + addr
			}
			select {
			case <-ended:
				alive = false
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	t.Fatalf("the server does not start: %s", log.String())
	return ""
}
