package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
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

// unencryptedRootFlag lets a root's key lie open.
const unencryptedRootFlag = "unencrypted-root"

func addUnencryptedRoot(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, unencryptedRootFlag, false, "write the root's key into an open file, without a passphrase")
}

func (f *servicesFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.ocspURL, "ocsp-url", "", "the `URL` that certificates and the starter policy name for OCSP requests")
	cmd.Flags().StringVar(&f.rootKey, "time-root-key", "", "make the key of the time stamp authority's root in a PKCS #11 token, by this `NAME`: pkcs11:token=LABEL;object=LABEL")
	cmd.Flags().StringVar(&f.key, "time-key", "", "make the time stamp authority's own key in a PKCS #11 token, by this `NAME`")
	cmd.Flags().StringVar(&f.policy, "time-policy", "", "the object identifier `OID` of the policy that time stamps are made under (default "+pki.DefaultTimePolicy+", an example's)")
}

// openRoot is the file of the first root key that is none in a token, and the flag that
// would make it there; empty if there is none.
func (f *servicesFlags) openRoot(rootKeyName string) (file, token string) {
	switch {
	case rootKeyName == "":
		return pki.RootKey, "root-key"
	case f.on && f.rootKey == "":
		return pki.TimeRootKey, "time-root-key"
	}
	return "", ""
}

// check refuses flags of services that are not wanted.
func (f *servicesFlags) check(cmd *cobra.Command) error {
	for _, name := range []string{"ocsp-url", "time-policy", "time-root-key", "time-key"} {
		if !f.on && cmd.Flags().Changed(name) {
			return fault.New(fault.Usage, "--"+name, "needs --services")
		}
	}
	return nil
}

// options are those of the services, nil if they are not wanted.
func (f *servicesFlags) options(passphrase, agentPassphrase []byte, unencryptedRoot bool, now time.Time) *pki.ServiceOptions {
	if !f.on {
		return nil
	}
	return &pki.ServiceOptions{OCSPURL: f.ocspURL, TimePolicy: f.policy, Passphrase: passphrase, UnencryptedRoot: unencryptedRoot, KeyPassphrase: agentPassphrase, RootKeyName: f.rootKey, KeyName: f.key, Now: now}
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

// addServices is initCA for the services alone, or for a renewal of them.
func (a *app) addServices(ctx context.Context, ca *pki.CA, f *caFlags, o *pki.ServiceOptions, renew bool) (err error) {
	var made madeKeys
	defer func() {
		if inUse(ca, o) { // what failed came after: the keys must stay
			err = errors.Join(err, made.settle(nil))
			return
		}
		err = made.settle(err)
	}()
	if err := a.serviceKeys(ctx, f, &made, o); err != nil {
		return err
	}
	if renew {
		return ca.RenewServices(*o)
	}
	return ca.AddServices(*o)
}

// inUse tells whether the time stamp authority is one of these keys.
func inUse(ca *pki.CA, o *pki.ServiceOptions) bool {
	of := func(key crypto.Signer, c *x509.Certificate) bool {
		if key == nil || c == nil {
			return false
		}
		pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
		return ok && pub.Equal(c.PublicKey)
	}
	return of(o.Key, ca.Time()) || of(o.RootKey, ca.TimeRoot())
}

type pkiServicesResult struct {
	display.Header
	Directory string   `json:"directory"`
	Renewed   bool     `json:"renewed,omitempty"`
	TimeRoot  certInfo `json:"time_root"`
	Time      certInfo `json:"time"`
	// RootFile is what signers and nodes trust time stamps by.
	RootFile string   `json:"root_file"`
	List     string   `json:"list"`
	Warnings []string `json:"warnings,omitempty"`
}

func (r *pkiServicesResult) Text(w *display.Writer) {
	if r.Renewed {
		w.Line("renewed the time stamp authority in %s", r.Directory)
	} else {
		w.Line("made a time stamp authority in %s", r.Directory)
	}
	w.Field("time root", "%s, until %s", r.TimeRoot.Subject, display.Date(r.TimeRoot.NotAfter))
	w.Field("time", "%s, until %s", r.Time.Subject, display.Date(r.Time.NotAfter))
	w.Field("list", "%s", r.List)
	w.List("warning", r.Warnings)
	if r.Renewed {
		w.Line("next: start mentatctl pki serve again; until then it stamps with the old key, unless its certificate is revoked")
		return
	}
	w.Line("next: mentatctl pki serve answers under /tsa and /ocsp; sign with --timestamp URL/tsa --timestamp-root %s", r.RootFile)
}

// clockResult is what became of a time stamp authority's clock.
type clockResult struct {
	display.Header
	Directory string    `json:"directory"`
	LastStamp time.Time `json:"last_stamp"`
	From      time.Time `json:"from"`
	Stamps    uint64    `json:"stamps"`
	Time      certInfo  `json:"time"`
}

func (r *clockResult) Text(w *display.Writer) {
	w.Line("reset the clock of the time stamp authority in %s; the log tells of it", r.Directory)
	w.Field("last stamp", "of %s, of %s ever made", r.LastStamp.Format(time.RFC3339), display.Count(int(min(r.Stamps, 1<<53)), "stamp", "stamps"))
	w.Field("stamps", "are made again from %s on", r.From.Format(time.RFC3339))
	w.Field("warning", "what was stamped while the clock was wrong says a time that had not come, and will be believed from then on")
	w.Line("next: if anybody may have such a stamp, mentatctl pki revoke %s and mentatctl pki services --renew: all stamps of this certificate count no more", r.Time.Serial)
}

func (a *app) resetClock(ca *pki.CA) error {
	reset, err := ca.ResetClock(a.now())
	if err != nil {
		return err
	}
	return a.printer().Result(&clockResult{Header: display.Head("pki-services-clock"), Directory: ca.Dir(), LastStamp: reset.From, From: reset.To, Stamps: reset.Stamps, Time: infoOf(ca.Time())})
}

func (a *app) pkiServicesCmd() *cobra.Command {
	var f caFlags
	var renew, reset, unencrypted bool
	services := servicesFlags{on: true}
	cmd := &cobra.Command{
		Use:   "services",
		Short: "Add a time stamp authority and OCSP answers, or renew it",
		Long: `Make a time stamp authority beside a certificate authority that is there: a root of
its own (10 years, RSA 4096), which signs nothing else, its first revocation list,
and a certificate for time stamps, for a year. Once it is there, mentatctl pki serve
answers requests for time stamps under /tsa, and requests about the state of
certificates under /ocsp, with a key that is certified for OCSP alone and made anew
while it runs.

The root's key is encrypted by a passphrase, unless --unencrypted-root says that it is
not: move it off the machine. The
authority's key, which the server needs, is encrypted by that of
--agent-passphrase-file, as the agent CA's. Nothing that is there is overwritten.
A server that runs already has to be started again.

With --renew the authority that is there gets a new key and a new certificate from
the same root, whose key is needed. The old certificate stays good, or revoked; its
key is removed, unless it is in a token. What was stamped before counts as it did,
also after the old certificate's end. Start the server again.

With --reset-clock stamps are made from now on, though the last one is of a later
time, because the clock was wrong when it was made. The log tells of it. Stamps of a
time that had not come are not taken back by that: revoking the authority's
certificate does, with all other stamps of it.`,
		Example: `  mentatctl pki services
  mentatctl pki services --ca ./ca --ocsp-url http://pki.example.com/ocsp --agent-passphrase-file online.txt
  mentatctl pki services --ca ./ca --renew --agent-passphrase-file online.txt
  mentatctl pki services --ca ./ca --reset-clock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, other := range []string{"renew", unencryptedRootFlag} {
				if err := exclusive(cmd, other, "time-root-key"); err != nil {
					return err
				}
			}
			if err := exclusive(cmd, "renew", unencryptedRootFlag); err != nil {
				return err
			}
			for _, other := range []string{"renew", "ocsp-url", "time-policy", "time-root-key", "time-key", unencryptedRootFlag} {
				if err := exclusive(cmd, "reset-clock", other); err != nil {
					return err
				}
			}
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if reset {
				return a.resetClock(ca)
			}
			return a.pkiServices(cmd, ca, &f, &services, renew, unencrypted)
		},
	}
	f.addKey(cmd)
	services.add(cmd)
	addUnencryptedRoot(cmd, &unencrypted)
	cmd.Flags().BoolVar(&renew, "renew", false, "give the time stamp authority that is there a new key and certificate")
	cmd.Flags().BoolVar(&reset, "reset-clock", false, "make stamps from now on, though the last one is of a later time")
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

// pkiServices makes the services, or renews them.
func (a *app) pkiServices(cmd *cobra.Command, ca *pki.CA, f *caFlags, services *servicesFlags, renew, unencrypted bool) error {
	rootFile := filepath.Join(ca.Dir(), filepath.FromSlash(pki.TimeRootCert))
	// Before a passphrase is asked for.
	switch {
	case ca.Services() && !renew:
		return fault.New(fault.Exists, filepath.Dir(rootFile), "is there already and is not overwritten").WithHint("--renew gives the time stamp authority a new key and certificate")
	case !ca.Services() && renew:
		return fault.New(fault.NotFound, ca.Dir(), "has no time stamp authority").WithHint("without --renew, one is made")
	}
	var pass, agentPass []byte
	var err error
	if services.rootKey == "" && !renew {
		if pass, err = a.rootPassphrase(cmd.Context(), &f.pass, filepath.Join(ca.Dir(), filepath.FromSlash(pki.TimeRootKey)), unencrypted, "time-root-key"); err != nil {
			return err
		}
	}
	if f.agentPass != "" {
		if agentPass, err = secretFile(f.agentPass, "passphrase"); err != nil {
			return err
		}
	}
	o := services.options(pass, agentPass, unencrypted, a.now())
	done := a.newProgress().Step("making keys")
	err = a.addServices(cmd.Context(), ca, f, o, renew)
	done()
	if err != nil {
		return err
	}
	list, err := ca.ListOf(ca.Time().SerialNumber)
	if err != nil {
		return err
	}
	return a.printer().Result(&pkiServicesResult{
		Header: display.Head("pki-services"), Directory: ca.Dir(), Renewed: renew, TimeRoot: infoOf(ca.TimeRoot()), Time: infoOf(ca.Time()),
		RootFile: rootFile, List: list, Warnings: ca.Warnings(),
	})
}
