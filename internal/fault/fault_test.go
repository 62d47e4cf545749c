package fault

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func TestEveryReasonHasExactlyOneRow(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Reason" {
			declared += len(spec.Names)
		}
		return true
	})
	if declared == 0 || declared != len(Table) || declared != len(rows) {
		t.Fatalf("%d reasons declared, %d rows, %d distinct", declared, len(Table), len(rows))
	}
}

func TestNoRowMeansSuccess(t *testing.T) {
	for _, r := range Table {
		if r.Exit == 0 || r.CLI == 0 || r.Class == nil || r.Meaning == "" {
			t.Errorf("%s: incomplete row %+v", r.Reason, r)
		}
		if r.Exit > 125 || r.CLI > 130 {
			t.Errorf("%s: statuses above 125 belong to signals: %+v", r.Reason, r)
		}
	}
}

func TestRowSurvivesWrappingAndTheRPCBorder(t *testing.T) {
	for _, r := range Table {
		err := fmt.Errorf("outer: %w", New(r.Reason, "subject", "message"))
		if got := ReasonOf(err); got != r.Reason {
			t.Errorf("ReasonOf = %q, want %q", got, r.Reason)
		}
		if got := ExitStatus(err); got != r.Exit {
			t.Errorf("%s: exit %d, want %d", r.Reason, got, r.Exit)
		}
		if got := CLICode(err); got != r.CLI {
			t.Errorf("%s: code %d, want %d", r.Reason, got, r.CLI)
		}
		if back := errgrpc.ToNative(errgrpc.ToGRPC(err)); !errors.Is(back, r.Class) {
			t.Errorf("%s: over the wire it is %v, want class %v", r.Reason, back, r.Class)
		}
	}
}

// containerd answers it by calling an older API, which leaks the shim.
func TestNoRefusalLooksLikeAMissingMethod(t *testing.T) {
	for _, r := range Table {
		if errdefs.IsNotImplemented(r.Class) {
			t.Errorf("%s: class %v", r.Reason, r.Class)
		}
	}
}

func TestAnErrorWithoutAReasonIsInternal(t *testing.T) {
	if got := ReasonOf(errors.New("x")); got != Internal {
		t.Errorf("got %q", got)
	}
	if got := RowOf("no-such-reason").Reason; got != Internal {
		t.Errorf("got %q", got)
	}
	if got := ReasonOf(fmt.Errorf("x: %w", context.Canceled)); got != Canceled {
		t.Errorf("got %q", got)
	}
	if !errdefs.IsPermissionDenied(New(Unsigned, "", "x")) {
		t.Error("a refusal must be a permission error to containerd")
	}
}

func TestTextCannotTurnItsDirection(t *testing.T) {
	if got := OneLine("agent\u202egpj.exe\u2066x"); got != "agent\uFFFDgpj.exe\uFFFDx" {
		t.Errorf("got %q", got)
	}
}

func TestJoinedErrorsStayApart(t *testing.T) {
	a, b := New(NotFound, "a", "is not there"), errors.New("b\nbreaks")
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.Join(a, b), "a: is not there; b breaks"},
		{errors.Join(errors.Join(a, a), b), "a: is not there; a: is not there; b breaks"},
		{Wrap(errors.Join(a, b), Unavailable, "x", "failed"), "x: failed: a: is not there; b breaks"},
		{fmt.Errorf("%w and %w", a, b), "a: is not there and b breaks"},
		{b, "b breaks"},
	} {
		if got := Text(c.err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestErrorIsOneLineWithoutControlCharacters(t *testing.T) {
	err := Wrap(errors.New("cause\nforged: line\x1b[2J"), Trap, "a\rb", "message").WithHint("do\tthis")
	got := err.Error()
	if strings.ContainsAny(got, "\n\r\t\x1b") {
		t.Errorf("control characters left in %q", got)
	}
	if got != "a b: message: cause forged: line\uFFFD[2J (do this)" {
		t.Errorf("got %q", got)
	}
}
