package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/atomicfile"
)

// document is the input of the demo's agent: a text of some kilobytes.
//
//go:embed document.json
var document []byte

// sneaky is sneaky.wat assembled: the module that must not run.
//
//go:embed sneaky.wasm
var sneaky []byte

func main() {
	keep := flag.Bool("keep", false, "keep the files (processes and mounts go in any case)")
	page := flag.String("page", "", "put the transcript into this page, between its marks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	t := newTranscript(os.Stdout)
	var said bytes.Buffer
	if *page != "" {
		t.out, t.colour = io.MultiWriter(os.Stdout, &said), false
	}
	err := run(ctx, t, *keep)
	stop()
	if err == nil && *page != "" {
		if err = paste(*page, said.String()); err != nil {
			t.failed(err)
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	case err != nil:
		os.Exit(1)
	}
}

// The marks in a page, and what differs from showing to showing.
const (
	pasteBegin = "<!-- transcript: go run ./demo -page README.md -->\n```text\n"
	pasteEnd   = "```\n<!-- end of transcript -->\n"
)

var (
	anyRegistry = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	anyRoot     = regexp.MustCompile(`/tmp/mentat-demo-\d+`)
)

// paste puts a transcript into a page in the place of the one before.
func paste(page, text string) error {
	data, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(data), pasteBegin)
	_, after, ends := strings.Cut(rest, pasteEnd)
	if !begins || !ends {
		return fmt.Errorf("%s has no place for a transcript", page)
	}
	text = anyRegistry.ReplaceAllString(text, "127.0.0.1:5000")
	text = anyRoot.ReplaceAllString(text, "/tmp/mentat-demo")
	return atomicfile.Write(page, []byte(before+pasteBegin+text+pasteEnd+after), 0o644)
}

// demo is one showing.
type demo struct {
	*transcript
	ctx      context.Context //nolint:containedctx // it lives as long as the showing
	node     *node.Node
	registry string // host:port
	root     string // receives everything
	dir      string // where the commands are typed
	env      []string
}

func run(ctx context.Context, t *transcript, keep bool) (err error) {
	begun := time.Now()
	d := &demo{transcript: t, ctx: ctx}
	defer func() {
		if err != nil {
			d.explain(err)
		}
		if left := d.leave(keep); left != nil {
			t.failed(left)
			err = errors.Join(err, left)
		}
		if err == nil {
			t.printf("\n%s\n", t.paint(bold, "Everything held, in "+took(time.Since(begun))+"."))
		}
	}()
	if os.Geteuid() != 0 {
		return errors.New("the demo starts containers on a containerd of its own and needs root: sudo make demo")
	}
	if err := d.enter(); err != nil {
		return err
	}
	for _, step := range []func() error{
		d.authority, d.agent, d.publish, d.trust, d.pull, d.runAgent, d.runContainer, d.runBothWays,
		d.refuseUnsigned, d.refuseSwapped, d.refuseRevoked, d.settled,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// explain shows what failed: the step's whole output, and what containerd
// complained about.
func (d *demo) explain(err error) {
	if errors.Is(err, context.Canceled) {
		d.failed(errors.New("interrupted"))
		return
	}
	d.failed(err)
	var f *failure
	if errors.As(err, &f) {
		d.printf("\n%s\n", f.result)
	}
	if d.node == nil {
		return
	}
	for line := range strings.Lines(d.node.Logs()) {
		if strings.Contains(line, "level=warning") || strings.Contains(line, "level=error") {
			d.printf("%s", line)
		}
	}
}

// leave ends and removes everything, whatever happened.
func (d *demo) leave(keep bool) error {
	if d.root == "" {
		return nil
	}
	var err error
	if d.node != nil {
		err = d.node.Close()
	}
	if keep {
		d.printf("kept: %s\n", d.root)
		return err
	}
	return errors.Join(err, os.RemoveAll(d.root))
}

// enter starts containerd and the registry.
func (d *demo) enter() error {
	bin, tools := node.Binaries()
	var err error
	if d.root, err = os.MkdirTemp("", "mentat-demo-"); err != nil {
		return err
	}
	d.dir = filepath.Join(d.root, "work")
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		return err
	}
	// The verdict of an allowed pull is a debug message of containerd's.
	d.node, err = node.Start(d.ctx, node.Config{Root: d.root, Bin: bin, Tools: tools, Verifier: true, Debug: true})
	if err != nil {
		return err
	}
	r, err := d.node.StartRegistry(d.ctx, node.RegistryConfig{})
	if err != nil {
		return err
	}
	d.registry = r.Host
	if d.env, err = environment(d.ctx, d.node, bin, tools); err != nil {
		return err
	}
	versions, err := d.quiet(`containerd --version | cut -d' ' -f3; runc --version | head -n 1 | cut -d' ' -f3`)
	if err != nil {
		return err
	}
	v := strings.Fields(strings.ReplaceAll(versions.stdout, "+unknown", ""))
	d.printf("%s\n", d.paint(bold, "MentatLab: an agent from its first line to a running task, and what is refused on the way"))
	d.note("Real parts, started for this alone: containerd %s, runc %s and a registry at %s.", v[0], v[1], d.registry)
	d.note("All of it is in %s and goes when the demo ends. $NODE is the node's configuration, /etc/mentat on a real one. Digests are shortened; … stands for what was left out.", d.root)
	return nil
}

// environment is the node's, with what the go command needs to compile agents.
func environment(ctx context.Context, n *node.Node, bin, tools string) ([]string, error) {
	names := []string{"GOROOT", "GOCACHE", "GOPATH", "GOMODCACHE"}
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	env := n.Environ()
	values := strings.Split(string(out), "\n")
	for i, name := range names {
		env = append(env, name+"="+values[i])
	}
	path := strings.Join([]string{bin, tools, filepath.Join(values[0], "bin"), "/usr/sbin:/usr/bin:/sbin:/bin"}, ":")
	return append(env, "PATH="+path, "NODE="+n.Etc), nil
}
