package main

import (
	"strings"
	"testing"
)

func TestFiguresAreThoseOfTheSamples(t *testing.T) {
	ours, theirs := []float64{30, 10, 20, 40}, []float64{15, 10, 10, 10}
	r := result("x", "ms", ours).versus("y", ours, theirs).goal(ratio, 2)
	if r.Median != 30 || r.P99 != 40 || r.Runs != 4 || r.AgainstMedian != 10 || r.Ratio != 2 || !r.Met() {
		t.Errorf("%+v", r)
	}
	if r = r.goal(ratio, 1.99); r.Met() {
		t.Error("a ratio of 2 met a goal of 1.99")
	}
	if r.goal(p95, 39).Met() || !r.goal(p95, 40).Met() {
		t.Errorf("a p95 of %g is not held to its goal", r.P95)
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("no samples have a quantile")
	}
}

func TestTheTableSaysWhatMissesItsGoal(t *testing.T) {
	for limit, want := range map[float64]string{1: "MISSED", 2: "met"} {
		var b strings.Builder
		table{&b}.row(result("x", "ms", []float64{2}).goal(median, limit))
		if !strings.Contains(b.String(), want) {
			t.Errorf("a median of 2 with a goal of %g: %s", limit, b.String())
		}
	}
}
