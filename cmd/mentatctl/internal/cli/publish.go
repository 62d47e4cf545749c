package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
)

type publishResult struct {
	display.Header
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	Signed    bool          `json:"signed"`
	Millis    int64         `json:"milliseconds"`
	// Attached are the digests of further signatures.
	Attached []digest.Digest `json:"attached,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
}

func (r *publishResult) Text(w *display.Writer) {
	w.Line("published %s", r.Reference)
	w.Field("digest", "%s", r.Digest)
	w.Field("size", "%s", display.Size(r.Size))
	if !r.Signed {
		w.Field("signed", "no: nodes that enforce a policy refuse it")
	}
	for _, d := range r.Attached {
		w.Field("attached", "%s, for notation", d)
	}
	w.List("warning", r.Warnings)
}

func (a *app) publishCmd() *cobra.Command {
	var f remoteFlags
	var unsigned bool
	cmd := &cobra.Command{
		Use:   "publish [DIR|MANIFEST|LAYOUT] [REFERENCE]",
		Short: "Push the very bytes that were signed",
		Long: `Push an agent's artifact to a registry: exactly the bytes that were signed,
never a new build. The reference is the manifest's image: unless one is given.

An artifact that is not signed, or is not what the directory holds any more, is
refused. Credentials are docker's, see mentatctl login.`,
		Example: `  mentatctl publish agents/my-agent/manifest.yaml
  mentatctl publish hello registry.example.com/agents/hello:0.1.0
  mentatctl publish --ca-file ca.pem hello`,
		Args: wantArgs(0, 2, "an agent and a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, ref := ".", ""
			if len(args) > 0 {
				name = args[0]
			}
			if len(args) > 1 {
				ref = args[1]
			}
			r, err := a.publish(cmd.Context(), name, ref, unsigned, &f)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	cmd.Flags().BoolVar(&unsigned, "unsigned", false, "publish it although it is not signed")
	f.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func (a *app) publish(ctx context.Context, name, ref string, unsigned bool, f *remoteFlags) (*publishResult, error) {
	begin := a.now()
	t, err := a.openLocal(ctx, name)
	if err != nil {
		return nil, err
	}
	layout, ok := t.fetcher.(*oci.Layout)
	if !ok {
		return nil, fault.New(fault.Internal, name, "not a layout")
	}
	if t.dir != nil {
		if err := a.consistent(ctx, t.dir); err != nil {
			return nil, err
		}
		if ref == "" {
			ref = t.dir.Manifest.Image
		}
	} else if err := layout.Verify(ctx); err != nil {
		return nil, err
	}
	if ref == "" {
		return nil, fault.New(fault.Usage, name, "there is no reference to publish it under").
			WithHint("set image: in manifest.yaml before signing, or give a reference")
	}
	repository, err := repositoryOf(ref)
	if err != nil {
		return nil, err
	}
	artifacts, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	r := &publishResult{Header: display.Head("publish"), Reference: ref, Signed: true}
	for _, found := range artifacts {
		r.Size += artifactSize(found.Artifact)
		att, err := verifier.ReadAttestation(found.Raw)
		switch {
		case fault.ReasonOf(err) == fault.Unsigned && unsigned:
			r.Signed = false
			continue
		case fault.ReasonOf(err) == fault.Unsigned:
			return nil, fault.New(fault.Unsigned, name, "the artifact is not signed").WithHint("mentatctl sign %s", name)
		case err != nil:
			return nil, err
		}
		if err := att.CheckSignature(); err != nil {
			return nil, err
		}
		switch bound := att.Subject.Repository; bound {
		case repository:
		case "":
			r.Warnings = append(r.Warnings, "the attestation is bound to no repository, which policies ask for unless they say binding: none; set image: in manifest.yaml and sign again")
		default:
			return nil, fault.New(fault.BindingMismatch, ref, "the attestation is for %s", bound).
				WithHint("sign it for this repository: image: in manifest.yaml, or sign --repository")
		}
	}
	referrer, blobs, err := further(t)
	if err != nil {
		return nil, err
	}
	progress := a.newProgress()
	defer progress.Close()
	client, err := a.client(f, progress)
	if err != nil {
		return nil, err
	}
	desc, err := client.Push(ctx, layout, ref)
	if err != nil {
		return nil, err
	}
	if referrer != nil {
		attached, err := client.Attach(ctx, ref, referrer, blobs)
		if err != nil {
			return nil, err
		}
		r.Attached = append(r.Attached, attached.Digest)
	}
	r.Digest, r.Millis = desc.Digest, a.now().Sub(begin).Milliseconds()
	return r, nil
}

// further is the manifest of the Notary Project signature that was made with the
// attestation, and its blobs; nil when there is none. One that does not fit the
// artifact keeps everything from being pushed.
func further(t *target) (raw []byte, blobs [][]byte, err error) {
	if t.dir == nil {
		return nil, nil, nil
	}
	envelope, err := t.dir.Notation(t.root.Digest)
	if err != nil || envelope == nil {
		return nil, nil, err
	}
	chain, at, err := notation.Chain(envelope, t.root)
	if err != nil {
		return nil, nil, err
	}
	return notation.Referrer(t.root, envelope, chain, at)
}

type pullResult struct {
	display.Header
	Reference   string             `json:"reference"`
	Digest      digest.Digest      `json:"digest"`
	Destination string             `json:"destination"`
	Archive     bool               `json:"archive"`
	Size        int64              `json:"size"`
	Verdict     []verifier.Verdict `json:"verdicts"`
}

func (r *pullResult) Text(w *display.Writer) {
	w.Line("pulled %s", r.Reference)
	w.Field("digest", "%s", r.Digest)
	w.Field("size", "%s", display.Size(r.Size))
	w.Field("written to", "%s", r.Destination)
	for i := range r.Verdict {
		w.Field("verdict", "%s", verdictLine(&r.Verdict[i]))
	}
}

func (a *app) pullCmd() *cobra.Command {
	var f remoteFlags
	var trust trustFlags
	cmd := &cobra.Command{
		Use:   "pull REFERENCE DESTINATION",
		Short: "Fetch an agent into an OCI layout or an archive",
		Long: `Fetch an image with everything that it refers to. The destination is a new OCI
layout directory, or with the ending .tar an archive, as ctr images import and
docker load take it.

The policy is asked before anything is kept: what it refuses is not written.`,
		Example: `  mentatctl pull registry.example.com/agents/hello:0.1.0 hello-layout
  mentatctl pull registry.example.com/agents/hello:0.1.0 hello.tar`,
		Args: wantArgs(2, 2, "a reference and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := trust.check(cmd); err != nil {
				return err
			}
			r, err := a.pull(cmd.Context(), args[0], args[1], &f, &trust)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	trust.add(cmd)
	f.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func (a *app) pull(ctx context.Context, ref, dest string, f *remoteFlags, trust *trustFlags) (*pullResult, error) {
	if _, err := os.Lstat(dest); err == nil {
		return nil, fault.New(fault.Exists, dest, "is there already and is not overwritten")
	}
	j, err := a.verifier(ctx, trust)
	if err != nil {
		return nil, err
	}
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.openRemote(ctx, ref, f, progress)
	if err != nil {
		return nil, err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	r := &pullResult{Header: display.Head("pull"), Reference: ref, Digest: t.root.Digest, Destination: dest, Archive: strings.HasSuffix(dest, ".tar")}
	for _, one := range found {
		in, err := t.input(ctx, j, ref, one)
		if err != nil {
			return nil, err
		}
		vd := j.Verify(ctx, in)
		if !vd.Allowed {
			return nil, vd.Err
		}
		r.Size += artifactSize(one.Artifact)
		r.Verdict = append(r.Verdict, *vd)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dest), ".mentat-pull-")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, dest, "cannot write")
	}
	defer os.RemoveAll(tmp)
	made := filepath.Join(tmp, "layout")
	layout, err := oci.CreateLayout(made)
	if err != nil {
		return nil, err
	}
	// The tag may have moved since it was judged: what was judged is fetched.
	repository, err := repositoryOf(ref)
	if err != nil {
		return nil, err
	}
	desc, err := t.client.Pull(ctx, repository+"@"+t.root.Digest.String(), layout)
	if err != nil {
		return nil, err
	}
	if err := layout.Tag(ctx, desc, ref); err != nil {
		return nil, err
	}
	if r.Archive {
		if made, err = archive(layout, ref, tmp); err != nil {
			return nil, err
		}
	}
	return r, agentdir.Place(made, dest)
}

// archive writes a layout as one file.
func archive(layout *oci.Layout, ref, dir string) (string, error) {
	path := filepath.Join(dir, "archive.tar")
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, path, "cannot write the archive")
	}
	err = layout.ExportTar(out, ref)
	if closeErr := out.Close(); err == nil && closeErr != nil {
		err = fault.Wrap(closeErr, fault.Internal, path, "cannot write the archive")
	}
	return path, err
}
