package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Result is one measured quantity; where there is another side, its figures
// and the pairwise ratios stand beside it.
type Result struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Runs   int     `json:"runs"`
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
	// Against names the other side; Ratio is the median of ours/theirs over the
	// pairs, RatioLow and RatioHigh are its quartiles.
	Against       string  `json:"against,omitempty"`
	AgainstMedian float64 `json:"againstMedian,omitempty"`
	AgainstP95    float64 `json:"againstP95,omitempty"`
	AgainstP99    float64 `json:"againstP99,omitempty"`
	Ratio         float64 `json:"ratio,omitempty"`
	RatioLow      float64 `json:"ratioLow,omitempty"`
	RatioHigh     float64 `json:"ratioHigh,omitempty"`
	// Goal is nil where there is none.
	Goal *Goal `json:"goal,omitempty"`
}

// Goal says which figure of a result may be how large.
type Goal struct {
	Figure string  `json:"figure"`
	AtMost float64 `json:"atMost"`
}

// Figures that a goal can be for.
const (
	median = "median"
	p95    = "p95"
	p99    = "p99"
	ratio  = "ratio"
)

// result sums samples up.
func result(name, unit string, samples []float64) Result {
	return Result{
		Name: name, Unit: unit, Runs: len(samples),
		Median: quantile(samples, 0.5), P95: quantile(samples, 0.95), P99: quantile(samples, 0.99),
	}
}

// versus adds the other side, sample by sample: what slows the machine for a
// moment slows both sides of a pair.
func (r Result) versus(name string, ours, theirs []float64) Result {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	r.Against, r.AgainstMedian, r.AgainstP95, r.AgainstP99 = name, quantile(theirs, 0.5), quantile(theirs, 0.95), quantile(theirs, 0.99)
	r.RatioLow, r.Ratio, r.RatioHigh = quantile(ratios, 0.25), quantile(ratios, 0.5), quantile(ratios, 0.75)
	return r
}

func (r Result) goal(figure string, atMost float64) Result {
	r.Goal = &Goal{Figure: figure, AtMost: atMost}
	return r
}

// Met tells whether the result reaches its goal; one without a goal does.
func (r Result) Met() bool {
	return r.Goal == nil || map[string]float64{median: r.Median, p95: r.P95, p99: r.P99, ratio: r.Ratio}[r.Goal.Figure] <= r.Goal.AtMost
}

// quantile is the nearest-rank quantile; 0 without samples.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// table writes results for people.
type table struct {
	out io.Writer
}

func (t table) head() {
	fmt.Fprintf(t.out, "%-48s %9s %9s %9s    %5s  %-8s %s\n", "", "median", "p95", "p99", "runs", "ratio", "goal")
}

func (t table) row(r Result) {
	times, verdict := "", ""
	if r.Against != "" {
		times = fmt.Sprintf("%.2f", r.Ratio)
	}
	if g := r.Goal; g != nil {
		verdict = fmt.Sprintf("%s at most %g: ", g.Figure, g.AtMost)
		if r.Met() {
			verdict += "met"
		} else {
			verdict += "MISSED"
		}
	}
	fmt.Fprintf(t.out, "%-48s %9.3f %9.3f %9.3f %s %5d  %-8s %s\n", r.Name, r.Median, r.P95, r.P99, r.Unit, r.Runs, times, verdict)
	if r.Against != "" {
		fmt.Fprintf(t.out, "  %-46s %9.3f %9.3f %9.3f %s        quartiles of the ratio: %.2f, %.2f\n",
			"against: "+r.Against, r.AgainstMedian, r.AgainstP95, r.AgainstP99, r.Unit, r.RatioLow, r.RatioHigh)
	}
}
