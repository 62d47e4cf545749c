package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/verifier"
)

func (a *app) trustCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Make and carry what nodes trust by",
		Long: `Make the signed files by which nodes decide: release lists, which withdraw releases
that are still well signed, and trust files, which bring a policy with all that it
needs to a node without a network.`,
		Example: `  mentatctl trust releases --minimum acme.reporter=1.4.2 releases.json
  mentatctl trust export --policy policy.yaml --number 7 node.trust
  mentatctl trust import --root root.pem --identity admin@example.com node.trust /etc/mentat/imported`,
		Args: subcommandWanted,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.trustReleasesCmd(), a.trustExportCmd(), a.trustImportCmd())
	return cmd
}

type releasesResult struct {
	display.Header
	File   string `json:"file"`
	Signer string `json:"signer"`
	// Continues is the list before this one.
	Continues *continued        `json:"continues,omitempty"`
	Releases  verifier.Releases `json:"releases"`
}

// continued is a list that another one follows.
type continued struct {
	Number int64  `json:"number"`
	Signer string `json:"signer"`
	Serial string `json:"serial"`
}

func (r *releasesResult) Text(w *display.Writer) {
	w.Line("signed %s", r.File)
	if c := r.Continues; c != nil {
		w.Field("continues", "number %d, signed by %s with the certificate %s", c.Number, c.Signer, c.Serial)
	}
	w.Field("number", "%d", r.Releases.Number)
	w.Field("signer", "%s", r.Signer)
	w.Field("next update", "%s", r.Releases.NextUpdate)
	var minimum []string
	for _, id := range slices.Sorted(maps.Keys(r.Releases.MinimumVersions)) {
		minimum = append(minimum, id+" "+r.Releases.MinimumVersions[id])
	}
	w.List("minimum", minimum)
	w.Field("denied", "%d payloads, %d modules", len(r.Releases.DeniedPayloads), len(r.Releases.DeniedModules))
}

type releasesOptions struct {
	sign     signOptions
	minimum  []string
	payloads []string
	modules  []string
	next     time.Duration
	empty    bool
	of       string
	roots    []string
}

func (a *app) trustReleasesCmd() *cobra.Command {
	var o releasesOptions
	cmd := &cobra.Command{
		Use:   "releases FILE",
		Short: "Sign a release list: what must not run any more",
		Long: `Sign a release list, or the next one: what FILE withdraws already stays withdrawn,
what flags name is added, and the number grows. Nodes whose policy names the list
refuse what it withdraws, and never go back to one with a lower number. A minimum
version is raised, never lowered; --empty begins a list anew.

FILE must be signed by who signs now: by the same key or, after the certificate was
renewed, by the same address of the same issuer. --continues names another signer
whose list is taken over. Its certificate must lead to an authority in the chain of
the signing certificate, or to --root; whether it was revoked since is not asked.

A payload is the digest of the signed bytes, which mentatctl inspect and the verdict
show (signed_digest); it stays the same however a signature is encoded.`,
		Example: `  mentatctl trust releases --minimum acme.reporter=1.4.2 releases.json
  mentatctl trust releases --deny-module $DIGEST releases.json
  mentatctl trust releases --next-update 720h releases.json
  mentatctl trust releases --continues former@example.com releases.json`,
		Args: wantArgs(1, 1, "the list's file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(o.sign.check(cmd), positive(cmd, "next-update", o.next)); err != nil {
				return err
			}
			if cmd.Flags().Changed("continues") && !strings.Contains(o.of, "@") {
				return fault.New(fault.Usage, "--continues", "%q is not of the form NAME@DOMAIN", o.of)
			}
			r, err := a.releases(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	cmd.Flags().StringArrayVar(&o.minimum, "minimum", nil, "the lowest version of an agent that may run, `ID=VERSION`; may be repeated")
	cmd.Flags().StringArrayVar(&o.payloads, "deny-payload", nil, "deny what was signed with this `DIGEST`; may be repeated")
	cmd.Flags().StringArrayVar(&o.modules, "deny-module", nil, "deny the module with this `DIGEST`; may be repeated")
	cmd.Flags().DurationVar(&o.next, "next-update", 7*24*time.Hour, "how long the list counts: after it, and the policy's grace, every agent is refused (`DURATION`)")
	cmd.Flags().BoolVar(&o.empty, "empty", false, "begin a list, or its next number, that withdraws nothing but what flags name")
	cmd.Flags().StringVar(&o.of, "continues", "", "continue the list of this other signer, by `EMAIL`")
	cmd.Flags().StringArrayVar(&o.roots, "root", nil, "the list that is continued leads to the root certificates in this PEM `FILE`; may be repeated")
	o.sign.addKey(cmd)
	a.outputs(cmd)
	return cmd
}

func (a *app) releases(ctx context.Context, path string, o *releasesOptions) (*releasesResult, error) {
	// What flags say makes sense, before a passphrase is asked for.
	if err := o.amend(&verifier.Releases{}); err != nil {
		return nil, err
	}
	data, err := limits.ReadFile(path, limits.ReleasesBytes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, fault.NotFound, path, "cannot read the release list")
	}
	begins := err != nil
	if begins && (o.of != "" || len(o.roots) > 0) {
		return nil, fault.New(fault.NotFound, path, "there is no release list to continue")
	}
	key, chain, err := a.signingKey(ctx, &o.sign)
	if err != nil {
		return nil, err
	}
	r := &releasesResult{Header: display.Head("trust-releases"), File: path, Signer: signerName(chain[0])}
	now := a.now()
	if !begins {
		if err := o.follow(r, data, chain, now); err != nil {
			return nil, err
		}
	}
	r.Releases.Number++
	if err := o.amend(&r.Releases); err != nil {
		return nil, err
	}
	r.Releases.NextUpdate = now.Add(o.next).UTC().Format(shownTime)
	signed, err := verifier.SignReleases(r.Releases, key, chain, now)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(path, signed, 0o644); err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot write the release list")
	}
	return r, nil
}

// follow lets the result go on from the list that is there.
func (o *releasesOptions) follow(r *releasesResult, data []byte, chain []*x509.Certificate, now time.Time) error {
	roots, err := rootCertificates(o.roots)
	if err != nil {
		return err
	}
	old, signer, err := verifier.ContinueReleases(r.File, data, verifier.Successor{Chain: chain, Of: o.of, Roots: roots, Now: now})
	if err != nil {
		return err
	}
	r.Continues = &continued{Number: old.Number, Signer: signerName(signer), Serial: signer.SerialNumber.Text(16)}
	r.Releases = verifier.Releases{Number: old.Number}
	if !o.empty {
		r.Releases = *old
	}
	return nil
}

// amend adds what flags withdraw.
func (o *releasesOptions) amend(r *verifier.Releases) error {
	for _, s := range o.minimum {
		id, version, ok := strings.Cut(s, "=")
		if !ok {
			return fault.New(fault.Usage, "--minimum", "%q is not of the form ID=VERSION", s)
		}
		if !manifest.ValidVersion(version) {
			return fault.New(fault.Usage, "--minimum", "%q is no semantic version", version)
		}
		// The releases in between would run again, on every node that takes the list.
		if is := r.MinimumVersions[id]; is != "" && manifest.CompareVersions(version, is) < 0 {
			return fault.New(fault.Usage, "--minimum", "%s is lower than %s, which is the minimum of %s already", version, is, id).
				WithHint("a list only withdraws more; --empty begins it anew, with what flags name")
		}
		if r.MinimumVersions == nil {
			r.MinimumVersions = map[string]string{}
		}
		r.MinimumVersions[id] = version
	}
	for _, list := range []struct {
		flag string
		from []string
		to   *[]digest.Digest
	}{{"--deny-payload", o.payloads, &r.DeniedPayloads}, {"--deny-module", o.modules, &r.DeniedModules}} {
		for _, s := range list.from {
			d, err := digest.Parse(s)
			if err != nil {
				return fault.New(fault.Usage, list.flag, "%q is not a digest", s)
			}
			*list.to = append(*list.to, d)
		}
		slices.Sort(*list.to)
		*list.to = slices.Compact(*list.to)
	}
	return nil
}
