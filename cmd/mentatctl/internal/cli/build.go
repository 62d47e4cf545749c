package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/toolchain"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
)

type buildResult struct {
	display.Header
	Agents []builtAgent `json:"agents"`
}

type builtAgent struct {
	Directory string         `json:"directory"`
	ID        string         `json:"id"`
	Version   string         `json:"version"`
	Form      oci.Form       `json:"form"`
	Toolchain toolchain.Kind `json:"toolchain"`
	Module    *builtModule   `json:"module,omitempty"`
	Container *agentdir.Pin  `json:"container,omitempty"`
	Artifact  digest.Digest  `json:"artifact"`
	Size      int64          `json:"size"`
	Layout    string         `json:"layout"`
	Millis    int64          `json:"milliseconds"`
	// Outdated says that manifest.yaml shows the attestation of an earlier
	// artifact.
	Outdated bool `json:"attestation_outdated,omitempty"`
	// Warnings name grants that the module's imports need and the manifest lacks.
	Warnings []string `json:"warnings,omitempty"`
}

type builtModule struct {
	Path   string        `json:"path"`
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Entry  string        `json:"entry"`
}

func (r *buildResult) Text(w *display.Writer) {
	for _, b := range r.Agents {
		w.Line("built %s %s in %s", b.ID, b.Version, display.Took(time.Duration(b.Millis)*time.Millisecond))
		if m := b.Module; m != nil {
			w.Field("module", "%s, %s, entry %s", m.Path, display.Size(m.Size), m.Entry)
		}
		if b.Container != nil {
			w.Field("container", "%s@%s", b.Container.Reference, b.Container.Digest)
		}
		w.Field("artifact", "%s, %s", b.Artifact, display.Size(b.Size))
		w.Field("layout", "%s", b.Layout)
	}
	if len(r.Agents) != 1 {
		return
	}
	if b := r.Agents[0]; b.Outdated {
		w.Line("next: mentatctl sign %s; manifest.yaml shows the attestation of an earlier artifact", b.Directory)
	} else {
		w.Line("next: mentatctl run %[1]s, or mentatctl sign %[1]s", b.Directory)
	}
}

type buildOptions struct {
	kind    toolchain.Kind
	offline bool
	update  bool
	remote  remoteFlags
}

func (a *app) buildCmd() *cobra.Command {
	o := buildOptions{kind: toolchain.Auto}
	cmd := &cobra.Command{
		Use:   "build [DIR|MANIFEST]...",
		Short: "Compile an agent and pack its artifact",
		Long: `Compile an agent and pack it as an OCI artifact in DIR/.mentat/layout.

A directory with a go.mod is compiled by go (GOOS=wasip1 GOARCH=wasm,
-buildmode=c-shared), one with a Cargo.toml by cargo; else the module that
manifest.yaml names must be there already. The module and the manifest are
checked: an import that no host provides, a preopen, host or variable without
its capability is an error; an import that needs a capability which the manifest
does not ask for is a warning. The same sources give the same digest.

DIR/.mentat/lock.json notes what was packed; it belongs into version control.`,
		Example: `  mentatctl build hello
  mentatctl build agents/*/manifest.yaml
  mentatctl build --offline --output json hello`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"."}
			}
			r := &buildResult{Header: display.Head("build")}
			err := each(args, func(path string) error {
				b, err := a.build(cmd.Context(), path, &o)
				if err == nil {
					r.Agents = append(r.Agents, *b)
					for _, line := range b.Warnings {
						a.printer().Note("warning: %s", line)
					}
				}
				return err
			})
			return a.results(r, len(r.Agents) > 0, err)
		},
	}
	cmd.Flags().Var(&o.kind, "toolchain", "what compiles the agent; none packs the module that is there")
	fixedCompletion(cmd, "toolchain", "auto", "go", "cargo", "none")
	cmd.Flags().BoolVar(&o.offline, "offline", false, "fetch nothing")
	cmd.Flags().BoolVar(&o.update, "update", false, "resolve the container image anew instead of using the lock file's digest")
	o.remote.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

// each calls do for every path and goes on after a failure.
func each(paths []string, do func(string) error) error {
	var errs []error
	for _, p := range paths {
		if err := do(p); err != nil {
			errs = append(errs, err)
			if fault.ReasonOf(err) == fault.Canceled {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// results prints what succeeded and returns what failed. As JSON there is one
// document: with a failure it is the error.
func (a *app) results(r display.Result, some bool, err error) error {
	if err != nil && (a.format == display.JSON || !some) {
		return err
	}
	return errors.Join(a.printer().Result(r), err)
}

func (a *app) build(ctx context.Context, path string, o *buildOptions) (*builtAgent, error) {
	begin := a.now()
	d, err := agentdir.Open(path)
	if err != nil {
		return nil, err
	}
	if problems := d.Manifest.Lint(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	kind, err := toolchainFor(d, o.kind)
	if err != nil {
		return nil, err
	}
	progress := a.newProgress()
	defer progress.Close()
	built := agentdir.Built{Kind: kind}
	if kind != toolchain.None {
		done := progress.Step("compiling %s with %s", d.Name(), kind)
		built, err = d.Compile(ctx, kind, o.offline)
		done()
		var failure *toolchain.Failure
		if errors.As(err, &failure) {
			fmt.Fprint(a.stderr, failure.Log) // the compiler's own words, which name file and line
			err = failure.Unwrap()
		}
		if err != nil {
			return nil, err
		}
	}
	artifact, pin, err := a.pack(ctx, d, built, o, progress)
	if err != nil {
		return nil, err
	}
	b := &builtAgent{
		Directory: d.Path, ID: d.Manifest.ID, Version: d.Manifest.Version, Form: artifact.Form, Toolchain: kind,
		Container: pin, Artifact: artifact.Digest, Size: artifactSize(artifact), Layout: d.LayoutPath(),
		Outdated: len(d.Manifest.Attestations) > 0,
	}
	if artifact.Module != nil {
		_, info, err := d.ReadModule()
		if err != nil {
			return nil, err
		}
		b.Module = &builtModule{Path: d.ModulePath(), Digest: artifact.Module.Digest, Size: artifact.Module.Size, Entry: info.Entry}
		b.Warnings = buildWarnings(d)
	}
	b.Millis = a.now().Sub(begin).Milliseconds()
	return b, nil
}

func toolchainFor(d *agentdir.Dir, asked toolchain.Kind) (toolchain.Kind, error) {
	if d.ModulePath() == "" {
		if asked == toolchain.Go || asked == toolchain.Cargo {
			return "", fault.New(fault.Usage, d.ManifestPath(), "the agent has no module to compile, its runtime is %s", d.Manifest.Runtime)
		}
		return toolchain.None, nil
	}
	if asked != toolchain.Auto {
		return asked, nil
	}
	return toolchain.Detect(d.Path)
}

// pack packs the agent, with its container image if it has one.
func (a *app) pack(ctx context.Context, d *agentdir.Dir, built agentdir.Built, o *buildOptions, progress *display.Progress) (*oci.Artifact, *agentdir.Pin, error) {
	image, pin, closer, err := a.container(ctx, d, o, progress)
	if err != nil {
		return nil, nil, err
	}
	defer closer.Close() //nolint:errcheck // only read from
	done := progress.Step("packing %s", d.Name())
	defer done()
	artifact, err := d.Pack(ctx, built, image, pin)
	return artifact, pin, err
}

func artifactSize(artifact *oci.Artifact) int64 {
	size := int64(len(artifact.Raw)) + artifact.Manifest.Config.Size
	for _, l := range artifact.Manifest.Layers {
		size += l.Size
	}
	return size
}
