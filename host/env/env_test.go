package env

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/manifest"
)

var _ backend.Backend = (*Backend)(nil)

func grant(t *testing.T, s string) backend.Grant {
	t.Helper()
	c, err := manifest.ParseCapability(s)
	if err != nil {
		t.Fatal(err)
	}
	return backend.Grant{Capability: c, Rule: "r"}
}

func TestAVariableIsReadByItsNameOnly(t *testing.T) {
	b := New([]string{"A=1=2", "B=", "C"})
	for name, want := range map[string]string{"A": "1=2", "B": "", "C": ""} {
		c, refused := b.Open(t.Context(), "run", grant(t, "env:"+name))
		if refused != nil {
			t.Fatal(refused)
		}
		a, refused := c.Invoke(t.Context(), "get", json.RawMessage(`{}`), nil)
		if refused != nil {
			t.Fatal(refused)
		}
		head, refused := a.Head()
		body, err := io.ReadAll(a)
		if refused != nil || err != nil || len(head) > 0 || string(body) != want {
			t.Errorf("%s: %q %q, %v, %v", name, head, body, refused, err)
		}
	}
	if _, refused := b.Open(t.Context(), "run", grant(t, "env:D")); refused == nil || refused.Code != backend.NotFound {
		t.Errorf("%+v", refused)
	}
}

func TestCallsThatDoNotFit(t *testing.T) {
	b := New([]string{"A=1"})
	c, refused := b.Open(t.Context(), "run", grant(t, "env:A"))
	if refused != nil {
		t.Fatal(refused)
	}
	for _, bad := range []struct{ op, head, body string }{{"set", `{}`, ""}, {"get", `{"name":"B"}`, ""}, {"get", `{}`, "x"}} {
		if _, refused := c.Invoke(t.Context(), bad.op, json.RawMessage(bad.head), []byte(bad.body)); refused == nil || refused.Code != backend.Invalid {
			t.Errorf("%+v: %+v", bad, refused)
		}
	}
	g := grant(t, "env:A")
	for args, ok := range map[string]bool{"": true, "{}": true, `{"name":"B"}`: false} {
		g.Args = json.RawMessage(args)
		if _, refused := b.Open(t.Context(), "run", g); (refused == nil) != ok || refused != nil && refused.Code != backend.Invalid {
			t.Errorf("%q: %+v", args, refused)
		}
	}
}
