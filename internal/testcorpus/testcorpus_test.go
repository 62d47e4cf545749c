package testcorpus

import (
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

const root = "../.."

func TestTheCorpusIsWhole(t *testing.T) { Read(t, root) }

func TestACorpusThatIsNotWholeIsNoticed(t *testing.T) {
	one := []Class{{Name: "a", Tried: "x", Answer: "y"}}
	good := []Vector{{Class: "a", Name: "v", Reason: fault.Unsigned, Say: "no"}}
	tested := []Class{{Name: "a", Tried: "x", Answer: "y", Tests: []string{"internal/testcorpus.TestTheCorpusIsWhole2"}}}
	if problems := check(root, one, good); problems != nil {
		t.Fatal(problems)
	}
	change := func(f func(*Vector)) []Vector {
		v := slices.Clone(good)
		f(&v[0])
		return v
	}
	for say, c := range map[string]struct {
		classes []Class
		vectors []Vector
	}{
		"0 vectors":            {one, nil},
		"0 classes":            {nil, good},
		"unknown class":        {one, change(func(v *Vector) { v.Class = "b" })},
		"unknown reason":       {one, change(func(v *Vector) { v.Reason = "because" })},
		"unknown reason \"\"":  {one, change(func(v *Vector) { v.Reason = "" })},
		"says nothing":         {one, change(func(v *Vector) { v.Say = "" })},
		"is no part":           {one, change(func(v *Vector) { v.Name = "A b" })},
		"vector \"v\" is":      {one, append(slices.Clone(good), good...)},
		"class \"a\" is there": {append(slices.Clone(one), one...), good},
		"nothing shows":        {append(slices.Clone(one), Class{Name: "b", Tried: "x", Answer: "y"}), good},
		"there is no test":     {tested, good},
	} {
		if problems := check(root, c.classes, c.vectors); !strings.Contains(strings.Join(problems, "\n"), say) {
			t.Errorf("%s: %q", say, problems)
		}
	}
}
