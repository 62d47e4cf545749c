package bundle

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// kernelMounts are where container managers mount the kernel's file systems and
// empty ones of their own, and of which types.
var kernelMounts = map[string][]string{
	"/proc":          {"proc"},
	"/sys":           {"sysfs"},
	"/sys/fs/cgroup": {"cgroup", "cgroup2"},
	"/dev":           {"tmpfs"},
	"/dev/pts":       {"devpts"},
	"/dev/shm":       {"tmpfs"},
	"/dev/mqueue":    {"mqueue"},
	"/run":           {"tmpfs"},
}

// sharedMemory is what containers of one pod have in common; an agent's host
// has no use for it.
const sharedMemory = "/dev/shm"

// managerFiles are what container managers bind into every container.
var managerFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", sharedMemory, terminationLog}

// nameFiles are those of them by which names become addresses.
var nameFiles = []string{"/etc/hosts", "/etc/resolv.conf"}

// destination is where the runtime mounts m, however it is spelled.
func destination(m specs.Mount) string { return path.Clean("/" + m.Destination) }

// isBind tells a bind mount as runtimes do: by its options, which outweigh its
// type.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// isManagers tells what container managers mount by themselves from a mount
// with content of somebody's.
func isManagers(m specs.Mount) bool {
	if isBind(m) {
		return slices.Contains(managerFiles, destination(m))
	}
	return slices.Contains(kernelMounts[destination(m)], m.Type)
}

func isReadOnly(m specs.Mount) bool {
	return slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro")
}

// isForeign tells that a mount is of a type that no grant is for.
func isForeign(m specs.Mount) bool { return !isBind(m) && m.Type != "tmpfs" }

// given is what the user put into the container: mounts and variables that the
// image and the container manager did not put there.
func given(spec *specs.Spec, config *ocispec.Image, agent *manifest.Manifest) capability.Given {
	g := capability.Given{Env: map[string]string{}}
	for _, m := range spec.Mounts {
		if !isManagers(m) && !isForeign(m) {
			g.Mounts = append(g.Mounts, capability.Mount{
				Source: m.Source, Destination: destination(m),
				ReadOnly: isReadOnly(m),
			})
		}
	}
	if spec.Process == nil {
		return g
	}
	asked := func(name string) bool {
		return agent != nil && manifest.Allowed(agent.Capabilities(), manifest.Capability{Kind: manifest.KindEnv, Name: name})
	}
	for _, kv := range spec.Process.Env {
		name, value, _ := strings.Cut(kv, "=")
		fromImage := config != nil && slices.Contains(config.Config.Env, kv)
		if name == "" || fromImage || ambient(name) && !asked(name) {
			continue
		}
		g.Env[name] = value
	}
	return g
}

// ambient are variables that container managers set by themselves: nobody needs
// to be told that an agent that asks for none of them gets none.
func ambient(name string) bool {
	switch name {
	case "PATH", "HOSTNAME", "TERM", "HOME", inputEnv:
		return true
	}
	// Kubernetes names every service of the namespace to every container.
	return strings.Contains(name, "_SERVICE_PORT") || strings.HasSuffix(name, "_SERVICE_HOST") ||
		strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_PORT_")
}

// foreign has a line for every mount that no capability could be asked for.
func foreign(spec *specs.Spec) []string {
	var lines []string
	for _, m := range spec.Mounts {
		if !isManagers(m) && isForeign(m) {
			lines = append(lines, fmt.Sprintf("withheld mount %s: no agent can be given a mount of the type %q", destination(m), m.Type))
		}
	}
	return lines
}

// mountOf finds the user's mount that holds a path and the path within it.
func mountOf(spec *specs.Spec, name string) (specs.Mount, string, bool) {
	name = path.Clean("/" + name)
	for _, m := range slices.Backward(spec.Mounts) {
		if isManagers(m) {
			continue
		}
		d := destination(m)
		if name == d {
			return m, "", true
		}
		if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(d, "/")+"/"); ok {
			return m, rest, true
		}
	}
	return specs.Mount{}, "", false
}

// mounts are all mounts of an agent, in an order in which none hides another:
// what is deeper comes later, the container manager's files after what users
// may have put above them, and what is ours last. devices says that the host has
// use for devices, a terminal above all.
func (r *wasmRun) mounts(from []specs.Mount, devices bool) []specs.Mount {
	var kernel, users, files []specs.Mount
	for _, m := range from {
		switch {
		case !isManagers(m):
			if i := r.preopen(m); i >= 0 {
				// Of two mounts at one place the grant is the first one's.
				users = append(users, narrowed(m, r.grant.Preopens[i].ReadOnly || isReadOnly(m)))
			}
		case !isBind(m):
			if needed(m, devices) {
				kernel = append(kernel, kernelMount(m))
			}
		case destination(m) != sharedMemory:
			if within, ok := strings.CutPrefix(destination(m), "/dev/"); ok && !devices {
				r.devicePlaces = append(r.devicePlaces, within)
			}
			files = append(files, narrowed(m, destination(m) != terminationLog))
		}
	}
	if !devices {
		kernel = append(kernel, r.devices()...)
	}
	users = append(users, r.tempDirs()...)
	slices.SortStableFunc(users, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return slices.Concat(kernel, users, files, r.ownMounts())
}

// preopen is the index of the grant that a user's mount is kept for, or -1.
func (r *wasmRun) preopen(m specs.Mount) int {
	d := destination(m)
	if _, temporary := r.grant.TempDirs[d]; temporary || isForeign(m) {
		return -1
	}
	return slices.IndexFunc(r.grant.Preopens, func(p hostdoc.Preopen) bool { return path.Clean(p.Host) == d })
}

// Options that take nothing away from a mount's walls. Whatever is not here is
// dropped: there are more ways to say exec, suid or rw than one would list.
var (
	harmlessOptions = []string{
		"bind", "rbind", "private", "rprivate", "slave", "rslave", "idmap", "ridmap", "newinstance",
		"noatime", "nodiratime", "relatime", "strictatime", "nosymfollow",
	}
	harmlessPrefixes = []string{"size=", "nr_inodes=", "mode=", "uid=", "gid=", "ptmxmode=", "hidepid=", "subset="}
)

// restricted is a mount with its harmless options and those that are added.
func restricted(m specs.Mount, add ...string) specs.Mount {
	var kept []string
	for _, o := range m.Options {
		if slices.Contains(harmlessOptions, o) ||
			slices.ContainsFunc(harmlessPrefixes, func(p string) bool { return strings.HasPrefix(o, p) && !strings.Contains(o, ",") }) {
			kept = append(kept, o)
		}
	}
	m.Destination, m.Options = destination(m), append(kept, add...)
	return m
}

// narrowed is a bind or temporary mount as narrow as a grant.
func narrowed(m specs.Mount, readOnly bool) specs.Mount {
	add := []string{"nosuid", "nodev", "noexec"}
	if readOnly {
		add = append(add, "ro")
	}
	if isBind(m) {
		m.Type = "bind"
		switch {
		case !slices.Contains(m.Options, "rbind"):
			add = append(add, "bind")
		case readOnly:
			// "ro" alone leaves what is mounted below writable.
			add = append(add, "rro")
		}
	}
	m = restricted(m, add...)
	slices.Sort(m.Options)
	m.Options = slices.Compact(m.Options)
	return m
}

// needed tells which of the kernel's file systems mentat-host works with. Each
// one less is a mount less at every start and nothing for a guest to reach.
func needed(m specs.Mount, devices bool) bool {
	switch destination(m) {
	case "/proc":
		return true
	case "/dev", "/dev/pts":
		return devices
	}
	return false
}

// devices are the mounts of a /dev with nothing in it but null, which the
// runtime masks paths with. Where it finds a mount of this kind it makes no
// devices, links and terminals of its own, which takes a tenth of a container's
// creation.
func (r *wasmRun) devices() []specs.Mount {
	const null = "null"
	r.devicePlaces = append(r.devicePlaces, null)
	return []specs.Mount{
		bind(filepath.Join(r.dir, privateDir, deviceDir), "/dev", "ro", "noexec"),
		bind("/dev/"+null, "/dev/"+null, "ro", "noexec"),
	}
}

// kernelMount is a container manager's mount as an unprivileged container has
// it, whatever a privileged one is given.
func kernelMount(m specs.Mount) specs.Mount {
	switch destination(m) {
	case "/dev":
		// What the runtime makes there is there before it becomes read-only.
		return restricted(m, "nosuid", "noexec", "ro")
	case "/dev/pts":
		return restricted(m, "nosuid", "noexec")
	}
	return restricted(m, "nosuid", "noexec", "nodev")
}

// A temporary directory holds as many files as there are shares of its size, and
// no fewer than this.
const (
	fileShare  = 16 * limits.KiB
	leastFiles = 64
)

// tempDirs are the granted temporary directories, each with its size.
func (r *wasmRun) tempDirs() []specs.Mount {
	var mounts []specs.Mount
	for _, at := range slices.Sorted(maps.Keys(r.grant.TempDirs)) {
		size := r.grant.TempDirs[at]
		mounts = append(mounts, specs.Mount{
			Type: "tmpfs", Source: "tmpfs", Destination: at,
			// A file costs the container memory that its size does not show.
			Options: []string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", size), fmt.Sprintf("nr_inodes=%d", max(leastFiles, size/fileShare))},
		})
	}
	return mounts
}

func (r *wasmRun) ownMounts() []specs.Mount {
	dir := filepath.Join(r.dir, privateDir)
	own := []specs.Mount{
		bind(dir, hostdoc.Dir, "ro", "noexec"),
		bind(filepath.Join(dir, stateDir), hostdoc.StateDir, "rw", "noexec"),
		bind(r.host, hostdoc.HostPath, "ro"),
		bind(r.module, hostdoc.ModulePath, "ro"),
	}
	if r.inputMount != nil {
		own = append(own, *r.inputMount)
	}
	return append(own, r.provision.mounts...)
}

func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{
		Type: "bind", Source: source, Destination: destination,
		Options: append([]string{"bind", "nosuid", "nodev"}, options...),
	}
}
