package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/audit/chain"
	"github.com/mentatlab/mentat/internal/fault"
)

const (
	// batch bounds the records that are appended at once.
	batch = 4096
	// runBurst and runRate bound what is taken of one run: the log has a bound,
	// too, and one run must not fill it.
	runBurst = 2000
	runRate  = 100
	// maxAnomalies bounds how many of one run are recorded.
	maxAnomalies = 16

	nodeSpool = "node"
	runPrefix = "run/"
	// endFile stands in the source of what the service itself says at a run's end.
	endFile = "end"
	// executedName is a file of root's beside a run's identity: an execution record
	// of it was seen.
	executedName = "executed"
)

// collector moves records from where they wait into the log.
type collector struct {
	spools audit.Spools
	log    *chain.Log
	clock  func() time.Time
	out    *slog.Logger
	// observe is told of every record that was taken.
	observe func(record any)

	node *audit.Source
	runs map[string]*run
}

// run is one run whose records wait.
type run struct {
	id       *audit.Identity
	source   *audit.Source
	executed bool
	// tokens bound what is taken; filled is when they were last added.
	tokens    float64
	filled    time.Time
	anomalies int
	// took: something was read since the directory was last looked at for what can
	// be removed.
	took bool
}

func newCollector(spools audit.Spools, log *chain.Log, clock func() time.Time, out *slog.Logger, observe func(any)) *collector {
	return &collector{spools: spools, log: log, clock: clock, out: out, observe: observe, node: audit.NewSource(spools.Node()), runs: map[string]*run{}}
}

// pass takes what waits, once. more says that not everything was taken.
func (c *collector) pass() (more bool, err error) {
	var pending []chain.Pending
	if more, err = c.takeNode(&pending); err != nil {
		return false, err
	}
	over, moreRuns, err := c.takeRuns(&pending)
	if err != nil {
		return false, err
	}
	if err := c.log.Append(pending...); err != nil {
		// What was read and not taken must be read again.
		c.node = audit.NewSource(c.spools.Node())
		for _, r := range c.runs {
			r.source = audit.NewSource(c.spools.In(r.id.Key))
		}
		return false, err
	}
	for _, p := range pending {
		c.observe(p.Record)
	}
	return more || moreRuns, c.trim(over)
}

// takeNode reads the records of preparations.
func (c *collector) takeNode(pending *[]chain.Pending) (more bool, err error) {
	b, err := c.node.Next(batch, c.log.Taken(nodeSpool))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.Wrap(err, fault.Unavailable, c.spools.Node(), "cannot read the records that wait")
	}
	c.losses(nodeSpool, "", b, pending)
	for _, l := range b.Lines {
		record, err := rooted(l.Data)
		if err != nil {
			record = nil
			c.foreign(err, nodeSpool, pending, nil)
		}
		c.add(nodeSpool, l, record, pending)
	}
	for _, a := range b.Anomalies {
		c.anomaly(nodeSpool, a, pending, nil)
	}
	return len(b.Lines) == batch, nil
}

// add appends a record with its source. A line that is none is not appended, and
// read again after a restart, as nothing again.
func (c *collector) add(spool string, l audit.Line, record any, pending *[]chain.Pending) {
	if record != nil {
		*pending = append(*pending, chain.Pending{Source: &chain.Source{Spool: spool, File: l.File, Line: l.Number}, Record: record})
	}
}

// losses records what was dropped before it could be taken.
func (c *collector) losses(spool, instance string, b audit.Batch, pending *[]chain.Pending) {
	for in, loss := range lossesOf(b, c.log.Taken(spool), instance, c.clock()) {
		*pending = append(*pending, chain.Pending{Source: &chain.Source{Spool: spool, File: in}, Record: loss})
	}
}

// lossesOf are the records of what made way for others before it was taken, by the
// file that tells of it.
func lossesOf(b audit.Batch, taken audit.Taken, instance string, now time.Time) map[string]*audit.Loss {
	losses := map[string]*audit.Loss{}
	for _, l := range b.Lost {
		had, _ := taken(l.File)
		n := l.Lines - had
		if n <= 0 {
			continue
		}
		if losses[l.In] == nil {
			losses[l.In] = &audit.Loss{
				Timestamp: audit.At(now), EventType: audit.EventLoss, InstanceID: instance, Reason: "there was no room for them before they were collected",
			}
		}
		losses[l.In].Lost += n
	}
	return losses
}

// foreign records a line that should not be there; a torn one was to be expected.
func (c *collector) foreign(err error, on string, pending *[]chain.Pending, r *run) {
	var f errForeign
	if errors.As(err, &f) {
		c.anomaly(on, "it holds "+f.why, pending, r)
	}
}

// anomaly records what no writer of ours does, a few times for each run.
func (c *collector) anomaly(on, what string, pending *[]chain.Pending, r *run) {
	note := &audit.Note{Timestamp: audit.At(c.clock()), EventType: audit.EventAnomaly, Message: audit.Clean(on + ": " + what)}
	if r != nil {
		if r.anomalies++; r.anomalies > maxAnomalies {
			return
		}
		note.InstanceID = r.id.Container
	}
	*pending = append(*pending, chain.Pending{Record: note})
}

// takeRuns reads the records of runs; over are those that ended and of which
// everything was read.
func (c *collector) takeRuns(pending *[]chain.Pending) (over []*run, more bool, err error) {
	keys, err := c.spools.Runs()
	if err != nil {
		return nil, false, fault.Wrap(err, fault.Unavailable, string(c.spools), "cannot list the runs whose records wait")
	}
	known := map[string]bool{}
	for _, key := range keys {
		known[key] = true
		r := c.runs[key]
		if r == nil {
			if r = c.open(key); r == nil {
				continue
			}
			c.runs[key] = r
		}
		// Whether it is over is asked first: what is read then is all there is.
		ended := c.ended(r)
		drained, err := c.takeRun(r, pending)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			// One run's directory keeps nobody else's records. What was read of it is
			// read again.
			c.out.Warn("cannot read a run's records", "container", r.id.Container, "error", err)
			r.source = audit.NewSource(c.spools.In(key))
		case ended && drained:
			c.ending(r, pending)
			over = append(over, r)
		}
		more = more || err == nil && !drained && r.tokens >= 1
	}
	for key := range c.runs {
		if !known[key] {
			delete(c.runs, key)
			c.log.Forget(runPrefix + key)
		}
	}
	return over, more, nil
}

// ended reports whether the run's container is gone for good. That records were
// written shows that it was prepared, unless it is being prepared again.
func (c *collector) ended(r *run) bool {
	if !r.id.Over() {
		return false
	}
	if id, err := c.spools.Identity(r.id.Key); err == nil {
		r.id = id
	}
	return r.id.Settled(c.clock()) || !r.id.Again && (r.executed || r.source.Began())
}

func (c *collector) open(key string) *run {
	id, err := c.spools.Identity(key)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.out.Warn("a directory of the spool is no run's", "directory", key, "error", err)
		}
		return nil
	}
	_, err = os.Lstat(c.executedPath(key))
	return &run{id: id, source: audit.NewSource(c.spools.In(key)), executed: err == nil, tokens: runBurst, filled: c.clock()}
}

func (c *collector) executedPath(key string) string {
	return filepath.Join(filepath.Dir(c.spools.In(key)), executedName)
}

// takeRun reads what a run's host wrote; drained says that there is no more.
func (c *collector) takeRun(r *run, pending *[]chain.Pending) (drained bool, err error) {
	now := c.clock()
	r.tokens = min(runBurst, r.tokens+now.Sub(r.filled).Seconds()*runRate)
	r.filled = now
	most := min(int(r.tokens), batch)
	if most < 1 {
		return false, nil
	}
	spool := runPrefix + r.id.Key
	b, err := r.source.Next(most, c.log.Taken(spool))
	if err != nil {
		return false, err
	}
	r.tokens -= float64(len(b.Lines))
	r.took = r.took || len(b.Lines) > 0
	c.losses(spool, r.id.Container, b, pending)
	for _, l := range b.Lines {
		record, err := stamped(l.Data, r.id, now)
		if err != nil {
			record = nil
			c.foreign(err, "the run's directory", pending, r)
		}
		if _, ok := record.(*audit.Execution); ok && !r.executed {
			// Noted before it is in the log: it waits until it is.
			if err := c.markExecuted(r); err != nil {
				return false, err
			}
		}
		c.add(spool, l, record, pending)
	}
	for _, a := range b.Anomalies {
		c.anomaly("the run's directory", a, pending, r)
	}
	return len(b.Lines) < most, nil
}

func (c *collector) markExecuted(r *run) error {
	f, err := os.OpenFile(c.executedPath(r.id.Key), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("cannot note that the run was recorded: %w", err)
	}
	r.executed = true
	return nil
}

// ending records for a host that was killed what it could not say itself.
func (c *collector) ending(r *run, pending *[]chain.Pending) {
	spool := runPrefix + r.id.Key
	if _, said := c.log.Taken(spool)(endFile); said || r.executed || !r.source.Began() {
		return
	}
	*pending = append(*pending, chain.Pending{Source: &chain.Source{Spool: spool, File: endFile, Line: 1}, Record: &audit.Execution{
		Timestamp: audit.At(c.clock()), EventType: audit.EventExecution, Agent: r.id.Agent,
		Execution: audit.Run{
			InstanceID: r.id.Container, CapabilitiesRequested: []string{}, Result: audit.Killed,
			ExecutionTimeMS: bounded(c.clock().Sub(r.id.Created.Time).Milliseconds()),
		},
	}})
}

// trim removes what was taken.
func (c *collector) trim(over []*run) error {
	_, err := c.node.Trim(false)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	errs := []error{err}
	for _, r := range c.runs {
		if !r.took {
			continue
		}
		r.took = false
		if _, err := r.source.Trim(false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.out.Warn("cannot remove a run's records", "container", r.id.Container, "error", err)
		}
	}
	for _, r := range over {
		if err := c.spools.Remove(r.id.Key); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(c.runs, r.id.Key)
		c.log.Forget(runPrefix + r.id.Key)
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(err, fault.Unavailable, string(c.spools), "cannot remove records that were taken")
	}
	return nil
}

// forget drops what the log knows of runs that are gone: the service may have been
// killed between the two.
func (c *collector) forget() error {
	keys, err := c.spools.Runs()
	if err != nil {
		return err
	}
	known := map[string]bool{nodeSpool: true}
	for _, key := range keys {
		known[runPrefix+key] = true
	}
	for _, spool := range c.log.Spools() {
		if !known[spool] {
			c.log.Forget(spool)
		}
	}
	return nil
}
