package shim

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	emptypb "google.golang.org/protobuf/types/known/emptypb"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/shim/launch"
)

// service is the runc shim's task service with a gate before Create.
type service struct {
	taskapi.TTRPCTaskService
	address    string
	deliveries *deliveries
	early      atomic.Pointer[gate]
	calls      chan struct{} // one entry for each call of the OCI runtime that goes on

	mu        sync.Mutex
	agents    map[string]*agent    // the WASM agents by container id, guarded by mu
	creations map[string]*creation // the calls of Create that go on, guarded by mu
	deletions int                  // the calls of Delete that go on, guarded by mu
}

// creation is a call of Create that goes on. It can take as long as a module
// takes to compile; the wrapped service knows nothing of it until then.
type creation struct {
	cancel context.CancelFunc // of the preparation
	done   chan struct{}
}

// agent is a task that runs WASM.
type agent struct {
	bundle string
	input  *inputEnd // nil without a standard input or on a terminal
}

func (a *agent) stop() {
	if a.input != nil {
		a.input.stop()
	}
}

// gcPercent replaces what containerd's shim package sets for itself (40): with
// that a start collects garbage five times, on the processors that the OCI
// runtime waits for. Now the heap first grows to 8 MiB, which holds what one
// start leaves; that package returns it to the system within half a minute.
const gcPercent = 200

// newService wraps the runc shim's service; address is containerd's socket.
func newService(ctx context.Context, address string, publisher shim.Publisher, sd shutdown.Service) (*service, error) {
	deliveries := newDeliveries(publisher)
	inner, err := task.NewTaskService(ctx, deliveries, sd)
	if err != nil {
		return nil, err
	}
	return &service{TTRPCTaskService: inner, address: address, deliveries: deliveries, calls: make(chan struct{}, maxCalls), agents: map[string]*agent{}, creations: map[string]*creation{}}, nil
}

// RegisterTTRPC registers the wrapping service, not the wrapped one.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create makes the bundle ready and then lets the runc shim create the task.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	prepareCtx, done, err := s.begin(ctx, r.ID)
	if err != nil {
		return nil, toRPC(err)
	}
	defer done()
	wasm, err := s.prepare(prepareCtx, r)
	if err != nil {
		log.G(ctx).WithField("id", r.ID).WithError(err).Warn("refused")
		return nil, toRPC(err)
	}
	defer s.turn(ctx)()
	if !wasm {
		return s.TTRPCTaskService.Create(ctx, r)
	}
	a := &agent{bundle: r.Bundle}
	if r.Stdin != "" && !r.Terminal {
		if a.input, err = watchInput(r.Stdin); err != nil {
			return nil, toRPC(err)
		}
	}
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		a.stop()
		return nil, err
	}
	s.mu.Lock()
	s.agents[r.ID] = a
	s.mu.Unlock()
	if a.input != nil {
		go s.closeInput(context.WithoutCancel(ctx), r.ID, a.input)
	}
	return resp, nil
}

const (
	// maxCalls bounds the calls of the OCI runtime that a shim makes at once. The
	// wrapped service is told of every exit in turn, and has room for 32: beyond
	// that, when it waits for a call of its own to exit, each exit takes a second.
	// A call makes up to three.
	maxCalls = 8
	// turnWait is how long a call waits for its turn. It is made then in any case:
	// what holds the others up, a hook perhaps, may be waiting for this one.
	turnWait = 5 * time.Second
)

// turn waits until few enough calls of the OCI runtime go on; the result ends
// this one's turn.
func (s *service) turn(ctx context.Context) (end func()) {
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case s.calls <- struct{}{}:
		return func() { <-s.calls }
	case <-timer.C:
	case <-ctx.Done():
	}
	return func() {}
}

// Start waits for its turn.
func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	defer s.turn(ctx)()
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	if err == nil && r.ExecID == "" {
		s.deliveries.started(r.ID)
	}
	return resp, err
}

// Kill waits for its turn.
func (s *service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	defer s.turn(ctx)()
	return s.TTRPCTaskService.Kill(ctx, r)
}

// begin notes a creation, which lasts until done is called. The context ends
// when nobody wants it any more.
func (s *service) begin(ctx context.Context, id string) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.creations[id] != nil {
		return nil, nil, fault.New(fault.Exists, id, "the task is being created already")
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &creation{cancel: cancel, done: make(chan struct{})}
	s.creations[id] = c
	return ctx, func() {
		cancel()
		s.mu.Lock()
		delete(s.creations, id)
		s.mu.Unlock()
		close(c.done)
	}, nil
}

// giveUp ends the creation of a task, if it goes on, and waits for its end.
func (s *service) giveUp(ctx context.Context, id string) {
	s.mu.Lock()
	c := s.creations[id]
	s.mu.Unlock()
	if c == nil {
		return
	}
	c.cancel()
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// Shutdown ends the shim unless there are tasks. One that is being created or
// deleted is one: in a pod, a neighbour's end must not cut its call off. The
// caller of that asks again.
func (s *service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.giveUp(ctx, r.ID)
	s.mu.Lock()
	others := len(s.creations) + s.deletions
	s.mu.Unlock()
	if others > 0 {
		return &emptypb.Empty{}, nil
	}
	return s.TTRPCTaskService.Shutdown(ctx, r)
}

// closeInput passes the end of an agent's input on.
func (s *service) closeInput(ctx context.Context, id string, input *inputEnd) {
	defer input.stop()
	if !input.wait() {
		return
	}
	if _, err := s.CloseIO(ctx, &taskapi.CloseIORequest{ID: id, Stdin: true}); err != nil {
		log.G(ctx).WithField("id", id).WithError(err).Debug("the input ended after the agent")
	}
}

func (s *service) prepare(ctx context.Context, r *taskapi.CreateTaskRequest) (wasm bool, err error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return false, err
	}
	ctx = namespaces.WithNamespace(ctx, ns)
	opts, err := runcOptions(r.Options)
	if err != nil {
		return false, err
	}
	g := s.early.Swap(nil)
	if g == nil {
		if g, err = openGate(ctx, s.address); err != nil {
			return false, err
		}
	}
	defer g.close()
	opts.SystemdCgroup = opts.SystemdCgroup || systemdPath(r.Bundle)
	if opts.BinaryName == "" {
		opts.BinaryName = g.config.Runtime.Binary
	}
	if r.Options, err = typeurl.MarshalAnyToProto(opts); err != nil {
		return false, fault.Wrap(err, fault.Internal, r.ID, "cannot encode the runtime options")
	}
	result, err := g.Prepare(ctx, bundle.Request{ID: r.ID, Dir: r.Bundle, Stdin: r.Stdin != "", Closed: r.Stdin == "" && r.Stdout == "" && r.Stderr == "", Checkpoint: r.Checkpoint != ""})
	if err != nil {
		return false, err
	}
	return result.WASM, nil
}

// gate is what prepares bundles, with its connection to containerd.
type gate struct {
	*bundle.Preparer
	config *nodeconfig.Config
	close  func()
}

func openGate(ctx context.Context, address string) (*gate, error) {
	config, err := nodeconfig.Load("")
	if err != nil {
		return nil, err
	}
	node, err := bundle.Dial(address)
	if err != nil {
		return nil, err
	}
	shut := func() { _ = node.Close() } // nothing is left to be said on it
	p, err := bundle.New(bundle.Options{Config: config, Node: node, Start: startReaped, Log: logger(ctx)})
	if err != nil {
		shut()
		return nil, err
	}
	return &gate{Preparer: p, config: config, close: shut}, nil
}

// ahead opens the gate for the task that this process was started for, whose
// creation containerd asks for as soon as the process serves. Whatever fails is
// done again then, and reported.
func ahead(ctx context.Context, c launch.Call) *gate {
	dir, err := os.Getwd()
	if err != nil {
		return nil
	}
	g, err := openGate(ctx, c.Address)
	if err != nil {
		return nil
	}
	g.Ahead(namespaces.WithNamespace(ctx, c.Namespace), c.ID, dir)
	return g
}

// Exec is refused for a WASM agent: there is nothing in it that a second
// process could be.
func (s *service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	_, wasm := s.agents[r.ID]
	s.mu.Unlock()
	if wasm {
		return nil, toRPC(errExec(r.ID))
	}
	return s.TTRPCTaskService.Exec(ctx, r)
}

func errExec(id string) error {
	return fault.New(fault.Unsupported, id, "exec is not possible: a WASM agent has no shell and no second process").
		WithHint("read its logs, or run the agent's container form with the runc runtime to look around")
}

// Delete adds how the run ended to the shim's log, as the bundle goes next. A
// task whose creation goes on is deleted because its client gave up.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if r.ExecID != "" {
		return s.TTRPCTaskService.Delete(ctx, r)
	}
	s.giveUp(ctx, r.ID)
	s.mu.Lock()
	s.deletions++
	s.mu.Unlock()
	delivered := s.deliveries.expect(r.ID)
	end := s.turn(ctx)
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	end()
	delivered(err == nil)
	s.mu.Lock()
	s.deletions--
	a := s.agents[r.ID]
	if err == nil {
		delete(s.agents, r.ID)
	}
	s.mu.Unlock()
	if err == nil && a != nil {
		a.stop()
		logExit(ctx, r.ID, a.bundle, resp.GetExitStatus())
	}
	return resp, err
}

// ownFilter is the status of a host that its own filter of system calls ended.
const ownFilter = 128 + uint32(syscall.SIGSYS)

func logExit(ctx context.Context, id, dir string, status uint32) {
	entry := log.G(ctx).WithField("id", id)
	exit, err := bundle.ReadExit(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && status == ownFilter:
		entry.Warn("agent ended by its host's own filter: it tried what no agent has a use for")
	case errors.Is(err, fs.ErrNotExist):
		entry.Info("agent ended without a record")
	case err != nil:
		entry.WithError(err).Warn("agent's exit record is unreadable")
	default:
		entry.WithFields(log.Fields{"status": exit.Status, "reason": exit.Reason, "function": exit.Function}).Info("agent ended: " + fault.OneLine(exit.Message))
	}
}

// toRPC is the one place where a refusal becomes a gRPC status: the class from
// the error table and the one line, without the wrapped causes that errgrpc
// would repeat.
func toRPC(err error) error {
	class := fault.RowOf(fault.ReasonOf(err)).Class
	return status.Error(status.Code(errgrpc.ToGRPC(class)), fault.OneLine(err.Error()))
}

// startReaped starts a child through the shim's reaper: the shim reaps every
// child on SIGCHLD, so a plain Wait would lose exit statuses.
func startReaped(cmd *exec.Cmd) (func() error, error) {
	exits, err := reaper.Default.Start(cmd)
	if err != nil {
		return nil, err
	}
	return func() error {
		status, err := reaper.Default.Wait(cmd, exits)
		if err != nil {
			return err
		}
		if status != 0 {
			return exitError(status)
		}
		return nil
	}, nil
}

// exitError is a child's non-zero exit status as the reaper reports it.
type exitError int

func (e exitError) Error() string {
	if e > 128 {
		return "killed by " + unix.SignalName(syscall.Signal(e-128))
	}
	return "exit status " + strconv.Itoa(int(e))
}

// ExitCode is what exec.ExitError calls the same.
func (e exitError) ExitCode() int { return int(e) }
