package cli

import (
	"context"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki"
)

// servicesFlags say what services a certificate authority has beside issuing.
type servicesFlags struct {
	on              bool
	ocspURL, policy string
	rootKey, key    string // names of keys in tokens
}

func (f *servicesFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.ocspURL, "ocsp-url", "", "the `URL` that certificates and the starter policy name for OCSP requests")
	cmd.Flags().StringVar(&f.rootKey, "time-root-key", "", "make the key of the time stamp authority's root in a PKCS #11 token, by this `NAME`: pkcs11:token=LABEL;object=LABEL")
	cmd.Flags().StringVar(&f.key, "time-key", "", "make the time stamp authority's own key in a PKCS #11 token, by this `NAME`")
	cmd.Flags().StringVar(&f.policy, "time-policy", "", "the object identifier `OID` of the policy that time stamps are made under (default "+pki.DefaultTimePolicy+", an example's)")
}

// options are those of the services, nil if they are not wanted.
func (f *servicesFlags) options(cmd *cobra.Command, passphrase, agentPassphrase []byte, now time.Time) (*pki.ServiceOptions, error) {
	if !f.on {
		for _, name := range []string{"ocsp-url", "time-policy", "time-root-key", "time-key"} {
			if cmd.Flags().Changed(name) {
				return nil, fault.New(fault.Usage, "--"+name, "needs --services")
			}
		}
		return nil, nil
	}
	return &pki.ServiceOptions{OCSPURL: f.ocspURL, TimePolicy: f.policy, Passphrase: passphrase, KeyPassphrase: agentPassphrase, RootKeyName: f.rootKey, KeyName: f.key, Now: now}, nil
}

// Sizes of specification §2.4 for keys that are made in a token.
const (
	rootTokenBits  = 4096
	agentTokenBits = 3072
)

// initCA makes the keys that shall be in tokens, and then the certificate authority.
// Without it none of them is left.
func (a *app) initCA(ctx context.Context, dir string, f *caFlags, made *madeKeys, o pki.InitOptions) (ca *pki.CA, err error) {
	defer func() { err = made.settle(err) }()
	if o.RootKey, err = a.caKey(ctx, made, "--root-key", o.RootKeyName, rootTokenBits, func() ([]byte, error) { return a.passphrase(ctx, &f.pass, o.RootKeyName) }); err != nil {
		return nil, err
	}
	if o.AgentKey, err = a.caKey(ctx, made, "--agent-key", o.AgentKeyName, agentTokenBits, func() ([]byte, error) { return a.onlineSecret(ctx, f, o.AgentKeyName) }); err != nil {
		return nil, err
	}
	if err = a.serviceKeys(ctx, f, made, o.Services); err != nil {
		return nil, err
	}
	return pki.Init(dir, o)
}

// serviceKeys makes the keys of the time stamp authority that shall be in tokens.
func (a *app) serviceKeys(ctx context.Context, f *caFlags, made *madeKeys, o *pki.ServiceOptions) (err error) {
	if o == nil {
		return nil
	}
	if o.RootKey, err = a.caKey(ctx, made, "--time-root-key", o.RootKeyName, rootTokenBits, func() ([]byte, error) { return a.passphrase(ctx, &f.pass, o.RootKeyName) }); err != nil {
		return err
	}
	o.Key, err = a.caKey(ctx, made, "--time-key", o.KeyName, agentTokenBits, func() ([]byte, error) { return a.onlineSecret(ctx, f, o.KeyName) })
	return err
}

// addServices is initCA for the services alone.
func (a *app) addServices(ctx context.Context, ca *pki.CA, f *caFlags, o *pki.ServiceOptions) (err error) {
	var made madeKeys
	defer func() { err = made.settle(err) }()
	if err := a.serviceKeys(ctx, f, &made, o); err != nil {
		return err
	}
	return ca.AddServices(*o)
}

type pkiServicesResult struct {
	display.Header
	Directory string   `json:"directory"`
	TimeRoot  certInfo `json:"time_root"`
	Time      certInfo `json:"time"`
	// RootFile is what signers and nodes trust time stamps by.
	RootFile string   `json:"root_file"`
	List     string   `json:"list"`
	Warnings []string `json:"warnings,omitempty"`
}

func (r *pkiServicesResult) Text(w *display.Writer) {
	w.Line("made a time stamp authority in %s", r.Directory)
	w.Field("time root", "%s, until %s", r.TimeRoot.Subject, display.Date(r.TimeRoot.NotAfter))
	w.Field("time", "%s, until %s", r.Time.Subject, display.Date(r.Time.NotAfter))
	w.Field("list", "%s", r.List)
	w.List("warning", r.Warnings)
	w.Line("next: mentatctl pki serve answers under /tsa and /ocsp; sign with --timestamp URL/tsa --timestamp-root %s", r.RootFile)
}

func (a *app) pkiServicesCmd() *cobra.Command {
	var f caFlags
	services := servicesFlags{on: true}
	cmd := &cobra.Command{
		Use:   "services",
		Short: "Add a time stamp authority and OCSP answers",
		Long: `Make a time stamp authority beside a certificate authority that is there: a root of
its own (10 years, RSA 4096), which signs nothing else, its first revocation list,
and a certificate for time stamps. Once it is there, mentatctl pki serve answers
requests for time stamps under /tsa, and requests about the state of certificates
under /ocsp, with a key that is certified for OCSP alone and made anew while it runs.

The root's key is encrypted when there is a passphrase: move it off the machine. The
authority's key, which the server needs, is encrypted by that of
--agent-passphrase-file, as the agent CA's. Nothing that is there is overwritten.
A server that runs already has to be started again.`,
		Example: `  mentatctl pki services
  mentatctl pki services --ca ./ca --ocsp-url http://pki.example.com/ocsp --agent-passphrase-file online.txt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			rootFile := filepath.Join(ca.Dir(), filepath.FromSlash(pki.TimeRootCert))
			if ca.Services() { // before a passphrase is asked for
				return fault.New(fault.Exists, filepath.Dir(rootFile), "is there already and is not overwritten")
			}
			var pass []byte
			if services.rootKey == "" {
				if pass, err = a.newPassphrase(cmd.Context(), &f.pass, filepath.Join(ca.Dir(), filepath.FromSlash(pki.TimeRootKey))); err != nil {
					return err
				}
			}
			var agentPass []byte
			if f.agentPass != "" {
				if agentPass, err = secretFile(f.agentPass, "passphrase"); err != nil {
					return err
				}
			}
			o, err := services.options(cmd, pass, agentPass, a.now())
			if err != nil {
				return err
			}
			done := a.newProgress().Step("making keys")
			err = a.addServices(cmd.Context(), ca, &f, o)
			done()
			if err != nil {
				return err
			}
			return a.printer().Result(&pkiServicesResult{
				Header: display.Head("pki-services"), Directory: ca.Dir(), TimeRoot: infoOf(ca.TimeRoot()), Time: infoOf(ca.Time()),
				RootFile: rootFile, List: ca.ListOf(ca.Time().SerialNumber), Warnings: ca.Warnings(),
			})
		},
	}
	f.addKey(cmd)
	services.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}
