package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/pki"
)

func (a *app) pkiCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Keep a certificate authority for signing agents",
		Long: `Keep a small certificate authority in a directory: a root, an agent CA below it,
the certificates of developers, and the revocation lists of both. serve offers it
to others over HTTPS: token lets somebody in, request-cert and renew then need
nothing but its address.

The directory is --ca, else $` + caEnv + `, else ca in ~/.mentat/config.toml, else
~/.mentat/ca.`,
		Example: `  mentatctl pki init
  mentatctl pki request-cert --email developer@mentatlab.com
  mentatctl pki revoke ~/.mentat/signing.crt --reason keyCompromise`,
		Args: subcommandWanted,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.pkiInitCmd(), a.pkiServicesCmd(), a.pkiRequestCmd(), a.pkiRevokeCmd(), a.pkiCRLCmd(), a.pkiListCmd(), a.pkiPolicyCmd(),
		a.pkiServeCmd(), a.pkiTokenCmd(), a.pkiRenewCmd(), a.pkiExportCmd(), a.pkiLogCmd())
	return cmd
}

// caFlags say which certificate authority is meant.
type caFlags struct {
	dir       string
	agentPass string
	pass      passphraseFlags
}

// addKey adds what a command needs that uses the agent CA's key.
func (f *caFlags) addKey(cmd *cobra.Command) {
	f.add(cmd)
	f.pass.add(cmd)
	cmd.Flags().StringVar(&f.agentPass, "agent-passphrase-file", "", "the `FILE` with the passphrase of the agent CA's key")
}

func (f *caFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "ca", "", "the certificate authority's `DIR` (default: $"+caEnv+" or ~/.mentat/ca)")
}

func (a *app) openCA(ctx context.Context, f *caFlags) (*pki.CA, error) {
	dir, err := caDir(f.dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, dir, "there is no certificate authority").
			WithHint("mentatctl pki init makes one, --ca names another, --ca-url one that is served")
	}
	return pki.Open(dir, pki.OpenOptions{
		Passphrase:      func() ([]byte, error) { return a.passphrase(ctx, &f.pass, filepath.Join(dir, pki.RootKey)) },
		AgentPassphrase: func() ([]byte, error) { return a.onlineSecret(ctx, f, filepath.Join(dir, pki.AgentKey)) },
		Token: func(name string) (crypto.Signer, error) {
			// A server's requests are finished after ctx ended: the key must outlive it.
			return a.openTokenKey(context.WithoutCancel(ctx), name, newTokenKey{}, func() ([]byte, error) { return a.onlineSecret(ctx, f, name) })
		},
	})
}

// onlineSecret is the passphrase of a key that a server holds, or the PIN of its
// token.
func (a *app) onlineSecret(ctx context.Context, f *caFlags, what string) ([]byte, error) {
	if f.agentPass != "" {
		return secretFile(f.agentPass, "passphrase")
	}
	return a.passphrase(ctx, &f.pass, what)
}

type pkiInitResult struct {
	display.Header
	Directory string   `json:"directory"`
	Root      certInfo `json:"root"`
	Agent     certInfo `json:"agent_ca"`
	// Time and TimeRoot are the time stamp authority's.
	Time     *certInfo `json:"time,omitempty"`
	TimeRoot *certInfo `json:"time_root,omitempty"`
	// Policy and Capabilities are the starter policies, if they were asked for.
	Policy       string   `json:"policy,omitempty"`
	Capabilities string   `json:"capabilities,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`

	ca, email string // for the commands that come next
}

type certInfo struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
}

func infoOf(c *x509.Certificate) certInfo {
	return certInfo{Subject: c.Subject.String(), Serial: c.SerialNumber.Text(16), NotAfter: c.NotAfter.UTC()}
}

func (r *pkiInitResult) Text(w *display.Writer) {
	w.Line("made a certificate authority in %s", r.Directory)
	w.Field("root", "%s, until %s", r.Root.Subject, display.Date(r.Root.NotAfter))
	w.Field("agent CA", "%s, until %s", r.Agent.Subject, display.Date(r.Agent.NotAfter))
	if r.Time != nil {
		w.Field("time root", "%s, until %s", r.TimeRoot.Subject, display.Date(r.TimeRoot.NotAfter))
		w.Field("time", "%s, until %s", r.Time.Subject, display.Date(r.Time.NotAfter))
	}
	if r.Policy != "" {
		w.Field("policy", "%s, its trust store and %s", r.Policy, r.Capabilities)
	}
	w.List("warning", r.Warnings)
	w.Line("next: mentatctl pki request-cert%s --email %s", r.ca, r.email)
	if r.Policy == "" {
		w.Line("and for the nodes: mentatctl pki policy%s --scope 'REGISTRY/PATH/**' --identity %s /etc/mentat", r.ca, r.email)
	}
}

func (a *app) pkiInitCmd() *cobra.Command {
	var f caFlags
	var services servicesFlags
	var made madeKeys
	var o pki.InitOptions
	var starter starterFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority",
		Long: `Make a root (10 years, RSA 4096), an agent CA below it (5 years, RSA 3072) and the
first revocation list of each. Nothing that is there is overwritten.

The root's key is encrypted by a passphrase: that of $` + passphraseEnv + `, or one that
is asked for. Without any nothing is made, unless --unencrypted-root says that the key
may lie open. Move it off the machine once the agent CA exists: it is needed again
only to renew the root's list, and to revoke the agent CA. The
agent CA's key, which issues certificates, is encrypted by another passphrase, if
--agent-passphrase-file names one.

With --root-key and --agent-key a key is made in a PKCS #11 token and never leaves
it: its name is kept instead, and its PIN asked for as a passphrase is.

With --services there is a time stamp authority, too, as mentatctl pki services
makes it. With --policy a node's policy and trust store are written that trust this
certificate authority, as mentatctl pki policy writes them: that needs --scope and
--identity, what is enforced and who may sign it.`,
		Example: `  mentatctl pki init
  mentatctl pki init --ca ./ca --org "Example Corp" --country DE --crl-url http://pki.example.com/crl
  mentatctl pki init --policy ./etc --scope 'registry.example.com/agents/**' --identity dev@example.com
  mentatctl pki init \
    --root-key 'pkcs11:token=offline;object=root' \
    --agent-key 'pkcs11:token=online;object=agent-ca' --agent-passphrase-file pin.txt
  mentatctl pki init --services --ocsp-url http://pki.example.com/ocsp --crl-url http://pki.example.com/crl`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(cmd, "crl-life", o.AgentCRLLife); err != nil {
				return err
			}
			if err := services.check(cmd); err != nil {
				return err
			}
			if err := starter.check(cmd); err != nil {
				return err
			}
			dir, err := caDir(f.dir)
			if err != nil {
				return err
			}
			// Init refuses it too, but only after a passphrase was asked for.
			if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
				return fault.New(fault.Exists, dir, "is not empty").WithHint("a certificate authority is never overwritten: choose another directory with --ca")
			}
			if err := starter.checkPolicy(dir, o, services.options(nil, nil, false, a.now())); err != nil {
				return err
			}
			if file, token := services.openRoot(o.RootKeyName); file != "" {
				if o.Passphrase, err = a.rootPassphrase(cmd.Context(), &f.pass, filepath.Join(dir, filepath.FromSlash(file)), o.UnencryptedRoot, token); err != nil {
					return err
				}
			} else if o.UnencryptedRoot {
				return fault.New(fault.Usage, "--"+unencryptedRootFlag, "says nothing here: the key is made in a token")
			}
			if f.agentPass != "" {
				if o.AgentPassphrase, err = secretFile(f.agentPass, "passphrase"); err != nil {
					return err
				}
			}
			o.Now = a.now()
			o.Services = services.options(o.Passphrase, o.AgentPassphrase, o.UnencryptedRoot, o.Now)
			done := a.newProgress().Step("making keys")
			ca, err := a.initCA(cmd.Context(), dir, &f, &made, o)
			done()
			if err != nil {
				return err
			}
			r := &pkiInitResult{Header: display.Head("pki-init"), Directory: dir, Root: infoOf(ca.Root()), Agent: infoOf(ca.Agent()), Warnings: ca.Warnings(), email: "YOU@EXAMPLE.COM"}
			if f.dir != "" {
				r.ca = " --ca " + f.dir
			}
			if starter.dir != "" {
				if r.Policy, r.Capabilities, err = ca.WriteStarter(starter.dir, starter.options); err != nil {
					return fault.Wrap(err, fault.ReasonOf(err), dir, "the certificate authority is made, its starter policy is not").
						WithHint("mentatctl pki policy%s writes it", r.ca)
				}
				r.email = starter.options.Emails[0]
			}
			if ca.Services() {
				root, tsa := infoOf(ca.TimeRoot()), infoOf(ca.Time())
				r.TimeRoot, r.Time = &root, &tsa
			}
			return a.printer().Result(r)
		},
	}
	cmd.Flags().StringVar(&o.RootKeyName, "root-key", "", "make the root's key in a PKCS #11 token, by this `NAME`: pkcs11:token=LABEL;object=LABEL")
	cmd.Flags().StringVar(&o.AgentKeyName, "agent-key", "", "make the agent CA's key in a PKCS #11 token, by this `NAME`")
	cmd.Flags().BoolVar(&services.on, "services", false, "make a time stamp authority, too, and answer OCSP requests when served")
	services.add(cmd)
	f.addKey(cmd)
	addUnencryptedRoot(cmd, &o.UnencryptedRoot)
	starter.add(cmd)
	cmd.Flags().StringVar(&o.Org, "org", "", "the organization's `NAME` in every certificate (default MentatLab)")
	cmd.Flags().StringVar(&o.Country, "country", "", "the country's two-letter `CODE` in every certificate (default US)")
	cmd.Flags().StringVar(&o.CRLURL, "crl-url", "", "the `URL` under which the files of DIR/crl will be published")
	cmd.Flags().DurationVar(&o.AgentCRLLife, "crl-life", 0, "how long a revocation list of the agent CA counts (default 24h)")
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

type requestResult struct {
	display.Header
	Certificate string   `json:"certificate"`
	Key         string   `json:"key"`
	Leaf        certInfo `json:"leaf"`
	Issuer      string   `json:"issuer"`
}

func (r *requestResult) Text(w *display.Writer) {
	w.Line("issued %s", r.Leaf.Subject)
	w.Field("certificate", "%s", r.Certificate)
	w.Field("key", "%s", r.Key)
	w.Field("issuer", "%s", r.Issuer)
	w.Field("serial", "%s", r.Leaf.Serial)
	w.Field("expires", "%s", display.Date(r.Leaf.NotAfter))
}

func (a *app) pkiRequestCmd() *cobra.Command {
	var f caFlags
	var s serverFlags
	var r pki.CertRequest
	cmd := &cobra.Command{
		Use:   "request-cert",
		Short: "Make a signing key and have it certified",
		Long: `Make a key (RSA 2048, or ECDSA on P-256), have the certificate authority issue a
code signing certificate for it, and write both. Nothing is overwritten. The
certificate's file holds the chain as sign wants it.

If the key's file is there and the certificate's is not, that key is taken up: so a
request whose answer was lost is made again by the same command, and with the same
token gets the certificate that was issued.

The key is encrypted when there is a passphrase, and never leaves this machine. With
--key pkcs11:token=LABEL;object=LABEL it is made in a PKCS #11 token and never leaves
that; its PIN is the passphrase.

A certificate authority that is served is named by --ca-url, else $` + caURLEnv + `, else
ca_url in ~/.mentat/config.toml; --ca-root, $` + caRootEnv + ` or ca_root is the root that
vouches for the server, if that is none that the system knows. It wants a token,
which its keeper makes with mentatctl pki token: in $` + caTokenEnv + `, in the file that
--token-file names, or entered when asked for.`,
		Example: `  mentatctl pki request-cert \
    --email developer@mentatlab.com \
    --output ~/.mentat/signing.crt \
    --key ~/.mentat/signing.key`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Email == "" {
				return fault.New(fault.Usage, "", "request-cert needs --email")
			}
			if err := positive(cmd, "validity", r.Validity); err != nil {
				return err
			}
			dir, err := home()
			if err != nil && (r.CertFile == "" || r.KeyFile == "") {
				return err
			}
			if r.CertFile == "" {
				r.CertFile = filepath.Join(dir, "signing.crt")
			}
			if r.KeyFile == "" {
				r.KeyFile = filepath.Join(dir, "signing.key")
			}
			issuer, err := a.issuer(cmd, &f, &s, nil, nil)
			if err != nil {
				return err
			}
			r.Now = a.now()
			chain, err := a.obtain(cmd.Context(), &r, &f.pass, func(key crypto.Signer) ([]*x509.Certificate, error) {
				return issuer.enrol(cmd.Context(), key, r.LeafOptions)
			})
			if err != nil {
				return err
			}
			return a.printer().Result(&requestResult{Header: display.Head("pki-request-cert"), Certificate: r.CertFile, Key: r.KeyFile, Leaf: infoOf(chain[0]), Issuer: chain[0].Issuer.String()})
		},
	}
	f.addKey(cmd)
	s.add(cmd)
	s.addToken(cmd)
	cmd.Flags().StringVar(&r.Email, "email", "", "the developer's `EMAIL`, which policies name")
	cmd.Flags().StringVar(&r.CertFile, outputFlag, "", "the `FILE` for the certificate and its chain (default ~/.mentat/signing.crt)")
	cmd.Flags().StringVar(&r.KeyFile, "key", "", "the `FILE` for the key, or pkcs11:token=LABEL;object=LABEL (default ~/.mentat/signing.key)")
	addKeyType(cmd, &r)
	cmd.Flags().DurationVar(&r.Validity, "validity", 0, "how long the certificate counts, at most a year (default a year)")
	// --output is the specification's name for the certificate's file.
	cmd.Flags().Var(&a.format, "format", "print the result as text or json")
	fixedCompletion(cmd, "format", "text", "json")
	return cmd
}

type revokeResult struct {
	display.Header
	Serial string `json:"serial"`
	Reason string `json:"reason"`
	List   string `json:"list"`
	// InvalidSince is when the key was lost.
	InvalidSince time.Time `json:"invalid_since,omitzero"`
	// Tightened is that it was revoked before, and less strictly.
	Tightened bool `json:"tightened,omitempty"`
	// Renewed are the certificates that were renewed from it and still count.
	Renewed []string `json:"renewed,omitempty"`
}

func (r *revokeResult) Text(w *display.Writer) {
	again := ""
	if r.Tightened {
		again = " again, more strictly"
	}
	w.Line("revoked %s%s", r.Serial, again)
	w.Field("reason", "%s", r.Reason)
	if !r.InvalidSince.IsZero() {
		w.Field("invalid", "since %s", display.Date(r.InvalidSince))
	}
	w.Field("list", "%s", r.List)
	w.List("warning: renewed from it and still good", r.Renewed)
	w.Line("publish the list: nodes refuse the certificate once they have it")
}

func (a *app) pkiRevokeCmd() *cobra.Command {
	var f caFlags
	var reasonName, sinceText string
	cmd := &cobra.Command{
		Use:   "revoke SERIAL|CERTIFICATE",
		Short: "Revoke a certificate",
		Long: `Revoke a certificate, named by its serial number or its file, and write a new
revocation list. What it signed is refused from then on, also what it signed
before.

With --invalid-since the entry says since when the key was lost: what has a time stamp
from before stays good. Without it nothing does. A certificate that is revoked can be
revoked again where that refuses more: since an earlier date, since ever, or for
keyCompromise where another reason stood. Without --reason the one that stands stays.

A key that was revoked as compromised is never certified again. Certificates that
were renewed from this one are named: who had the key may have renewed it.`,
		Example: `  mentatctl pki revoke ~/.mentat/signing.crt --reason keyCompromise
  mentatctl pki revoke ~/.mentat/signing.crt --reason keyCompromise --invalid-since 2026-01-15
  mentatctl pki revoke 5f1c0a77e0d94c0b8e6ad5a8d7b1c2f3 --output json
  mentatctl pki list --email developer@mentatlab.com     # its serial numbers`,
		Args:              wantArgs(1, 1, "one serial number or certificate file"),
		ValidArgsFunction: a.serialCompletion(&f),
		RunE: func(cmd *cobra.Command, args []string) error {
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			reason, err := pki.ParseReason(reasonName)
			if err != nil {
				return fault.Wrap(err, fault.Usage, "", "--reason")
			}
			serial, err := serialOf(args[0])
			if err != nil {
				return err
			}
			since, err := dateFlag("--invalid-since", sinceText)
			if err != nil {
				return err
			}
			stands, err := ca.RevokeSince(serial, reason, since, a.now())
			if err != nil {
				return err
			}
			renewed, err := renewedFrom(ca, serial, a.now())
			if err != nil {
				return err
			}
			list, err := ca.ListOf(serial)
			if err != nil {
				return err
			}
			return a.printer().Result(&revokeResult{Header: display.Head("pki-revoke"), Serial: serial.Text(16), Reason: stands.Reason, List: list, InvalidSince: stands.InvalidSince, Tightened: stands.Tightened, Renewed: renewed})
		},
	}
	f.addKey(cmd)
	cmd.Flags().StringVar(&reasonName, "reason", "unspecified", "why, in RFC 5280's `WORD`: keyCompromise, superseded, affiliationChanged, cessationOfOperation, privilegeWithdrawn …")
	fixedCompletion(cmd, "reason", pki.Reasons()...)
	cmd.Flags().StringVar(&sinceText, "invalid-since", "", "the `DATE` since when the key is not the holder's alone, like 2026-01-15 or 2026-01-15T10:30:00Z")
	a.outputs(cmd)
	return cmd
}

// serialOf reads a serial number, or the first certificate of a file.
func serialOf(arg string) (*big.Int, error) {
	if _, err := os.Stat(arg); err != nil {
		serial, perr := pki.ParseSerial(arg)
		if perr != nil {
			return nil, fault.New(fault.Usage, arg, "neither a certificate file nor a serial number in hexadecimal").WithHint("mentatctl pki list shows serial numbers")
		}
		return serial, nil
	}
	chain, err := readChain(arg, "certificate")
	if err != nil {
		return nil, err
	}
	return chain[0].SerialNumber, nil
}

type crlResult struct {
	display.Header
	Lists []crlInfo `json:"lists"`
}

type crlInfo struct {
	Issuer     string    `json:"issuer"`
	File       string    `json:"file"`
	Number     string    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Revoked    int       `json:"revoked"`
}

func (r *crlResult) Text(w *display.Writer) {
	for _, l := range r.Lists {
		w.Line("%s", l.Issuer)
		w.Field("list", "%s", l.File)
		w.Field("number", "%s", l.Number)
		w.Field("revoked", "%s", display.Count(l.Revoked, "certificate", "certificates"))
		w.Field("counts", "until %s", display.Date(l.NextUpdate))
	}
}

func (a *app) pkiCRLCmd() *cobra.Command {
	var f caFlags
	var root, show bool
	cmd := &cobra.Command{
		Use:   "crl",
		Short: "Write a new revocation list",
		Long: `Write a new list of the agent CA, with --root also one of the root, and of the time
stamp authority's root if there is one. That needs their keys: put them back for as long as
it takes; if one is missing no list is made. Do so before the old one ends: nodes
refuse agents when they cannot tell whether their signers are revoked.`,
		Example: `  mentatctl pki crl
  mentatctl pki crl --root
  mentatctl pki crl --show --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := exclusive(cmd, "root", "show"); err != nil {
				return err
			}
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			switch {
			case root:
				err = ca.RenewAllCRLs(a.now())
			case !show:
				err = ca.RenewCRL(a.now())
			}
			if err != nil {
				return err
			}
			r := &crlResult{Header: display.Head("pki-crl")}
			for _, name := range ca.ListFiles() {
				path := filepath.Join(ca.Dir(), filepath.FromSlash(name))
				list, err := readCRL(path)
				if err != nil {
					return err
				}
				r.Lists = append(r.Lists, crlInfo{
					Issuer: list.Issuer.String(), File: path, Number: list.Number.String(),
					ThisUpdate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(), Revoked: len(list.RevokedCertificateEntries),
				})
			}
			return a.printer().Result(r)
		},
	}
	f.addKey(cmd)
	cmd.Flags().BoolVar(&root, "root", false, "write the roots' lists too")
	cmd.Flags().BoolVar(&show, "show", false, "write nothing, show the lists")
	a.outputs(cmd)
	return cmd
}

type listResult struct {
	display.Header
	Directory    string       `json:"directory"`
	Certificates []listedCert `json:"certificates"`
	Warnings     []string     `json:"warnings,omitempty"`
}

// listedCert is a certificate with what it is now.
type listedCert struct {
	pki.Record
	State string `json:"state"`
}

func (r *listResult) Text(w *display.Writer) {
	var rows [][]string
	for _, c := range r.Certificates {
		name, state := c.Email, ""
		if name == "" {
			name = c.Subject
		}
		switch c.State {
		case pki.StateRevoked:
			state = "revoked " + display.Date(c.Revoked) + ", " + c.Reason
			if !c.InvalidSince.IsZero() {
				state += ", invalid since " + display.Date(c.InvalidSince)
			}
		case pki.StateExpired:
			state = "expired " + display.Date(c.NotAfter)
		default:
			state = "valid until " + display.Date(c.NotAfter)
		}
		rows = append(rows, []string{c.Serial, name, state})
	}
	w.Table([]string{"SERIAL", "HOLDER", "STATE"}, rows)
	w.List("warning", r.Warnings)
}

func (a *app) pkiListCmd() *cobra.Command {
	var f caFlags
	var email, state string
	states := []string{pki.StateValid, pki.StateRevoked, pki.StateExpired}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the certificates that were issued",
		Long: `List the certificates that the certificate authority issued, oldest first: those of
developers, its own and those of its servers. --email and --state list some of them.
A time stamp authority whose certificate ends within 30 days is warned of.`,
		Example: `  mentatctl pki list
  mentatctl pki list --email developer@mentatlab.com --state valid
  mentatctl pki list --output json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if state != "" && !slices.Contains(states, state) {
				return fault.New(fault.Usage, "--state", "%q is none of %s", state, strings.Join(states, ", "))
			}
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			all, err := ca.Issued()
			if err != nil {
				return err
			}
			r := &listResult{Header: display.Head("pki-list"), Directory: ca.Dir(), Certificates: []listedCert{}}
			if r.Warnings, err = ca.TimeWarnings(a.now()); err != nil {
				return err
			}
			for _, c := range all {
				is := c.State(a.now())
				if (state == "" || state == is) && (email == "" || strings.EqualFold(email, c.Email)) {
					r.Certificates = append(r.Certificates, listedCert{c, is})
				}
			}
			return a.printer().Result(r)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&email, "email", "", "list this developer's `EMAIL` only")
	cmd.Flags().StringVar(&state, "state", "", "list those in this `STATE` only: valid, revoked or expired")
	fixedCompletion(cmd, "state", states...)
	a.outputs(cmd)
	return cmd
}

// serialCompletion offers the serial numbers of valid certificates beside words.
// What cannot be read offers none.
func (a *app) serialCompletion(f *caFlags, words ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		offered := slices.Clone(words)
		ca, err := a.openCA(cmd.Context(), f)
		if err != nil {
			return offered, cobra.ShellCompDirectiveDefault
		}
		all, err := ca.Issued()
		if err != nil {
			return offered, cobra.ShellCompDirectiveDefault
		}
		for _, c := range all {
			if c.State(a.now()) == pki.StateValid {
				offered = append(offered, c.Serial+"\t"+firstOf(c.Email, c.Subject))
			}
		}
		return offered, cobra.ShellCompDirectiveDefault
	}
}

type policyResult struct {
	display.Header
	Policy       string `json:"policy"`
	Capabilities string `json:"capabilities"`
	// Lists is where the lists were copied to, with --carry.
	Lists string `json:"lists,omitempty"`
}

func (r *policyResult) Text(w *display.Writer) {
	w.Line("wrote %s, its trust store and %s", r.Policy, r.Capabilities)
	w.Line("it denies every agent in its scope that these identities did not sign")
	if r.Lists != "" {
		w.Line("the revocation lists in %s are those of now: copy new ones there before each mentatctl trust export", r.Lists)
	}
}

// checkStarter refuses a policy that could not be read back, before it is written.
func checkStarter(text []byte, o pki.PolicyOptions) error {
	if _, err := verifier.ParsePolicy("policy", text); err != nil {
		return fault.Wrap(err, fault.Usage, "", "these flags make no policy")
	}
	if _, err := policy.Parse("capabilities", pki.StarterCapabilities(o)); err != nil {
		return fault.Wrap(err, fault.Usage, "", "these flags make no capability policy")
	}
	return nil
}

func addScope(cmd *cobra.Command, o *pki.PolicyOptions) {
	cmd.Flags().StringArrayVar(&o.Match, "scope", nil, "enforce it for these references: `HOST/REPOSITORY`, HOST/PATH/** or *; may be repeated")
	cmd.Flags().StringArrayVar(&o.Emails, "identity", nil, "trust this signer's `EMAIL`; may be repeated")
}

// starterFlags say what policy goes with a new certificate authority. For all that it
// can say there is the command of its own.
type starterFlags struct {
	dir     string
	options pki.PolicyOptions
}

func (f *starterFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "policy", "", "write a starter policy and trust store into this `DIR`, too, as mentatctl pki policy does")
	addScope(cmd, &f.options)
}

func (f *starterFlags) check(cmd *cobra.Command) error {
	for _, name := range []string{"scope", "identity"} {
		if f.dir == "" && cmd.Flags().Changed(name) {
			return fault.New(fault.Usage, "--"+name, "needs --policy")
		}
	}
	if f.dir != "" && (len(f.options.Match) == 0 || len(f.options.Emails) == 0) {
		return fault.New(fault.Usage, "--policy", "needs --scope and --identity: what is enforced, and who may sign it")
	}
	return nil
}

// checkPolicy refuses a policy that could not be written once the certificate authority
// is made.
func (f *starterFlags) checkPolicy(dir string, o pki.InitOptions, services *pki.ServiceOptions) error {
	if f.dir == "" {
		return nil
	}
	o.Services = services
	text, err := o.Starter(dir, f.dir, f.options)
	if err != nil {
		return err
	}
	return checkStarter(text, f.options)
}

func (a *app) pkiPolicyCmd() *cobra.Command {
	var f caFlags
	var o pki.PolicyOptions
	cmd := &cobra.Command{
		Use:   "policy DIR",
		Short: "Write a policy that trusts this certificate authority",
		Long: `Write policy.yaml, and the trust store that it names, into a directory such as
/etc/mentat. It enforces one scope: what is published there must be signed by the
identities given. Beside it goes capabilities.yaml, with a rule for what --allow
names. Edit them as needed; unknown keys are refused.

The policy names the revocation lists where the certificate authority publishes them,
or its own files. With --carry it names files in DIR/crl, to which the lists of now are
copied, and asks no OCSP responder: mentatctl trust export carries such a policy to
nodes without a network.`,
		Example: `  mentatctl pki policy --scope 'registry.example.com/agents/**' --identity dev@example.com /etc/mentat
  mentatctl pki policy --scope '*' --identity dev@example.com --allow env:LANG --allow llm:gpt-4o etc
  mentatctl pki policy --carry --scope 'registry.example.com/agents/**' --identity dev@example.com site
  mentatctl verify --policy /etc/mentat/policy.yaml registry.example.com/agents/hello:0.1.0`,
		Args: wantArgs(1, 1, "one directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(o.Match) == 0 || len(o.Emails) == 0 {
				return fault.New(fault.Usage, "", "pki policy needs --scope and --identity: what is enforced, and who may sign it")
			}
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if err := checkStarter(ca.StarterPolicy(o), o); err != nil {
				return err
			}
			path, capabilities, err := ca.WriteStarter(args[0], o)
			if err != nil {
				return err
			}
			r := &policyResult{Header: display.Head("pki-policy"), Policy: path, Capabilities: capabilities}
			if o.Carry {
				r.Lists = filepath.Join(args[0], filepath.Dir(filepath.FromSlash(pki.RootCRL)))
			}
			return a.printer().Result(r)
		},
	}
	f.add(cmd)
	addScope(cmd, &o)
	cmd.Flags().StringArrayVar(&o.Publishers, "publisher", nil, "treat what this signer's `EMAIL` signed as verified; may be repeated")
	cmd.Flags().StringArrayVar(&o.Allow, "allow", nil, "grant this `CAPABILITY` to the scope's signed agents that ask for it; may be repeated")
	cmd.Flags().BoolVar(&o.AllowUnsignedContainers, "allow-unsigned-containers", false, "let ordinary container images of the scope run unsigned")
	cmd.Flags().BoolVar(&o.DenyOutside, "deny-outside", false, "refuse ordinary images outside the scope")
	cmd.Flags().BoolVar(&o.Carry, "carry", false, "name the revocation lists by files beside the policy, for nodes without a network")
	cmd.Flags().StringVar(&o.Grace, "grace", "", "how long a revocation list counts past its end, a `DURATION` like 24h")
	a.outputs(cmd)
	return cmd
}
