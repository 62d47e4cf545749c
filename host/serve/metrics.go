package serve

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Metrics is what /metrics tells, in Prometheus' text format.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	requests  *prometheus.CounterVec
	duration  prometheus.Observer
	firstByte prometheus.Observer
	execution prometheus.Observer
}

// Buckets of times: an instance takes tens of microseconds, an answer of a
// language model minutes.
var (
	fastBuckets = prometheus.ExponentialBuckets(16e-6, 4, 10)
	slowBuckets = prometheus.ExponentialBuckets(100e-6, 4, 12)
)

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
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_http_requests_total", Help: "Requests to run the agent, by the answer's status and the reason why it is no success.", ConstLabels: agent,
		}, []string{"code", "reason"}),
		duration: duration, firstByte: firstByte,
		execution: execution.WithLabelValues(doc.Agent.ID, "process"),
	}
	m.registry.MustRegister(m.requests, duration, firstByte, execution)
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, DisableCompression: true})
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

// answered counts a request; the code is 0 when nobody was left to answer.
func (m *Metrics) answered(code int, reason string, took time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(code), reason).Inc()
	m.duration.Observe(took.Seconds())
}

// ran counts a run.
func (m *Metrics) ran(took time.Duration) { m.execution.Observe(took.Seconds()) }
