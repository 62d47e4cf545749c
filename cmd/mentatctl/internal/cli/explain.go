package cli

import (
	"strings"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/verifier"
)

// explainText shows a judgement as a tree: steps, their parts, and what each
// looked at.
func explainText(w *display.Writer, t *verifier.Trace) {
	w.Field("judged at", "%s", t.At.Format(shownTime))
	w.Field("rules", "%s", t.Rules)
	for _, s := range t.Steps {
		traceStep(w, s, 1)
	}
}

// shownTime is how times are shown: always UTC, to the second.
const shownTime = "2006-01-02T15:04:05Z"

func traceStep(w *display.Writer, s verifier.Step, depth int) {
	indent := strings.Repeat("  ", depth)
	mark := map[verifier.Outcome]string{
		verifier.Passed: "ok", verifier.Failed: "FAILED", verifier.NotReached: "-", verifier.NotAsked: "-",
	}[s.Outcome]
	detail := s.Detail
	switch {
	case s.Outcome == verifier.Failed:
		detail = string(s.Reason) + ": " + detail
	case s.Outcome == verifier.NotReached:
		detail = "not reached"
	case detail == "" && s.Outcome == verifier.NotAsked:
		detail = "not asked"
	}
	w.Line("%s", strings.TrimRight(indent+pad(mark, 7)+pad(s.Name, 13-2*depth)+" "+detail, " "))
	for _, e := range s.Evidence {
		w.Line("%s         %s: %s", indent, e.Name, e.Value)
	}
	for _, p := range s.Parts {
		traceStep(w, p, depth+2)
	}
}

func pad(s string, width int) string {
	if len(s) >= width {
		return s
	}
	return s + strings.Repeat(" ", width-len(s))
}
