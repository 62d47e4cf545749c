package remote

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mentatlab/mentat/internal/fault"
)

// metrics are what the server tells of itself. No label's value comes from a client.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	current  prometheus.Gauge
	lists    *prometheus.GaugeVec
	certs    *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_pki_requests_total", Help: "Requests by what was asked for, and ok or the reason why it was refused",
		}, []string{"request", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mentatlab_pki_request_seconds", Help: "Time from a request's header to the end of its answer",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"request"}),
		current: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mentatlab_pki_lists_current", Help: "1 while the agent CA's revocation list could be kept current, else 0",
		}),
		lists: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mentatlab_pki_list_next_update_timestamp_seconds", Help: "When the published revocation list ends; of the roots' lists the first",
		}, []string{"list"}),
		certs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mentatlab_pki_certificate_not_after_timestamp_seconds", Help: "When a certificate of the authority's own ends",
		}, []string{"certificate"}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.current, m.lists, m.certs,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// timed measures how long requests take.
func (m *metrics) timed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		next.ServeHTTP(w, r)
		m.seconds.WithLabelValues(kindOf(r.URL.Path)).Observe(time.Since(begin).Seconds())
	})
}

// count counts a request and what became of it; no reason is none to refuse it.
func (m *metrics) count(r *http.Request, reason fault.Reason) {
	result := "ok"
	if reason != "" {
		result = string(reason)
	}
	m.requests.WithLabelValues(kindOf(r.URL.Path), result).Inc()
}

func kindOf(path string) string {
	switch {
	case path == enrolPath:
		return "enrol"
	case path == renewPath:
		return "renew"
	case path == stampPath:
		return "stamp"
	case path == ocspPath, strings.HasPrefix(path, ocspPath+"/"):
		return "ocsp"
	case path == healthPath:
		return "health"
	case strings.HasPrefix(path, listsPath):
		return "list"
	}
	return "other"
}

// set sets a gauge to a time, unless there is none.
func set(g *prometheus.GaugeVec, label string, at time.Time) {
	if at.IsZero() {
		g.DeleteLabelValues(label)
		return
	}
	g.WithLabelValues(label).Set(float64(at.Unix()))
}
