package audit

import (
	"cmp"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Choice is one decision of a host.
type Choice struct {
	Time time.Time
	// Run names the run within the host.
	Run                   string
	Capability, Operation string
	Allowed               bool
	// Rule names what decided, Reason says why not.
	Rule, Reason string
	// DryRun says that Rule is one in dry run, which would have denied it.
	DryRun bool
}

func (c *Choice) result() string {
	switch {
	case c.DryRun:
		return DryRun
	case c.Allowed:
		return Allowed
	}
	return Denied
}

// Outcome is how a run went.
type Outcome struct {
	Run      string
	Began    time.Time
	Duration time.Duration
	// Status is the agent's, Reason a fault's if it did not end by itself.
	Status int
	Reason string
	// Requested are the capabilities that were asked for.
	Requested                           []string
	Checks, Grants, Denials, Violations int
	MemoryBytes                         int64
}

// Recorder writes the records of one host. Its methods may be called from several
// goroutines; each returns when the record is written, or after
// [limits.AuditWait].
type Recorder struct {
	spool    *Spool
	agent    Agent
	instance string
	clock    func() time.Time

	queue chan entry
	ended chan struct{}
	lost  atomic.Int64

	mu      sync.Mutex
	closed  bool              // guarded by mu
	tokens  float64           // guarded by mu
	filled  time.Time         // when tokens were last added, guarded by mu
	pending map[choiceKey]int // where the decisions are in held, guarded by mu
	held    []Decision        // decisions that are counted, guarded by mu
}

// choiceKey is what makes two decisions equal.
type choiceKey struct{ capability, operation, policy, result string }

type entry struct {
	line []byte
	done chan struct{}
}

// queued bounds the records that wait for the writer.
const queued = 64

// NewRecorder begins the records of the host that a document describes. It
// returns nil where the document says that nothing is recorded; the methods of a
// nil Recorder do nothing.
func NewRecorder(doc *hostdoc.Document, clock func() time.Time) (*Recorder, error) {
	if doc.Audit == nil {
		return nil, nil
	}
	r := &Recorder{
		spool: OpenSpool(doc.Audit.Dir, doc.Audit.Bytes),
		agent: Agent{ID: doc.Agent.ID, Version: doc.Agent.Version, Runtime: "wasm",
			Attestation: Attestation{Verified: doc.Agent.Signer != "", Signer: doc.Agent.Signer, TrustLevel: doc.Agent.Trust}},
		instance: doc.Instance,
		clock:    clock,
		queue:    make(chan entry, queued),
		ended:    make(chan struct{}),
		tokens:   limits.AuditBurst,
		filled:   clock(),
		pending:  map[choiceKey]int{},
	}
	if err := r.spool.Begin(); err != nil {
		return nil, err
	}
	go r.write()
	return r, nil
}

// write is the one goroutine that touches the spool: a disk that hangs holds it
// up and nobody else.
func (r *Recorder) write() {
	defer close(r.ended)
	for e := range r.queue {
		lines := [][]byte{e.line}
		lost := r.lost.Swap(0)
		if lost > 0 {
			lines = append([][]byte{r.loss(lost)}, e.line)
		}
		if err := r.spool.Append(lines...); err != nil {
			r.lost.Add(lost + 1)
		}
		close(e.done)
	}
}

func (r *Recorder) loss(lost int64) []byte {
	line, err := json.Marshal(Loss{Timestamp: At(r.clock()), EventType: EventLoss, InstanceID: r.instance, Lost: lost, Reason: "they could not be written in time"})
	if err != nil {
		return []byte("{}") // texts and numbers always encode
	}
	return line
}

// put hands a record to the writer and waits until it is written, but not for
// ever.
func (r *Recorder) put(v any) {
	line, err := json.Marshal(v)
	if err != nil {
		r.lost.Add(1)
		return
	}
	timer := time.NewTimer(limits.AuditWait)
	defer timer.Stop()
	e := entry{line, make(chan struct{})}
	select {
	case r.queue <- e:
	case <-timer.C:
		r.lost.Add(1)
		return
	}
	select {
	case <-e.done:
	case <-timer.C: // written later, or counted as lost then
	}
}

// Decision records a decision. Beyond [limits.AuditBurst] at once and
// [limits.AuditRate] a second equal ones are counted and share a record.
func (r *Recorder) Decision(c Choice) {
	if r == nil {
		return
	}
	d := Decision{
		Timestamp: At(c.Time), EventType: EventDecision, Agent: r.agent, InstanceID: r.name(c.Run),
		Capability: Clean(c.Capability), Operation: Clean(c.Operation), Policy: Clean(c.Rule), Result: c.result(), Reason: Clean(c.Reason),
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	now := r.clock()
	r.tokens = min(limits.AuditBurst, r.tokens+now.Sub(r.filled).Seconds()*limits.AuditRate)
	r.filled = now
	if r.tokens < 1 {
		r.count(d)
		r.mu.Unlock()
		return
	}
	r.tokens--
	counted := r.release()
	r.mu.Unlock()
	for i := range counted {
		r.put(&counted[i])
	}
	r.put(&d)
}

// name is what a run is called: a host that runs its agent once calls the run what
// the container is called.
func (r *Recorder) name(run string) string {
	if run == "" || run == r.instance {
		return r.instance
	}
	return r.instance + "/" + run
}

// count keeps a decision that has no record of its own. mu is held.
func (r *Recorder) count(d Decision) {
	key := choiceKey{d.Capability, d.Operation, d.Policy, d.Result}
	if _, ok := r.pending[key]; !ok && len(r.pending) >= limits.AuditKeys {
		key = choiceKey{result: d.Result}
		d.Capability, d.Operation, d.Policy, d.Reason = "", "", "", "too many different ones to name each"
	}
	i, ok := r.pending[key]
	if !ok {
		i = len(r.held)
		r.pending[key] = i
		r.held = append(r.held, d)
	}
	r.held[i].Count++
	r.held[i].Timestamp = d.Timestamp
}

// release gives the counted decisions out. mu is held.
func (r *Recorder) release() []Decision {
	held := r.held
	r.held = nil
	clear(r.pending)
	return held
}

// Execution records how a run went, after what was counted in it.
func (r *Recorder) Execution(o Outcome) {
	if r == nil {
		return
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	counted := r.release()
	r.mu.Unlock()
	for i := range counted {
		r.put(&counted[i])
	}
	requested := make([]string, 0, len(o.Requested))
	for _, c := range o.Requested {
		requested = append(requested, Clean(c))
	}
	result := cmp.Or(Clean(o.Reason), Success)
	if o.Reason == "" && o.Status != 0 {
		result = Failure
	}
	r.put(&Execution{
		Timestamp: At(o.Began.Add(o.Duration)), EventType: EventExecution, Agent: r.agent,
		Execution: Run{
			InstanceID: r.name(o.Run), CapabilitiesRequested: requested,
			MemoryUsedMB: (o.MemoryBytes + limits.MiB - 1) / limits.MiB, ExecutionTimeMS: o.Duration.Milliseconds(), Result: result,
		},
		Security: Security{SandboxViolations: o.Violations, PolicyChecks: o.Checks, CapabilityGrants: o.Grants, CapabilityDenials: o.Denials},
	})
}

// Close writes what was counted and ends the recorder, in no more than a few
// times [limits.AuditWait].
func (r *Recorder) Close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	counted := r.release()
	r.mu.Unlock()
	for i := range counted {
		r.put(&counted[i])
	}
	if lost := r.lost.Swap(0); lost > 0 {
		r.put(&Loss{Timestamp: At(r.clock()), EventType: EventLoss, InstanceID: r.instance, Lost: lost, Reason: "they could not be written in time"})
	}
	close(r.queue)
	select {
	case <-r.ended:
		return r.spool.Close()
	case <-time.After(limits.AuditWait):
		return fault.New(fault.Unavailable, r.spool.dir, "the records could not be written in time")
	}
}
