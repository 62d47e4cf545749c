package bundle

import (
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
// of who can say something. The tighter holds.
type Default struct {
	// What is bounded.
	What string
	// Manifest and Node are keys of manifest.yaml and config.toml, Container says
	// how a pod or a flag bounds it; "" where there is none.
	Manifest, Container, Node string
	// Value is the default.
	Value string
	// Wall says what holds it, and Ends what becomes of who goes beyond.
	Wall, Ends string
	// Test is the end-to-end test that fails without the wall, as
	// TestName/subtest.
	Test string
}
