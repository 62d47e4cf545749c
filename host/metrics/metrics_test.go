package metrics

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/internal/limits"
)

func record(t testing.TB, r *Registry, m Measurement) {
	t.Helper()
	if refused := r.Record(m); refused != nil {
		t.Fatalf("%+v: %v", m, refused)
	}
}

func TestMeasurementsAddUp(t *testing.T) {
	r := New()
	for _, v := range []float64{1, 2.5} {
		record(t, r, Measurement{"requests", Counter, v, map[string]string{"b": "2", "a": "1"}})
		record(t, r, Measurement{"requests", Counter, v, nil})
		record(t, r, Measurement{"level", Gauge, -v, nil})
		record(t, r, Measurement{"seconds", Histogram, v, nil})
	}
	record(t, r, Measurement{"seconds", Histogram, 1e9, nil})
	record(t, r, Measurement{"seconds", Histogram, -3, nil})
	buckets := make([]uint64, len(Bounds))
	for i, b := range Bounds {
		for _, v := range []float64{1, 2.5, -3} {
			if v <= b {
				buckets[i]++
			}
		}
	}
	want := []Family{
		{"level", Gauge, []Series{{Value: -2.5, Count: 2}}},
		{"requests", Counter, []Series{{Value: 3.5, Count: 2}, {Attributes: []Attribute{{"a", "1"}, {"b", "2"}}, Value: 3.5, Count: 2}}},
		{"seconds", Histogram, []Series{{Value: 1e9 + .5, Count: 4, Buckets: buckets}}},
	}
	if got := r.Families(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSumsStayFinite(t *testing.T) {
	r := New()
	for range 3 {
		record(t, r, Measurement{"x", Counter, math.MaxFloat64, nil})
		record(t, r, Measurement{"y", Histogram, -math.MaxFloat64, nil})
	}
	if f := r.Families(); f[0].Series[0].Value != math.MaxFloat64 || f[1].Series[0].Value != -math.MaxFloat64 {
		t.Errorf("%+v", f)
	}
}

func TestWhatIsReadOutIsACopy(t *testing.T) {
	r := New()
	attributes := map[string]string{"a": "1"}
	record(t, r, Measurement{"x", Histogram, 1, attributes})
	attributes["a"] = "2"
	got := r.Families()
	got[0].Series[0].Attributes[0].Value = "3"
	got[0].Series[0].Buckets[0] = 99
	if again := r.Families()[0].Series[0]; again.Attributes[0].Value != "1" || again.Buckets[0] != 0 {
		t.Errorf("%+v", again)
	}
}

func TestMeasurementsThatAreRefusedChangeNothing(t *testing.T) {
	r := New()
	record(t, r, Measurement{"x", Counter, 1, nil})
	before := r.Families()
	for _, c := range []struct {
		m    Measurement
		code backend.Code
	}{
		{Measurement{"", Counter, 1, nil}, backend.Invalid},
		{Measurement{"1x", Counter, 1, nil}, backend.Invalid},
		{Measurement{"a.b", Counter, 1, nil}, backend.Invalid},
		{Measurement{"a b", Counter, 1, nil}, backend.Invalid},
		{Measurement{"a\nb", Counter, 1, nil}, backend.Invalid},
		{Measurement{"é", Counter, 1, nil}, backend.Invalid},
		{Measurement{strings.Repeat("x", limits.MetricNameBytes+1), Counter, 1, nil}, backend.Invalid},
		{Measurement{"x_bucket", Counter, 1, nil}, backend.Invalid},
		{Measurement{"x_sum", Counter, 1, nil}, backend.Invalid},
		{Measurement{"x_count", Counter, 1, nil}, backend.Invalid},
		{Measurement{"y", -1, 1, nil}, backend.Invalid},
		{Measurement{"y", 3, 1, nil}, backend.Invalid},
		{Measurement{"y", Gauge, math.NaN(), nil}, backend.Invalid},
		{Measurement{"y", Gauge, math.Inf(-1), nil}, backend.Invalid},
		{Measurement{"x", Counter, -1, nil}, backend.Invalid},
		{Measurement{"x", Gauge, 1, nil}, backend.Conflict},
	} {
		if refused := r.Record(c.m); refused == nil || refused.Code != c.code || refused.Reason == "" {
			t.Errorf("%+v: %+v", c.m, refused)
		}
	}
	if after := r.Families(); !reflect.DeepEqual(after, before) {
		t.Errorf("%+v", after)
	}
}

func TestNamesAndSeriesAreBounded(t *testing.T) {
	r := New()
	for i := range limits.MetricNames {
		record(t, r, Measurement{fmt.Sprintf("m%d", i), Counter, 1, nil})
	}
	if refused := r.Record(Measurement{"more", Counter, 1, nil}); refused == nil || refused.Code != backend.Limit {
		t.Errorf("%v", refused)
	}
	for i := range limits.MetricSeries - limits.MetricNames {
		record(t, r, Measurement{"m0", Counter, 1, map[string]string{"user": fmt.Sprint(i)}})
	}
	if refused := r.Record(Measurement{"m0", Counter, 1, map[string]string{"user": "more"}}); refused == nil || refused.Code != backend.Limit {
		t.Errorf("%v", refused)
	}
	// What is there already goes on counting.
	record(t, r, Measurement{"m0", Counter, 1, map[string]string{"user": "0"}})
	n := 0
	for _, f := range r.Families() {
		n += len(f.Series)
	}
	if n != limits.MetricSeries {
		t.Errorf("%d series", n)
	}
}

func TestSeveralMayRecordAtOnce(t *testing.T) {
	r := New()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 500 {
				if refused := r.Record(Measurement{"x", Counter, 1, map[string]string{"k": fmt.Sprint(i % 2)}}); refused != nil {
					t.Error(refused)
				}
				r.Families()
			}
		})
	}
	all.Wait()
	if got := r.Families()[0].Series; len(got) != 2 || got[0].Value+got[1].Value != 4000 {
		t.Errorf("%+v", got)
	}
}

func TestAttributes(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"":                               nil,
		"{}":                             {},
		` {"a":"b" , "n":1.50,"t":true}`: {"a": "b", "n": "1.50", "t": "true"},
		`{"a":"\u0041\n"}`:               {"a": "A\n"},
	} {
		if got, refused := ParseAttributes([]byte(in)); refused != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", in, got, refused)
		}
	}
	var nine strings.Builder
	for i := range limits.MetricAttributes + 1 {
		fmt.Fprintf(&nine, `,"k%d":1`, i)
	}
	for in, code := range map[string]backend.Code{
		"x": backend.Invalid, "[]": backend.Invalid, "null": backend.Invalid, `"a"`: backend.Invalid, "{": backend.Invalid, `{"a"`: backend.Invalid, `{"a":`: backend.Invalid,
		`{"a":1`: backend.Invalid, `{"a":1}x`: backend.Invalid, `{"a":1}{}`: backend.Invalid, `{"a":null}`: backend.Invalid, `{"a":{}}`: backend.Invalid, `{"a":[1]}`: backend.Invalid,
		`{"a":1,"a":1}`: backend.Invalid, `{"a":1,"\u0061":1}`: backend.Invalid, `{"le":"1"}`: backend.Invalid, `{"__name__":"x"}`: backend.Invalid, `{"":"x"}`: backend.Invalid,
		`{"a b":"x"}`: backend.Invalid, "{\"a\":\"\xff\"}": backend.Invalid, `{"a":"\u0000"}`: backend.Invalid,
		`{"a":"` + strings.Repeat("x", limits.MetricValueBytes+1) + `"}`:    backend.Invalid,
		`{"a":"` + strings.Repeat("x", limits.MetricAttributesBytes) + `"}`: backend.Limit,
		"{" + nine.String()[1:] + "}":                                       backend.Limit,
	} {
		if got, refused := ParseAttributes([]byte(in)); refused == nil || refused.Code != code || got != nil {
			t.Errorf("%q: %v, %+v", in, got, refused)
		}
	}
}

// FuzzRecord: whatever a guest sends, the registry stays bounded and well-formed.
func FuzzRecord(f *testing.F) {
	f.Add("requests", int32(0), 1.0, []byte(`{"a":"b"}`))
	f.Add("x_bucket", int32(2), math.NaN(), []byte(`{"le":1}`))
	f.Add("a\nb 1", int32(1), -1.0, []byte(`{"a":"\"}\nb 1"}`))
	r := New()
	f.Fuzz(func(t *testing.T, name string, kind int32, value float64, attributes []byte) {
		parsed, refused := ParseAttributes(attributes)
		if refused != nil {
			return
		}
		_ = r.Record(Measurement{name, Kind(kind), value, parsed}) // may be refused
		families, n := r.Families(), 0
		for _, f := range families {
			if n += len(f.Series); !validName(f.Name) {
				t.Errorf("name %q", f.Name)
			}
			for _, s := range f.Series {
				for _, a := range s.Attributes {
					if !validName(a.Key) || len(a.Value) > limits.MetricValueBytes {
						t.Errorf("attribute %+v", a)
					}
				}
			}
		}
		if len(families) > limits.MetricNames || n > limits.MetricSeries {
			t.Errorf("%d names, %d series", len(families), n)
		}
	})
}
