package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

const (
	specName = "config.json"
	// originalName keeps the specification that config.json was made from. It
	// lies beside config.json and not in the private directory: the container
	// sees that one, and the original holds the environment it must not see.
	originalName = "config.mentat.json"
	// privateDir is our directory in a bundle; it becomes [hostdoc.Dir].
	privateDir = "mentat"
	// rootDir in it is the container's root file system, deviceDir its /dev unless
	// it has a terminal, stateDir what the container may write to.
	rootDir   = "root"
	deviceDir = "dev"
	stateDir  = "state"
	// inputAnnotation and inputEnv name a file with the run's input.
	inputAnnotation = "dev.mentatlab.input"
	inputEnv        = "MENTAT_INPUT"
	// terminationLog is where Kubernetes reads a container's last words.
	terminationLog = "/dev/termination-log"
	specBytes      = 16 * limits.MiB
)

// Prepared tells whether a bundle was rewritten to run a WASM agent.
func Prepared(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, privateDir, filepath.Base(hostdoc.Path)))
	return err == nil
}

// ReadExit reads how a WASM agent's run ended; errors.Is fs.ErrNotExist when
// the host was killed before it could say.
func ReadExit(dir string) (*hostdoc.Exit, error) {
	// The container writes to that directory: no link out of it is followed, and
	// no pipe is waited for.
	name := filepath.Join(dir, privateDir, stateDir, filepath.Base(hostdoc.ExitPath))
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Internal, name, "the run's exit record is %s, not a file", info.Mode().Type())
	}
	data, err := limits.Read(f, limits.LogLineBytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read the run's exit record: %w", err)
	}
	exit := new(hostdoc.Exit)
	if err := json.Unmarshal(data, exit); err != nil {
		return nil, fmt.Errorf("cannot read the run's exit record: %w", err)
	}
	return exit, nil
}

// bundleSpec is a bundle's specification as its container manager wrote it.
type bundleSpec struct {
	*specs.Spec
	dir string
	raw []byte
	// rewritten tells that config.json is no longer raw: an earlier preparation
	// replaced it, and creating the container failed afterwards.
	rewritten bool
}

// original is what [originalName] holds.
type original struct {
	// Rewritten is the digest of the config.json that was made from Spec. With
	// any other one the container manager wrote a new specification.
	Rewritten digest.Digest `json:"rewritten"`
	Spec      []byte        `json:"spec"`
}

func readSpec(dir string) (*bundleSpec, error) {
	b := &bundleSpec{dir: dir}
	name := filepath.Join(dir, specName)
	var err error
	if b.raw, err = limits.ReadFile(name, specBytes); err != nil {
		r := fault.Internal
		switch {
		case errors.Is(err, fs.ErrNotExist):
			r = fault.NotFound
		case errors.Is(err, limits.ErrExceeded):
			r = fault.ResourceLimit
		}
		return nil, fault.Wrap(err, r, name, "the bundle has no readable specification")
	}
	kept, err := limits.ReadFile(filepath.Join(dir, originalName), 2*specBytes)
	switch {
	case err == nil:
		var o original
		if err := json.Unmarshal(kept, &o); err != nil {
			return nil, fault.Wrap(err, fault.Internal, filepath.Join(dir, originalName), "the record of the original specification is damaged")
		}
		if o.Rewritten == digest.FromBytes(b.raw) {
			b.raw, b.rewritten = o.Spec, true
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot read the original specification")
	}
	if b.Spec, err = parseSpec(name, b.raw); err != nil {
		return nil, err
	}
	return b, nil
}

// restore gives config.json back what an earlier preparation replaced, for a
// container that is not to run WASM after all.
func (b *bundleSpec) restore() error {
	if !b.rewritten {
		return nil
	}
	if err := writeFile(filepath.Join(b.dir, specName), b.raw, 0o600); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(b.dir, privateDir)); err != nil {
		return fault.Wrap(err, fault.Internal, b.dir, "cannot remove the agent's private directory")
	}
	return nil
}

// replace writes a rewritten specification, and before it the record of what it
// was made from.
func (b *bundleSpec) replace(data []byte) error {
	record, err := json.Marshal(original{Rewritten: digest.FromBytes(data), Spec: b.raw})
	if err != nil {
		return fault.Wrap(err, fault.Internal, b.dir, "cannot encode the original specification")
	}
	if err := writeFile(filepath.Join(b.dir, originalName), record, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(b.dir, specName), data, 0o600)
}

// linuxSpec is [specs.Spec] without what is for other platforms: their types alone
// take the JSON library a third of its time, and a shim reads one specification.
type linuxSpec struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process,omitempty"`
	Root        *specs.Root       `json:"root,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Domainname  string            `json:"domainname,omitempty"`
	Mounts      []specs.Mount     `json:"mounts,omitempty"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Linux       *specs.Linux      `json:"linux,omitempty"`
}

func parseSpec(name string, data []byte) (*specs.Spec, error) {
	var s linuxSpec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fault.Wrap(err, fault.Usage, name, "the specification is not valid")
	}
	return &specs.Spec{
		Version: s.Version, Process: s.Process, Root: s.Root, Hostname: s.Hostname, Domainname: s.Domainname,
		Mounts: s.Mounts, Hooks: s.Hooks, Annotations: s.Annotations, Linux: s.Linux,
	}, nil
}

func encodeSpec(s *specs.Spec) ([]byte, error) {
	return json.Marshal(&linuxSpec{
		Version: s.Version, Process: s.Process, Root: s.Root, Hostname: s.Hostname, Domainname: s.Domainname,
		Mounts: s.Mounts, Hooks: s.Hooks, Annotations: s.Annotations, Linux: s.Linux,
	})
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

// wasmRun is one decision to run a WASM agent, applied to a specification.
type wasmRun struct {
	id, dir   string
	stdin     bool
	closed    bool
	reference string
	artifact  *oci.Artifact
	verdict   *verifier.Verdict
	host      string
	netHost   string
	module    string
	grant     capability.Grant
	node      servingNode
	// bounds are the node's on every agent.
	bounds    nodeconfig.Sandbox
	provision provision
	note      *note
	// inputMount is what holds the input, nil without a file.
	inputMount *specs.Mount
	// devicePlaces are names in /dev onto which something is mounted.
	devicePlaces []string
}

// apply writes the bundle's private directory and then, last and only once the
// run is recorded and the agent's content held, config.json. side waits for what
// goes on beside it.
func (r *wasmRun) apply(spec *bundleSpec, held func() (struct{}, error), side *sync.WaitGroup) error {
	p, err := r.plan(spec.Spec)
	if err != nil {
		return errors.Join(err, r.dropAudit())
	}
	recorded := begin(side, func() (struct{}, error) { return struct{}{}, r.note.run(&r.grant) })
	err = r.writePrivate(p)
	if _, e := recorded(); err == nil {
		err = e
	}
	if _, e := held(); err == nil {
		err = e
	}
	if err == nil {
		err = spec.replace(p.spec)
	}
	if err != nil {
		return errors.Join(err, r.dropAudit(), os.RemoveAll(filepath.Join(r.dir, privateDir)))
	}
	return nil
}

// plan is what apply writes: everything is decided before anything is written.
type plan struct {
	document, spec []byte
	owners         owners
}

// plan rewrites spec in place.
func (r *wasmRun) plan(spec *specs.Spec) (p plan, err error) {
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return p, fault.New(fault.Usage, filepath.Join(r.dir, specName), "process, root and linux are required")
	}
	if p.owners, err = ownersOf(spec); err != nil {
		return p, err
	}
	if err := r.limitTempDirs(); err != nil {
		return p, err
	}
	doc, err := r.document(spec)
	if err != nil {
		return p, err
	}
	if doc.Connects() {
		r.host = r.netHost
		if _, err := os.Stat(r.host); err != nil {
			return p, fault.Wrap(err, fault.NotFound, r.host, "the agent needs the host that can use a network, and it is not there").
				WithHint("install mentat-host-net beside mentat-host, or name it in host.net_binary of the configuration")
		}
	}
	if p.document, err = doc.Marshal(); err != nil {
		return p, fault.Wrap(err, fault.ReasonOf(err), r.id, "cannot encode the host document")
	}
	if err := r.rewrite(spec, doc); err != nil {
		return p, err
	}
	if p.spec, err = encodeSpec(spec); err != nil {
		return p, fault.Wrap(err, fault.Internal, r.id, "cannot encode the specification")
	}
	return p, nil
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
		Instance: r.id,
		Module:   hostdoc.ModulePath,
		Args:     r.args(spec),
		Env:      r.grant.Env,
		Preopens: r.grant.Preopens,
		Config:   r.grant.Config,
		Grants:   r.grant.Grants,
		Denials:  r.grant.Denials(),
		Holes:    r.grant.Holes,
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
		doc.Limits.DeadlineMillis = millis(agent.Deadline())
	}
	if r.verdict.Signer != nil {
		doc.Agent.Signer = r.verdict.Signer.Email
	}
	if spec.Process.Terminal {
		doc.LogFormat = "text"
	}
	if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return isManagers(m) && destination(m) == terminationLog }) {
		doc.Termination = terminationLog
	}
	if doc.Input, err = r.input(spec, doc.Args); err != nil {
		return nil, err
	}
	if err := r.serving(spec, doc); err != nil {
		return nil, err
	}
	if err := r.provide(spec, doc); err != nil {
		return nil, err
	}
	r.bound(doc)
	doc.Lock = lock(doc, spec)
	return doc, nil
}

// lock is what the host locks itself into: the document's own needs, and the
// files by which it finds addresses where it may.
func lock(doc *hostdoc.Document, spec *specs.Spec) *hostdoc.Lock {
	l := doc.LeastLock(hostdoc.Path)
	for _, name := range nameFiles {
		if l.Dial && slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return isManagers(m) && destination(m) == name }) {
			l.Read = append(l.Read, name)
		}
	}
	return l
}

// args are the container's arguments after the image's program, which is the
// entrypoint or, without one, the first word of the command.
func (r *wasmRun) args(spec *specs.Spec) []string {
	given := spec.Process.Args
	var program []string
	if c := r.artifact.Config; c != nil {
		program = c.Config.Entrypoint
		if len(program) == 0 && len(c.Config.Cmd) > 0 {
			program = c.Config.Cmd[:1]
		}
	}
	switch {
	case len(program) > 0 && len(given) >= len(program) && slices.Equal(given[:len(program)], program):
		return append([]string{path.Base(program[0])}, given[len(program):]...)
	case len(given) > 0 && strings.HasSuffix(given[0], ".wasm"):
		return append([]string{path.Base(given[0])}, given[1:]...)
	}
	return append([]string{"agent.wasm"}, given...)
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
		if !isBind(m) {
			return hostdoc.Input{}, fault.New(fault.Unsupported, m.Destination, "the input is on a %s mount, only bind mounts can be read", m.Type)
		}
		if !filepath.IsAbs(m.Source) {
			m.Source = filepath.Join(r.dir, m.Source) // as the runtime does
		}
		if _, err := os.Stat(m.Source); err != nil {
			return hostdoc.Input{}, fault.Wrap(err, fault.NotFound, name, "the input file's mount has no source")
		}
		m = narrowed(m, true)
		m.Destination = hostdoc.InputPath
		r.inputMount = &m
		return hostdoc.Input{Kind: hostdoc.InputFile, Path: path.Join(hostdoc.InputPath, rest)}, nil
	case len(args) > 1 && !r.stdin:
		return hostdoc.Input{Kind: hostdoc.InputText, Text: strings.Join(args[1:], " ")}, nil
	}
	return hostdoc.Input{Kind: hostdoc.InputStdin}, nil
}

func (r *wasmRun) writePrivate(p plan) error {
	o, dir := p.owners, filepath.Join(r.dir, privateDir)
	state, root := filepath.Join(dir, stateDir), filepath.Join(dir, rootDir)
	// What is bind-mounted into a read-only directory needs a place there.
	place := func(at string) func() error {
		return func() error { return os.WriteFile(filepath.Join(dir, filepath.Base(at)), nil, 0o444) }
	}
	steps := []func() error{
		func() error { return os.RemoveAll(dir) },
		func() error { return mkdir(dir, 0o755) },
		func() error { return mkdir(state, 0o700) },
		func() error { return os.Chown(state, o.uid, o.gid) },
		func() error { return mkdir(root, 0o755) },
		func() error { return os.Chown(root, o.rootUID, o.rootGID) },
		func() error { return r.makeDevices(filepath.Join(dir, deviceDir)) },
		place(hostdoc.HostPath),
		place(hostdoc.ModulePath),
		func() error { return r.inputPlace(dir) },
		func() error { return r.provision.write(dir, o) },
		func() error { return writeFile(filepath.Join(dir, filepath.Base(hostdoc.Path)), p.document, 0o444) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			err = fault.Wrap(err, fault.Internal, dir, "cannot make the agent's private directory")
			return errors.Join(err, os.RemoveAll(dir))
		}
	}
	return nil
}

// makeDevices makes the directory that becomes /dev.
func (r *wasmRun) makeDevices(dir string) error {
	if len(r.devicePlaces) == 0 {
		return nil
	}
	err := mkdir(dir, 0o755)
	for _, name := range r.devicePlaces {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), nil, 0o444))
	}
	return err
}

// mkdir makes a directory of that mode whatever the caller's umask is: the
// container's user must get in.
func mkdir(name string, mode fs.FileMode) error {
	return errors.Join(os.Mkdir(name, mode), os.Chmod(name, mode))
}

// inputPlace makes the place onto which the input's mount goes.
func (r *wasmRun) inputPlace(dir string) error {
	if r.inputMount == nil {
		return nil
	}
	place := filepath.Join(dir, filepath.Base(hostdoc.InputPath))
	info, err := os.Stat(r.inputMount.Source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return mkdir(place, 0o755)
	}
	return writeFile(place, nil, 0o444)
}

// owners are the container's user and its root, as the node numbers them.
type owners struct {
	uid, gid         int
	rootUID, rootGID int
}

func ownersOf(spec *specs.Spec) (o owners, err error) {
	for _, id := range []struct {
		out  *int
		id   uint32
		maps []specs.LinuxIDMapping
	}{
		{&o.uid, spec.Process.User.UID, spec.Linux.UIDMappings},
		{&o.gid, spec.Process.User.GID, spec.Linux.GIDMappings},
		{&o.rootUID, 0, spec.Linux.UIDMappings},
		{&o.rootGID, 0, spec.Linux.GIDMappings},
	} {
		var ok bool
		if *id.out, ok = hostID(id.id, id.maps); !ok {
			return o, fault.New(fault.Usage, specName, "the id %d is not one of the container's user namespace", id.id)
		}
	}
	return o, nil
}

// hostID is a container's id outside its user namespace, if it has one.
func hostID(id uint32, maps []specs.LinuxIDMapping) (int, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID) + int(id-m.ContainerID), true
		}
	}
	return int(id), len(maps) == 0
}

// rewrite replaces, not merges, what the container was given: the process of a
// WASM agent is ours, and nothing a user set may reach it.
func (r *wasmRun) rewrite(spec *specs.Spec, doc *hostdoc.Document) error {
	files, err := r.openFiles(doc)
	if err != nil {
		return err
	}
	given := spec.Process
	spec.Process = &specs.Process{
		Terminal:        given.Terminal,
		ConsoleSize:     given.ConsoleSize,
		User:            specs.User{UID: given.User.UID, GID: given.User.GID},
		Args:            hostdoc.Command(hostdoc.HostPath, hostdoc.Path, doc.Lock),
		Cwd:             "/",
		Capabilities:    &specs.LinuxCapabilities{},
		NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Hard: files, Soft: files},
			{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
		},
		ApparmorProfile: given.ApparmorProfile,
		SelinuxLabel:    given.SelinuxLabel,
		OOMScoreAdj:     given.OOMScoreAdj,
	}
	// An empty root of our own: a dual image's files, symbolic links among them,
	// have no part in a WASM run.
	spec.Root.Path, spec.Root.Readonly = filepath.Join(r.dir, privateDir, rootDir), true

	l := spec.Linux
	l.Devices = nil
	l.RootfsPropagation = ""
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	l.MaskedPaths = union(l.MaskedPaths, maskedPaths)
	l.ReadonlyPaths = union(l.ReadonlyPaths, readonlyPaths)
	l.Namespaces = ownNamespaces(l.Namespaces)
	if err := r.limit(l.Resources, doc); err != nil {
		return err
	}
	spec.Mounts = r.mounts(spec.Mounts, spec.Process.Terminal || r.closed)
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	maps.DeleteFunc(spec.Annotations, func(k, _ string) bool {
		return slices.ContainsFunc(instructions, func(prefix string) bool { return strings.HasPrefix(k, prefix) })
	})
	maps.Copy(spec.Annotations, map[string]string{
		"dev.mentatlab.run.agent":    doc.Agent.ID,
		"dev.mentatlab.run.manifest": doc.Agent.Manifest,
		"dev.mentatlab.run.module":   doc.Agent.Module,
		"dev.mentatlab.run.trust":    doc.Agent.Trust,
	})
	return nil
}

// instructions begin the annotations that are no notes but orders to a runtime:
// runc sets any property of the systemd unit by them, TasksMax among them, and
// crun replaces the seccomp filter or the program that runs.
var instructions = []string{"org.systemd.property.", "run.oci.", "module.wasm.image/"}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
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
