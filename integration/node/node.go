package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// Config says what a node is made of. The zero value is not enough: Bin and
// Tools must be set.
type Config struct {
	// Root receives everything the node writes. Empty means a new temporary
	// directory that Close removes. It must be short (under 39 bytes), because
	// the path of a unix socket may have 108 bytes and containerd adds its own.
	Root string
	// Bin holds our own binaries, Tools containerd, ctr, runc and registry.
	Bin, Tools string
	// Containerd is another containerd binary than Tools', to test old ones.
	Containerd string
	// Verifier puts mentat-verifier into containerd's pull path.
	Verifier bool
	// CRI turns the CRI plugin on (and nothing that needs a network plugin).
	CRI bool
	// SandboxImage is CRI's pause image; it must be imported before the first pod.
	SandboxImage string
	// Env is added to containerd's environment, and so to shims and verifiers.
	Env []string
	// Extra is TOML appended to containerd's configuration (version 3).
	Extra string
	// MentatConfig replaces the node's config.toml.
	MentatConfig string
	// Debug makes containerd and its shims log everything, verdicts included.
	Debug bool
}

// Node is one private containerd with its directories.
type Node struct {
	// Root is the node's directory; Etc holds config.toml and what belongs
	// beside it: policy.yaml and trust/.
	Root, Etc string
	// Socket is containerd's address, Namespace the one that [Node.Command]
	// and [Node.Ctr] use. It is unique to the node, and so are the cgroups that
	// ctr derives from it.
	Socket, Namespace string

	cfg        Config
	ownRoot    bool
	containerd *process
	registries []*Registry
	// made are directories of containerd's clients outside Root which were not
	// there before this node.
	made []string
}

// maxRoot keeps <root>/s within containerd's own limit for socket directories.
const maxRoot = 38

// runDir is where ctr and runc's shim keep things whatever containerd's
// configuration says.
const runDir = "/run/containerd"

// Start starts a node and waits until it answers. On an error nothing is left.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a private containerd needs root")
	}
	n := &Node{cfg: cfg, Root: cfg.Root}
	for _, dir := range []*string{&n.cfg.Bin, &n.cfg.Tools} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	if n.Root == "" {
		if n.Root, err = os.MkdirTemp("", "mentat-"); err != nil {
			return nil, err
		}
		n.ownRoot = true
	}
	if n.Root, err = filepath.Abs(n.Root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if len(n.Root) > maxRoot {
		return nil, fmt.Errorf("%s: over %d bytes, too long for the sockets below it", n.Root, maxRoot)
	}
	if err := os.MkdirAll(n.Root, 0o711); err != nil {
		return nil, err
	}
	// Mapped users of containers pass through, as they do below /run.
	if err := os.Chmod(n.Root, 0o711); err != nil {
		return nil, err
	}
	id := make([]byte, 3)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	n.Namespace = "mentat-" + hex.EncodeToString(id)
	n.Etc = n.path("etc")
	n.Socket = n.path("c.sock")
	for _, dir := range []string{runDir, runDir + "/runc", runDir + "/fifo"} {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			n.made = append(n.made, dir)
		}
	}
	if err := n.lay(); err != nil {
		return nil, err
	}
	return n, n.StartContainerd(ctx)
}

func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.Root}, elem...)...)
}

// lay writes directories and configuration files.
func (n *Node) lay() error {
	for _, dir := range []string{"etc/trust", "etc/docker", "etc/certs.d", "home", "tmp", "verifier", "s", "cni/bin", "cni/conf", "opt"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			return err
		}
	}
	config := n.cfg.MentatConfig
	if config == "" {
		config = fmt.Sprintf(`[verify]
trust = "trust"
state = %q
hosts_dir = "certs.d"
docker_config = "docker/config.json"

[capability]
media = %q

[audit]
spool = %q
log = %q

[service]
listen = "unix:%s"

[host]
binary = %q

[cache]
dir = %q
memory = %q

[runtime]
binary = %q
`, n.path("revocation"), n.path("media"), n.path("audit", "spool"), n.path("audit", "log"), n.path("node.sock"), filepath.Join(n.cfg.Bin, "mentat-host"), n.path("modules"), n.path("checked"), filepath.Join(n.cfg.Tools, "runc"))
	}
	if err := os.WriteFile(n.ConfigFile(), []byte(config), 0o600); err != nil {
		return err
	}
	if n.cfg.Verifier {
		// The name sorts first: containerd skips verifiers beyond its maximum.
		if err := os.Symlink(filepath.Join(n.cfg.Bin, "mentat-verifier"), n.path("verifier", "00-mentatlab")); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return os.WriteFile(n.path("containerd.toml"), []byte(n.containerdConfig()), 0o600)
}

func (n *Node) containerdConfig() string {
	disabled := []string{
		"io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
		"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
		"io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
	}
	if !n.cfg.CRI {
		disabled = append(disabled, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.podsandbox.controller.v1.podsandbox")
	}
	var b strings.Builder
	fmt.Fprintf(&b, `version = 3
root = %q
state = %q
temp = %q
disabled_plugins = ["%s"]

[grpc]
address = %q

[ttrpc]
address = %q

[debug]
level = %q

[plugins.'io.containerd.shim.v1.manager']
socket_dir = %q

[plugins.'io.containerd.internal.v1.opt']
path = %q

[plugins.'io.containerd.image-verifier.v1.bindir']
bin_dir = %q
max_verifiers = 10
per_verifier_timeout = "10s"

[plugins.'io.containerd.transfer.v1.local']
config_path = %q
`, n.path("lib"), n.path("run"), n.path("tmp"), strings.Join(disabled, `", "`), n.Socket, n.Socket+".ttrpc", n.logLevel(),
		n.path("s"), n.path("opt"), n.path("verifier"), n.path("etc", "certs.d"))
	if n.cfg.CRI {
		fmt.Fprintf(&b, `
[plugins.'io.containerd.cri.v1.images']
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%q]
conf_dir = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mentat]
runtime_type = "io.containerd.mentat.v1"
pod_annotations = ["dev.mentatlab.*"]
container_annotations = ["dev.mentatlab.*"]

[plugins.'io.containerd.grpc.v1.cri']
disable_tcp_service = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
`, n.cfg.SandboxImage, n.path("etc", "certs.d"), n.path("cni", "bin"), n.path("cni", "conf"), filepath.Join(n.cfg.Tools, "runc"))
	}
	return b.String() + n.cfg.Extra
}

func (n *Node) logLevel() string {
	if n.cfg.Debug {
		return "debug"
	}
	return "info"
}

// ConfigFile is the node's config.toml.
func (n *Node) ConfigFile() string { return filepath.Join(n.Etc, "config.toml") }

// PolicyFile is where the node's policy is read from; while there is none the
// node is in developer mode.
func (n *Node) PolicyFile() string { return filepath.Join(n.Etc, "policy.yaml") }

// WritePolicy enforces a policy from the next decision on.
func (n *Node) WritePolicy(text string) error {
	return atomicfile.Write(n.PolicyFile(), []byte(text), 0o644)
}

// Trust puts a PEM file into one of the node's trust stores.
func (n *Node) Trust(store, name string, pem []byte) error {
	dir := filepath.Join(n.Etc, "trust", store)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, name), pem, 0o644)
}

// readyWithin bounds how long a daemon may take to answer.
const readyWithin = 30 * time.Second

// StartContainerd starts containerd on the node's directories; [Start] did so
// already, tests use it after [Node.KillContainerd].
func (n *Node) StartContainerd(ctx context.Context) error {
	binary := n.cfg.Containerd
	if binary == "" {
		binary = filepath.Join(n.cfg.Tools, "containerd")
	}
	cmd := exec.Command(binary, "--config", n.path("containerd.toml"))
	cmd.Env = n.Environ()
	var err error
	if n.containerd, err = startProcess(cmd, n.path("containerd.log")); err != nil {
		return err
	}
	return n.containerd.ready(ctx, readyWithin, func(ctx context.Context) error {
		if _, err := os.Lstat(n.Socket); err != nil {
			return err
		}
		_, err := n.Ctr(ctx, "version")
		return err
	})
}

// KillContainerd kills the daemon as a crash would; shims and tasks stay.
func (n *Node) KillContainerd() error { return n.containerd.kill() }

// StopContainerd ends the daemon in order; shims and tasks stay.
func (n *Node) StopContainerd() error { return n.containerd.stop() }

// ContainerdPID is the daemon's process id.
func (n *Node) ContainerdPID() int { return n.containerd.pid() }

// Environ is the environment of everything that runs on the node: of the
// caller's own only what has nothing to do with containers passes.
func (n *Node) Environ() []string {
	env := []string{
		"PATH=" + strings.Join([]string{n.cfg.Bin, n.cfg.Tools, systemPath}, ":"),
		"HOME=" + n.path("home"),
		"TMPDIR=" + n.path("tmp"),
		"LANG=C.UTF-8",
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1", // about the machine's cgroup version, on every call of ctr
		"DOCKER_CONFIG=" + n.path("etc", "docker"),
		nodeconfig.Env + "=" + n.ConfigFile(),
		"CONTAINERD_ADDRESS=" + n.Socket,
		"CONTAINERD_NAMESPACE=" + n.Namespace,
	}
	if dir, ok := os.LookupEnv("GOCOVERDIR"); ok {
		env = append(env, "GOCOVERDIR="+dir)
	}
	return append(env, n.cfg.Env...)
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command prepares a program of the node: looked up in Bin, Tools and the
// system's directories, with [Node.Environ].
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := name
	if !strings.Contains(name, "/") {
		for _, dir := range append([]string{n.cfg.Bin, n.cfg.Tools}, filepath.SplitList(systemPath)...) {
			if st, err := os.Stat(filepath.Join(dir, name)); err == nil && !st.IsDir() {
				path = filepath.Join(dir, name)
				break
			}
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Env = n.Environ()
	// Interrupted, not killed: ctr removes its container on the way out.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Ctr runs ctr and returns its standard output; an error carries what ctr said.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.CtrInput(ctx, nil, args...)
}

// CtrInput is [Node.Ctr] with standard input.
func (n *Node) CtrInput(ctx context.Context, stdin []byte, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	if len(args) > 0 && args[0] == "run" {
		// Its own default is below /run, and FIFOs of killed tasks stay there.
		args = slices.Insert(slices.Clone(args), 1, "--fifo-dir", n.path("fifo"))
	}
	cmd := n.Command(ctx, "ctr", args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Logs returns the logs of containerd and of the node's registries.
func (n *Node) Logs() string {
	var b strings.Builder
	names := []string{n.path("containerd.log")}
	for _, r := range n.registries {
		names = append(names, r.process.log)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			data = []byte(err.Error())
		}
		fmt.Fprintf(&b, "--- %s\n%s", filepath.Base(name), data)
	}
	return b.String()
}
