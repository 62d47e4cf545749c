package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// Run looks at the node. The error is for a doctor that cannot look at all; what is
// wrong with the node is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Clock == nil {
		return nil, fault.New(fault.Internal, "doctor", "has no clock")
	}
	r := &Report{Findings: []Finding{}}
	d := r.daemon(ctx, o)
	s := r.settings(ctx, d)
	g := gates{daemon: d, address: o.Address}
	g.ctr, _ = find(d.env, filepath.Dir(d.Program), "ctr")
	g.plugins(ctx, r)
	if s != nil {
		g.verifier = checkVerifiers(r, s)
		checkCRISettings(r, s)
	}
	cfg := r.config(d, o)
	r.programs(ctx, d, cfg, g.verifier)
	if cfg == nil {
		return r, nil
	}
	checkCaches(r, cfg)
	checkTime(r, o.Clock(), cfg)
	judge, err := judgeOf(checkTrust(ctx, r, cfg, o, d.env), cfg, o.Clock)
	if err != nil {
		return nil, err
	}
	if g.judge = judge; judge != nil {
		checkImages(ctx, r, g, cfg.Verify)
	}
	switch {
	case o.NoCanary:
		r.note(checkCanaryRun, "canary", "left out, as asked for", "whether the gates refuse anything was not shown")
		return r, nil
	case judge == nil:
		r.fail(checkCanaryRun, "canary", "left out: there is nothing to hold the gates' answers to", "whether the gates refuse anything was not shown", "repair the policy")
		return r, nil
	}
	if g.dir, err = os.MkdirTemp("", "mentat-doctor-"); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot make a temporary directory")
	}
	defer os.RemoveAll(g.dir)
	askGates(ctx, r, g, o.Clock())
	return r, nil
}

// daemon finds the running containerd; without one it is what would be started.
func (r *Report) daemon(ctx context.Context, o Options) *Daemon {
	d, err := findDaemon(ctx, o.Address)
	if err == nil {
		r.Daemon = d
		r.ok(checkDaemon, o.Address, "process %d, %s, since %s", d.PID, d.Program, stamp(d.Started))
		return d
	}
	r.fail(checkDaemon, o.Address, "no containerd can be looked at there: "+err.Error(), "what a running one does cannot be told", "start containerd, name its socket with --address, and run the doctor as root")
	d = &Daemon{Program: o.Containerd, Config: o.ContainerdConfig, Started: time.Now(), env: os.Environ()}
	if d.Program == "" {
		d.Program = "containerd"
	}
	if d.Config == "" {
		d.Config = defaultContainerdConfig
	}
	if path, err := exec.LookPath(d.Program); err == nil {
		d.Program = path
	}
	d.exe = d.Program
	return d
}

// settings reads what the daemon's configuration means.
func (r *Report) settings(ctx context.Context, d *Daemon) *settings {
	stdout, _, err := output(ctx, d.env, "", d.exe, "--version")
	if err != nil {
		stdout = err.Error()
	}
	checkContainerdVersion(r, d.Program, stdout)
	s, err := dump(ctx, d)
	if err != nil {
		r.fail(checkSettings, d.Config, "containerd cannot say what it means: "+err.Error(), "whether verifiers are asked cannot be told", "repair it; "+d.Program+" --config "+d.Config+" config dump shows the same")
		return nil
	}
	r.ok(checkSettings, d.Config, "read by %s itself", d.Program)
	if _, err := os.Lstat(d.Config); err == nil {
		checkPath(r, d.Config)
	}
	if d.PID != 0 {
		checkRestarted(r, d, s)
	}
	return s
}

// config is the node's configuration, by the name that shims and verifiers get.
func (r *Report) config(d *Daemon, o Options) *nodeconfig.Config {
	path := o.Config
	named := lookup(d.env, nodeconfig.Env)
	switch {
	case path != "" && d.PID != 0 && named != path && (named != "" || path != nodeconfig.DefaultPath):
		r.warn(checkConfig, path, fmt.Sprintf("is not what containerd's environment names: %s=%q", nodeconfig.Env, named), "the gates read another file than this report is about", "leave --config out, or set "+nodeconfig.Env+" for containerd")
	case path == "":
		path = named
	}
	if path == "" {
		path = nodeconfig.DefaultPath
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			// Load looks for the default itself, and alone may find it absent.
			path = ""
		}
	}
	cfg, err := load(path)
	if err != nil {
		r.fail(checkConfig, path, err.Error(), "gates and shims refuse everything", "repair it")
		return nil
	}
	if path == "" {
		r.ok(checkConfig, nodeconfig.DefaultPath, "is not there: the defaults hold")
	} else {
		r.ok(checkConfig, path, "well formed")
		checkPath(r, path)
	}
	return cfg
}

// load reads a configuration, or has the defaults where none is named: the
// doctor's own environment decides nothing.
func load(path string) (*nodeconfig.Config, error) {
	if path != "" {
		return nodeconfig.Load(path)
	}
	return nodeconfig.Parse(nodeconfig.DefaultPath, nil)
}

// programs finds ours, each where what starts it would find it.
func (r *Report) programs(ctx context.Context, d *Daemon, cfg *nodeconfig.Config, verifier string) {
	var found []program
	add := func(name, path string) { found = append(found, program{name, path}) }
	shim, err := find(d.env, filepath.Dir(d.Program), "containerd-shim-mentat-v1")
	if err != nil {
		r.fail(checkPrograms, "containerd-shim-mentat-v1", err.Error(), "the runtime "+mentatRuntime+" is not there: nothing is judged before it starts", "install it in a directory on containerd's PATH")
	} else {
		if target, err := filepath.EvalSymlinks(shim); err == nil {
			shim = target // the others lie beside the program itself
		}
		beside := filepath.Dir(shim)
		host := filepath.Join(beside, "mentat-host")
		if cfg != nil && cfg.Host.Binary != "" {
			host = cfg.Host.Binary
		}
		net := filepath.Join(filepath.Dir(host), "mentat-host-net")
		if cfg != nil && cfg.Host.NetBinary != "" {
			net = cfg.Host.NetBinary
		}
		add("containerd-shim-mentat-v1", shim)
		add("mentat-shim", filepath.Join(beside, "mentat-shim"))
		add("mentat-host", host)
		add("mentat-host-net", net)
	}
	if verifier != "" {
		add("mentat-verifier", verifier)
	}
	checkOurs(r, found)
	runc := "runc"
	if cfg != nil {
		runc = cfg.Runtime.Binary
	}
	r.runc(ctx, d, runc)
}

func (r *Report) runc(ctx context.Context, d *Daemon, name string) {
	path := name
	if !filepath.IsAbs(name) {
		var err error
		if path, err = find(d.env, filepath.Dir(d.Program), name); err != nil {
			r.fail(checkRunc, name, err.Error(), "no container starts", "install runc, or name it in config.toml, [runtime] binary")
			return
		}
	}
	stdout, stderr, err := output(ctx, d.env, "", path, "--version")
	if err != nil {
		stdout = err.Error() + " " + stderr
	}
	checkRuncVersion(r, path, stdout)
	checkPath(r, path)
}

// plugins asks the running daemon for its plugins.
func (g gates) plugins(ctx context.Context, r *Report) {
	if g.daemon.PID == 0 || g.ctr == "" {
		return // the canaries say so
	}
	stdout, stderr, err := output(ctx, g.daemon.env, "", g.ctr, "--address", g.address, "plugins", "ls")
	if err != nil {
		r.fail(checkLoaded, g.address, fmt.Sprintf("does not say what it runs: %s (%v)", words(stderr), err), "whether verifiers are asked cannot be told", "look at containerd's log")
		return
	}
	checkPluginList(r, stdout)
}
