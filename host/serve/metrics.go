package serve

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Metrics is what /metrics tells, in Prometheus' text format.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	requests  *prometheus.CounterVec
	duration  prometheus.Observer
	firstByte prometheus.Observer
	execution prometheus.Observer
	// instantiation and memory are of the agent's instances.
	instantiation, memory prometheus.Observer
	capabilities, tokens  *prometheus.CounterVec
	doc                   *hostdoc.Document
}

// Buckets of times: an instance takes tens of microseconds, an answer of a
// language model minutes.
var (
	fastBuckets = prometheus.ExponentialBuckets(16e-6, 4, 10)
	slowBuckets = prometheus.ExponentialBuckets(100e-6, 4, 12)
	// memoryBuckets are from a page to what a module can have.
	memoryBuckets = prometheus.ExponentialBuckets(64*limits.KiB, 4, 9)
)

// sizeBucket says how large a compiled module is, in few words.
func sizeBucket(module string) string {
	info, err := os.Stat(module)
	if err != nil {
		return "unknown"
	}
	for _, mib := range []int64{1, 4, 16, 64} {
		if info.Size() <= mib*limits.MiB {
			return fmt.Sprintf("up to %d MiB", mib)
		}
	}
	return "over 64 MiB"
}

// NewMetrics makes the series of a server of one agent.
func NewMetrics(doc *hostdoc.Document) *Metrics {
	agent := prometheus.Labels{"agent_id": doc.Agent.ID}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: agent, Buckets: buckets})
	}
	duration := histogram("mentatlab_http_request_seconds", "Time from a request's header to the end of its answer.", slowBuckets)
	firstByte := histogram("mentatlab_http_first_byte_seconds", "Time from a request's header to the first byte or event of the run's own.", slowBuckets)
	execution := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "mentatlab_wasm_execution_seconds", Help: "Time of a run, from its instance to its end.", Buckets: slowBuckets,
	}, []string{"agent_id", "operation"})
	instantiation := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "mentatlab_wasm_instantiation_seconds", Help: "Time from a run's beginning to the guest's first instruction.", Buckets: fastBuckets,
	}, []string{"agent_id", "engine", "module_size_bucket"})
	memory := histogram("mentatlab_wasm_run_memory_bytes", "Memory that a guest had at the end of its run.", memoryBuckets)
	m := &Metrics{
		doc:      doc,
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_http_requests_total", Help: "Requests to run the agent, by the answer's status and the reason why it is no success.", ConstLabels: agent,
		}, []string{"code", "reason"}),
		duration: duration, firstByte: firstByte,
		execution:     execution.WithLabelValues(doc.Agent.ID, "process"),
		instantiation: instantiation.WithLabelValues(doc.Agent.ID, "wasmtime", sizeBucket(doc.Module)),
		memory:        memory,
		capabilities: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_capability_requests_total", Help: "Capabilities that the agent asked for.",
		}, []string{"agent_id", "capability_type", "result"}),
	}
	m.tokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mentatlab_llm_tokens_total", Help: "Tokens of chats with language models, estimated where a provider did not count them.", ConstLabels: agent,
	}, []string{"provider", "kind"})
	m.registry.MustRegister(m.requests, m.tokens, duration, firstByte, execution, instantiation, memory, m.capabilities)
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, DisableCompression: true,
		// What an agent measures must not keep the rest from being read.
		ErrorHandling: promhttp.ContinueOnError,
	})
	return m
}

// watch adds what is read from the server when somebody asks.
func (m *Metrics) watch(s *Server) {
	agent := prometheus.Labels{"agent_id": s.doc.Agent.ID}
	gauge := func(name, help string, value func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: agent}, value)
	}
	m.registry.MustRegister(
		gauge("mentatlab_http_running", "Requests whose instance exists.", func() float64 { return float64(len(s.admission.slots)) }),
		gauge("mentatlab_http_waiting", "Requests that wait for an instance.", func() float64 { return float64(s.admission.waiting.Load()) }),
		gauge("mentatlab_http_concurrency", "How many instances there may be at once.", func() float64 { return float64(cap(s.admission.slots)) }),
		gauge("mentatlab_http_body_bytes", "Memory that requests' bodies take.", func() float64 { return float64(s.bodies.held.Load()) }),
		gauge("mentatlab_wasm_stuck", "Instances of guests that did not come back at the end of their run.", func() float64 { return float64(s.stuck.Load()) }),
	)
}

// Names are the series' names, sorted.
func (m *Metrics) Names() []string {
	seen := map[string]bool{}
	described := make(chan *prometheus.Desc)
	go func() {
		m.registry.Describe(described)
		close(described)
	}()
	for d := range described {
		// A description tells its name only in its text.
		if _, rest, ok := strings.Cut(d.String(), `fqName: "`); ok {
			name, _, _ := strings.Cut(rest, `"`)
			seen[name] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// answered counts a request; the code is 0 when nobody was left to answer.
func (m *Metrics) answered(code int, reason string, took time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(code), reason).Inc()
	m.duration.Observe(took.Seconds())
}

// ran counts a run.
func (m *Metrics) ran(took time.Duration) { m.execution.Observe(took.Seconds()) }

// Instance counts an instance: how long it took to make, and the memory that it
// came to.
func (m *Metrics) Instance(took time.Duration, memory int64) {
	m.instantiation.Observe(took.Seconds())
	m.memory.Observe(float64(memory))
}

// Capability counts a request for one, named by its canonical string.
func (m *Metrics) Capability(name string, allowed bool) {
	kind, _, _ := strings.Cut(name, ":")
	switch kind {
	case manifest.KindFilesystem, manifest.KindNetwork, manifest.KindEnv, manifest.KindLLM, manifest.KindMedia, manifest.KindExtension:
	default:
		kind = "other" // a guest's word is no label
	}
	result := "denied"
	if allowed {
		result = "granted"
	}
	m.capabilities.WithLabelValues(m.doc.Agent.ID, kind, result).Inc()
}

// Tokens counts what a chat used. The model is a guest's word and no label.
func (m *Metrics) Tokens(u backend.Usage) {
	m.tokens.WithLabelValues(u.Provider, "prompt").Add(float64(u.Prompt))
	m.tokens.WithLabelValues(u.Provider, "completion").Add(float64(u.Completion))
}

// Memory adds the gauge of what the guests have now, in bytes.
func (m *Metrics) Memory(inUse func() int64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mentatlab_wasm_memory_bytes", Help: "Memory of all guests that there are.",
		ConstLabels: prometheus.Labels{"agent_id": m.doc.Agent.ID, "instance_id": m.doc.Instance},
	}, func() float64 { return float64(inUse()) }))
}

// Guests adds what the agent measures itself, each name behind guestPrefix.
func (m *Metrics) Guests(r *metrics.Registry) { m.registry.MustRegister(guests{r}) }

// guestPrefix keeps an agent's names from being anybody else's.
const guestPrefix = "mentatlab_agent_"

// guests are an agent's own series. How many there can be is bounded where they
// are recorded.
type guests struct{ r *metrics.Registry }

// Describe implements [prometheus.Collector]: nothing is known beforehand.
func (guests) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (g guests) Collect(out chan<- prometheus.Metric) {
	for _, f := range g.r.Families() {
		for _, s := range f.Series {
			out <- guestMetric(f, s)
		}
	}
}

func guestMetric(f metrics.Family, s metrics.Series) prometheus.Metric {
	keys, values := make([]string, len(s.Attributes)), make([]string, len(s.Attributes))
	for i, a := range s.Attributes {
		keys[i], values[i] = a.Key, a.Value
	}
	desc := prometheus.NewDesc(guestPrefix+f.Name, "Measured by the agent.", keys, nil)
	var one prometheus.Metric
	var err error
	switch f.Kind {
	case metrics.Counter:
		one, err = prometheus.NewConstMetric(desc, prometheus.CounterValue, s.Value, values...)
	case metrics.Gauge:
		one, err = prometheus.NewConstMetric(desc, prometheus.GaugeValue, s.Value, values...)
	default:
		buckets := make(map[float64]uint64, len(s.Buckets))
		for i, n := range s.Buckets {
			buckets[metrics.Bounds[i]] = n
		}
		one, err = prometheus.NewConstHistogram(desc, s.Count, s.Value, buckets, values...)
	}
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return one
}
