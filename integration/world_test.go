package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/testimage"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
)

const (
	mentatRuntime = "io.containerd.mentat.v1"
	runcRuntime   = "io.containerd.runc.v2"
	// busybox is Debian's busybox-static.
	busybox = "/bin/busybox"
)

// world is a node with what the tests need to fill it.
type world struct {
	*node.Node
	t     *testing.T
	count int
}

func newWorld(t *testing.T, cfg node.Config) *world {
	t.Helper()
	node.Privileged(t, "containerd-shim-mentat-v1", "mentat-shim", "mentat", "mentat-host", "mentat-verifier", "mentatctl")
	return &world{Node: node.Run(t, cfg), t: t}
}

// layout is an empty OCI layout.
func (w *world) layout() *oci.Layout {
	w.t.Helper()
	l, err := oci.CreateLayout(filepath.Join(w.t.TempDir(), "layout"))
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// agentYAML is a manifest with extra top-level text.
func agentYAML(id, extra string) string {
	return fmt.Sprintf("id: %s\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n%s", id, extra)
}

// build makes an unsigned WASM agent.
func (w *world) build(id string, module []byte, extra string) (*oci.Layout, ocispec.Descriptor) {
	w.t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte(agentYAML(id, extra)))
	if err != nil {
		w.t.Fatal(err)
	}
	l := w.layout()
	desc, err := oci.Build(w.t.Context(), oci.BuildInput{Agent: m, Module: module}, l)
	if err != nil {
		w.t.Fatal(err)
	}
	return l, desc
}

// load imports a layout past the verifier, as `ctr images import` does.
func (w *world) load(l *oci.Layout, ref string) {
	w.t.Helper()
	root, err := l.Root()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := l.Tag(w.t.Context(), root, ref); err != nil {
		w.t.Fatal(err)
	}
	name := filepath.Join(w.t.TempDir(), "image.tar")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := l.ExportTar(f, ref); err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.Ctr(w.t.Context(), "images", "import", "--all-platforms", "--local", name); err != nil {
		w.t.Fatal(err)
	}
}

// agent builds an unsigned agent from WAT and imports it; it returns its name.
func (w *world) agent(id, wat, extra string) string {
	w.t.Helper()
	l, _ := w.build(id, assemble(w.t, wat), extra)
	ref := "mentat.test/" + id + ":1.0.0"
	w.load(l, ref)
	return ref
}

// container imports an ordinary busybox image.
func (w *world) container(name string, entrypoint ...string) string {
	w.t.Helper()
	l := w.layout()
	if _, err := testimage.Busybox(busybox, testimage.Config{Entrypoint: entrypoint}, l); err != nil {
		w.t.Fatal(err)
	}
	ref := "mentat.test/" + name + ":1.0.0"
	w.load(l, ref)
	return ref
}

// id is a fresh container id.
func (w *world) id() string {
	w.count++
	return fmt.Sprintf("c%d", w.count)
}

// outcome is what a `ctr run` gave.
type outcome struct {
	stdout, stderr string
	code           int
}

// runWith runs a container in the foreground with ctr and its flags.
func (w *world) runWith(stdin string, args ...string) outcome {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := w.Command(ctx, "ctr", append([]string{"run", "--rm"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatalf("ctr: %v", err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run is runWith under our runtime.
func (w *world) run(stdin string, args ...string) outcome {
	w.t.Helper()
	return w.runWith(stdin, append([]string{"--runtime", mentatRuntime}, args...)...)
}

// ctr runs ctr and fails the test if it does.
func (w *world) ctr(args ...string) string {
	w.t.Helper()
	out, err := w.Ctr(w.t.Context(), args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// task is a container that runs in the background.
type task struct {
	*world
	id     string
	stdout *os.File
}

// start creates and starts a detached task whose output goes to a file.
func (w *world) start(ref string, args ...string) *task {
	w.t.Helper()
	id := w.id()
	out, err := os.CreateTemp(w.t.TempDir(), "stdout")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { out.Close() })
	flags := append([]string{"run", "--detach", "--runtime", mentatRuntime, "--log-uri", "file://" + out.Name()}, args...)
	w.ctr(append(flags, ref, id)...)
	tk := &task{world: w, id: id, stdout: out}
	w.t.Cleanup(func() { tk.remove() })
	return tk
}

// output is what the task wrote so far.
func (tk *task) output() string {
	data, err := os.ReadFile(tk.stdout.Name())
	if err != nil {
		tk.t.Fatal(err)
	}
	return string(data)
}

// state is the task's state as ctr prints it, "" when it is gone.
func (tk *task) state() string {
	out, err := tk.Ctr(context.WithoutCancel(tk.t.Context()), "tasks", "ls")
	if err != nil {
		tk.t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == tk.id {
			return f[2]
		}
	}
	return ""
}

// remove ends the task and deletes the container.
func (tk *task) remove() {
	ctx := context.WithoutCancel(tk.t.Context())
	_, _ = tk.Ctr(ctx, "tasks", "rm", "--force", tk.id)
	_, _ = tk.Ctr(ctx, "containers", "rm", tk.id)
}

// eventually waits for a condition and fails the test with what was wanted.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// kubernetes runs f with the node's images going to CRI's namespace.
func (w *world) kubernetes(f func()) {
	ns := w.Namespace
	w.Namespace = "k8s.io"
	defer func() { w.Namespace = ns }()
	f()
}

// busyboxWith is an ordinary image with one more, empty, file.
func (w *world) busyboxWith(file string) *oci.Layout {
	w.t.Helper()
	l := w.layout()
	if _, err := testimage.Busybox(busybox, testimage.Config{Files: map[string][]byte{file: {}}}, l); err != nil {
		w.t.Fatal(err)
	}
	return l
}
