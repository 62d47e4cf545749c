package verifier

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
)

// explained judges twice, without and with a trace, and holds one to the other
// and the trace to the verdict.
func explained(tb testing.TB, v *Verifier, in Input) (*Verdict, *Trace) {
	tb.Helper()
	in.Trace = nil
	plain := v.Verify(tb.Context(), in)
	trace := &Trace{Steps: []Step{{Name: "left over"}}}
	in.Trace = trace
	vd := v.Verify(tb.Context(), in)
	if told(tb, plain) != told(tb, vd) || !reflect.DeepEqual(plain.Rests, vd.Rests) || fault.ReasonOf(plain.Err) != fault.ReasonOf(vd.Err) {
		tb.Fatalf("explained %+v, judged %+v", vd, plain)
	}
	checkTrace(tb, trace, vd)
	return vd, trace
}

// told is everything that a verdict tells.
func told(tb testing.TB, vd *Verdict) string {
	tb.Helper()
	data, err := json.Marshal(vd)
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

// checkTrace: all steps in their order, the outcome is the verdict, what failed
// carries the verdict's reason, nothing passes after it, and each check is there.
func checkTrace(tb testing.TB, trace *Trace, vd *Verdict) {
	tb.Helper()
	if len(trace.Steps) != len(steps) {
		tb.Fatalf("%d steps, want %d: %+v", len(trace.Steps), len(steps), trace.Steps)
	}
	failed := false
	for i, s := range trace.Steps {
		if s.Name != steps[i] {
			tb.Errorf("step %d is %q, want %q", i, s.Name, steps[i])
		}
		// That an attestation is wanted where there is none, the scope says.
		if failed && s.Name != StepOutcome && s.Outcome != NotReached && !(vd.Reason == fault.Unsigned && s.Name == StepScope) {
			tb.Errorf("step %s is %s after one that failed", s.Name, s.Outcome)
		}
		if s.Outcome == Failed {
			failed = true
			if s.Reason != vd.Reason {
				tb.Errorf("step %s failed with %s, the verdict says %s", s.Name, s.Reason, vd.Reason)
			}
		} else {
			passedParts(tb, s)
		}
	}
	last := trace.Steps[len(trace.Steps)-1]
	if (last.Outcome == Passed) != vd.Allowed || (last.Outcome == Failed) == vd.Allowed || last.Reason != vd.Reason {
		tb.Errorf("the outcome is %s (%s), the verdict %t (%s)", last.Outcome, last.Reason, vd.Allowed, vd.Reason)
	}
	for _, c := range vd.Checks {
		s := stepOf(trace, c.Name)
		if want := map[bool]Outcome{true: Passed, false: Failed}[c.OK]; s.Outcome != want || s.Detail != c.Detail {
			tb.Errorf("check %+v is explained as %+v", c, s)
		}
	}
	if !slices.IsSortedFunc(trace.Turns, func(a, b Turn) int { return a.At.Compare(b.At) }) {
		tb.Errorf("turns are not sorted: %v", trace.Turns)
	}
	data, err := json.Marshal(trace)
	var again Trace
	if err == nil {
		err = json.Unmarshal(data, &again)
	}
	if err != nil || !reflect.DeepEqual(again.Steps, trace.Steps) {
		tb.Errorf("JSON loses something: %v\n%s", err, data)
	}
}

func passedParts(tb testing.TB, s Step) {
	tb.Helper()
	for _, p := range s.Parts {
		if p.Outcome == Failed {
			tb.Errorf("step %s is %s, its part %q failed: %s", s.Name, s.Outcome, p.Name, p.Detail)
		}
	}
}

func stepOf(trace *Trace, name string) Step {
	i := slices.IndexFunc(trace.Steps, func(s Step) bool { return s.Name == name })
	if i < 0 {
		return Step{}
	}
	return trace.Steps[i]
}

func TestAnExplanationSaysWhatTheVerdictSaysOverAllVectors(t *testing.T) {
	v, _ := frozenNode(t)
	developer, err := New(Config{Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	judged, failedAt := 0, map[string]bool{}
	for name, vec := range frozen(t) {
		t.Run(name, func(t *testing.T) {
			a, err := oci.Read(t.Context(), store, vec.raw(t))
			if err != nil {
				if fault.ReasonOf(err) != vec.expect {
					t.Fatalf("got %v, want %s", err, vec.expect)
				}
				return // the reader refused it before anything was judged
			}
			judged++
			vd, trace := explained(t, v, Input{Reference: ref, Artifact: a})
			expect(t, vd, vec.expect)
			for _, s := range trace.Steps {
				if s.Outcome == Failed {
					failedAt[s.Name] = true
				}
			}
			explained(t, v, Input{Reference: "elsewhere.example/x:1", Artifact: a})
			explained(t, v, Input{Reference: "registry.example/mixed/x:1", Artifact: a})
			explained(t, v, Input{Reference: "registry.example/agents/exact:2", Artifact: a})
			explained(t, developer, Input{Reference: ref, Artifact: a})
		})
	}
	if judged < 50 {
		t.Errorf("only %d vectors were judged", judged)
	}
	for _, name := range []string{StepAttestation, StepSignature, StepAgent, StepChain, StepIdentity, StepValidity, StepRevocation, StepBinding, StepOutcome} {
		if !failedAt[name] {
			t.Errorf("no vector fails at the step %q", name)
		}
	}
}

func TestAnExplanationShowsItsEvidence(t *testing.T) {
	p := testpki.New(t)
	a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	_, trace := explained(t, newNode(p).verifier(t), Input{Reference: ref, Artifact: a})
	for _, c := range []struct{ step, part, name, want string }{
		{StepDigest, "", "manifest", string(a.Digest)},
		{StepAttestation, "block", "signer", "CN=dev@example.com"},
		{StepSignature, "", "algorithm", "SHA256withRSA"},
		{StepSignature, "", "key", "RSA, 2048 bits"},
		{StepAgent, "", "attested", "mentatlab.echo 1.0.0"},
		{StepScope, "", "matches", "registry.example/agents/**"},
		{StepChain, "certificate 0", "subject", "CN=dev@example.com"},
		{StepChain, "certificate 1", "subject", p.Agent.Subject.String()},
		{StepChain, "certificate 0", "valid", stampText(p.Leaf.NotAfter)},
		{StepChain, "usage", "code signing", "true"},
		{StepChain, "path to a root", "subject", p.Root.Subject.String()},
		{StepIdentity, "", "in the certificate", "dev@example.com"},
		{StepIdentity, "", "of the scope", "dev@example.com"},
		{StepValidity, "", "now", stampText(testpki.Now)},
		{StepRevocation, "list", "list", p.Agent.Subject.String()},
		{StepRevocation, "list", "made", " ago"},
		{StepRevocation, "list", "grace", "24h0m0s"},
		{StepBinding, "", "attested", repository + ", version 1.0.0"},
		{StepBinding, "", "reference", ref},
		{StepTrust, "", "publisher", "false"},
		{StepOutcome, "", "trust level", "signed"},
	} {
		if !shows(stepOf(trace, c.step), c.part, c.name, c.want) {
			t.Errorf("step %s, part %q does not show %s: %s in %+v", c.step, c.part, c.name, c.want, stepOf(trace, c.step))
		}
	}
}

func shows(s Step, part, name, want string) bool {
	if part == "" {
		return slices.ContainsFunc(s.Evidence, func(e Evidence) bool { return e.Name == name && strings.Contains(e.Value, want) })
	}
	return slices.ContainsFunc(s.Parts, func(p Step) bool { return p.Name == part && shows(p, "", name, want) })
}

func TestAnExplanationNamesTheLinkThatBroke(t *testing.T) {
	p := testpki.New(t, testpki.AgentExpired)
	a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	_, trace := explained(t, newNode(p).verifier(t), Input{Reference: ref, Artifact: a})
	chain := stepOf(trace, StepChain)
	last := chain.Parts[len(chain.Parts)-1]
	if len(chain.Parts) != 2 || chain.Parts[0].Outcome != Passed || last.Name != "certificate 1" || last.Outcome != Failed || last.Reason != fault.OutsideValidity {
		t.Errorf("chain is %+v", chain)
	}
	if got := stepOf(trace, StepIdentity).Outcome; got != NotReached {
		t.Errorf("identity is %s", got)
	}
}

// Nothing changes between two turns: where the verdict follows the clock, a
// judgement names the moment.
func TestTheVerdictTurnsOnlyAtTurns(t *testing.T) {
	p := testpki.New(t)
	a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.NotAfter = "2026-02-15T10:30:00Z" }))
	at := testpki.Now.AddDate(0, -2, 0)
	n := newNode(p)
	n.clock = func() time.Time { return at }
	v := n.verifier(t)
	seen := map[fault.Reason]bool{}
	for range 100 {
		vd, trace := explained(t, v, Input{Reference: ref, Artifact: a})
		seen[vd.Reason] = true
		if len(trace.Turns) == 0 {
			break
		}
		next := trace.Turns[0].At
		for i := range time.Duration(20) {
			at = trace.At.Add(next.Sub(trace.At) * i / 20)
			if between := v.Verify(t.Context(), Input{Reference: ref, Artifact: a}); between.Reason != vd.Reason {
				t.Fatalf("from %s (%q) to the next turn at %s: %q at %s", trace.At, vd.Reason, next, between.Reason, at)
			}
		}
		at = next
	}
	for _, want := range []fault.Reason{"", fault.OutsideValidity, fault.RevocationUnknown} {
		if !seen[want] {
			t.Errorf("the clock never led to %q: %v", want, seen)
		}
	}
}

func TestACallersOwnDemandIsTheOutcome(t *testing.T) {
	v, err := New(Config{Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	vd, trace := explained(t, v, Input{Reference: ref, Artifact: read(t, wasmAgent(t))})
	if !vd.Allowed || stepOf(trace, StepAttestation).Outcome != NotAsked {
		t.Fatalf("%s: %+v", vd.Line(), trace.Steps)
	}
	trace.Refuse(fault.New(fault.Unsigned, ref, "carries no attestation"))
	if s := stepOf(trace, StepOutcome); s.Outcome != Failed || s.Reason != fault.Unsigned {
		t.Errorf("outcome %+v", s)
	}
}
