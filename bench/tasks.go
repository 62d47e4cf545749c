package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/integration/node"
)

// warmPairs fill caches on both sides and are not counted.
const warmPairs = 3

// side is one of two ways to run a task.
type side struct {
	name, image, runtime string
	opts                 any
}

// measureTasks compares task create + start until the first byte of output: a
// signed agent through our shim under an enforced policy, a container through
// containerd's own. The third side, the container through our shim, tells the
// gate's share from the WASM host's.
func measureTasks(ctx context.Context, m *machine, pairs int) (_ []Result, err error) {
	bin, tools := node.Binaries()
	n, err := node.Start(ctx, node.Config{Bin: bin, Tools: tools})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := m.authority.enforce(n.Etc); err != nil {
		return nil, err
	}
	agent, container, err := loadImages(ctx, n, m.authority)
	if err != nil {
		return nil, err
	}
	c, err := containerd.New(n.Socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx = namespaces.WithNamespace(ctx, n.Namespace)
	fifos := filepath.Join(n.Root, "fifo")
	const ourShim, theirShim = "io.containerd.mentat.v1", "io.containerd.runc.v2"
	sides := []side{
		{"agent", agent, ourShim, nil}, // its runc is the node's configured one
		{"theirs", container, theirShim, &options.Options{BinaryName: filepath.Join(tools, "runc")}},
		{"container", container, ourShim, nil},
	}
	took := map[string][]float64{}
	for i := range pairs + warmPairs {
		order := slices.Clone(sides)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			d, err := firstOutput(ctx, c, fifos, fmt.Sprintf("%s-%d", s.name, i), s)
			if err != nil {
				return nil, fmt.Errorf("%s with %s: %w", s.image, s.runtime, err)
			}
			if i >= warmPairs {
				took[s.name] = append(took[s.name], millis(d))
			}
		}
	}
	calls, err := askContainerd(ctx, c, n.Socket, agent, 10*pairs)
	if err != nil {
		return nil, err
	}
	const against = "container, containerd's runc shim"
	return []Result{
		result("agent: create + start to first output", "ms", took["agent"]).goal(ratio, 1.10).versus(against, took["agent"], took["theirs"]),
		result("container, our shim: the same", "ms", took["container"]).versus(against, took["container"], took["theirs"]),
		result("containerd's answers to the gate before a run", "ms", calls),
	}, nil
}

// askContainerd is how long containerd takes to answer what the gate asks before a
// run, over a connection that is there, in the gate's order. The gate reads policy and
// specification meanwhile.
func askContainerd(ctx context.Context, c *containerd.Client, socket, ref string, rounds int) (took []float64, err error) {
	const id = "asked"
	image, err := c.GetImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	container, err := c.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime("io.containerd.mentat.v1", nil), containerd.WithNewSpec(oci.WithImageConfig(image)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	asked, err := bundle.Dial(socket)
	if err != nil {
		return nil, err
	}
	defer asked.Close()
	for i := range rounds + warmPairs {
		begin := time.Now()
		found, err := asked.Container(ctx, id)
		if err != nil {
			return nil, err
		}
		var parent error
		var side sync.WaitGroup
		side.Go(func() { _, parent = asked.SnapshotParent(ctx, found.Snapshotter, found.SnapshotKey) })
		_, err = asked.Image(ctx, found.Image)
		side.Wait()
		if err := errors.Join(err, parent); err != nil {
			return nil, err
		}
		if i >= warmPairs {
			took = append(took, millis(time.Since(begin)))
		}
	}
	return took, nil
}

// firstOutput is the time from the task's creation to its first byte.
func firstOutput(ctx context.Context, c *containerd.Client, fifos, id string, s side) (_ time.Duration, err error) {
	image, err := c.GetImage(ctx, s.image)
	if err != nil {
		return 0, err
	}
	container, err := c.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime(s.runtime, s.opts), containerd.WithNewSpec(oci.WithImageConfig(image)))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	first := make(chan time.Time, 1)
	out := writerFunc(func(p []byte) (int, error) {
		select {
		case first <- time.Now():
		default:
		}
		return len(p), nil
	})
	begin := time.Now()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, out, io.Discard), cio.WithFIFODir(fifos)))
	if err != nil {
		return 0, err
	}
	defer func() {
		_, e := task.Delete(ctx, containerd.WithProcessKill)
		err = errors.Join(err, e)
	}()
	exit, err := task.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := task.Start(ctx); err != nil {
		return 0, err
	}
	status := <-exit
	if err := status.Error(); err != nil {
		return 0, err
	}
	if status.ExitCode() != 0 {
		return 0, fmt.Errorf("exit status %d", status.ExitCode())
	}
	// The exit may be told before the last output was copied.
	select {
	case at := <-first:
		return at.Sub(begin), nil
	case <-time.After(time.Second):
		return 0, errors.New("no output")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
