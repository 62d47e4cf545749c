package node

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mentatlab/mentat/capability/audit"
)

// maxAgents bounds the agents, and the organisations of signers, that have series
// of their own.
const maxAgents = 1000

const other = "other"

// metrics are what the service tells. Those of the specification (§9.1) come from
// the records that it takes.
type metrics struct {
	registry   *prometheus.Registry
	verify     *prometheus.HistogramVec
	pending    *prometheus.CounterVec
	overlooked *prometheus.CounterVec
	requests   *prometheus.CounterVec
	executions *prometheus.HistogramVec
	records    *prometheus.CounterVec
	lost       prometheus.Counter
	sequence   prometheus.Gauge
	runs       prometheus.Gauge
	refreshes  *prometheus.CounterVec
	refreshed  prometheus.Gauge
	ocspRounds *prometheus.CounterVec
	ocspKept   prometheus.Gauge
	ocspDone   prometheus.Gauge

	mu     sync.Mutex
	agents map[string]bool // guarded by mu
	orgs   map[string]bool // guarded by mu
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		verify: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mentatlab_attestation_verify_seconds", Help: "Time to find, read and verify an image before it may run",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"result", "signer_org"}),
		pending: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_attestation_pending_total", Help: "Starts without an attestation that the policy allows only until it enforces them",
		}, []string{"agent_id"}),
		overlooked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_attestation_overlooked_total", Help: "Failures of attestations that a scope's level let by at a start",
		}, []string{"agent_id", "check"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mentatlab_capability_requests_total", Help: "Decisions about capabilities: when an agent is prepared, and each while it runs",
		}, []string{"agent_id", "capability_type", "result"}),
		executions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mentatlab_wasm_execution_seconds", Help: "WASM agent execution time",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 5, 30, 120, 600},
		}, []string{"agent_id", "operation"}),
		records:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mentatlab_audit_records_total", Help: "Audit records taken into the log"}, []string{"event"}),
		lost:       prometheus.NewCounter(prometheus.CounterOpts{Name: "mentatlab_audit_lost_total", Help: "Audit records that were lost before they were taken"}),
		sequence:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "mentatlab_audit_sequence", Help: "Number of the log's last entry"}),
		runs:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "mentatlab_audit_runs", Help: "Runs whose records are being collected"}),
		refreshes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mentatlab_revocation_refreshes_total", Help: "Rounds in which revocation lists and release lists were refreshed"}, []string{"result"}),
		refreshed:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "mentatlab_revocation_refreshed_timestamp_seconds", Help: "When revocation lists were last refreshed without a failure"}),
		ocspRounds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mentatlab_ocsp_refreshes_total", Help: "Rounds in which OCSP answers were refreshed"}, []string{"result"}),
		ocspKept:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "mentatlab_ocsp_answers", Help: "Certificates about which OCSP answers are kept"}),
		ocspDone:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "mentatlab_ocsp_refreshed_timestamp_seconds", Help: "When OCSP answers were last refreshed without a failure"}),
		agents:     map[string]bool{},
		orgs:       map[string]bool{},
	}
	m.registry.MustRegister(m.verify, m.pending, m.overlooked, m.requests, m.executions, m.records, m.lost, m.sequence, m.runs, m.refreshes, m.refreshed, m.ocspRounds, m.ocspKept, m.ocspDone,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// label is a value with a series of its own, or "other" when there are too many.
func (m *metrics) label(known map[string]bool, value string) string {
	if value == "" {
		return "unknown"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !known[value] && len(known) >= maxAgents {
		return other
	}
	known[value] = true
	return value
}

// kinds are the types of capabilities that have series of their own: the strings
// come from guests.
var kinds = []string{"filesystem", "network", "env", "llm", "media", "extension"}

func kindOf(capability string) string {
	kind, _, _ := strings.Cut(capability, ":")
	for _, k := range kinds {
		if kind == k {
			return k
		}
	}
	return other
}

// observe counts a record.
func (m *metrics) observe(record any) {
	switch r := record.(type) {
	case *audit.Admission:
		m.records.WithLabelValues(r.EventType).Inc()
		m.verify.WithLabelValues(r.Result, m.label(m.orgs, r.SignerOrg)).Observe(float64(r.Microseconds) / 1e6)
		if r.Pending != "" {
			m.pending.WithLabelValues(m.label(m.agents, r.Agent.ID)).Inc()
		}
		for _, o := range r.Overlooked {
			if f := strings.Fields(o); len(f) == 3 { // level, check, reason: all of them the verifier's own words
				m.overlooked.WithLabelValues(m.label(m.agents, r.Agent.ID), f[1]).Inc()
			}
		}
	case *audit.Decision:
		m.records.WithLabelValues(r.EventType).Inc()
		m.requests.WithLabelValues(m.label(m.agents, r.Agent.ID), kindOf(r.Capability), r.Result).Add(float64(max(1, r.Count)))
	case *audit.Execution:
		m.records.WithLabelValues(r.EventType).Inc()
		m.executions.WithLabelValues(m.label(m.agents, r.Agent.ID), "run").Observe(float64(r.Execution.ExecutionTimeMS) / 1e3)
	case *audit.Loss:
		m.records.WithLabelValues(r.EventType).Inc()
		m.lost.Add(float64(r.Lost))
	case *audit.Note:
		m.records.WithLabelValues(r.EventType).Inc()
	}
}

func (m *metrics) refresh(err error, now time.Time) {
	if err != nil {
		m.refreshes.WithLabelValues("failure").Inc()
		return
	}
	m.refreshes.WithLabelValues("success").Inc()
	m.refreshed.Set(float64(now.Unix()))
}

func (m *metrics) refreshOCSP(kept int, err error, now time.Time) {
	m.ocspKept.Set(float64(kept))
	if err != nil {
		m.ocspRounds.WithLabelValues("failure").Inc()
		return
	}
	m.ocspRounds.WithLabelValues("success").Inc()
	m.ocspDone.Set(float64(now.Unix()))
}
