package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// program builds a program that stands in mentat-host's place, static as that is.
func program(t *testing.T, source string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "netgo,osusergo", "-ldflags", "-linkmode external -extldflags -static", "-o", path, source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", source, err, out)
	}
	return path
}

// hostIs makes the node run another program where it would run mentat-host, and
// adds to its configuration.
func (w *world) hostIs(binary, more string) {
	w.t.Helper()
	old := filepath.Join(binDir(), "mentat-host")
	data, err := os.ReadFile(w.ConfigFile())
	if err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(data), old) {
		w.t.Fatalf("%s does not name %s", w.ConfigFile(), old)
	}
	quoted := strconv.Quote(old)
	text := strings.Replace(string(data), quoted, strconv.Quote(binary)+"\nnet_binary = "+strconv.Quote(binary), 1)
	if err := os.WriteFile(w.ConfigFile(), []byte(text+more), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// boxedIn is the part of an agent's manifest with every key of the
// specification's section 4.2.
const boxedIn = `wasm:
  capabilities: ["filesystem:read:/data", "filesystem:read-write:/vols", "env:GREETING"]
sandbox:
  process: {namespace: true, seccomp: strict, no_new_privs: true}
  filesystem:
    readonly_root: true
    temp_dirs: [{/tmp: 3MB}]
    preopens: [{/data: read-only}, {/vols: read-write}]
  network: {mode: none, allowed_hosts: [], blocked_ports: [22, 25, 3389]}
  resources: {memory_limit: 32MB, cpu_quota: 100ms/s, cpu_time: 1m, file_descriptors: 64, process_count: 1}
`

// inside is a signed agent with that manifest, whose host is a probe, and what a
// container is given that is to take all walls down.
type inside struct {
	*guarded
	ref        string
	data, vols string
	flags      []string
}

func newInside(t *testing.T, probe string) *inside {
	t.Helper()
	in := &inside{guarded: newGuarded(t), data: t.TempDir(), vols: t.TempDir()}
	in.grants("  - {name: boxed, allow: [\"filesystem:read:/data\", \"filesystem:read-write:/vols\", \"env:GREETING\"]}\n")
	in.hostIs(program(t, probe), "")
	in.ref = in.signedAgent("boxed", boxedIn)
	secret := t.TempDir()
	for _, dir := range []string{in.data, in.vols, secret} {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(from, to string) []string {
		return []string{"--mount", "type=bind,src=" + from + ",dst=" + to + ",options=rbind:rw"}
	}
	in.flags = slices.Concat(
		[]string{"--privileged", "--allow-new-privs", "--cap-add", "CAP_SYS_ADMIN", "--net-host", "--with-ns", "pid:/proc/1/ns/pid", "--with-ns", "ipc:/proc/1/ns/ipc",
			"--env", "GREETING=hello", "--env", "GODEBUG=x", "--env", "SSL_CERT_FILE=/data/evil.pem", "--env", "LD_PRELOAD=/data/evil.so", "--env", "AWS_SECRET=s3cr3t",
			"--device", "/dev/kmsg", "--rootfs-propagation", "rshared", "--cwd", "/data"},
		bind(in.data, "/data"), bind(in.vols, "/vols"), bind(secret, "/secret"))
	return in
}

// signedAgent is an agent with more in its manifest.
func (g *guarded) signedAgent(name, more string) string {
	g.t.Helper()
	l, _ := g.build(name, assemble(g.t, guestMarker(1)), more)
	g.sign(l, g.pki, name, g.registry.Host+"/agents/"+name, nil)
	g.load(l, g.ref(name))
	return g.ref(name)
}

// does runs the probe and returns its answers, by what it was to do.
func (in *inside) does(flags []string, do ...string) (map[string]json.RawMessage, outcome) {
	in.t.Helper()
	got := in.run("", slices.Concat(flags, []string{in.ref, in.id(), "/agent.wasm"}, do)...)
	answers := map[string]json.RawMessage{}
	for line := range strings.Lines(got.stdout) {
		var a struct {
			Do  string
			Got json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			in.t.Fatalf("%v: %q, stderr %q", err, got.stdout, got.stderr)
		}
		answers[a.Do] = a.Got
	}
	return answers, got
}

func decode[T any](t *testing.T, answers map[string]json.RawMessage, do string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(answers[do], &v); err != nil {
		t.Fatalf("%s: %v: %s", do, err, answers[do])
	}
	return v
}

// facts are what integration/probe reads about itself.
type facts struct {
	Args, Env  []string
	Dir        string
	UID, GID   int
	Groups     []int
	Files      map[string]string
	Status     map[string]string
	Namespaces map[string]string
	Mounts     map[string]struct {
		Type    string
		Options []string
	}
	Limits   map[string]uint64
	Problems []string
}

// counted is how far something got, and what stopped it.
type counted struct {
	N      int64
	Answer string
}

// TestAnAgentsContainerFromInside has a subtest for every wall of a container
// that was made for an agent, each of which fails when the code that raises it
// is taken away. The container was given everything that should take it down.
func TestAnAgentsContainerFromInside(t *testing.T) {
	in := newInside(t, "./probe")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	answers, got := in.does(in.flags,
		"facts", "processes", "files", "tasks", "fill:/tmp", "litter:/tmp", "spin:1000", "touch:16", "raise", "become:1", "mount:/tmp", "remount:/data", "kill:2",
		"create:/new", "create:/dev/new", "create:/data/new", "write:/data/file", "create:/vols/new", "create:/tmp/new", "create:/run/mentat/new",
		"write:/run/mentat/host.json", "write:/run/mentat/module.cwasm", "write:/run/mentat/host", "create:/run/mentat/state/new", "write:/proc/sys/kernel/core_pattern",
		"list:/", "list:/dev", "list:/secret", "device:/vols/null", "device:/dev/x", "chown:/vols/file", "read:/proc/kcore", "read:/proc/keys", "write:/proc/sysrq-trigger",
		"connect:"+listener.Addr().String())
	if got.code != 0 || len(answers) < 30 {
		t.Fatalf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	f := decode[facts](t, answers, "facts")
	if len(f.Problems) > 0 {
		t.Fatalf("the probe could not read %q", f.Problems)
	}
	says := func(t *testing.T, want string, dos ...string) {
		t.Helper()
		for _, do := range dos {
			if s := decode[string](t, answers, do); s != want {
				t.Errorf("%s: %s, want %s", do, s, want)
			}
		}
	}
	stops := func(t *testing.T, do, answer string, least, most int64) {
		t.Helper()
		if c := decode[counted](t, answers, do); c.Answer != answer || c.N < least || c.N > most {
			t.Errorf("%s: %+v, want %s after %d to %d", do, c, answer, least, most)
		}
	}

	t.Run("command line", func(t *testing.T) {
		want := hostdoc.Command(hostdoc.HostPath, hostdoc.Path, &hostdoc.Lock{
			Read:  []string{hostdoc.Path, hostdoc.ModulePath, "/data"},
			Write: []string{"/vols", "/tmp", hostdoc.StateDir, hostdoc.AuditDir},
		})
		if !slices.Equal(f.Args, want) || f.Dir != "/" {
			t.Errorf("%q in %s, want %q", f.Args, f.Dir, want)
		}
	})
	t.Run("environment", func(t *testing.T) {
		// The runtime's own, from an empty /etc/passwd.
		if !slices.Equal(f.Env, []string{"HOME=/"}) {
			t.Errorf("%q", f.Env)
		}
	})
	t.Run("descriptors", func(t *testing.T) {
		for fd := range f.Files {
			if fd != "0" && fd != "1" && fd != "2" {
				t.Errorf("%s is open: %s", fd, f.Files[fd])
			}
		}
	})
	t.Run("capabilities", func(t *testing.T) {
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if f.Status[set] != "0000000000000000" {
				t.Errorf("%s is %s", set, f.Status[set])
			}
		}
		says(t, "EPERM", "become:1", "mount:/tmp", "remount:/data", "device:/vols/null", "chown:/vols/file", "raise")
		if f.UID != 0 || len(f.Groups) != 0 {
			t.Errorf("the user %d with the groups %v", f.UID, f.Groups)
		}
	})
	t.Run("no_new_privs", func(t *testing.T) {
		if f.Status["NoNewPrivs"] != "1" {
			t.Errorf("%q", f.Status["NoNewPrivs"])
		}
	})
	t.Run("namespaces", func(t *testing.T) {
		for _, name := range []string{"pid", "mnt", "ipc", "uts", "cgroup"} {
			ours, err := os.Readlink("/proc/self/ns/" + name)
			if err != nil || ours == f.Namespaces[name] || f.Namespaces[name] == "" {
				t.Errorf("%s is %s, the node's is %s, %v", name, f.Namespaces[name], ours, err)
			}
		}
		if seen := decode[[]int](t, answers, "processes"); !slices.Equal(seen, []int{1}) {
			t.Errorf("it sees the processes %v", seen)
		}
		says(t, "ESRCH", "kill:2")
	})
	t.Run("readonly_root", func(t *testing.T) {
		says(t, "EROFS", "create:/new", "create:/dev/new", "create:/run/mentat/new", "write:/proc/sys/kernel/core_pattern")
		for _, do := range []string{"write:/run/mentat/host.json", "write:/run/mentat/module.cwasm", "write:/run/mentat/host", "write:/proc/sysrq-trigger"} {
			if s := decode[string](t, answers, do); s == "ok" {
				t.Errorf("%s: %s", do, s)
			}
		}
		says(t, "ok", "create:/run/mentat/state/new")
		if root := decode[[]string](t, answers, "list:/"); !slices.Equal(root, []string{"data", "dev", "etc", "proc", "run", "tmp", "vols"}) {
			t.Errorf("the root holds %q", root)
		}
	})
	t.Run("mounts", func(t *testing.T) {
		for at, m := range f.Mounts {
			has := func(o string) bool { return slices.Contains(m.Options, o) }
			switch {
			case at == "/" || strings.HasPrefix(at, "/proc/"):
				continue
			case !has("nosuid"), !has("noexec") && at != hostdoc.HostPath && at != hostdoc.ModulePath, !has("nodev") && at != "/dev" && !strings.HasPrefix(at, "/dev/"):
				t.Errorf("%s is mounted with %q", at, m.Options)
			}
		}
		says(t, "ENOENT", "list:/secret")
	})
	t.Run("preopens", func(t *testing.T) {
		says(t, "EROFS", "create:/data/new", "write:/data/file")
		says(t, "ok", "create:/vols/new")
		if _, err := os.Stat(filepath.Join(in.vols, "new")); err != nil {
			t.Errorf("what was written is not there: %v", err)
		}
	})
	t.Run("temp_dirs", func(t *testing.T) {
		stops(t, "fill:/tmp", "ENOSPC", 3<<20, 3<<20)
		// One of them is the directory itself.
		stops(t, "litter:/tmp", "ENOSPC", 3<<20/(16<<10)-1, 3<<20/(16<<10))
		says(t, "ok", "create:/tmp/new")
	})
	t.Run("devices", func(t *testing.T) {
		for _, name := range decode[[]string](t, answers, "list:/dev") {
			if !slices.Contains([]string{"core", "fd", "full", "null", "ptmx", "random", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}, name) {
				t.Errorf("/dev has %s", name)
			}
		}
		says(t, "EROFS", "device:/dev/x")
	})
	t.Run("kernel files", func(t *testing.T) {
		// Masked by something empty, or not there on this kernel.
		for _, do := range []string{"read:/proc/kcore", "read:/proc/keys"} {
			if s := decode[string](t, answers, do); s != "ENOENT" && s != "EACCES" && s != "EPERM" && !masked(f, strings.TrimPrefix(do, "read:")) {
				t.Errorf("%s: %s", do, s)
			}
		}
	})
	t.Run("file_descriptors", func(t *testing.T) {
		stops(t, "files", "EMFILE", 64, 64)
		if f.Limits["nofile"] != 64 || f.Limits["nofile hard"] != 64 {
			t.Errorf("limits %v", f.Limits)
		}
	})
	t.Run("core dumps", func(t *testing.T) {
		if f.Limits["core"] != 0 || f.Limits["core hard"] != 0 {
			t.Errorf("limits %v", f.Limits)
		}
	})
	t.Run("process_count", func(t *testing.T) { stops(t, "tasks", "EAGAIN", 2, 16) })
	t.Run("cpu_quota", func(t *testing.T) {
		// A tenth of a second in a second. Without the quota even a busy machine
		// gives more than twice that.
		stops(t, "spin:1000", "ok", 1, 200)
	})
	t.Run("memory_limit", func(t *testing.T) {
		says(t, "ok", "touch:16")
		// 32 of the guest's, 16 of the host's, 3 of the temporary directory's.
		if _, got := in.does(in.flags, "touch:40", "touch:64"); got.code != 137 || !strings.Contains(got.stdout, "touch:40") || strings.Contains(got.stdout, "touch:64") {
			t.Errorf("status %d, stdout %q", got.code, got.stdout)
		}
	})
	t.Run("the network is not the container's matter", func(t *testing.T) {
		// It has the node's here. What holds the host is its lock (below).
		says(t, "ok", "connect:"+listener.Addr().String())
	})
}

func masked(f facts, path string) bool {
	m, ok := f.Mounts[path]
	return ok && m.Type == "tmpfs"
}

// TestTheHostsLockInAContainer tries from inside of the same container what the
// host's own lock holds, and that the container alone does not.
func TestTheHostsLockInAContainer(t *testing.T) {
	in := newInside(t, "../host/lock/probe")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect := "connect:" + listener.Addr().String()
	want := []string{
		"list:/data: ok", "read:/data/file: ok", "create:/data/new: EROFS", "create:/vols/new: ok", "create:/tmp/new: ok", "create:/run/mentat/state/new: ok",
		"read:/proc/self/status: EACCES", "list:/: EACCES", "list:/dev: EACCES", "list:/proc: EACCES", "list:/run/mentat: EACCES", "own-memory: EACCES", "create:/dev/new: EROFS",
		connect + ": EPERM", "udp: EPERM", "unix: EPERM", "netlink: EPERM", "threads:4: ok", "chmod:/vols/file: EPERM",
	}
	var tries []string
	for _, line := range want {
		tries = append(tries, line[:strings.LastIndex(line, ": ")])
	}
	for name, flags := range map[string][]string{
		"everything given":             in.flags,
		"containerd's own filter, too": slices.Concat([]string{"--seccomp"}, in.flags[len(in.flags)-6:]),
		"a user of its own":            slices.Concat([]string{"--user", "1000:1000"}, in.flags[len(in.flags)-6:]),
		"root of a user namespace":     slices.Concat([]string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}, in.flags[len(in.flags)-6:]),
	} {
		t.Run(name, func(t *testing.T) {
			sub := &inside{guarded: &guarded{world: in.within(t), registry: in.registry, pki: in.pki}, ref: in.ref}
			for _, dir := range []string{in.vols} {
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				_ = os.Remove(filepath.Join(dir, "new"))
			}
			_, got := sub.saying(flags, tries...)
			if said := strings.Split(strings.TrimSpace(got.stdout), "\n"); got.code != 0 || !slices.Equal(said, want) {
				t.Errorf("status %d, stderr %q, said\n%s\nwant\n%s", got.code, got.stderr, strings.Join(said, "\n"), strings.Join(want, "\n"))
			}
			for _, try := range []string{"exec", "old-thread:fork", "map-executable", "kill-parent", "unshare-user", "trace"} {
				if _, got := sub.saying(flags, try); got.code != 159 || got.stdout != "" {
					t.Errorf("%s: status %d, stdout %q, stderr %q", try, got.code, got.stdout, got.stderr)
				}
			}
		})
	}
}

// TestTheNetworksModeFromInside asks from inside what each mode of the network,
// said by manifest or node, leaves of an agent's granted network: the container
// has the node's.
func TestTheNetworksModeFromInside(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect := "connect:" + listener.Addr().String()
	all := map[string]string{connect: "ok", "tcp6": "ok", "udp": "ok", "bind": "EPERM", "raw": "EPERM", "unix": "EPERM", "netlink": "EPERM", "packet": "EPERM"}
	none := map[string]string{connect: "EPERM", "tcp6": "EPERM", "udp": "EPERM", "bind": "EPERM", "unix": "EPERM"}
	g := newGuarded(t)
	g.grants("  - {name: web, allow: [\"network:https:example.com\"]}\n")
	probe := program(t, "../host/lock/probe")
	g.hostIs(probe, "")
	before, err := os.ReadFile(g.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		manifest, node string
		grant          bool
		want           map[string]string
	}{
		"nobody says anything": {"", "", true, all},
		"restricted":           {"network: {mode: restricted}", "", true, all},
		"full":                 {"network: {mode: full}", "", true, all},
		"none":                 {"network: {mode: none}", "", true, none},
		"none, by the node":    {"network: {mode: full}", "none", true, none},
		"nothing granted":      {"network: {mode: full}", "", false, none},
	} {
		t.Run(name, func(t *testing.T) {
			g.t = t
			node := ""
			if c.node != "" {
				node = "\n[sandbox]\nnetwork = \"" + c.node + "\"\n"
			}
			if err := os.WriteFile(g.ConfigFile(), slices.Concat(before, []byte(node)), 0o600); err != nil {
				t.Fatal(err)
			}
			more := "wasm: {capabilities: [\"network:https:example.com\"]}\n"
			if !c.grant {
				more = "wasm: {capabilities: [\"network:https:example.org\"]}\n"
			}
			if c.manifest != "" {
				more += "sandbox: {" + c.manifest + "}\n"
			}
			in := &inside{guarded: g, ref: g.signedAgent("web", more)}
			tries := slices.Sorted(maps.Keys(c.want))
			_, got := in.saying([]string{"--net-host"}, tries...)
			for _, try := range tries {
				if !strings.Contains(got.stdout, try+": "+c.want[try]+"\n") {
					t.Errorf("%s is not %s: status %d, stdout %q, stderr %q", try, c.want[try], got.code, got.stdout, got.stderr)
				}
			}
		})
	}
}

// TestHostsAndPortsFromInside asks from inside what sandbox.network leaves of
// what is granted.
func TestHostsAndPortsFromInside(t *testing.T) {
	g := newGuarded(t)
	g.grants("  - {name: web, allow: [\"network:http:*.example.com\", \"network:http:*.example.com:81\"]}\n")
	module := escape{name: "testdata/asks/main.go"}.module(t)
	asked := []string{"network:http:a.example.com", "network:http:b.example.com", "network:http:a.example.com:81"}
	const asks = "wasm: {capabilities: [\"network:http:*.example.com\", \"network:http:*.example.com:81\"]}\n"
	for i, c := range []struct {
		what, manifest string
		granted        []bool
	}{
		{"nothing more", "", []bool{true, true, true}},
		{"hosts", "sandbox: {network: {allowed_hosts: [a.example.com]}}\n", []bool{true, false, true}},
		{"ports", "sandbox: {network: {blocked_ports: [81]}}\n", []bool{true, true, false}},
		{"the scheme's own port", "sandbox: {network: {blocked_ports: [80]}}\n", []bool{false, false, true}},
		{"both", "sandbox: {network: {allowed_hosts: [b.example.com], blocked_ports: [81]}}\n", []bool{false, true, false}},
		{"no host", "sandbox: {network: {allowed_hosts: []}}\n", []bool{false, false, false}},
	} {
		t.Run(c.what, func(t *testing.T) {
			g.t = t
			ref := g.signedAgentOf(fmt.Sprint("asks", i), module, asks+c.manifest)
			got := g.run("", slices.Concat([]string{ref, g.id(), "/agent.wasm"}, asked)...)
			for j, name := range asked {
				want := name + " refused -2\n"
				if c.granted[j] {
					want = name + " granted\n"
				}
				if !strings.Contains(got.stdout, want) {
					t.Errorf("want %q: status %d, stdout %q, stderr %q", want, got.code, got.stdout, got.stderr)
				}
			}
		})
	}
}

// saying is does for a probe whose answers are lines.
func (in *inside) saying(flags []string, do ...string) (string, outcome) {
	in.t.Helper()
	got := in.run("", slices.Concat(flags, []string{in.ref, in.id(), "/agent.wasm"}, do)...)
	return got.stdout, got
}

// What Kubernetes can give a pod's container takes nothing from the lock, and
// the profiles that it puts around it let the lock be put on.
func TestTheHostsLockInAPod(t *testing.T) {
	const pause = "mentat.test/pause:1.0.0"
	w := newWorld(t, node.Config{CRI: true, SandboxImage: pause})
	w.kubernetes(func() {
		w.container("pause", "/bin/sleep", "2147483647")
		w.agent("boxed", guestMarker(11), "")
	})
	p := w.pod(pause)
	w.hostIs(program(t, "../host/lock/probe"), "")
	profile := func(kind runtimeapi.SecurityProfile_ProfileType) func(*runtimeapi.LinuxContainerSecurityContext) {
		return func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind}
		}
	}
	for name, change := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"runtime-default": profile(runtimeapi.SecurityProfile_RuntimeDefault),
		"unconfined":      profile(runtimeapi.SecurityProfile_Unconfined),
		"processes-of-the-node": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE}
		},
		"as-a-user": func(c *runtimeapi.LinuxContainerSecurityContext) { c.RunAsUser = &runtimeapi.Int64Value{Value: 1000} },
	} {
		for try, want := range map[string]struct {
			says   string
			status int32
		}{"tcp": {"tcp: EPERM", 0}, "exec": {"", 159}, "read:/etc/hosts": {"read:/etc/hosts: EACCES", 0}} {
			log := name + "-" + strings.ReplaceAll(try, "/", "_")
			id, err := p.add(log, "mentat.test/boxed:1.0.0", func(c *runtimeapi.ContainerConfig) {
				c.Args = []string{try}
				change(c.Linux.SecurityContext)
			})
			if err != nil {
				t.Errorf("%s: %v", log, err)
				continue
			}
			eventually(t, "the end of "+log, func() bool { return p.status(id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
			if s := p.status(id); s.ExitCode != want.status {
				t.Errorf("%s: status %d, log %q", log, s.ExitCode, p.log(log))
			}
			eventually(t, "what "+log+" says", func() bool { return strings.Contains(p.log(log), want.says) })
		}
	}
}
