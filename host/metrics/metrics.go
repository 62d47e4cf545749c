package metrics

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
)

// Kind is a metric's kind, numbered as the ABI numbers them.
type Kind int32

// The kinds. A counter adds up, a gauge keeps the last value, a histogram counts
// values by size.
const (
	Counter Kind = iota
	Gauge
	Histogram
)

var kindNames = [...]string{"counter", "gauge", "histogram"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Bounds are the upper bounds of a histogram's buckets; a last one without a
// bound follows. They suit seconds as well as counts.
var Bounds = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 10_000, 100_000}

// Measurement is one call of record_metric.
type Measurement struct {
	Name  string
	Kind  Kind
	Value float64
	// Attributes are what [ParseAttributes] returned.
	Attributes map[string]string
}

// Registry adds measurements up. It may be used from several goroutines.
type Registry struct {
	mu       sync.Mutex
	families map[string]*family // guarded by mu, as is the rest
	series   int
}

type family struct {
	kind   Kind
	series map[string]*series
}

type series struct {
	attributes map[string]string
	value      float64 // of a histogram the sum
	count      uint64
	buckets    []uint64 // not cumulated; one more than Bounds
}

// New makes an empty registry.
func New() *Registry { return &Registry{families: map[string]*family{}} }

// Record adds a measurement. What is refused has changed nothing.
func (r *Registry) Record(m Measurement) *backend.Refusal {
	if refused := m.check(); refused != nil {
		return refused
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.families[m.Name]
	switch {
	case f == nil && len(r.families) >= limits.MetricNames:
		return refuse(backend.Limit, "at most %d metrics have a name", limits.MetricNames)
	case f != nil && f.kind != m.Kind:
		return refuse(backend.Conflict, "the metric is a %s already", f.kind)
	}
	key := seriesKey(m.Attributes)
	var s *series
	if f != nil {
		s = f.series[key]
	}
	if s == nil {
		if r.series >= limits.MetricSeries {
			return refuse(backend.Limit, "at most %d combinations of name and attributes are kept", limits.MetricSeries)
		}
		if f == nil {
			f = &family{m.Kind, map[string]*series{}}
			r.families[m.Name] = f
		}
		s = &series{attributes: maps.Clone(m.Attributes)}
		f.series[key] = s
		r.series++
	}
	s.add(m.Kind, m.Value)
	return nil
}

func (s *series) add(kind Kind, value float64) {
	s.count++
	switch kind {
	case Counter:
		s.value = sum(s.value, value)
	case Gauge:
		s.value = value
	case Histogram:
		s.value = sum(s.value, value)
		if s.buckets == nil {
			s.buckets = make([]uint64, len(Bounds)+1)
		}
		at, _ := slices.BinarySearch(Bounds, value)
		s.buckets[at]++
	}
}

// sum stays a number: JSON has no infinity.
func sum(a, b float64) float64 { return min(max(a+b, -math.MaxFloat64), math.MaxFloat64) }

func (m *Measurement) check() *backend.Refusal {
	switch {
	case !validName(m.Name):
		return refuse(backend.Invalid, "a metric's name is up to %d letters, digits and '_', not beginning with a digit", limits.MetricNameBytes)
	case slices.ContainsFunc([]string{"_bucket", "_sum", "_count"}, func(s string) bool { return strings.HasSuffix(m.Name, s) }):
		return refuse(backend.Invalid, "names that end in _bucket, _sum or _count belong to histograms")
	case m.Kind < Counter || m.Kind > Histogram:
		return refuse(backend.Invalid, "a metric's kind is 0 counter, 1 gauge or 2 histogram")
	case math.IsNaN(m.Value) || math.IsInf(m.Value, 0):
		return refuse(backend.Invalid, "a metric's value is a finite number")
	case m.Kind == Counter && m.Value < 0:
		return refuse(backend.Invalid, "a counter never goes down")
	}
	return nil
}

func validName(name string) bool {
	if name == "" || len(name) > limits.MetricNameBytes {
		return false
	}
	for i := range len(name) {
		b := name[i]
		letter := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_'
		if !letter && (i == 0 || b < '0' || b > '9') {
			return false
		}
	}
	return true
}

// seriesKey is one spelling for equal attributes; no other has it, for neither
// keys nor values hold a NUL.
func seriesKey(attributes map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(attributes[k])
		b.WriteByte(0)
	}
	return b.String()
}

// Family is a metric with its series.
type Family struct {
	Name   string
	Kind   Kind
	Series []Series
}

// Series is what one combination of attributes has added up to.
type Series struct {
	// Attributes are sorted by key.
	Attributes []Attribute
	// Value is a counter's total, a gauge's last value, a histogram's sum.
	Value float64
	// Count is how many measurements there were.
	Count uint64
	// Buckets has, for a histogram, how many values were at most each of
	// [Bounds]; it is cumulated.
	Buckets []uint64
}

// Attribute is a key and its value.
type Attribute struct{ Key, Value string }

// Families returns a copy of everything, sorted.
func (r *Registry) Families() []Family {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Family
	for _, name := range slices.Sorted(maps.Keys(r.families)) {
		f := r.families[name]
		one := Family{Name: name, Kind: f.kind}
		for _, key := range slices.Sorted(maps.Keys(f.series)) {
			one.Series = append(one.Series, f.series[key].copy())
		}
		out = append(out, one)
	}
	return out
}

func (s *series) copy() Series {
	out := Series{Value: s.value, Count: s.count}
	for _, k := range slices.SortedFunc(maps.Keys(s.attributes), cmp.Compare) {
		out.Attributes = append(out.Attributes, Attribute{k, s.attributes[k]})
	}
	if s.buckets == nil {
		return out
	}
	var below uint64
	for _, n := range s.buckets[:len(Bounds)] {
		below += n
		out.Buckets = append(out.Buckets, below)
	}
	return out
}
