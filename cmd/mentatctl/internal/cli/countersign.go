package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

type countersignResult struct {
	display.Header
	Target  string `json:"target"`
	ID      string `json:"id"`
	Version string `json:"version"`
	// Artifact is the digest with the countersignature, Was the one before.
	Artifact digest.Digest `json:"artifact"`
	Was      digest.Digest `json:"was"`
	// SignedDigest names what all of them signed; it stays.
	SignedDigest digest.Digest `json:"signed_digest"`
	Signer       string        `json:"signer"`
	// Countersigners are all of them, the new one last.
	Countersigners []string  `json:"countersigners"`
	Issuer         string    `json:"issuer"`
	Expires        time.Time `json:"expires"`
	BoundTo        string    `json:"bound_to,omitempty"`
	// Stamped and Authority are about the time stamp of the countersignature.
	Stamped   time.Time `json:"stamped,omitzero"`
	Authority string    `json:"timestamp_authority,omitempty"`
	// Pushed tells that Target is a reference, whose tag means the new digest.
	Pushed bool `json:"pushed"`
	// Manifest is the file that shows the attestation.
	Manifest string `json:"manifest,omitempty"`
}

func (r *countersignResult) Text(w *display.Writer) {
	w.Line("countersigned %s %s", r.ID, r.Version)
	w.Field("artifact", "%s", r.Artifact)
	w.Field("was", "%s", r.Was)
	w.Field("signer", "%s", r.Signer)
	w.List("with", r.Countersigners)
	w.Field("issuer", "%s", r.Issuer)
	w.Field("expires", "%s", display.Date(r.Expires))
	w.Field("bound to", "%s", r.BoundTo)
	if !r.Stamped.IsZero() {
		w.Field("stamped", "%s by %s", r.Stamped.Format(time.RFC3339), r.Authority)
	}
	if r.Pushed {
		w.Field("pushed to", "%s", r.Target)
	}
	w.Field("written to", "%s", r.Manifest)
}

type countersignOptions struct {
	signing signOptions // of which the key, the algorithm and the time stamp count
	remote  remoteFlags
	replace bool
}

func (a *app) countersignCmd() *cobra.Command {
	var o countersignOptions
	cmd := &cobra.Command{
		Use:   "countersign DIR|MANIFEST|LAYOUT|REFERENCE",
		Short: "Sign what somebody else attested, too",
		Long: `Add a countersignature to an agent's attestation, for nodes whose policy wants the
signatures of several people (required_signers). It is over everything that the
first signer signed. The signatures that are there are checked first, and what is
countersigned is shown before the key is asked for.

The attestation is a part of the artifact, whose digest changes; what the first
signer signed, and its signed digest, do not. In an agent's directory or an OCI
layout the artifact is replaced in its place, and publish takes it from there. Of a
reference, the tag is moved to the new digest; nothing else is copied.

Nobody can sign twice. After a certificate was renewed --replace makes an own
countersignature anew.`,
		Example: `  mentatctl countersign agent/
  mentatctl countersign registry.example.com/agents/hello:0.1.0
  mentatctl countersign --cert review.crt --key 'pkcs11:token=review;object=signing' \
    registry.example.com/agents/hello:0.1.0`,
		Args: wantArgs(1, 1, "one directory, manifest, layout or reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.signing.check(cmd); err != nil {
				return err
			}
			if err := o.signing.stamp.resolve(); err != nil {
				return err
			}
			r, err := a.countersign(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	o.signing.addKey(cmd)
	cmd.Flags().StringVar(&o.signing.algorithm, "algorithm", "", "the signature `ALGORITHM`: SHA256withRSA, SHA256withRSA-PSS or SHA256withECDSA (default: by the key)")
	cmd.Flags().BoolVar(&o.replace, "replace", false, "make an own countersignature that is there anew")
	o.signing.stamp.add(cmd)
	o.remote.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

func (a *app) countersign(ctx context.Context, name string, o *countersignOptions) (*countersignResult, error) {
	progress := a.newProgress()
	defer progress.Close()
	t, err := a.open(ctx, name, &o.remote, progress)
	if err != nil {
		return nil, err
	}
	artifact, err := a.countersignable(ctx, name, t)
	if err != nil {
		return nil, err
	}
	att, err := verifier.ReadAttestation(artifact.Raw)
	if err != nil {
		return nil, withHint(err, fault.Unsigned, "there is nothing to countersign before mentatctl sign")
	}
	if err := att.CheckSignature(); err != nil {
		return nil, err
	}
	if m := artifact.Agent; m != nil && (m.ID != att.Subject.ID || m.Version != att.Subject.Version) {
		return nil, fault.New(fault.BindingMismatch, "attestation", "is for %s %s, the agent is %s %s", att.Subject.ID, att.Subject.Version, m.ID, m.Version)
	}
	a.printer().Note("countersigning %s %s, %s, signed as %s at %s", att.Subject.ID, att.Subject.Version, artifact.Digest, signerName(att.Chain[0]), att.Timestamp)
	for i, c := range att.Countersigners() {
		a.printer().Note("countersigned as %s at %s", signerName(c), att.Countersignatures[i].Timestamp)
	}
	key, chain, err := a.signingKey(ctx, &o.signing)
	if err != nil {
		return nil, err
	}
	r := &countersignResult{
		Header: display.Head("countersign"), Target: name, ID: att.Subject.ID, Version: att.Subject.Version, Was: artifact.Digest,
		SignedDigest: att.SignedDigest, Signer: signerName(att.Chain[0]), Issuer: chain[0].Issuer.String(), Expires: chain[0].NotAfter.UTC(),
		BoundTo: att.Subject.Repository,
	}
	signed, block, err := a.countersigned(ctx, artifact.Raw, o, key, chain, r)
	if err != nil {
		return nil, err
	}
	return r, t.countersigned(ctx, signed, block, r)
}

// countersigned makes the countersignature and completes the result.
func (a *app) countersigned(ctx context.Context, raw []byte, o *countersignOptions, key crypto.Signer, chain []*x509.Certificate, r *countersignResult) (signed, block []byte, err error) {
	req := verifier.CountersignRequest{Raw: raw, Key: key, Chain: chain, Algorithm: o.signing.algorithm, Time: a.now(), Replace: o.replace}
	if s := &o.signing.stamp; s.url != "" {
		req.Stamp = func(signature []byte) ([]byte, *verifier.TimeStamp, error) {
			token, stamp, err := fetch.TimeStamp(ctx, nil, s.url, signature, s.roots)
			if err == nil {
				r.Stamped, r.Authority = stamp.Time.UTC(), stamp.Path[0].Subject.String()
			}
			return token, stamp, err
		}
	}
	if signed, block, err = verifier.Countersign(req); err != nil {
		return nil, nil, err
	}
	att, err := verifier.ReadAttestation(signed)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range att.Countersigners() {
		r.Countersigners = append(r.Countersigners, signerName(c))
	}
	return signed, block, nil
}

// countersignable is the one artifact of a target, if what would be written can be.
func (a *app) countersignable(ctx context.Context, name string, t *target) (*oci.Artifact, error) {
	if oci.IsIndex(t.root.MediaType) {
		return nil, fault.New(fault.Unsupported, name, "is an index of several images, each with an attestation of its own").
			WithHint("name one of its images by a tag of its own")
	}
	switch {
	case t.client != nil:
		if ref, ok := imageref.ParseReference(name); !ok || ref.Tag == "" || ref.Digest != "" {
			return nil, fault.New(fault.Usage, name, "names no tag alone: the countersigned artifact has another digest, to which a tag is moved").
				WithHint("write %s:TAG", ref.Name)
		}
		// A registry that does not tell loses nothing either.
		if list, err := t.client.Referrers(ctx, t.reference, t.root, "", limits.Envelopes); err == nil && len(list) > 0 {
			a.printer().Note("what refers to %s, as Notary Project signatures do, stays with it and does not follow the tag", t.root.Digest)
		}
	case t.dir != nil:
		if err := a.consistent(ctx, t.dir); err != nil {
			return nil, err
		}
		envelope, err := t.dir.Notation(t.root.Digest)
		if err != nil {
			return nil, err
		}
		if envelope != nil {
			return nil, fault.New(fault.Unsupported, name, "has a Notary Project signature, which is over the manifest that a countersignature changes").
				WithHint("sign it without --also notation")
		}
	default:
		if layout, ok := t.fetcher.(*oci.Layout); ok {
			if err := layout.Verify(ctx); err != nil {
				return nil, err
			}
			list, err := layout.Referrers(ctx, t.root, "", 0)
			if err != nil {
				return nil, err
			}
			if len(list) > 0 { // it would refer to nothing, and count as an image then
				return nil, fault.New(fault.Unsupported, name, "holds %s, which refers to the manifest that a countersignature changes, as a Notary Project signature does", list[0].Digest).
					WithHint("countersign a layout of the agent alone")
			}
		}
	}
	found, err := t.artifacts(ctx)
	if err != nil {
		return nil, err
	}
	return found[0].Artifact, nil
}

// countersigned puts a countersigned manifest where the target's is.
func (t *target) countersigned(ctx context.Context, signed, block []byte, r *countersignResult) error {
	if t.client != nil {
		desc, err := t.client.Replace(ctx, t.reference, t.root.Digest, signed)
		r.Artifact, r.Pushed = desc.Digest, err == nil
		return err
	}
	layout, ok := t.fetcher.(*oci.Layout)
	if !ok {
		return fault.New(fault.Internal, r.Target, "not a layout")
	}
	if t.dir == nil {
		desc, err := layout.ReplaceManifest(ctx, t.root, signed)
		r.Artifact = desc.Digest
		return err
	}
	desc, err := t.dir.SetSigned(ctx, layout, t.root, signed, block)
	r.Artifact, r.Manifest = desc.Digest, t.dir.ManifestPath()
	return err
}
