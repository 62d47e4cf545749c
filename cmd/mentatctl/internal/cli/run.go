package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/aot"
	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

type runOptions struct {
	input    string
	dirs     []string
	env      []string
	memory   int64
	deadline time.Duration
	// allow are granted as they are, capabilities is a policy whose rules grant
	// what the manifest asks for, too.
	allow        []string
	capabilities string
	serve        serveFlags
	trust        trustFlags
	remote       remoteFlags
}

func (a *app) runCmd() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   runName + " TARGET [flags] [-- ARGUMENT...]",
		Short: "Run an agent on this machine",
		Long: `Run a WASM agent here, without a container: an agent's directory, an image
reference or a bare .wasm file. A reference is judged by the policy first, as
verify does it.

Its input is a file, or stdin, or the arguments. What flags give is granted, and
nothing else: no directory, no variable, no network of this machine. --capabilities
names rules of yours, such as ~/.mentat/capabilities.yaml, that grant what the
agent's manifest asks for, and serve it. What is on disk is yours and counts as
verified for them; a reference has the trust level that the policy gives it. Their
denials hold for flags, too.

An agent whose manifest says "mode: serve", or any with --serve, answers HTTP
requests instead, on this machine alone unless --listen says otherwise; Ctrl-C
lets the requests that run finish.

The agent's exit status is passed on. run itself fails with 125.`,
		Example: `  mentatctl run hello --input input.json
  echo '{"text": "one two"}' | mentatctl run hello
  mentatctl run tool.wasm --dir ./data::/data::ro --env LANG=C -- --verbose /data/in.txt
  mentatctl run hello --allow network:https:api.example.com --capabilities ~/.mentat/capabilities.yaml
  mentatctl run registry.example.com/agents/hello:0.1.0 --input input.json
  mentatctl run hello --serve --listen 127.0.0.1:9000`,
		Args: wantArgs(1, -1, "an agent's directory, a .wasm file or a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(o.trust.check(cmd), positive(cmd, "memory", o.memory), positive(cmd, "deadline", o.deadline)); err != nil {
				return err
			}
			o.serve.said = cmd.Flags().Changed("serve")
			if flag := changed(cmd, "policy", "config"); flag != "" && isLocal(args[0]) {
				return fault.New(fault.Usage, args[0], "--%s judges references; what is on disk is yours to run", flag).WithHint("mentatctl verify judges a directory")
			}
			return a.run(cmd.Context(), args[0], args[1:], &o)
		},
	}
	cmd.Flags().StringVarP(&o.input, "input", "i", "", "read the input from this `FILE`, or from stdin with -")
	cmd.Flags().StringArrayVar(&o.dirs, "dir", nil, "give the agent a directory, as `HOST::GUEST[::ro]`; may be repeated")
	cmd.Flags().StringArrayVarP(&o.env, "env", "e", nil, "give the agent a variable, as `NAME=VALUE`, or NAME to pass one on; may be repeated")
	cmd.Flags().StringArrayVar(&o.allow, "allow", nil, "give the agent a `CAPABILITY`, whether it asks for it or not; may be repeated")
	cmd.Flags().StringVar(&o.capabilities, "capabilities", "", "grant and serve by the capability policy in this `FILE`, too")
	cmd.Flags().Int64Var(&o.memory, "memory", 0, "bound the agent's memory to this many `MB`")
	cmd.Flags().DurationVar(&o.deadline, "deadline", 0, "end the agent after this `DURATION`")
	o.serve.add(cmd)
	o.trust.add(cmd)
	o.remote.add(cmd)
	a.progresses(cmd)
	return cmd
}

// runnable is a module that may run, with what is known of it.
type runnable struct {
	agent    *manifest.Manifest // nil for a bare module
	data     []byte
	entry    string
	name     string
	verdict  *verifier.Verdict
	own      bool          // it lies on this disk, as the one who runs it made it
	artifact digest.Digest // "" for what is no artifact
	ref      string
}

func (a *app) run(ctx context.Context, name string, args []string, o *runOptions) error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fault.New(fault.Unsupported, "", "run needs mentat-host, which is for linux/amd64; this is %s/%s", runtime.GOOS, runtime.GOARCH).
			WithHint("build, sign, verify and publish work here; run the published agent on a Linux node")
	}
	given, err := o.given()
	if err != nil {
		return err
	}
	host, err := findHost()
	if err != nil {
		return err
	}
	progress := a.newProgress()
	defer progress.Close()
	r, err := a.runnable(ctx, name, o, progress)
	if err != nil {
		return err
	}
	path, err := compile(ctx, host, r, progress)
	if err != nil {
		return err
	}
	progress.Close()
	grant, err := a.operatorGrant(r, o, given)
	if err != nil {
		return err
	}
	secrets, err := readSecrets(grant, given)
	if err != nil {
		return err
	}
	doc, err := a.document(r, path, args, o, grant)
	if err != nil {
		return err
	}
	if o.serve.wanted(r.agent) {
		return a.serve(ctx, host, doc, secrets, r.agent, o, args)
	}
	return a.exec(ctx, host, doc, secrets)
}

// given are the grants of the one who runs the agent.
func (o *runOptions) given() (capability.Given, error) {
	g := capability.Given{Env: map[string]string{}}
	for _, d := range o.dirs {
		parts := strings.Split(d, "::")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !strings.HasPrefix(parts[1], "/") || len(parts) == 3 && parts[2] != "ro" {
			return g, fault.New(fault.Usage, "--dir", "%q is not of the form HOST::/GUEST or HOST::/GUEST::ro", d)
		}
		source, err := filepath.Abs(parts[0])
		if err != nil {
			return g, fault.Wrap(err, fault.Usage, "--dir", "%q cannot be resolved", parts[0])
		}
		// The host follows no link; whoever names one here means where it leads.
		if resolved, err := filepath.EvalSymlinks(source); err == nil {
			source = resolved
		}
		if info, err := os.Stat(source); err != nil || !info.IsDir() {
			return g, fault.New(fault.NotFound, parts[0], "there is no such directory to give with --dir")
		}
		g.Mounts = append(g.Mounts, capability.Mount{Source: source, Destination: parts[1], ReadOnly: len(parts) == 3})
	}
	for _, kv := range o.env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				return g, fault.New(fault.Usage, "--env", "%s is not set here, so it cannot be passed on", name).WithHint("give its value: --env %s=VALUE", name)
			}
		}
		if name == "" {
			return g, fault.New(fault.Usage, "--env", "%q has no name", kv)
		}
		g.Env[name] = value
	}
	return g, nil
}

// hostName is the program that runs modules.
const hostName = "mentat-host"

// findHost finds mentat-host: $MENTAT_HOST, beside this program, on PATH.
func findHost() (string, error) {
	if path := os.Getenv(hostEnv); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fault.New(fault.NotFound, path, "there is no mentat-host there, although %s says so", hostEnv)
		}
		return filepath.Abs(path)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), hostName)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(hostName)
	if err != nil {
		return "", fault.New(fault.NotFound, hostName, "is neither beside mentatctl nor on PATH").
			WithHint("install it there, or name it in %s", hostEnv)
	}
	return filepath.Abs(path)
}

// runnable finds the module that a name means and judges what comes from a
// registry or a layout.
func (a *app) runnable(ctx context.Context, name string, o *runOptions, p *display.Progress) (*runnable, error) {
	switch {
	case isLocal(name) && filepath.Ext(name) == ".wasm":
		return bare(name)
	case isLocal(name) && !isLayout(name):
		return a.own(name)
	}
	t, err := a.open(ctx, name, &o.remote, p)
	if err != nil {
		return nil, err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.Module != nil {
			return a.judged(ctx, t, f.Artifact, &o.trust)
		}
	}
	switch found[0].Form {
	case oci.FormContainer, oci.FormImage:
		return nil, fault.New(fault.Unsupported, name, "is a container, and run is for WASM agents").WithHint("run it with nerdctl, ctr or Kubernetes")
	}
	return nil, fault.New(fault.Unsupported, name, "carries no WASM module as a blob of its own")
}

// judged asks the policy about a reference. A layout on disk has no name that a
// policy could judge: its signature is checked if it has one, and it gets no
// more than an unsigned agent.
func (a *app) judged(ctx context.Context, t *target, artifact *oci.Artifact, flags *trustFlags) (*runnable, error) {
	verifierFor := a.verifier
	if t.reference == "" {
		verifierFor = a.localVerifier
	}
	j, err := verifierFor(ctx, flags)
	if err != nil {
		return nil, err
	}
	in, err := t.input(ctx, j, t.reference, fetchedArtifact{Artifact: artifact})
	if err != nil {
		return nil, err
	}
	vd := j.Verify(ctx, in)
	if !vd.Allowed {
		return nil, vd.Err
	}
	if t.reference != "" {
		for _, w := range vd.Warnings {
			a.printer().Note("warning: %s", w)
		}
	}
	data, err := cachedModule(ctx, t.fetcher, *artifact.Module)
	if err != nil {
		return nil, err
	}
	r, err := fromBytes(data, artifact.Agent, "agent.wasm")
	if err != nil {
		return nil, err
	}
	r.artifact, r.verdict, r.ref = artifact.Digest, vd, t.reference
	return r, nil
}

// cachedModule reads a module from this person's cache, after it was fetched
// into it.
func cachedModule(ctx context.Context, from oci.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	dir, err := cacheDir("blobs")
	if err != nil {
		return nil, err
	}
	cache, err := oci.OpenLayout(dir)
	if fault.ReasonOf(err) == fault.NotFound {
		cache, err = oci.CreateLayout(dir)
	}
	if err != nil {
		return nil, err
	}
	have, err := cache.Exists(ctx, desc)
	if err != nil {
		return nil, err
	}
	if !have {
		body, err := from.Fetch(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer body.Close() //nolint:errcheck // only read from
		if err := cache.Push(ctx, desc, body); err != nil {
			return nil, err
		}
	}
	return oci.ReadBlob(ctx, cache, desc, limits.ModuleBytes)
}

// localVerifier trusts nobody, whatever the policy says.
func (a *app) localVerifier(context.Context, *trustFlags) (*judgement, error) {
	v, err := verifier.New(verifier.Config{Stamps: timestamp.Reader{}, Clock: a.now})
	return &judgement{Verifier: v}, err
}

func isLayout(name string) bool {
	_, err := os.Stat(filepath.Join(name, ocispec.ImageLayoutFile))
	return err == nil
}

// bare is a module without a manifest.
func bare(path string) (*runnable, error) {
	data, info, err := agentdir.ReadModuleFile(path)
	if err != nil {
		return nil, err
	}
	return &runnable{data: data, entry: info.Entry, name: filepath.Base(path), verdict: unsigned(), own: true}, nil
}

// own is an agent's directory: its module as it lies there.
func (a *app) own(name string) (*runnable, error) {
	d, err := agentdir.Open(name)
	if err != nil {
		return nil, err
	}
	if d.ModulePath() == "" {
		return nil, fault.New(fault.Unsupported, d.ManifestPath(), "the agent's runtime is %s, and run is for WASM agents", d.Manifest.Runtime)
	}
	if drifted, err := d.SourcesDrifted(); err == nil && drifted {
		a.printer().Note("warning: the sources in %s changed since %s was built", d.Path, d.Manifest.Module)
	}
	data, info, err := d.ReadModule()
	if err != nil {
		return nil, withHint(err, fault.NotFound, "mentatctl build "+d.Path)
	}
	return &runnable{agent: d.Manifest, data: data, entry: info.Entry, name: filepath.Base(d.ModulePath()), verdict: unsigned(), own: true}, nil
}

// fromBytes is a module from an artifact.
func fromBytes(data []byte, agent *manifest.Manifest, name string) (*runnable, error) {
	info, err := module.Inspect(data)
	if err == nil {
		err = info.Check()
	}
	if err != nil {
		return nil, err
	}
	return &runnable{agent: agent, data: data, entry: info.Entry, name: name}, nil
}

// unsigned is the verdict on one's own files.
func unsigned() *verifier.Verdict {
	return &verifier.Verdict{Allowed: true, Trust: verifier.Untrusted, Developer: true}
}

// compile returns the compiled module's path in this person's cache.
func compile(ctx context.Context, host string, r *runnable, p *display.Progress) (string, error) {
	dir, err := cacheDir("modules")
	if err != nil {
		return "", err
	}
	memory := ""
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		memory = filepath.Join(run, "mentat-modules")
	}
	cache, err := aot.Open(aot.Options{Dir: dir, Memory: memory, HostBinary: host})
	if err != nil {
		return "", err
	}
	done := p.Step("compiling %s", r.name)
	defer done()
	entry, err := cache.Module(ctx, digest.FromBytes(r.data), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(r.data)), nil
	})
	return entry.Path, err
}

// document describes the run.
func (a *app) document(r *runnable, path string, args []string, o *runOptions, grant *capability.Grant) (*hostdoc.Document, error) {
	doc := &hostdoc.Document{
		Agent:      hostdoc.Agent{ID: r.name, Reference: r.ref, Module: digest.FromBytes(r.data).String(), Manifest: r.artifact.String(), Trust: string(r.verdict.Trust)},
		Instance:   "run-" + a.now().UTC().Format("20060102T150405.000"),
		Entry:      r.entry,
		Module:     path,
		Args:       append([]string{r.name}, args...),
		Env:        grant.Env,
		Preopens:   grant.Preopens,
		Config:     grant.Config,
		Grants:     grant.Grants,
		Denials:    grant.Denials(),
		Holes:      grant.Holes,
		Network:    grant.Network,
		LLM:        grant.LLM,
		Media:      grant.Media,
		Extensions: grant.Extensions,
		Limits:     hostdoc.Limits{MemoryBytes: limits.DefaultGuestMemory, InputBytes: limits.InputBytes, OutputBytes: limits.OutputBytes},
		LogFormat:  "json",
		Notices:    grant.Withheld,
	}
	if display.IsTerminal(a.stderr) {
		doc.LogFormat = "text"
	}
	if r.verdict.Signer != nil {
		doc.Agent.Signer = r.verdict.Signer.Email
	}
	if r.agent != nil {
		doc.Agent.ID, doc.Agent.Version = r.agent.ID, r.agent.Version
		if limit := r.agent.MemoryLimit(); limit > 0 {
			doc.Limits.MemoryBytes = limit
		}
		doc.Limits.DeadlineMillis, doc.Limits.CPUMillis = millis(r.agent.Deadline()), millis(r.agent.CPUTime())
	}
	if o.memory > math.MaxInt64/limits.MiB {
		return nil, fault.New(fault.Usage, "--memory", "%d MB is more than can be counted", o.memory)
	}
	if asked := o.memory * limits.MiB; asked > 0 && asked < doc.Limits.MemoryBytes || r.agent == nil && asked > 0 {
		doc.Limits.MemoryBytes = asked
	}
	if asked := millis(o.deadline); asked > 0 && (doc.Limits.DeadlineMillis == 0 || asked < doc.Limits.DeadlineMillis) {
		doc.Limits.DeadlineMillis = asked
	}
	var err error
	doc.Input, err = a.input(o, r.entry, args)
	return doc, err
}

// millis rounds up: a deadline below a millisecond must not become none.
func millis(d time.Duration) int64 {
	return (d + time.Millisecond - 1).Milliseconds()
}

// input chooses the run's input. A WASI command gets its arguments as they are;
// for an agent with process they are the input when nothing else is named.
func (a *app) input(o *runOptions, entry string, args []string) (hostdoc.Input, error) {
	switch {
	case o.input != "" && o.input != "-":
		path, err := filepath.Abs(o.input)
		if err != nil {
			return hostdoc.Input{}, fault.Wrap(err, fault.Usage, o.input, "cannot resolve the path")
		}
		f, err := os.Open(path)
		if err != nil {
			return hostdoc.Input{}, inputError(o.input, err)
		}
		info, err := f.Stat()
		if err = errors.Join(err, f.Close()); err != nil {
			return hostdoc.Input{}, inputError(o.input, err)
		}
		if info.IsDir() {
			return hostdoc.Input{}, fault.New(fault.Usage, o.input, "is a directory, the input is a file")
		}
		return hostdoc.Input{Kind: hostdoc.InputFile, Path: path}, nil
	case o.input == "" && len(args) > 0 && entry != hostdoc.EntryCommand:
		return hostdoc.Input{Kind: hostdoc.InputText, Text: strings.Join(args, " ")}, nil
	case o.input == "" && entry != hostdoc.EntryCommand && display.IsTerminal(a.stdin):
		a.printer().Note("reading the input from the terminal; Ctrl-D ends it")
	}
	return hostdoc.Input{Kind: hostdoc.InputStdin}, nil
}

func inputError(name string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, name, "there is no such input file")
	}
	return fault.Wrap(err, fault.Usage, name, "cannot read the input")
}

// exec runs mentat-host and returns the agent's status as an [agentExit].
func (a *app) exec(ctx context.Context, host string, doc *hostdoc.Document, secrets hostdoc.Secrets, files ...*os.File) error {
	if doc.Connects() {
		var err error
		if host, err = netHost(host); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "mentat-run-")
	if err == nil {
		defer os.RemoveAll(dir)
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, "", "cannot make a directory for the run")
	}
	if len(secrets) > 0 {
		doc.SecretsFile = filepath.Join(dir, "secrets.json")
		values, err := json.Marshal(secrets)
		if err == nil {
			err = agentdir.WriteFile(doc.SecretsFile, values, 0o400)
		}
		if err != nil {
			return fault.Wrap(err, fault.Internal, "", "cannot pass the secrets to the host")
		}
	}
	path := filepath.Join(dir, "host.json")
	if err := lock(doc, path); err != nil {
		return err
	}
	data, err := doc.Marshal()
	if err != nil {
		return fault.Wrap(err, fault.Internal, "", "cannot encode the host document")
	}
	if err := agentdir.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	words := hostdoc.Command(host, path, doc.Lock)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.ExtraFiles = files
	// The host gets no variable of this environment: what the guest sees stands
	// in the document, and GODEBUG and the like would change the host itself.
	cmd.Env = []string{}
	status, err := supervise(ctx, cmd, display.IsTerminal(a.stdin))
	if err != nil {
		return fault.Wrap(err, fault.Internal, host, "cannot run it")
	}
	if status != 0 {
		return agentExit(status)
	}
	return nil
}
