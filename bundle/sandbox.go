package bundle

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// cpuPeriod is the length of a quota's period in microseconds, the kernel's own
// default.
const cpuPeriod = 100_000

// tighter is the smaller of two bounds, of which 0 is none.
func tighter(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// resources is what the signed manifest says of them, nil if nothing.
func (r *wasmRun) resources() *manifest.Resources {
	if a := r.artifact.Agent; a != nil && a.Sandbox != nil {
		return a.Sandbox.Resources
	}
	return nil
}

// memory is what one guest may use: the smallest of manifest, container limit and
// default.
func (r *wasmRun) memory(spec *specs.Spec) (int64, error) {
	guest := int64(limits.DefaultGuestMemory)
	if r.artifact.Agent != nil && r.artifact.Agent.MemoryLimit() > 0 {
		guest = r.artifact.Agent.MemoryLimit()
	}
	c := memoryLimit(spec.Linux.Resources)
	if c == 0 {
		return guest, nil
	}
	if c < limits.MinContainerMemory {
		return 0, fault.New(fault.ResourceLimit, r.id, "the container's memory limit of %d bytes cannot hold the agent's host, which needs %d", c, limits.MinContainerMemory).
			WithHint("raise the container's memory limit")
	}
	return min(guest, c-max(limits.MinHostShare, c/10)), nil
}

// containerMemory is what guests, host and temporary directories, whose pages
// count as well, need together.
func (r *wasmRun) containerMemory(doc *hostdoc.Document) int64 {
	total := needs(doc)
	for _, size := range r.grant.TempDirs {
		total += size
	}
	return total
}

// tasks is how many threads and processes the container needs.
func tasks(doc *hostdoc.Document) int64 {
	return threads(doc) + int64(len(doc.Extensions))*limits.PluginTasks
}

// bound holds a document to what manifest and node say of time, and to what the
// node says of memory and of the network.
func (r *wasmRun) bound(doc *hostdoc.Document) {
	l := &doc.Limits
	if a := r.artifact.Agent; a != nil {
		l.CPUMillis = millis(a.CPUTime())
	}
	l.MemoryBytes = tighter(l.MemoryBytes, int64(r.bounds.MemoryMB)*limits.MiB)
	l.DeadlineMillis = tighter(l.DeadlineMillis, int64(r.bounds.DeadlineSeconds)*1000)
	l.CPUMillis = tighter(l.CPUMillis, int64(r.bounds.CPUSeconds)*1000)
	r.limitNetwork(doc)
}

// millis rounds up: a bound under a millisecond must not become none.
func millis(d time.Duration) int64 {
	return (d + time.Millisecond - 1).Milliseconds()
}

// limit bounds the container to what the agent needs, or to less where the
// container manager says so.
func (r *wasmRun) limit(res *specs.LinuxResources, doc *hostdoc.Document) error {
	// The runtime writes these last, over the limits that are set here.
	for _, key := range []string{"memory.max", "pids.max", "cpu.max"} {
		if _, ok := res.Unified[key]; ok {
			return fault.New(fault.Unsupported, r.id, "a limit as the cgroup file %s cannot be weighed against what the agent needs", key).
				WithHint("set it as the container's memory, processor or pids limit")
		}
	}
	if res.Memory == nil {
		res.Memory = &specs.LinuxMemory{}
	}
	total := r.containerMemory(doc)
	if given := res.Memory.Limit; given != nil && *given > 0 {
		total = min(total, *given)
	}
	res.Memory.Limit = &total
	// Beyond its limit an agent is ended, not stopped for ever.
	res.Memory.DisableOOMKiller = nil
	pids := tasks(doc)
	if given := res.Pids; given != nil && given.Limit != nil && *given.Limit > 0 && *given.Limit < pids {
		return fault.New(fault.ResourceLimit, r.id, "a pids limit of %d cannot hold the agent's host, which needs %d threads", *given.Limit, pids).
			WithHint("raise the container's pids limit")
	}
	res.Pids = &specs.LinuxPids{Limit: &pids}
	r.limitCPU(res)
	return nil
}

// limitCPU sets the tighter quota of manifest and node unless the container's is
// tighter still.
func (r *wasmRun) limitCPU(res *specs.LinuxResources) {
	quota := tighter(int64(r.resources().CPUQuotaMillis()), int64(r.bounds.CPUQuotaMS)) * (cpuPeriod / 1000)
	if quota == 0 {
		return
	}
	if res.CPU == nil {
		res.CPU = &specs.LinuxCPU{}
	}
	if given := res.CPU.Quota; given != nil && *given > 0 {
		period := int64(cpuPeriod)
		if res.CPU.Period != nil && *res.CPU.Period > 0 {
			period = int64(*res.CPU.Period)
		}
		if float64(*given)/float64(period) <= float64(quota)/cpuPeriod {
			return
		}
	}
	period := uint64(cpuPeriod)
	res.CPU.Quota, res.CPU.Period = &quota, &period
}

// openFiles is the host's limit of open files. A server needs more.
func (r *wasmRun) openFiles(doc *hostdoc.Document) (uint64, error) {
	more := int64(files(doc))
	most, least := tighter(limits.OpenFiles, int64(r.bounds.OpenFiles))+more, limits.MinOpenFiles+more
	if said := r.resources(); said != nil {
		most = tighter(most, int64(said.FileDescriptors))
	}
	if most < least {
		return 0, fault.New(fault.ResourceLimit, r.id, "the manifest's file_descriptors of %d cannot hold the agent's host, which needs %d", most, least).
			WithHint("raise sandbox.resources.file_descriptors")
	}
	return uint64(most), nil
}

// limitTempDirs holds the granted temporary directories to the node's bound on
// all of them: each gets what those before it leave.
func (r *wasmRun) limitTempDirs() error {
	if r.bounds.TempDirsMB == 0 {
		return nil
	}
	left := int64(r.bounds.TempDirsMB) * limits.MiB
	for _, at := range slices.Sorted(maps.Keys(r.grant.TempDirs)) {
		if left == 0 {
			return fault.New(fault.ResourceLimit, r.id, "nothing of the node's %d MB for temporary directories is left for %s", r.bounds.TempDirsMB, at).
				WithHint("ask for less in sandbox.filesystem.temp_dirs")
		}
		size := min(left, r.grant.TempDirs[at])
		r.grant.TempDirs[at] = size
		left -= size
	}
	return nil
}

// Network modes from the narrowest on.
var modes = []string{hostdoc.NetworkNone, hostdoc.NetworkRestricted, hostdoc.NetworkFull}

// limitNetwork takes from the document what manifest or node rule out by the
// mode of the network; without a word the grants alone decide.
func (r *wasmRun) limitNetwork(doc *hostdoc.Document) {
	mode := len(modes) - 1
	narrow := func(to string) {
		if i := slices.Index(modes, to); i >= 0 {
			mode = min(mode, i)
		}
	}
	narrow(r.bounds.Network)
	if a := r.artifact.Agent; a != nil && a.Sandbox != nil && a.Sandbox.Network != nil {
		narrow(a.Sandbox.Network.Mode)
	}
	switch modes[mode] {
	case hostdoc.NetworkNone:
		if doc.Media != nil && doc.Media.S3 != nil {
			doc.Notices = append(doc.Notices, "withheld the media store: it is on the network, and the agent's mode is none")
			doc.Media = nil
		}
		doc.Network, doc.LLM = nil, nil
	case hostdoc.NetworkRestricted:
		if doc.Network != nil {
			doc.Network.Mode = hostdoc.NetworkRestricted
		}
	}
}

// ownNamespaces gives the container every namespace but those of network and
// user as its own: a pod's or the node's are no agent's business. The network's
// is the pod's, for the host may dial in it; who may not is held by its filter.
func ownNamespaces(given []specs.LinuxNamespace) []specs.LinuxNamespace {
	var list []specs.LinuxNamespace
	for _, n := range given {
		if n.Type == specs.NetworkNamespace || n.Type == specs.UserNamespace {
			list = append(list, n)
		}
	}
	for _, own := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		list = append(list, specs.LinuxNamespace{Type: own})
	}
	return list
}

// Default is one row of what an agent is held to when nobody says anything, and
// of who can say something. Of what several say the tighter holds.
type Default struct {
	// What is bounded.
	What string
	// Manifest is a key of manifest.yaml, Node of config.toml, Container says how a
	// pod or a flag bounds it; "" where there is none.
	Manifest, Container, Node string
	// Value is the default.
	Value string
	// Wall says what holds it, and Beyond what becomes of who goes on.
	Wall, Beyond string
	// Test is the end-to-end test that fails without the wall, as Name/subtest.
	Test string
}

// inMiB writes a number of bytes.
func inMiB(n int64) string { return fmt.Sprintf("%d MiB", n/limits.MiB) }

const inContainer, inEscapes = "TestAnAgentsContainerFromInside/", "TestNoGuestEscapes/"

// Defaults is the whole sandbox, key by key.
var Defaults = []Default{
	{"namespaces of processes, mounts, IPC, names and cgroups", "sandbox.process.namespace", "", "", "its own, always", "the kernel", "sees and reaches no other process", inContainer + "namespaces"},
	{"system calls", "sandbox.process.seccomp", "its own profile, as well", "", "the host's filter, always", "the host's lock", "an error, or the end of the run", "TestTheHostsLockInAContainer"},
	{"new privileges", "sandbox.process.no_new_privs", "", "", "none, always", "the kernel", "set-uid has no effect", inContainer + "no_new_privs"},
	{"capabilities of the kernel", "", "", "", "none, always", "the kernel", "refused", inContainer + "capabilities"},
	{"environment of the host", "", "", "", "empty, always", "the bundle", "", inContainer + "environment"},
	{"descriptors given to the host", "", "", "", "the three streams", "the bundle", "", inContainer + "descriptors"},
	{"devices", "", "", "", "null and its like", "the bundle, the cgroup", "refused", inContainer + "devices"},
	{"root file system", "sandbox.filesystem.readonly_root", "", "", "empty and read-only, always", "mounts, the host's lock", "refused", inContainer + "readonly_root"},
	{"temporary directories", "sandbox.filesystem.temp_dirs", "", "sandbox.temp_dirs_mb", "none", "a tmpfs each, with a bound on bytes and on files", "no space left", inContainer + "temp_dirs"},
	{"granted directories", "sandbox.filesystem.preopens", "a volume's own mode", "", "none", "a mount each, the host's lock, the engine", "refused", inContainer + "preopens"},
	{"mode of the network", "sandbox.network.mode", "", "sandbox.network", "what is granted; none without a grant", "the host's lock", "no socket can be opened", "TestTheNetworksModeFromInside"},
	{"hosts", "sandbox.network.allowed_hosts", "", "", "those of the grants", "the host's client", "denied", "TestHostsAndPortsFromInside/hosts"},
	{"ports", "sandbox.network.blocked_ports", "", "", "those of the grants", "the host's client", "denied", "TestHostsAndPortsFromInside/ports"},
	{"memory of the guest", "sandbox.resources.memory_limit", "its limit, less what the host needs", "sandbox.memory_mb", inMiB(limits.DefaultGuestMemory), "the engine", "out of memory, status 122", inEscapes + "memory"},
	{"memory of guest and host", "", "its limit", "", "the guest's + max(16 MiB, 10 %) + temporary directories", "the cgroup", "killed, status 137", inContainer + "memory_limit"},
	{"processor time a second", "sandbox.resources.cpu_quota", "its quota", "sandbox.cpu_quota_ms", "no bound", "the cgroup", "waits", inContainer + "cpu_quota"},
	{"processor time of a run", "sandbox.resources.cpu_time", "", "sandbox.cpu_seconds", "no bound", "the thread's clock", "ended, status 121, cpu-time", inEscapes + "busy-processor"},
	{"wall time of a run", "wasm.deadline", "", "sandbox.deadline_seconds", "no bound; 5 min for a request that is served", "the engine's epochs", "ended, status 121, deadline", inEscapes + "busy"},
	{"open files", "sandbox.resources.file_descriptors", "", "sandbox.open_files", fmt.Sprint(limits.OpenFiles), "RLIMIT_NOFILE", "an error", inContainer + "file_descriptors"},
	{"processes", "sandbox.resources.process_count", "", "", "1, always", "the host's lock", "status 159", "TestARunningHostIsHeldOnEveryThread"},
	{"threads", "", "a limit under that is refused", "", fmt.Sprintf("%d + those of plugins and of further requests", limits.HostThreads), "the cgroup", "an error", inContainer + "process_count"},
	{"core dumps", "", "", "", "none, always", "RLIMIT_CORE, not dumpable", "", inContainer + "core dumps"},
	{"call stack", "", "", "", inMiB(limits.GuestStackBytes), "the engine", "trap, status 120", inEscapes + "recursion"},
	{"tables", "", "", "", fmt.Sprintf("2 of %d elements", limits.TableElements), "the engine", "they do not grow", inEscapes + "table-grown"},
	{"handles", "", "", "", fmt.Sprint(limits.Handles), "the host", "LIMIT", inEscapes + "handles"},
	{"output of a run", "", "", "", inMiB(limits.OutputBytes), "the host", "ended, status 124, resource-limit", inEscapes + "output-flood"},
	{"log lines", "", "", "", fmt.Sprintf("%s at once, then %s a second", inMiB(limits.LogBurstBytes), inMiB(limits.LogBytesPerSecond)), "the host", "dropped and counted", inEscapes + "log-flood"},
}
