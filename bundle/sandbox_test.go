package bundle

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
)

// held is what an agent is held to, in one line of figures.
type held struct {
	guest, container, deadline, cpu, quota, files int64
}

func TestTheTighterOfManifestContainerAndNodeHolds(t *testing.T) {
	const mib = limits.MiB
	quota := func(n int64) *specs.LinuxResources { return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &n}} }
	memory := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
	}
	usual := held{256 * mib, 256*mib + 256*mib/10, 0, 0, 0, 256}
	with := func(change func(*held)) held {
		h := usual
		change(&h)
		return h
	}
	small := func(h *held) { h.guest, h.container = 64*mib, 80*mib }
	for name, tc := range map[string]struct {
		manifest  string
		node      nodeconfig.Sandbox
		container *specs.LinuxResources
		want      held
	}{
		"nobody says anything":    {want: usual},
		"memory: the manifest":    {manifest: "wasm: {memory: {maximum: 64}}", want: with(small)},
		"memory: its other key":   {manifest: "sandbox: {resources: {memory_limit: 64MB}}", want: with(small)},
		"memory: the node":        {manifest: "wasm: {memory: {maximum: 512}}", node: nodeconfig.Sandbox{MemoryMB: 64}, want: with(small)},
		"memory: the node alone":  {node: nodeconfig.Sandbox{MemoryMB: 64}, want: with(small)},
		"memory: a generous node": {manifest: "wasm: {memory: {maximum: 64}}", node: nodeconfig.Sandbox{MemoryMB: 4096}, want: with(small)},
		"memory: the container": {node: nodeconfig.Sandbox{MemoryMB: 64}, container: memory(40 * mib),
			want: with(func(h *held) { h.guest, h.container = 32*mib, 40*mib })},
		"memory: a generous container": {node: nodeconfig.Sandbox{MemoryMB: 64}, container: memory(4096 * mib), want: with(small)},

		"deadline: the manifest":    {manifest: "wasm: {deadline: 2s}", node: nodeconfig.Sandbox{DeadlineSeconds: 3}, want: with(func(h *held) { h.deadline = 2000 })},
		"deadline: the node":        {manifest: "wasm: {deadline: 5s}", node: nodeconfig.Sandbox{DeadlineSeconds: 3}, want: with(func(h *held) { h.deadline = 3000 })},
		"deadline: the node alone":  {node: nodeconfig.Sandbox{DeadlineSeconds: 3}, want: with(func(h *held) { h.deadline = 3000 })},
		"processor: the manifest":   {manifest: "sandbox: {resources: {cpu_time: 2s}}", node: nodeconfig.Sandbox{CPUSeconds: 3}, want: with(func(h *held) { h.cpu = 2000 })},
		"processor: the node":       {manifest: "sandbox: {resources: {cpu_time: 5s}}", node: nodeconfig.Sandbox{CPUSeconds: 3}, want: with(func(h *held) { h.cpu = 3000 })},
		"processor: the node alone": {node: nodeconfig.Sandbox{CPUSeconds: 3}, want: with(func(h *held) { h.cpu = 3000 })},

		"quota: the manifest": {manifest: "sandbox: {resources: {cpu_quota: 100ms/s}}", node: nodeconfig.Sandbox{CPUQuotaMS: 300}, container: quota(20_000),
			want: with(func(h *held) { h.quota = 10_000 })},
		"quota: the node": {manifest: "sandbox: {resources: {cpu_quota: 400ms/s}}", node: nodeconfig.Sandbox{CPUQuotaMS: 300}, container: quota(40_000),
			want: with(func(h *held) { h.quota = 30_000 })},
		"quota: the node alone": {node: nodeconfig.Sandbox{CPUQuotaMS: 300}, want: with(func(h *held) { h.quota = 30_000 })},
		"quota: the container": {manifest: "sandbox: {resources: {cpu_quota: 400ms/s}}", node: nodeconfig.Sandbox{CPUQuotaMS: 300}, container: quota(20_000),
			want: with(func(h *held) { h.quota = 20_000 })},

		"files: the manifest": {manifest: "sandbox: {resources: {file_descriptors: 40}}", node: nodeconfig.Sandbox{OpenFiles: 50}, want: with(func(h *held) { h.files = 40 })},
		"files: the node":     {manifest: "sandbox: {resources: {file_descriptors: 60}}", node: nodeconfig.Sandbox{OpenFiles: 50}, want: with(func(h *held) { h.files = 50 })},
		"files: the default":  {manifest: "sandbox: {resources: {file_descriptors: 1000}}", want: usual},
	} {
		t.Run(name, func(t *testing.T) {
			w := developer(t)
			w.config.Sandbox = tc.node
			w.create(ref, w.agent("\n"+tc.manifest+"\n"))
			spec := plain()
			spec.Linux.Resources = tc.container
			w.write(spec)
			w.runs(true)
			l, res := w.document().Limits, w.spec().Linux.Resources
			got := held{l.MemoryBytes, *res.Memory.Limit, l.DeadlineMillis, l.CPUMillis, 0, int64(w.spec().Process.Rlimits[0].Hard)}
			if res.CPU != nil && res.CPU.Quota != nil {
				got.quota = *res.CPU.Quota
			}
			if got != tc.want {
				t.Errorf("held to %+v, want %+v", got, tc.want)
			}
		})
	}
}

// planned is an agent with temporary directories and everything else granted, in a
// bundle of its own.
func planned(t *testing.T, node nodeconfig.Sandbox, temps map[string]int64) (*wasmRun, *specs.Spec) {
	t.Helper()
	spec := plain()
	r := planner(t, t.TempDir())(spec)
	r.bounds = node
	if temps != nil {
		r.grant.TempDirs = temps
	}
	return r, spec
}

func TestTemporaryDirectoriesShareWhatTheNodeAllows(t *testing.T) {
	const mib = limits.MiB
	for name, tc := range map[string]struct {
		node       int
		asks, want map[string]int64 // nil: refused
	}{
		"no bound":             {0, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}},
		"within the bound":     {12, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}},
		"one beyond it":        {3, map[string]int64{"/a": 5 * mib}, map[string]int64{"/a": 3 * mib}},
		"together beyond it":   {6, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}, map[string]int64{"/a": 5 * mib, "/b": mib}},
		"nothing for the last": {5, map[string]int64{"/a": 5 * mib, "/b": 7 * mib}, nil},
		"no directory":         {5, map[string]int64{}, map[string]int64{}},
	} {
		t.Run(name, func(t *testing.T) {
			r, spec := planned(t, nodeconfig.Sandbox{TempDirsMB: tc.node}, tc.asks)
			_, err := r.plan(spec)
			if tc.want == nil {
				if fault.ReasonOf(err) != fault.ResourceLimit || !strings.Contains(err.Error(), "/b") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(r.grant.TempDirs, tc.want) {
				t.Errorf("got %v, %v, want %v", r.grant.TempDirs, err, tc.want)
			}
		})
	}
	// Their pages count in the container's memory.
	bare, spec := planned(t, nodeconfig.Sandbox{}, map[string]int64{})
	if _, err := bare.plan(spec); err != nil {
		t.Fatal(err)
	}
	without := *spec.Linux.Resources.Memory.Limit
	full, spec := planned(t, nodeconfig.Sandbox{}, map[string]int64{"/a": 5 * mib, "/b": 7 * mib})
	if _, err := full.plan(spec); err != nil || *spec.Linux.Resources.Memory.Limit != without+12*mib {
		t.Errorf("the container has %d, want %d more than %d; %v", *spec.Linux.Resources.Memory.Limit, 12*mib, without, err)
	}
}

func TestPluginsGetTheirTasks(t *testing.T) {
	doc := &hostdoc.Document{Limits: hostdoc.Limits{MemoryBytes: 64 * limits.MiB}}
	if n := tasks(doc); n != 16 {
		t.Errorf("one run: %d tasks", n)
	}
	doc.Serve = &hostdoc.Serve{Concurrent: 4}
	doc.Extensions = []hostdoc.Extension{{Name: "a"}, {Name: "b"}}
	if n := tasks(doc); n != threads(doc)+2*limits.PluginTasks {
		t.Errorf("four at a time: %d tasks", n)
	}
}

func TestTheNetworksModeIsTheNarrowest(t *testing.T) {
	for _, tc := range []struct {
		manifest, node string
		want           string
	}{
		{"", "", hostdoc.NetworkFull},
		{"full", "", hostdoc.NetworkFull},
		{"restricted", "", hostdoc.NetworkRestricted},
		{"none", "", hostdoc.NetworkNone},
		{"", "restricted", hostdoc.NetworkRestricted},
		{"", "none", hostdoc.NetworkNone},
		{"full", "restricted", hostdoc.NetworkRestricted},
		{"full", "none", hostdoc.NetworkNone},
		{"none", "full", hostdoc.NetworkNone},
		{"restricted", "full", hostdoc.NetworkRestricted},
	} {
		for _, media := range []*hostdoc.Media{nil, {Dir: "/media"}, {S3: &hostdoc.MediaS3{}}} {
			r, spec := planned(t, nodeconfig.Sandbox{Network: tc.node}, nil)
			m := *r.artifact.Agent
			m.Sandbox = &manifest.Sandbox{Network: &manifest.Network{Mode: tc.manifest}}
			r.artifact.Agent = &m
			doc := &hostdoc.Document{Network: &hostdoc.Network{Mode: hostdoc.NetworkFull}, LLM: &hostdoc.LLM{}, Media: media}
			r.limitNetwork(doc)
			l := lock(doc, spec)
			if tc.want == hostdoc.NetworkNone {
				onNetwork := doc.Media != nil && doc.Media.S3 != nil
				if doc.Network != nil || doc.LLM != nil || onNetwork || l.Dial || (media != nil && media.S3 != nil) != (len(doc.Notices) == 1) {
					t.Errorf("%+v: %+v, lock %+v", tc, doc, l)
				}
				continue
			}
			if doc.Network.Mode != tc.want || doc.LLM == nil || !reflect.DeepEqual(doc.Media, media) || !l.Dial {
				t.Errorf("%+v: %+v, lock %+v", tc, doc, l)
			}
		}
	}
	// Where nothing is granted there is nothing to narrow.
	r, spec := planned(t, nodeconfig.Sandbox{Network: hostdoc.NetworkFull}, nil)
	doc := &hostdoc.Document{}
	r.limitNetwork(doc)
	if doc.Network != nil || lock(doc, spec).Dial {
		t.Errorf("the node's mode grants: %+v", doc)
	}
}

func TestEveryNamespaceButTheNetworksIsTheAgentsOwn(t *testing.T) {
	pod := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace, Path: "/proc/1/ns/pid"}, {Type: specs.IPCNamespace, Path: "/proc/1/ns/ipc"}, {Type: specs.UTSNamespace, Path: "/proc/1/ns/uts"},
		{Type: specs.NetworkNamespace, Path: "/proc/1/ns/net"}, {Type: specs.MountNamespace}, {Type: specs.UserNamespace, Path: "/proc/1/ns/user"},
		{Type: specs.TimeNamespace, Path: "/proc/1/ns/time"}, {Type: "unknown"},
	}
	own := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace}}
	want := append([]specs.LinuxNamespace{pod[3], pod[5]}, own...)
	if got := ownNamespaces(pod); !slices.Equal(got, want) {
		t.Errorf("of a pod's: %+v, want %+v", got, want)
	}
	// The node's own network, and no namespace at all.
	if got := ownNamespaces(nil); !slices.Equal(got, own) {
		t.Errorf("of none: %+v, want %+v", got, own)
	}
}

func TestAnAgentBeyondItsMemoryIsEnded(t *testing.T) {
	w := rewritten(t, "", func(s *specs.Spec) {
		yes := true
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: &yes}}
	})
	if m := w.spec().Linux.Resources.Memory; m.DisableOOMKiller != nil {
		t.Errorf("it would hang: %+v", m)
	}
}

func TestTighterTakesNoBoundForNone(t *testing.T) {
	for _, c := range [][3]int64{{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {4, 5, 4}, {5, 4, 4}} {
		if got := tighter(c[0], c[1]); got != c[2] {
			t.Errorf("of %d and %d: %d", c[0], c[1], got)
		}
	}
}
