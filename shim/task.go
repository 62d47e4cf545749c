package shim

import (
	"context"
	"errors"
	"io/fs"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

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
	"google.golang.org/grpc/status"
	emptypb "google.golang.org/protobuf/types/known/emptypb"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// service is the runc shim's task service with a gate before Create.
type service struct {
	taskapi.TTRPCTaskService
	address string

	mu     sync.Mutex
	agents map[string]*agent // the WASM agents by container id, guarded by mu
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

// newService wraps the runc shim's service; address is containerd's socket.
func newService(ctx context.Context, address string, publisher shim.Publisher, sd shutdown.Service) (*service, error) {
	inner, err := task.NewTaskService(ctx, publisher, sd)
	if err != nil {
		return nil, err
	}
	return &service{TTRPCTaskService: inner, address: address, agents: map[string]*agent{}}, nil
}

// RegisterTTRPC registers the wrapping service, not the wrapped one.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create makes the bundle ready and then lets the runc shim create the task.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	wasm, err := s.prepare(ctx, r)
	if err != nil {
		log.G(ctx).WithField("id", r.ID).WithError(err).Warn("refused")
		return nil, toRPC(err)
	}
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
	config, err := nodeconfig.Load("")
	if err != nil {
		return false, err
	}
	opts.SystemdCgroup = opts.SystemdCgroup || systemdPath(r.Bundle)
	if opts.BinaryName == "" {
		opts.BinaryName = config.Runtime.Binary
	}
	if r.Options, err = typeurl.MarshalAnyToProto(opts); err != nil {
		return false, fault.Wrap(err, fault.Internal, r.ID, "cannot encode the runtime options")
	}
	node, err := bundle.Dial(s.address)
	if err != nil {
		return false, err
	}
	defer node.Close()
	p, err := bundle.New(bundle.Options{Config: config, Node: node, Start: startReaped, Log: logger(ctx)})
	if err != nil {
		return false, err
	}
	result, err := p.Prepare(ctx, bundle.Request{ID: r.ID, Dir: r.Bundle, Stdin: r.Stdin != ""})
	if err != nil {
		return false, err
	}
	return result.WASM, nil
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

// Delete adds how the run ended to the shim's log before the bundle goes.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	s.mu.Lock()
	a := s.agents[r.ID]
	delete(s.agents, r.ID)
	s.mu.Unlock()
	if a != nil {
		a.stop()
		logExit(ctx, r.ID, a.bundle)
	}
	return s.TTRPCTaskService.Delete(ctx, r)
}

func logExit(ctx context.Context, id, dir string) {
	entry := log.G(ctx).WithField("id", id)
	exit, err := bundle.ReadExit(dir)
	switch {
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
		return "killed by " + syscall.Signal(e-128).String()
	}
	return "exit status " + strconv.Itoa(int(e))
}

// ExitCode is what exec.ExitError calls the same.
func (e exitError) ExitCode() int { return int(e) }
