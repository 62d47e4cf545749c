package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

const (
	specName = "config.json"
	// privateDir is our directory in a bundle; it becomes [hostdoc.Dir].
	privateDir = "mentat"
	// rootDir in it is the container's root file system.
	rootDir = "root"
	// inputAnnotation and inputEnv name a file with the run's input.
	inputAnnotation = "dev.mentatlab.input"
	inputEnv        = "MENTAT_INPUT"
	// terminationLog is where Kubernetes reads a container's last words.
	terminationLog = "/dev/termination-log"
	// maxPids holds the host's threads; with fewer the engine's thread pool and
	// Go's runtime abort without a word.
	maxPids = 16
	// maxOpenFiles is the host's RLIMIT_NOFILE.
	maxOpenFiles = 256
	specBytes    = 16 * limits.MiB
)

// Prepared tells whether a bundle was rewritten to run a WASM agent.
func Prepared(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, privateDir, filepath.Base(hostdoc.Path)))
	return err == nil
}

// ReadExit reads how a WASM agent's run ended; errors.Is fs.ErrNotExist when
// the host was killed before it could say.
func ReadExit(dir string) (*hostdoc.Exit, error) {
	f, err := os.Open(filepath.Join(dir, privateDir, "state", filepath.Base(hostdoc.ExitPath)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	exit := new(hostdoc.Exit)
	if err := json.NewDecoder(io.LimitReader(f, limits.LogLineBytes)).Decode(exit); err != nil {
		return nil, fmt.Errorf("cannot read the run's exit record: %w", err)
	}
	return exit, nil
}

func readSpec(dir string) (*specs.Spec, error) {
	name := filepath.Join(dir, specName)
	f, err := os.Open(name)
	if err != nil {
		r := fault.Internal
		if errors.Is(err, fs.ErrNotExist) {
			r = fault.NotFound
		}
		return nil, fault.Wrap(err, r, name, "the bundle has no readable specification")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, specBytes+1))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, name, "cannot read the specification")
	}
	if len(data) > specBytes {
		return nil, fault.New(fault.ResourceLimit, name, "the specification is over %d bytes", specBytes)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fault.Wrap(err, fault.Usage, name, "the specification is not valid")
	}
	return spec, nil
}

func writeFile(name string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fault.Wrap(err, fault.Internal, name, "cannot write")
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(fault.Wrap(err, fault.Internal, name, "cannot write"), os.Remove(tmp.Name()))
	}
	return nil
}

// given is what the user put into the container: bind mounts and variables
// that the image and the runtime did not put there.
func given(spec *specs.Spec, config *ocispec.Image) capability.Given {
	g := capability.Given{Env: map[string]string{}}
	for _, m := range spec.Mounts {
		if isUserMount(m) {
			g.Mounts = append(g.Mounts, capability.Mount{
				Source: m.Source, Destination: path.Clean(m.Destination),
				ReadOnly: slices.Contains(m.Options, "ro"),
			})
		}
	}
	if spec.Process == nil {
		return g
	}
	for _, kv := range spec.Process.Env {
		name, value, _ := strings.Cut(kv, "=")
		if ambient(name) || (config != nil && slices.Contains(config.Config.Env, kv)) {
			continue
		}
		g.Env[name] = value
	}
	return g
}

// ambient are variables that container managers set by themselves.
func ambient(name string) bool {
	switch name {
	case "PATH", "HOSTNAME", "TERM", "HOME", inputEnv:
		return true
	}
	// Kubernetes names every service of the namespace to every container.
	return strings.Contains(name, "_SERVICE_PORT") || strings.HasSuffix(name, "_SERVICE_HOST") ||
		strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_PORT_")
}

// isUserMount tells a mount with content of somebody's from the kernel's and
// the container manager's own.
func isUserMount(m specs.Mount) bool {
	switch m.Type {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue":
		return false
	case "tmpfs":
		d := path.Clean(m.Destination)
		return d != "/dev" && d != "/dev/shm" && d != "/run"
	}
	switch path.Clean(m.Destination) {
	case "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", terminationLog:
		return false
	}
	return true
}

// wasmRun is one decision to run a WASM agent, applied to a specification.
type wasmRun struct {
	id, dir   string
	stdin     bool
	reference string
	artifact  *oci.Artifact
	verdict   *verifier.Verdict
	host      string
	module    string
	grant     capability.Grant
	// inputSource is what is mounted as the input, "" without a file.
	inputSource string
}

// apply writes the bundle's private directory and then, last, config.json.
func (r *wasmRun) apply(spec *specs.Spec) error {
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return fault.New(fault.Usage, filepath.Join(r.dir, specName), "process, root and linux are required")
	}
	doc, err := r.document(spec)
	if err != nil {
		return err
	}
	data, err := doc.Marshal()
	if err != nil {
		return fault.Wrap(err, fault.Internal, r.id, "cannot encode the host document")
	}
	if err := r.writePrivate(spec, data); err != nil {
		return err
	}
	if err := r.rewrite(spec, doc); err != nil {
		return err
	}
	out, err := json.Marshal(spec)
	if err != nil {
		return fault.Wrap(err, fault.Internal, r.id, "cannot encode the specification")
	}
	return writeFile(filepath.Join(r.dir, specName), out, 0o600)
}

// document says to the host what to run; config.json says what holds it.
func (r *wasmRun) document(spec *specs.Spec) (*hostdoc.Document, error) {
	memory, err := r.memory(spec)
	if err != nil {
		return nil, err
	}
	doc := &hostdoc.Document{
		Agent: hostdoc.Agent{
			ID: r.id, Reference: r.reference,
			Manifest: r.artifact.Digest.String(), Module: r.artifact.Module.Digest.String(),
			Trust: string(r.verdict.Trust),
		},
		Instance:     r.id,
		Module:       hostdoc.ModulePath,
		Args:         r.args(spec),
		Env:          r.grant.Env,
		Preopens:     r.grant.Preopens,
		Config:       r.grant.Config,
		Capabilities: r.grant.Capabilities,
		Limits: hostdoc.Limits{
			MemoryBytes: memory,
			InputBytes:  limits.InputBytes,
			OutputBytes: limits.OutputBytes,
		},
		ExitFile:  hostdoc.ExitPath,
		LogFormat: "json",
		Notices:   r.grant.Withheld,
	}
	if agent := r.artifact.Agent; agent != nil {
		doc.Agent.ID, doc.Agent.Version = agent.ID, agent.Version
		// Rounded up: a deadline under a millisecond must not become none.
		doc.Limits.DeadlineMillis = (agent.Deadline() + time.Millisecond - 1).Milliseconds()
	}
	if r.verdict.Signer != nil {
		doc.Agent.Signer = r.verdict.Signer.Email
	}
	if spec.Process.Terminal {
		doc.LogFormat = "text"
	}
	if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == terminationLog }) {
		doc.Termination = terminationLog
	}
	doc.Input, err = r.input(spec, doc.Args)
	return doc, err
}

// args are the container's arguments after the image's entrypoint.
func (r *wasmRun) args(spec *specs.Spec) []string {
	name := "/agent.wasm"
	if c := r.artifact.Config; c != nil && len(c.Config.Entrypoint) > 0 && len(r.artifact.Manifest.Layers) > 0 {
		if entry := c.Config.Entrypoint; len(spec.Process.Args) >= len(entry) && slices.Equal(spec.Process.Args[:len(entry)], entry) {
			return append([]string{path.Base(entry[0])}, spec.Process.Args[len(entry):]...)
		}
	}
	if len(spec.Process.Args) > 0 && strings.HasSuffix(spec.Process.Args[0], ".wasm") {
		return append([]string{path.Base(spec.Process.Args[0])}, spec.Process.Args[1:]...)
	}
	return append([]string{path.Base(name)}, spec.Process.Args...)
}

// input applies the rule of the ABI: a named file, arguments without a stdin,
// stdin. A file's mount is remembered: the host alone gets it.
func (r *wasmRun) input(spec *specs.Spec, args []string) (hostdoc.Input, error) {
	name := spec.Annotations[inputAnnotation]
	for _, kv := range spec.Process.Env {
		if v, ok := strings.CutPrefix(kv, inputEnv+"="); ok && name == "" {
			name = v
		}
	}
	switch {
	case name != "":
		m, rest, ok := mountOf(spec, name)
		if !ok {
			return hostdoc.Input{}, fault.New(fault.Usage, name, "the input file is in no mount of the container").
				WithHint("mount the file or its directory, e.g. a ConfigMap, and name its path in the container")
		}
		if m.Type != "bind" && m.Type != "" && m.Type != "none" {
			return hostdoc.Input{}, fault.New(fault.Unsupported, m.Destination, "the input is on a %s mount, only bind mounts can be read", m.Type)
		}
		r.inputSource = m.Source
		return hostdoc.Input{Kind: hostdoc.InputFile, Path: path.Join(hostdoc.InputPath, rest)}, nil
	case len(args) > 1 && !r.stdin:
		return hostdoc.Input{Kind: hostdoc.InputText, Text: strings.Join(args[1:], " ")}, nil
	}
	return hostdoc.Input{Kind: hostdoc.InputStdin}, nil
}

// mountOf finds the user mount that holds a path and the path within it.
func mountOf(spec *specs.Spec, name string) (specs.Mount, string, bool) {
	name = path.Clean("/" + name)
	for _, m := range slices.Backward(spec.Mounts) {
		if !isUserMount(m) {
			continue
		}
		d := path.Clean(m.Destination)
		if name == d {
			return m, "", true
		}
		if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(d, "/")+"/"); ok {
			return m, rest, true
		}
	}
	return specs.Mount{}, "", false
}

// memory is what the guest may use: the smallest of manifest, container limit
// and default.
func (r *wasmRun) memory(spec *specs.Spec) (int64, error) {
	guest := int64(limits.DefaultGuestMemory)
	if r.artifact.Agent != nil && r.artifact.Agent.MemoryLimit() > 0 {
		guest = r.artifact.Agent.MemoryLimit()
	}
	res := spec.Linux.Resources
	if res == nil || res.Memory == nil || res.Memory.Limit == nil || *res.Memory.Limit <= 0 {
		return guest, nil
	}
	c := *res.Memory.Limit
	if c < limits.MinContainerMemory {
		return 0, fault.New(fault.ResourceLimit, r.id, "the container's memory limit of %d bytes cannot hold the agent's host, which needs %d", c, limits.MinContainerMemory).
			WithHint("raise the container's memory limit")
	}
	return min(guest, c-max(8*limits.MiB, c/10)), nil
}

func (r *wasmRun) writePrivate(spec *specs.Spec, data []byte) error {
	dir := filepath.Join(r.dir, privateDir)
	state, root := filepath.Join(dir, "state"), filepath.Join(dir, rootDir)
	uid, gid := hostIDs(spec, spec.Process.User)
	rootUID, rootGID := hostIDs(spec, specs.User{})
	steps := []func() error{
		func() error { return os.RemoveAll(dir) },
		func() error { return os.Mkdir(dir, 0o755) },
		func() error { return os.Mkdir(state, 0o700) },
		func() error { return os.Chown(state, uid, gid) },
		func() error { return os.Mkdir(root, 0o755) },
		func() error { return os.Chown(root, rootUID, rootGID) },
		// What is bind-mounted into a read-only directory needs a place there.
		func() error { return writeFile(filepath.Join(dir, filepath.Base(hostdoc.HostPath)), nil, 0o444) },
		func() error { return writeFile(filepath.Join(dir, filepath.Base(hostdoc.ModulePath)), nil, 0o444) },
		func() error { return r.inputPlace(dir) },
		func() error { return writeFile(filepath.Join(dir, filepath.Base(hostdoc.Path)), data, 0o444) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fault.Wrap(err, fault.Internal, dir, "cannot make the agent's private directory")
		}
	}
	return nil
}

// inputPlace makes the place onto which the input's mount goes.
func (r *wasmRun) inputPlace(dir string) error {
	if r.inputSource == "" {
		return nil
	}
	place := filepath.Join(dir, filepath.Base(hostdoc.InputPath))
	info, err := os.Stat(r.inputSource)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.Mkdir(place, 0o755)
	}
	return writeFile(place, nil, 0o444)
}

// hostIDs are a container user's ids outside its user namespace.
func hostIDs(spec *specs.Spec, u specs.User) (int, int) {
	outside := func(id uint32, maps []specs.LinuxIDMapping) int {
		for _, m := range maps {
			if id >= m.ContainerID && id-m.ContainerID < m.Size {
				return int(m.HostID + id - m.ContainerID)
			}
		}
		return int(id)
	}
	return outside(u.UID, spec.Linux.UIDMappings), outside(u.GID, spec.Linux.GIDMappings)
}

// rewrite replaces, not merges, what the container was given: the process of a
// WASM agent is ours, and nothing a user set may reach it.
func (r *wasmRun) rewrite(spec *specs.Spec, doc *hostdoc.Document) error {
	p := spec.Process
	p.Args = []string{hostdoc.HostPath, "run", "--document", hostdoc.Path}
	p.CommandLine = ""
	p.Env = nil
	p.Cwd = "/"
	p.Capabilities = &specs.LinuxCapabilities{}
	p.NoNewPrivileges = true
	p.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Hard: maxOpenFiles, Soft: maxOpenFiles},
		{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
	}
	p.User.AdditionalGids = nil
	// An empty root of our own: a dual image's files, symbolic links among them,
	// have no part in a WASM run.
	spec.Root.Path, spec.Root.Readonly = filepath.Join(r.dir, privateDir, rootDir), true

	l := spec.Linux
	l.Devices = nil
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	if len(l.MaskedPaths) == 0 {
		l.MaskedPaths = maskedPaths
	}
	if len(l.ReadonlyPaths) == 0 {
		l.ReadonlyPaths = readonlyPaths
	}
	if err := r.limit(l.Resources, doc.Limits.MemoryBytes); err != nil {
		return err
	}
	spec.Mounts = append(r.keptMounts(spec.Mounts), r.tempDirs()...)
	spec.Mounts = append(spec.Mounts, r.ownMounts()...)
	if r.inputSource != "" {
		spec.Mounts = append(spec.Mounts, bind(r.inputSource, hostdoc.InputPath, "ro", "noexec"))
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for k, v := range map[string]string{
		"dev.mentatlab.run.agent":    doc.Agent.ID,
		"dev.mentatlab.run.manifest": doc.Agent.Manifest,
		"dev.mentatlab.run.module":   doc.Agent.Module,
		"dev.mentatlab.run.trust":    doc.Agent.Trust,
	} {
		spec.Annotations[k] = v
	}
	return nil
}

// limit sets the tighter of what is there and what the agent needs.
func (r *wasmRun) limit(res *specs.LinuxResources, guest int64) error {
	if res.Memory == nil {
		res.Memory = &specs.LinuxMemory{}
	}
	if res.Memory.Limit == nil || *res.Memory.Limit <= 0 {
		total := guest + limits.HostHeadroom(guest)
		res.Memory.Limit = &total
	}
	pids := int64(maxPids)
	if given := res.Pids; given != nil && given.Limit != nil && *given.Limit > 0 && *given.Limit < pids {
		return fault.New(fault.ResourceLimit, r.id, "a pids limit of %d cannot hold the agent's host, which needs %d threads", *given.Limit, pids).
			WithHint("raise the container's pids limit")
	}
	res.Pids = &specs.LinuxPids{Limit: &pids}
	return nil
}

// keptMounts drops every mount of the user's that is not granted, and makes a
// granted one as narrow as its grant.
func (r *wasmRun) keptMounts(mounts []specs.Mount) []specs.Mount {
	var kept []specs.Mount
	for _, m := range mounts {
		if !isUserMount(m) {
			kept = append(kept, m)
			continue
		}
		d := path.Clean(m.Destination)
		i := slices.IndexFunc(r.grant.Preopens, func(p hostdoc.Preopen) bool { return path.Clean(p.Host) == d })
		if i < 0 {
			continue
		}
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
			switch o {
			case "suid", "dev", "exec":
				return true
			case "ro", "rw", "rro":
				return r.grant.Preopens[i].ReadOnly
			}
			return false
		})
		m.Options = append(m.Options, "nosuid", "nodev", "noexec")
		if r.grant.Preopens[i].ReadOnly {
			m.Options = append(m.Options, "ro")
		}
		kept = append(kept, m)
	}
	return kept
}

// tempDirs are the granted temporary directories, each with its size.
func (r *wasmRun) tempDirs() []specs.Mount {
	var mounts []specs.Mount
	for _, at := range slices.Sorted(maps.Keys(r.grant.TempDirs)) {
		mounts = append(mounts, specs.Mount{
			Type: "tmpfs", Source: "tmpfs", Destination: at,
			Options: []string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", r.grant.TempDirs[at])},
		})
	}
	return mounts
}

func (r *wasmRun) ownMounts() []specs.Mount {
	dir := filepath.Join(r.dir, privateDir)
	return []specs.Mount{
		bind(dir, hostdoc.Dir, "ro", "noexec"),
		bind(filepath.Join(dir, "state"), hostdoc.StateDir, "rw", "noexec"),
		bind(r.host, hostdoc.HostPath, "ro"),
		bind(r.module, hostdoc.ModulePath, "ro"),
	}
}

func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{
		Type: "bind", Source: source, Destination: destination,
		Options: append([]string{"bind", "nosuid", "nodev"}, options...),
	}
}

// The kernel's files that containers do not see unless privileged (the lists
// of the OCI runtime specification's examples, as containerd uses them).
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)
