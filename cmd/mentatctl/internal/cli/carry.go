package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

type carryResult struct {
	display.Header
	File   string `json:"file"`
	Number int64  `json:"number"`
	// Directory is where it was imported to.
	Directory string   `json:"directory,omitempty"`
	Files     []string `json:"files"`
}

func (r *carryResult) Text(w *display.Writer) {
	if r.Directory != "" {
		w.Line("imported %s", r.File)
		w.Field("into", "%s", r.Directory)
	} else {
		w.Line("signed %s", r.File)
	}
	w.Field("number", "%d", r.Number)
	w.List("carries", r.Files)
}

type exportOptions struct {
	sign          signOptions
	policy, trust string
	number        int64
}

func (a *app) trustExportCmd() *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Sign one file of all that a node trusts by",
		Long: `Sign one file of a policy, the roots of its trust stores, its revocation lists and
release lists, for nodes without a network. All of it must lie below the policy's
directory (trust stores in --trust), and be named by file: what has to be fetched
cannot be carried. mentatctl pki policy --carry writes such a policy. What an import
would refuse is refused here.

A node never imports a file with a lower number than the last one.`,
		Example: `  mentatctl trust export --policy policy.yaml --number 7 node.trust`,
		Args:    wantArgs(1, 1, "the file to make"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.sign.check(cmd); err != nil {
				return err
			}
			if o.policy == "" || o.number <= 0 {
				return fault.New(fault.Usage, "", "--policy and a positive --number are required")
			}
			r, err := a.exportTrust(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	cmd.Flags().StringVar(&o.policy, "policy", "", "the policy `FILE`")
	cmd.Flags().StringVar(&o.trust, "trust", "", "the `DIR` of the policy's trust stores (default: trust beside the policy)")
	cmd.Flags().Int64Var(&o.number, "number", 0, "the file's `NUMBER`, higher than that of the last one")
	o.sign.addKey(cmd)
	a.outputs(cmd)
	return cmd
}

func (a *app) exportTrust(ctx context.Context, path string, o *exportOptions) (*carryResult, error) {
	cfg := nodeconfig.Verify{Policy: o.policy, Trust: o.trust}
	if cfg.Trust == "" {
		cfg.Trust = filepath.Join(filepath.Dir(o.policy), "trust")
	}
	key, chain, err := a.signingKey(ctx, &o.sign)
	if err != nil {
		return nil, err
	}
	data, err := verifier.ExportTrust(cfg, o.number, key, chain, a.now(), timestamp.Reader{})
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(path, data, 0o644); err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot write the trust file")
	}
	t, err := verifier.ReadTrust(path, data)
	if err != nil {
		return nil, err
	}
	return &carryResult{Header: display.Head("trust-export"), File: path, Number: t.Number(), Files: t.Files()}, nil
}

type importOptions struct {
	roots, identities []string
	state             string
	config            string
}

func (a *app) trustImportCmd() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import FILE DIR",
		Short: "Verify a trust file and put what it carries in place",
		Long: `Verify a trust file and let DIR be what it carries: policy.yaml, trust/ and the lists
that the policy names. The signer must lead to --root, be one of --identity, and not be
revoked by the lists of the file or of the node. The policy, every root, every
revocation list and every release list is judged as a node would, and none may be
older than what the node knows. Only then is DIR replaced, in one step; it is a
symbolic link that imports make. The number of the file is kept with the revocation
data.

The node's config.toml names DIR/policy.yaml and DIR/trust under verify.`,
		Example: `  mentatctl trust import --root root.pem --identity admin@example.com node.trust /etc/mentat/imported`,
		Args:    wantArgs(2, 2, "a trust file and a directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(o.roots) == 0 || len(o.identities) == 0 {
				return fault.New(fault.Usage, "", "--root and --identity are required: who may say what this node trusts")
			}
			r, err := a.importTrust(args[0], args[1], &o)
			if err != nil {
				return err
			}
			return a.printer().Result(r)
		},
	}
	cmd.Flags().StringArrayVar(&o.roots, "root", nil, "the signer leads to the root certificates in this PEM `FILE`; may be repeated")
	cmd.Flags().StringArrayVar(&o.identities, "identity", nil, "the signer is this `EMAIL`; may be repeated")
	cmd.Flags().StringVar(&o.state, "state", "", "the node's `DIR` of revocation data (default: the configuration's verify.state)")
	cmd.Flags().StringVar(&o.config, "config", "", "the node's configuration `FILE` (default: $"+nodeconfig.Env+" or "+nodeconfig.DefaultPath+")")
	a.outputs(cmd)
	return cmd
}

func (a *app) importTrust(path, dir string, o *importOptions) (*carryResult, error) {
	in := verifier.TrustImport{Emails: o.identities, Dir: filepath.Clean(dir), State: o.state, Now: a.now(), Stamps: timestamp.Reader{}}
	if in.State == "" {
		cfg, err := nodeconfig.Load(o.config)
		if err != nil {
			return nil, err
		}
		in.State = cfg.Verify.State
	}
	data, err := limits.ReadFile(path, limits.TrustFileBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.NotFound, path, "cannot read the trust file")
	}
	t, err := verifier.ReadTrust(path, data)
	if err != nil {
		return nil, err
	}
	for _, file := range o.roots {
		certs, err := readChain(file, "root certificate")
		if err != nil {
			return nil, err
		}
		if in.Roots, err = verifier.NewStore(storeName, append(in.Roots.Roots(), certs...)...); err != nil {
			return nil, err
		}
	}
	if err := t.Import(in); err != nil {
		return nil, err
	}
	return &carryResult{Header: display.Head("trust-import"), File: path, Number: t.Number(), Directory: in.Dir, Files: t.Files()}, nil
}
