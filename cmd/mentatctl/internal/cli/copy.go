package cli

import (
	"cmp"
	"context"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

type copyResult struct {
	display.Header
	Source      string             `json:"source"`
	Destination string             `json:"destination"`
	Digest      digest.Digest      `json:"digest"`
	Size        int64              `json:"size"`
	By          string             `json:"by,omitempty"`
	Verdict     []verifier.Verdict `json:"verdicts"`
	Warnings    []string           `json:"warnings,omitempty"`
}

func (r *copyResult) Text(w *display.Writer) {
	w.Line("copied %s", r.Source)
	w.Field("to", "%s", r.Destination)
	w.Field("digest", "%s", r.Digest)
	w.Field("size", "%s", display.Size(r.Size))
	for i := range r.Verdict {
		w.Field("verdict", "%s", verdictLine(&r.Verdict[i]))
	}
	w.List("warning", r.Warnings)
}

func (a *app) copyCmd() *cobra.Command {
	var f remoteFlags
	var trust trustFlags
	cmd := &cobra.Command{
		Use:   "copy SOURCE DESTINATION",
		Short: "Promote an agent from one repository to another",
		Long: `Copy an image with everything that it refers to from one reference to another:
the very bytes, so that its digest and its attestation stay.

An attestation names the repository that it was made for. The policy is asked first
whether it accepts the image as DESTINATION, and nothing is copied that it refuses
there: a scope of mirrors says binding: remap. Without a policy nobody can tell, and
an attestation that names another repository is a warning.`,
		Example: `  mentatctl copy registry.example.com/hello:0.1.0 mirror.example.com/hello:0.1.0
  mentatctl copy --policy policy.yaml stage.example.com/hello:0.1.0 registry.example.com/hello:0.1.0`,
		Args: wantArgs(2, 2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := trust.check(cmd); err != nil {
				return err
			}
			r, err := a.copy(cmd.Context(), args[0], args[1], &f, &trust)
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

func (a *app) copy(ctx context.Context, src, dst string, f *remoteFlags, trust *trustFlags) (*copyResult, error) {
	from, err := repositoryOf(src)
	if err != nil {
		return nil, err
	}
	to, err := repositoryOf(dst)
	if err != nil {
		return nil, err
	}
	j, err := a.verifier(ctx, trust)
	if err != nil {
		return nil, err
	}
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.openRemote(ctx, src, f, progress)
	if err != nil {
		return nil, err
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	r := &copyResult{Header: display.Head("copy"), Source: src, Destination: dst, Digest: t.root.Digest, By: j.by}
	for _, one := range found {
		vd := j.Verify(ctx, verifier.Input{Reference: dst, Where: tagged(src), Artifact: one.Artifact, Index: t.root.Digest})
		if !vd.Allowed {
			return nil, vd.Err
		}
		r.Size += artifactSize(one.Artifact)
		r.Verdict = append(r.Verdict, *vd)
		if vd.Developer {
			r.Warnings = append(r.Warnings, boundElsewhere(one, to)...)
		}
	}
	tmp, err := os.MkdirTemp("", "mentat-copy-")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot make a directory for the copy")
	}
	defer os.RemoveAll(tmp)
	layout, err := oci.CreateLayout(filepath.Join(tmp, "layout"))
	if err != nil {
		return nil, err
	}
	// The tag may have moved since it was judged: what was judged is copied.
	desc, err := t.client.Pull(ctx, from+"@"+t.root.Digest.String(), layout)
	if err != nil {
		return nil, err
	}
	if err := layout.Tag(ctx, desc, dst); err != nil {
		return nil, err
	}
	pushed, err := t.client.Push(ctx, layout, dst)
	if err != nil {
		return nil, err
	}
	if pushed.Digest != t.root.Digest {
		return nil, fault.New(fault.DigestMismatch, dst, "has the digest %s, copied was %s", pushed.Digest, t.root.Digest)
	}
	return r, nil
}

// tagged is a reference as countersign takes it, by its tag alone.
func tagged(name string) string {
	if ref, ok := imageref.ParseReference(name); ok && (ref.Digest != "" || ref.Tag == "") {
		return ref.Name + ":" + cmp.Or(ref.Tag, "TAG")
	}
	return name
}

// boundElsewhere warns of an attestation that names another repository, where no
// policy says what that means.
func boundElsewhere(f fetchedArtifact, to string) []string {
	att, err := verifier.ReadAttestation(f.Raw)
	if err != nil || att.Subject.Repository == "" || att.Subject.Repository == to {
		return nil
	}
	return []string{"the attestation is for " + att.Subject.Repository + ": nodes refuse it there unless their policy says binding: remap"}
}
