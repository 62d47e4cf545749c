package bundle

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

var hostArgs = []string{"/run/mentat/host", "run", "--document", "/run/mentat/host.json"}

func ownMount(t testing.TB, spec *specs.Spec, at string) specs.Mount {
	t.Helper()
	for _, m := range spec.Mounts {
		if m.Destination == at {
			return m
		}
	}
	t.Fatalf("nothing is mounted at %s", at)
	return specs.Mount{}
}

// rewritten prepares a signed agent that asks for what the policy grants.
func rewritten(t testing.TB, extra string, change func(*specs.Spec)) *world {
	t.Helper()
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(extra)))
	spec := plain()
	if change != nil {
		change(spec)
	}
	w.write(spec)
	w.runs(true)
	safe(t, w.bytes(specName), w.dir)
	return w
}

// safe holds a rewritten specification to what no user can change, with lists
// of its own.
func safe(t testing.TB, data []byte, dir string) {
	t.Helper()
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(dir, "mentat")
	p, l := spec.Process, spec.Linux
	want := &specs.Process{
		Args: p.Args, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 256, Soft: 256}, {Type: "RLIMIT_CORE"}},
		// What a container manager decides is kept.
		Terminal: p.Terminal, ConsoleSize: p.ConsoleSize, User: specs.User{UID: p.User.UID, GID: p.User.GID},
		ApparmorProfile: p.ApparmorProfile, SelinuxLabel: p.SelinuxLabel, OOMScoreAdj: p.OOMScoreAdj,
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("the process is\n%s\nwant\n%s", encode(t, p), encode(t, want))
	}
	safeCommand(t, p.Args)
	if spec.Root.Path != filepath.Join(private, "root") || !spec.Root.Readonly {
		t.Errorf("the root is %+v", spec.Root)
	}
	if !slices.Equal(l.Namespaces[len(l.Namespaces)-5:], ownNamespaces(nil)) {
		t.Errorf("the namespaces are %+v", l.Namespaces)
	}
	if len(l.Devices) != 0 || l.RootfsPropagation != "" {
		t.Errorf("devices %v, propagation %q", l.Devices, l.RootfsPropagation)
	}
	res := l.Resources
	if !reflect.DeepEqual(res.Devices, []specs.LinuxDeviceCgroup{{Access: "rwm"}}) {
		t.Errorf("the device rules are %+v", res.Devices)
	}
	if res.Pids == nil || *res.Pids.Limit != 16 || res.Memory == nil || *res.Memory.Limit < limits.MinContainerMemory {
		t.Errorf("pids %+v, memory %+v", res.Pids, res.Memory)
	}
	for _, key := range []string{"pids.max", "memory.max", "cpu.max"} {
		if _, ok := res.Unified[key]; ok {
			t.Errorf("%s is set behind the limits' back", key)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/sys/firmware"} {
		if !slices.Contains(l.MaskedPaths, path) {
			t.Errorf("%s is not masked", path)
		}
	}
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/bus"} {
		if !slices.Contains(l.ReadonlyPaths, path) {
			t.Errorf("%s is writable", path)
		}
	}
	for k := range spec.Annotations {
		if strings.HasPrefix(k, "run.oci.") || strings.HasPrefix(k, "org.systemd.property.") {
			t.Errorf("annotation %s orders the runtime about", k)
		}
	}
	safeMounts(t, spec.Mounts, private)
}

// safeCommand holds the host's command line, and with it the lock, to what the
// tests' agents are ever granted.
func safeCommand(t testing.TB, args []string) {
	t.Helper()
	if len(args) < 6 || !slices.Equal(args[:4], hostArgs) || args[4] != "lock" {
		t.Fatalf("the command line is %q", args)
	}
	for _, word := range args[5:] {
		kind, path, _ := strings.Cut(word, "=")
		granted := path == "/run/mentat/state" || path == "/run/mentat/audit" || path == "/dev/termination-log" || path == "/scratch" || path == "/vols" || strings.HasPrefix(path, "/vols/")
		if kind == "read" {
			granted = granted || path == "/run/mentat/host.json" || path == "/run/mentat/module.cwasm" || path == "/run/mentat/input" ||
				path == "/data" || strings.HasPrefix(path, "/data/")
		} else if kind != "write" {
			granted = false
		}
		if !granted {
			t.Errorf("the lock leaves %q", word)
		}
	}
}

func safeMounts(t testing.TB, mounts []specs.Mount, private string) {
	t.Helper()
	within := func(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	own := map[string]string{
		"/run/mentat": private, "/run/mentat/state": filepath.Join(private, "state"),
		"/run/mentat/host": "", "/run/mentat/module.cwasm": "", "/run/mentat/input": "", "/run/mentat/audit": "",
	}
	devices := map[string]string{"/dev": filepath.Join(private, "dev"), "/dev/null": "/dev/null"}
	// The kernel's, and how each may be mounted.
	kernel := map[string]string{
		"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts",
	}
	files := []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
	last := ""
	for i, m := range mounts {
		has := func(o string) bool { return slices.Contains(m.Options, o) }
		at := m.Destination
		if !strings.HasPrefix(at, "/") || filepath.Clean(at) != at {
			t.Errorf("mount %d: destination %q", i, at)
		}
		for _, o := range []string{"suid", "exec", "rsuid", "rdev", "rexec", "rrw", "shared", "rshared", "remount", "unbindable", "runbindable", "copy-symlink"} {
			if has(o) {
				t.Errorf("mount %s has %s: %q", at, o, m.Options)
			}
		}
		if !has("nosuid") {
			t.Errorf("mount %s honours set-uid: %q", at, m.Options)
		}
		if has("ro") && has("rw") {
			t.Errorf("mount %s is ro and rw: %q", at, m.Options)
		}
		if within(last, "/run/mentat") && !within(at, "/run/mentat") {
			t.Errorf("mount %s comes after our own", at)
		}
		last = at
		isBind := m.Type == "bind" || has("bind") || has("rbind")
		source, isOwn := own[at]
		switch {
		case isOwn:
			delete(own, at)
			if !isBind || source != "" && m.Source != source {
				t.Errorf("%s is %+v", at, m)
			}
			writable := at == "/run/mentat/state" || at == "/run/mentat/audit"
			if has("rw") != writable || has("ro") == writable {
				t.Errorf("%s is mounted with %q", at, m.Options)
			}
		case isBind && devices[at] != "":
			if m.Source != devices[at] || !has("ro") || !has("noexec") || !has("nodev") {
				t.Errorf("%s is %+v", at, m)
			}
		case within(at, "/run/mentat"):
			t.Errorf("%s is below our own directory", at)
		case isBind:
			mode := ""
			switch {
			case within(at, "/data"), slices.Contains(files, at):
				mode = "ro"
			case within(at, "/vols"), at == "/dev/termination-log":
				mode = "rw"
			}
			if mode == "" {
				t.Errorf("%s is bound from %s", at, m.Source)
			}
			if mode == "ro" && (!has("ro") || has("rbind") && !has("rro")) {
				t.Errorf("%s is writable: %q", at, m.Options)
			}
			if !has("nodev") || !has("noexec") || m.Type != "bind" || !(has("bind") || has("rbind")) {
				t.Errorf("%s is a %s of %q", at, m.Type, m.Options)
			}
		case m.Type == "tmpfs" && (within(at, "/data") || within(at, "/vols") || at == "/scratch"):
			if !has("nodev") || !has("noexec") || within(at, "/data") && !has("ro") {
				t.Errorf("%s has %q", at, m.Options)
			}
		default:
			if kernel[at] == "" || m.Type != kernel[at] && m.Type != kernel[at]+"2" {
				t.Errorf("a %s is mounted at %s", m.Type, at)
			}
			if !has("noexec") || (at != "/dev" && at != "/dev/pts" && !has("nodev")) {
				t.Errorf("%s has %q", at, m.Options)
			}
		}
	}
	delete(own, "/run/mentat/input")
	delete(own, "/run/mentat/audit") // of a mere plan there is none
	if len(own) != 0 {
		t.Errorf("missing are %v", slices.Collect(maps.Keys(own)))
	}
}

func TestAnOrdinarySpecificationIsRewritten(t *testing.T) {
	w := rewritten(t, asking, nil)
	spec := w.spec()
	var at []string
	for _, m := range spec.Mounts {
		at = append(at, m.Destination)
	}
	want := []string{"/proc", "/dev", "/dev/null", "/run/mentat", "/run/mentat/state", "/run/mentat/host", "/run/mentat/module.cwasm", "/run/mentat/audit"}
	if !slices.Equal(at, want) {
		t.Errorf("mounts %q, want %q", at, want)
	}
	if spec.Linux.Seccomp == nil || spec.Linux.Namespaces[0].Type != specs.UserNamespace || len(spec.Linux.UIDMappings) != 1 {
		t.Errorf("the container's own walls are gone: %s", encode(t, spec.Linux))
	}
	for file, mode := range map[string]fs.FileMode{
		"": 0o755 | fs.ModeDir, "state": 0o700 | fs.ModeDir, "root": 0o755 | fs.ModeDir,
		"host": 0o444, "module.cwasm": 0o444, "host.json": 0o444,
	} {
		info, err := os.Stat(filepath.Join(w.dir, privateDir, file))
		if err != nil {
			t.Error(err)
		} else if info.Mode() != mode {
			t.Errorf("%q has the mode %s", file, info.Mode())
		}
	}
	for _, name := range []string{specName, originalName} {
		if info, err := os.Stat(filepath.Join(w.dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// Whatever the caller's umask, the container's user gets in.
func TestTheUmaskDoesNotCloseThePrivateDirectory(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	w := rewritten(t, asking, nil)
	for _, name := range []string{"", "root"} {
		if info, err := os.Stat(filepath.Join(w.dir, privateDir, name)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
}

// A pod with everything that Kubernetes, or anybody who writes a specification,
// can give a container.
func TestNothingOfAHostileSpecificationReachesTheHost(t *testing.T) {
	all := []string{"CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE"}
	score := 7
	umask := uint32(0)
	w := rewritten(t, asking, func(s *specs.Spec) {
		s.Process = &specs.Process{
			Args: []string{"/bin/sh"}, CommandLine: "cmd.exe", Cwd: "/../..", NoNewPrivileges: false,
			Env: []string{
				"SSL_CERT_FILE=/data/evil.pem", "SSL_CERT_DIR=/data", "GODEBUG=netdns=cgo", "LD_PRELOAD=/data/evil.so", "ld_preload=/x", "GOTRACEBACK=crash",
				"HTTPS_PROXY=http://evil", "MENTAT_HOST=/data/host", "NOTIFY_SOCKET=/x", "GREETING=hello", "=x", "",
			},
			Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Inheritable: all, Permitted: all, Ambient: all},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: math.MaxUint64, Soft: math.MaxUint64}, {Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}},
			User:         specs.User{AdditionalGids: []uint32{0, 6, 999}, Umask: &umask, Username: "ContainerAdministrator"},
			Scheduler:    &specs.Scheduler{Policy: specs.SchedFIFO, Priority: 99}, IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT},
			ExecCPUAffinity: &specs.CPUAffinity{Initial: "0"}, OOMScoreAdj: &score, ApparmorProfile: "mentat", SelinuxLabel: "system_u",
		}
		s.Root = &specs.Root{Path: "/", Readonly: false}
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"rw"}},
			specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"rw", "exec", "suid", "dev"}},
			specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/", Options: []string{"rbind", "rw", "rshared"}},
			specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/etc/shadow", Options: []string{"rbind", "rw", "rrw", "exec"}},
			specs.Mount{Destination: "/dev/termination-log", Type: "bind", Source: w0, Options: []string{"rbind", "suid", "rw"}},
			// A bind by its options is one, whatever its type says.
			specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "/dev", Options: []string{"rbind"}},
			specs.Mount{Destination: "/proc", Type: "proc", Source: "/proc", Options: []string{"bind", "rw"}},
			specs.Mount{Destination: "/sys", Type: "sysfs", Source: "/", Options: []string{"ro", "rbind"}},
			// Over what is ours, by every name it has.
			specs.Mount{Destination: "/run/mentat", Type: "bind", Source: "/", Options: []string{"rbind"}},
			specs.Mount{Destination: "/run/mentat/host", Type: "bind", Source: "/bin/sh", Options: []string{"bind"}},
			specs.Mount{Destination: "/data/../run/mentat/host.json", Type: "bind", Source: "/etc/passwd", Options: []string{"bind"}},
			specs.Mount{Destination: "//run//mentat/", Type: "tmpfs", Source: "tmpfs"},
			specs.Mount{Destination: "run/mentat", Type: "bind", Source: "/", Options: []string{"bind"}},
			specs.Mount{Destination: "data", Type: "proc", Source: "proc"},
			specs.Mount{Destination: "/run", Type: "proc", Source: "proc"},
			specs.Mount{Destination: "/run", Type: "bind", Source: "/run", Options: []string{"rbind"}},
			specs.Mount{Destination: "/proc/self", Type: "bind", Source: "/", Options: []string{"bind"}},
			specs.Mount{Destination: "/", Type: "bind", Source: "/", Options: []string{"rbind"}},
			specs.Mount{Destination: "/..", Type: "bind", Source: "/", Options: []string{"rbind"}},
			specs.Mount{Destination: "", Type: "bind", Source: "/", Options: []string{"rbind"}},
			// In another case it is another path, and another option.
			specs.Mount{Destination: "/RUN/mentat", Type: "bind", Source: "/", Options: []string{"bind"}},
			specs.Mount{Destination: "/x", Type: "PROC", Source: "/", Options: []string{"RBIND", "RW"}},
			specs.Mount{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind"}},
			specs.Mount{Destination: "/data", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/,upperdir=/etc,workdir=/tmp"}},
			specs.Mount{Destination: "/vols", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1k", "size=1k,suid", "tmpcopyup", "suid", "exec", "dev"}},
			specs.Mount{Destination: "/not-asked-for", Type: "bind", Source: "/", Options: []string{"rbind"}},
		)
		s.Annotations = map[string]string{
			"run.oci.seccomp_bpf_data": "x", "run.oci.handler": "wasm", "module.wasm.image/variant": "compat",
			"org.systemd.property.TasksMax": "1000", "dev.mentatlab.run.trust": "verified", "io.kubernetes.cri.container-name": "c",
		}
		l := s.Linux
		l.MaskedPaths, l.ReadonlyPaths = []string{"/nothing"}, nil
		l.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}}
		l.RootfsPropagation = "rshared"
		l.Resources = &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
			Unified: map[string]string{"memory.high": "1"},
		}
	})
	spec, doc := w.spec(), w.document()
	if *spec.Process.OOMScoreAdj != 7 || spec.Process.ApparmorProfile != "mentat" || spec.Process.SelinuxLabel != "system_u" {
		t.Errorf("what the container manager decides is gone: %s", encode(t, spec.Process))
	}
	if want := []string{"GREETING=hello"}; !slices.Equal(doc.Env, want) {
		t.Errorf("the guest sees %q, want %q", doc.Env, want)
	}
	for _, secret := range []string{"evil", "MENTAT_HOST", "GODEBUG", "SSL_CERT"} {
		if strings.Contains(string(w.bytes(specName)), secret) {
			t.Errorf("config.json still has %q", secret)
		}
	}
	for _, line := range []string{"SSL_CERT_FILE", "LD_PRELOAD", "/not-asked-for", "/RUN/mentat", "withheld mount /run/mentat:", `type "overlay"`, `type "PROC"`} {
		if !slices.ContainsFunc(doc.Notices, func(n string) bool { return strings.Contains(n, line) }) {
			t.Errorf("nobody is told of %q: %q", line, doc.Notices)
		}
	}
	wantNotes := map[string]string{
		"dev.mentatlab.run.agent": "mentatlab.echo", "dev.mentatlab.run.trust": "signed",
		"dev.mentatlab.run.manifest": doc.Agent.Manifest, "dev.mentatlab.run.module": doc.Agent.Module,
		"io.kubernetes.cri.container-name": "c",
	}
	if !maps.Equal(spec.Annotations, wantNotes) {
		t.Errorf("annotations %v", spec.Annotations)
	}
	if doc.Termination != "/dev/termination-log" {
		t.Errorf("the last words go to %q", doc.Termination)
	}
	if m := ownMount(t, spec, "/vols"); m.Type != "tmpfs" || !slices.Equal(m.Options, []string{"nodev", "noexec", "nosuid", "size=1k"}) {
		t.Errorf("/vols is %+v", m)
	}
}

const w0 = "/var/lib/kubelet/pods/x/containers/c/y"

func TestHooksAndNamesStay(t *testing.T) {
	hooks := &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/usr/bin/nerdctl", Args: []string{"nerdctl", "internal", "oci-hook"}}}, Poststop: []specs.Hook{{Path: "/x"}}}
	w := rewritten(t, "", func(s *specs.Spec) {
		s.Hooks, s.Hostname = hooks, "host"
		s.Linux.CgroupsPath = "/x/y"
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	})
	spec := w.spec()
	if !reflect.DeepEqual(spec.Hooks, hooks) || spec.Hostname != "host" || spec.Linux.CgroupsPath != "/x/y" || len(spec.Linux.Sysctl) != 1 {
		t.Errorf("got %s", w.bytes(specName))
	}
}

func TestAUsersMountIsKeptAsNarrowAsItsGrant(t *testing.T) {
	for _, tc := range []struct {
		name     string
		mount    specs.Mount
		want     []string // nil: withheld
		readOnly bool
	}{
		{"a read grant of a writable volume", specs.Mount{Destination: "/data", Type: "bind", Options: []string{"rbind", "rprivate", "rw"}},
			[]string{"nodev", "noexec", "nosuid", "rbind", "ro", "rprivate", "rro"}, true},
		{"a read grant and every way to say rw", specs.Mount{Destination: "/data", Type: "bind", Options: []string{"bind", "ro", "rrw", "rw", "rexec", "remount", "RW"}},
			[]string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"a write grant", specs.Mount{Destination: "/vols", Type: "bind", Options: []string{"rbind", "rslave", "exec", "suid", "dev", "rshared"}},
			[]string{"nodev", "noexec", "nosuid", "rbind", "rslave"}, false},
		{"a write grant of a read-only volume", specs.Mount{Destination: "/vols", Type: "bind", Options: []string{"rbind", "ro"}},
			[]string{"nodev", "noexec", "nosuid", "rbind", "ro", "rro"}, true},
		{"a write grant of a recursively read-only volume", specs.Mount{Destination: "/vols", Type: "bind", Options: []string{"rbind", "rro"}},
			[]string{"nodev", "noexec", "nosuid", "rbind", "ro", "rro"}, true},
		{"a directory below the granted one", specs.Mount{Destination: "/data/sub", Type: "bind", Options: []string{"bind"}},
			[]string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"no type at all", specs.Mount{Destination: "/data", Options: []string{"bind"}}, []string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"a type and no option", specs.Mount{Destination: "/data", Type: "bind"}, []string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"another spelling of a granted path", specs.Mount{Destination: "/x/../data/", Type: "bind", Options: []string{"bind"}},
			[]string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"a relative path", specs.Mount{Destination: "data", Type: "bind", Options: []string{"bind"}},
			[]string{"bind", "nodev", "noexec", "nosuid", "ro"}, true},
		{"mapped owners", specs.Mount{Destination: "/vols", Type: "bind", Options: []string{"rbind", "ridmap"}}, []string{"nodev", "noexec", "nosuid", "rbind", "ridmap"}, false},
		{"beside the granted path", specs.Mount{Destination: "/database", Type: "bind", Options: []string{"bind"}}, nil, false},
		{"above the granted path", specs.Mount{Destination: "/", Type: "bind", Options: []string{"bind"}}, nil, false},
		{"in another case", specs.Mount{Destination: "/DATA", Type: "bind", Options: []string{"bind"}}, nil, false},
		{"the kernel's", specs.Mount{Destination: "/proc/sys", Type: "bind", Options: []string{"bind"}}, nil, false},
		{"the container manager's directory", specs.Mount{Destination: "/etc", Type: "bind", Options: []string{"bind"}}, nil, false},
		{"another file system", specs.Mount{Destination: "/data", Type: "nfs", Options: []string{"addr=10.0.0.1"}}, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.mount.Source = t.TempDir()
			w := enforcing(t)
			w.create(ref, w.sign(w.agent(asking)))
			spec := plain()
			spec.Mounts = append(spec.Mounts, tc.mount)
			w.write(spec)
			w.runs(true)
			doc := w.document()
			var kept []specs.Mount
			for _, m := range w.spec().Mounts {
				if m.Source == tc.mount.Source {
					kept = append(kept, m)
				}
			}
			if tc.want == nil {
				if len(kept) != 0 || len(doc.Preopens) != 0 || len(doc.Notices) != 1 {
					t.Errorf("kept %+v, preopens %+v, notices %q", kept, doc.Preopens, doc.Notices)
				}
				return
			}
			if len(kept) != 1 || !slices.Equal(kept[0].Options, tc.want) || kept[0].Type != "bind" {
				t.Fatalf("kept %+v, want %q", kept, tc.want)
			}
			if len(doc.Preopens) != 1 || doc.Preopens[0].ReadOnly != tc.readOnly || doc.Preopens[0].Host != kept[0].Destination {
				t.Errorf("preopens %+v", doc.Preopens)
			}
		})
	}
}

func TestAnUntrustedAgentIsGivenNoMount(t *testing.T) {
	w := developer(t)
	w.create(ref, w.agent(asking))
	spec := plain()
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: t.TempDir(), Options: []string{"bind"}})
	w.write(spec)
	w.runs(true)
	safe(t, w.bytes(specName), w.dir)
	for _, m := range w.spec().Mounts {
		if m.Destination == "/data" {
			t.Errorf("kept %+v", m)
		}
	}
}

func TestNoMountHidesAnother(t *testing.T) {
	const temps = asking + `
sandbox:
  filesystem:
    temp_dirs:
      - "/scratch": "1MB"
      - "/etc": "1MB"
`
	w := enforcing(t)
	w.grants(strings.Replace(capabilities, `"filesystem:read:/data"`, `"filesystem:read:/scratch/deep", "filesystem:read:/data"`, 1))
	agent := strings.Replace(temps, `"filesystem:read:/data"`, `"filesystem:read:/scratch/deep", "filesystem:read:/data"`, 1)
	w.create(ref, w.sign(w.agent(agent)))
	spec := plain()
	source := t.TempDir()
	for _, at := range []string{"/scratch/deep", "/data/sub", "/data", "/scratch", "/etc/resolv.conf", "/etc"} {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: at, Type: "bind", Source: source, Options: []string{"bind"}})
	}
	w.write(spec)
	w.runs(true)
	var at []string
	for _, m := range w.spec().Mounts[3:] {
		at = append(at, m.Destination+" "+m.Type)
	}
	want := []string{
		// The user's own directories there were not granted, so these are empty.
		"/data bind", "/etc tmpfs", "/scratch tmpfs", "/scratch/deep bind", "/data/sub bind",
		"/etc/resolv.conf bind", "/run/mentat bind", "/run/mentat/state bind", "/run/mentat/host bind", "/run/mentat/module.cwasm bind", "/run/mentat/audit bind",
	}
	slices.Sort(at[:3])
	slices.Sort(at[3:5])
	slices.Sort(want[:3])
	slices.Sort(want[3:5])
	if !slices.Equal(at, want) {
		t.Errorf("mounts\n%q, want\n%q", at, want)
	}
}

func TestAnAgentHasDevicesOnlyWhereItsStreamsNeedThem(t *testing.T) {
	for name, c := range map[string]struct {
		terminal, closed bool
		want             string
	}{
		"streams":    {want: "bind"},
		"terminal":   {terminal: true, want: "tmpfs"},
		"no streams": {closed: true, want: "tmpfs"},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, w.agent(""))
			spec := plain()
			spec.Process.Terminal = c.terminal
			w.write(spec)
			if _, err := w.preparer().Prepare(t.Context(), Request{ID: id, Dir: w.dir, Closed: c.closed}); err != nil {
				t.Fatal(err)
			}
			for _, m := range w.spec().Mounts {
				if m.Destination == "/dev" && m.Type != c.want {
					t.Errorf("/dev is a %s", m.Type)
				}
			}
		})
	}
}

func TestProcessorAndFilesFollowTheTighterSide(t *testing.T) {
	given := func(quota int64, period uint64) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	}
	for _, tc := range []struct {
		name, manifest string
		container      *specs.LinuxResources
		quota          int64 // 0 for none
		period         uint64
		files          uint64 // 0 for a refusal
	}{
		{"nothing said", "", nil, 0, 0, 256},
		{"the manifest", "cpu_quota: 500ms/s, file_descriptors: 100", nil, 50_000, 100_000, 100},
		{"a looser container", "cpu_quota: 500ms/s", given(200_000, 100_000), 50_000, 100_000, 256},
		{"a tighter container", "cpu_quota: 1000ms/s", given(1000, 10_000), 1000, 10_000, 256},
		{"a container without a quota", "cpu_quota: 2000ms/s", given(-1, 100_000), 200_000, 100_000, 256},
		{"more files than the host's", "file_descriptors: 100000", nil, 0, 0, 256},
		{"too few files", "file_descriptors: 8", nil, 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			extra := ""
			if tc.manifest != "" {
				extra = "\nsandbox:\n  resources: {" + tc.manifest + "}\n"
			}
			w := developer(t)
			w.create(ref, w.agent(extra))
			spec := plain()
			spec.Linux.Resources = tc.container
			w.write(spec)
			if tc.files == 0 {
				w.refused(fault.ResourceLimit)
				return
			}
			w.runs(true)
			got := w.spec()
			if l := got.Process.Rlimits[0]; l.Type != "RLIMIT_NOFILE" || l.Hard != tc.files || l.Soft != tc.files {
				t.Errorf("files %+v, want %d", l, tc.files)
			}
			cpu := got.Linux.Resources.CPU
			switch {
			case tc.quota == 0:
				if cpu != nil && cpu.Quota != nil {
					t.Errorf("a quota of %d", *cpu.Quota)
				}
			case cpu == nil || *cpu.Quota != tc.quota || *cpu.Period != tc.period:
				t.Errorf("processor %+v, want %d of %d", cpu, tc.quota, tc.period)
			}
		})
	}
}

func TestMemoryFollowsManifestAndLimit(t *testing.T) {
	const mib = limits.MiB
	for _, tc := range []struct {
		name          string
		manifest      int64 // MiB, 0 for nothing said
		limit         int64 // 0 for none
		guest, cgroup int64
	}{
		{"nothing said", 0, 0, 256 * mib, 256*mib + 256*mib/10},
		{"unlimited", 0, -1, 256 * mib, 256*mib + 256*mib/10},
		{"the manifest", 64, 0, 64 * mib, 80 * mib},
		{"a small manifest", 1, 0, mib, 17 * mib},
		{"a large manifest", 1024, 0, 1024 * mib, 1024*mib + 1024*mib/10},
		{"the container's limit", 0, 100 * mib, 90 * mib, 100 * mib},
		{"a small limit", 0, 32 * mib, 24 * mib, 32 * mib},
		{"the smallest limit", 0, 12 * mib, 4 * mib, 12 * mib},
		{"a manifest smaller than the limit", 16, 100 * mib, 16 * mib, 32 * mib},
		{"a manifest larger than the limit", 512, 100 * mib, 90 * mib, 100 * mib},
		{"a limit that is none", 64, math.MaxInt64 - 4095, 64 * mib, 80 * mib},
	} {
		t.Run(tc.name, func(t *testing.T) {
			extra := ""
			if tc.manifest > 0 {
				extra = fmt.Sprintf("\nwasm:\n  memory:\n    maximum: %d\n", tc.manifest)
			}
			w := developer(t)
			w.create(ref, w.agent(extra))
			spec := plain()
			if tc.limit != 0 {
				spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &tc.limit}}
			}
			w.write(spec)
			w.runs(true)
			if got := w.document().Limits.MemoryBytes; got != tc.guest {
				t.Errorf("the guest has %d, want %d", got, tc.guest)
			}
			if got := *w.spec().Linux.Resources.Memory.Limit; got != tc.cgroup {
				t.Errorf("the container has %d, want %d", got, tc.cgroup)
			}
		})
	}
}

func TestLimitsThatCannotHoldTheHostAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		res  specs.LinuxResources
		want fault.Reason
	}{
		"a byte of memory":        {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(1)}}, fault.ResourceLimit},
		"nearly enough memory":    {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(12*limits.MiB - 1)}}, fault.ResourceLimit},
		"one process":             {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(1)}}, fault.ResourceLimit},
		"nearly enough processes": {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(15)}}, fault.ResourceLimit},
		"memory by file":          {specs.LinuxResources{Unified: map[string]string{"memory.max": "max"}}, fault.Unsupported},
		"processor by file":       {specs.LinuxResources{Unified: map[string]string{"cpu.max": "max"}}, fault.Unsupported},
		"processes by file":       {specs.LinuxResources{Unified: map[string]string{"pids.max": "max"}}, fault.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, w.agent(""))
			spec := plain()
			spec.Linux.Resources = &tc.res
			w.write(spec)
			if text := w.refusal(tc.want); !strings.Contains(text, "container's") {
				t.Errorf("the error does not say what to do: %s", text)
			}
			// An ordinary container may have them.
			w.create(ref, w.image())
			w.runs(false)
		})
	}
	for _, limit := range []int64{16, 17, 1000, 0, -1} {
		rewritten(t, "", func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}} })
	}
}

func ptr(n int64) *int64 { return &n }

func TestDirectoriesBelongToTheContainersUsersAsTheNodeNumbersThem(t *testing.T) {
	ranges := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1000, HostID: 5, Size: 1}}
	groups := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	high := []specs.LinuxIDMapping{{ContainerID: 0, HostID: math.MaxUint32 - 1, Size: 10}}
	for name, tc := range map[string]struct {
		user specs.User
		uids []specs.LinuxIDMapping
		gids []specs.LinuxIDMapping
		want owners
		bad  bool
	}{
		"no namespace":           {user: specs.User{UID: 7, GID: 8}, want: owners{7, 8, 0, 0}},
		"root of a namespace":    {uids: ranges, gids: groups, want: owners{100000, 200000, 100000, 200000}},
		"a user of a namespace":  {user: specs.User{UID: 999, GID: 1000}, uids: ranges, gids: groups, want: owners{100999, 201000, 100000, 200000}},
		"a range of its own":     {user: specs.User{UID: 1000, GID: 3}, uids: ranges, gids: groups, want: owners{5, 200003, 100000, 200000}},
		"a user without a place": {user: specs.User{UID: 1001}, uids: ranges, gids: groups, bad: true},
		"a group without one":    {user: specs.User{GID: 70000}, uids: ranges, gids: groups, bad: true},
		"no root":                {user: specs.User{UID: 1}, uids: []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1, Size: 1}}, gids: groups, bad: true},
		"no ids at all":          {uids: []specs.LinuxIDMapping{{}}, gids: groups, bad: true},
		// The sum must not begin again at the node's root.
		"beyond the last id": {user: specs.User{UID: 2}, uids: high, gids: groups, want: owners{math.MaxUint32 + 1, 200000, math.MaxUint32 - 1, 200000}},
	} {
		spec := &specs.Spec{Process: &specs.Process{User: tc.user}, Linux: &specs.Linux{UIDMappings: tc.uids, GIDMappings: tc.gids}}
		got, err := ownersOf(spec)
		if tc.bad != (fault.ReasonOf(err) == fault.Usage) || !tc.bad && got != tc.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestTheDocumentSpeaksAsTheContainerIs(t *testing.T) {
	w := rewritten(t, "\nwasm:\n  deadline: 1500ms\n", nil)
	doc := w.document()
	if doc.LogFormat != "json" || doc.Termination != "" || doc.ExitFile != "/run/mentat/state/exit.json" || doc.Limits.DeadlineMillis != 1500 {
		t.Errorf("document %+v", doc)
	}
	w = rewritten(t, "", func(s *specs.Spec) {
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 80, Height: 25}
		// Not a bind mount, so not kubelet's.
		s.Mounts = append(s.Mounts, specs.Mount{Destination: terminationLog, Type: "tmpfs", Source: "tmpfs"})
	})
	if doc = w.document(); doc.LogFormat != "text" || doc.Termination != "" {
		t.Errorf("document %+v", doc)
	}
	if p := w.spec().Process; !p.Terminal || p.ConsoleSize.Width != 80 {
		t.Errorf("process %+v", p)
	}
}

func TestTheHostIsLockedIntoWhatTheDocumentNames(t *testing.T) {
	w := rewritten(t, asking, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/data", Type: "bind", Source: t.TempDir(), Options: []string{"bind"}},
			specs.Mount{Destination: "/vols", Type: "bind", Source: t.TempDir(), Options: []string{"bind"}},
			specs.Mount{Destination: terminationLog, Type: "bind", Source: w0, Options: []string{"bind"}},
			specs.Mount{Destination: "/etc/resolv.conf", Type: "bind", Source: w0, Options: []string{"bind"}})
	})
	doc := w.document()
	want := &hostdoc.Lock{Read: []string{"/run/mentat/host.json", "/run/mentat/module.cwasm", "/data"}, Write: []string{"/vols", "/run/mentat/state", terminationLog, "/run/mentat/audit"}}
	if !reflect.DeepEqual(doc.Lock, want) {
		t.Errorf("the lock is %+v, want %+v", doc.Lock, want)
	}
	if args := w.spec().Process.Args; !slices.Equal(args, hostdoc.Command(hostdoc.HostPath, hostdoc.Path, want)) {
		t.Errorf("the command line is %q", args)
	}
	// Where it may dial it must find addresses, by the files that are there.
	doc.Network = &hostdoc.Network{Mode: hostdoc.NetworkRestricted}
	l := lock(doc, w.spec())
	if !l.Dial || !slices.Contains(l.Read, "/etc/resolv.conf") || slices.Contains(l.Read, "/etc/hosts") {
		t.Errorf("with a network the lock is %+v", l)
	}
}

func TestTheInputIsTheFirstThatApplies(t *testing.T) {
	source := t.TempDir()
	file := filepath.Join(source, "doc.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := specs.Mount{Destination: "/in", Type: "bind", Source: source, Options: []string{"rbind", "rw"}}
	single := specs.Mount{Destination: "/in/single", Type: "bind", Source: file, Options: []string{"bind"}}
	annotation := func(name string) map[string]string { return map[string]string{"dev.mentatlab.input": name} }
	for _, tc := range []struct {
		name   string
		stdin  bool
		change func(*specs.Spec)
		want   hostdoc.Input
		source string
		bad    fault.Reason
	}{
		{name: "nothing", want: hostdoc.Input{Kind: "stdin"}},
		{name: "stdin", stdin: true, want: hostdoc.Input{Kind: "stdin"}},
		{name: "arguments", change: func(s *specs.Spec) { s.Process.Args = []string{"/agent.wasm", "one", "two  three"} }, want: hostdoc.Input{Kind: "text", Text: "one two  three"}},
		{name: "arguments and stdin", stdin: true, change: func(s *specs.Spec) { s.Process.Args = []string{"/agent.wasm", "one"} }, want: hostdoc.Input{Kind: "stdin"}},
		{name: "annotation", stdin: true, change: func(s *specs.Spec) {
			s.Annotations, s.Process.Args = annotation("/in/doc.json"), []string{"/agent.wasm", "x"}
		},
			want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input/doc.json"}, source: source},
		{name: "variable", change: func(s *specs.Spec) { s.Process.Env = []string{"MENTAT_INPUT=/in/doc.json"} },
			want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input/doc.json"}, source: source},
		{name: "annotation and variable", change: func(s *specs.Spec) {
			s.Annotations, s.Process.Env = annotation("/in/single"), []string{"MENTAT_INPUT=/nowhere"}
		}, want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input"}, source: file},
		{name: "an empty variable", change: func(s *specs.Spec) { s.Process.Env = []string{"MENTAT_INPUT="} }, want: hostdoc.Input{Kind: "stdin"}},
		{name: "relative to the root", change: func(s *specs.Spec) { s.Annotations = annotation("in/doc.json") },
			want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input/doc.json"}, source: source},
		{name: "a way around", change: func(s *specs.Spec) { s.Annotations = annotation("/in/../in/./x/../doc.json") },
			want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input/doc.json"}, source: source},
		{name: "the later of two mounts", change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/in/", Type: "bind", Source: file, Options: []string{"bind"}})
			s.Annotations = annotation("/in")
		}, want: hostdoc.Input{Kind: "file", Path: "/run/mentat/input"}, source: file},
		{name: "a way out", change: func(s *specs.Spec) { s.Annotations = annotation("/in/../etc/passwd") }, bad: fault.Usage},
		{name: "far out", change: func(s *specs.Spec) { s.Annotations = annotation("../../../../etc/passwd") }, bad: fault.Usage},
		{name: "in no mount", change: func(s *specs.Spec) { s.Annotations = annotation("/etc/passwd") }, bad: fault.Usage},
		{name: "beside a mount", change: func(s *specs.Spec) { s.Annotations = annotation("/input") }, bad: fault.Usage},
		{name: "of the kernel", change: func(s *specs.Spec) { s.Annotations = annotation("/proc/self/environ") }, bad: fault.Usage},
		{name: "our own", change: func(s *specs.Spec) { s.Annotations = annotation("/run/mentat/host.json") }, bad: fault.Usage},
		{name: "the container manager's", change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: file, Options: []string{"bind"}})
			s.Annotations = annotation("/etc/hosts")
		}, bad: fault.Usage},
		{name: "in memory", change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mem", Type: "tmpfs", Source: "tmpfs"})
			s.Annotations = annotation("/mem/x")
		}, bad: fault.Unsupported},
		{name: "from nowhere", change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/gone", Type: "bind", Source: filepath.Join(source, "gone"), Options: []string{"bind"}})
			s.Annotations = annotation("/gone/x")
		}, bad: fault.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := developer(t)
			w.create(ref, w.agent(""))
			spec := plain()
			spec.Mounts = append(spec.Mounts, volume, single)
			if tc.change != nil {
				tc.change(spec)
			}
			w.write(spec)
			before := w.tree()
			_, err := w.preparer().Prepare(t.Context(), Request{ID: id, Dir: w.dir, Stdin: tc.stdin})
			if tc.bad != "" {
				w.isRefusal(err, tc.bad)
				if w.tree() != before {
					t.Error("the bundle changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			safe(t, w.bytes(specName), w.dir)
			if got := w.document().Input; got != tc.want {
				t.Errorf("the input is %+v, want %+v", got, tc.want)
			}
			place, statErr := os.Stat(filepath.Join(w.dir, privateDir, "input"))
			if tc.source == "" {
				if statErr == nil {
					t.Error("there is a place for an input")
				}
				return
			}
			m := ownMount(t, w.spec(), "/run/mentat/input")
			if m.Source != tc.source || !slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rbind") && !slices.Contains(m.Options, "rro") {
				t.Errorf("the input is %+v", m)
			}
			if statErr != nil || place.IsDir() != (tc.source == source) {
				t.Errorf("its place is %v, %v", place, statErr)
			}
		})
	}
}

// Kubernetes maps the owners of a pod's volumes; without that a Secret could
// not be read.
func TestTheInputsMountKeepsItsMappedOwners(t *testing.T) {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	source := t.TempDir()
	w := rewritten(t, "", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/in", Type: "bind", Source: source, Options: []string{"rbind", "ridmap"}, UIDMappings: maps, GIDMappings: maps})
		s.Annotations = map[string]string{"dev.mentatlab.input": "/in/x"}
	})
	m := ownMount(t, w.spec(), "/run/mentat/input")
	if !reflect.DeepEqual(m.UIDMappings, maps) || !reflect.DeepEqual(m.GIDMappings, maps) || !slices.Contains(m.Options, "ridmap") {
		t.Errorf("the input is %+v", m)
	}
}

func TestASourceRelativeToTheBundleIsFound(t *testing.T) {
	w := developer(t)
	w.create(ref, w.agent(""))
	if err := os.Mkdir(filepath.Join(w.dir, "volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := plain()
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/in", Type: "bind", Source: "volume", Options: []string{"bind"}})
	spec.Annotations = map[string]string{"dev.mentatlab.input": "/in/x"}
	w.write(spec)
	w.runs(true)
	if m := ownMount(t, w.spec(), "/run/mentat/input"); m.Source != filepath.Join(w.dir, "volume") {
		t.Errorf("the input is %+v", m)
	}
}

func TestVariablesReachOnlyAGuestThatAskedForThem(t *testing.T) {
	env := []string{"PATH=/bin", "HOSTNAME=x", "GREETING=hello", "APP_PORT=8080", "KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_PORT=tcp", "OTHER=x", "GREETING=again", "NAMELESS"}
	w := rewritten(t, asking, func(s *specs.Spec) { s.Process.Env = env })
	doc := w.document()
	// A name that looks like Kubernetes' is the agent's own when it asks for it.
	if want := []string{"APP_PORT=8080", "GREETING=again"}; !slices.Equal(doc.Env, want) {
		t.Errorf("the guest sees %q, want %q", doc.Env, want)
	}
	notices := strings.Join(doc.Notices, "\n")
	for name, told := range map[string]bool{"OTHER": true, "NAMELESS": true, "KUBERNETES": false, "PATH": false, "HOSTNAME": false} {
		if strings.Contains(notices, name) != told {
			t.Errorf("%s in the notices: %q", name, notices)
		}
	}
	// What the image itself says is not given by anybody.
	config := &ocispec.Image{Config: ocispec.ImageConfig{Env: []string{"MODEL=small"}}}
	got := given(&specs.Spec{Process: &specs.Process{Env: []string{"MODEL=small", "SIZE=1"}}}, config, nil)
	if !maps.Equal(got.Env, map[string]string{"SIZE": "1"}) {
		t.Errorf("given is %v", got.Env)
	}
	if got := given(&specs.Spec{}, nil, nil); len(got.Env) != 0 || len(got.Mounts) != 0 {
		t.Errorf("nothing gives %v", got)
	}
}

// planner is a decision to run an agent that was granted what it asks for.
func planner(t testing.TB, dir string) func(*specs.Spec) *wasmRun {
	t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm"+asking+
		"sandbox:\n  filesystem:\n    temp_dirs: [{\"/scratch\": \"1MB\"}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	artifact := &oci.Artifact{
		Digest: "sha256:aa", Manifest: &ocispec.Manifest{}, Agent: m, Form: oci.FormWASM,
		Config: &ocispec.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"/agent.wasm"}}}, Module: &ocispec.Descriptor{Digest: "sha256:bb"},
	}
	return func(spec *specs.Spec) *wasmRun {
		return &wasmRun{
			id: id, dir: dir, reference: ref, artifact: artifact, verdict: &verifier.Verdict{Trust: verifier.Signed},
			host: "/usr/bin/mentat-host", module: "/var/lib/mentat/modules/x",
			grant: capability.Effective(capability.Request{Manifest: m, Trust: "signed", Rules: []capability.Rule{{Name: "r", Allow: m.Capabilities()}}, Given: given(spec, artifact.Config, m)}),
		}
	}
}

func TestADocumentThatIsTooLargeIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	w := developer(t)
	w.create(ref, w.agent(""))
	spec := plain()
	spec.Process.Args = []string{"/agent.wasm", strings.Repeat("x", limits.HostDocumentBytes)}
	w.write(spec)
	w.refused(fault.ResourceLimit)
}

func TestHowARunEndedIsReadFromAPlainFileOnly(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "mentat", "state")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(state, "exit.json")
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(`{"version":1,"status":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		make func() error
		ok   bool
	}{
		"nothing":  {make: func() error { return nil }},
		"a record": {make: func() error { return os.WriteFile(name, []byte(`{"version":1,"status":7}`), 0o600) }, ok: true},
		"a link":   {make: func() error { return os.Symlink(secret, name) }},
		"a pipe":   {make: func() error { return syscall.Mkfifo(name, 0o600) }},
		"a held pipe": {make: func() error {
			if err := syscall.Mkfifo(name, 0o600); err != nil {
				return err
			}
			// Somebody who never writes keeps a reader waiting for ever.
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			t.Cleanup(func() { f.Close() })
			return err
		}},
		"a folder":   {make: func() error { return os.Mkdir(name, 0o700) }},
		"not JSON":   {make: func() error { return os.WriteFile(name, []byte("hello"), 0o600) }},
		"endless":    {make: func() error { return os.WriteFile(name, slices.Repeat([]byte("["), 1<<20), 0o600) }},
		"wrong type": {make: func() error { return os.WriteFile(name, []byte(`{"status":"7"}`), 0o600) }},
	} {
		t.Run(what, func(t *testing.T) {
			if err := tc.make(); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(name)
			exit, err := ReadExit(dir)
			if tc.ok != (err == nil) || tc.ok && exit.Status != 7 {
				t.Errorf("got %+v, %v", exit, err)
			}
		})
	}
}
