package docs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/testcorpus"
)

func TestTheThreatModelListsTheCorpus(t *testing.T) {
	classes, vectors := testcorpus.Read(t, "..")
	var b strings.Builder
	b.WriteString("| class | is tried | answer | shown by |\n|---|---|---|---|\n")
	for _, c := range classes {
		var shown []string
		for _, v := range vectors {
			if v.Class == c.Name {
				shown = append(shown, fmt.Sprintf("%s (`%s`)", v.Name, v.Reason))
			}
		}
		for _, test := range c.Tests {
			shown = append(shown, "`"+test+"`")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.Name, c.Tried, c.Answer, strings.Join(shown, ", "))
	}
	generated(t, "threat-model.md", "attack classes", b.String())
}
