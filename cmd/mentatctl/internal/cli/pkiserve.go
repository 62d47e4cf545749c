package cli

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/keyfile"
	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/pki/remote"
)

// serverFlags say which served certificate authority is meant, and what lets one
// in.
type serverFlags struct{ url, root, tokenFile string }

func (s *serverFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.url, "ca-url", "", "the https `URL` of a certificate authority that is served (default: $"+caURLEnv+")")
	cmd.Flags().StringVar(&s.root, "ca-root", "", "the PEM `FILE` with the root that vouches for that server (default: $"+caRootEnv+")")
}

func (s *serverFlags) addToken(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.tokenFile, "token-file", "", "the `FILE` with the token for that server (default: $"+caTokenEnv+")")
}

// issuer has certificates issued, by a directory or by a server.
type issuer struct {
	ca     *pki.CA
	client *remote.Client
	token  func(context.Context) (string, error)
	old    []*x509.Certificate
}

// issuer finds out who issues. For a renewal, old and key are what is renewed.
func (a *app) issuer(cmd *cobra.Command, f *caFlags, s *serverFlags, old []*x509.Certificate, key crypto.Signer) (*issuer, error) {
	place, err := caURL(f.dir, s.url, s.root)
	if err != nil {
		return nil, err
	}
	i := &issuer{old: old, token: func(ctx context.Context) (string, error) { return a.enrolToken(ctx, s.tokenFile) }}
	if place.URL == "" {
		if s.tokenFile != "" {
			return nil, fault.New(fault.Usage, "--token-file", "no server is asked").WithHint("name one with --ca-url")
		}
		i.ca, err = a.openCA(cmd.Context(), f)
		return i, err
	}
	o := remote.ClientOptions{URL: place.URL, Chain: old, Key: key}
	if place.Root != "" {
		if o.Roots, err = readRoots(place.Root); err != nil {
			return nil, err
		}
	}
	i.client, err = remote.NewClient(o)
	return i, err
}

func readRoots(path string) (*x509.CertPool, error) {
	data, err := keyfile.Read(path, "root certificate")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fault.New(fault.Usage, path, "holds no certificate in PEM form")
	}
	return pool, nil
}

// enrolToken is what lets somebody in, from wherever it is.
func (a *app) enrolToken(ctx context.Context, file string) (string, error) {
	if file != "" {
		token, err := secretFile(file, "token")
		return string(token), err
	}
	if v := os.Getenv(caTokenEnv); v != "" {
		return v, nil
	}
	if !display.IsTerminal(a.stdin) {
		return "", fault.New(fault.AccessDenied, "", "the certificate authority wants a token: %s is not set and there is no terminal to ask", caTokenEnv).
			WithHint("its keeper makes one: mentatctl pki token")
	}
	token, err := a.ask(ctx, "token: ")
	return string(token), err
}

func (i *issuer) enrol(ctx context.Context, key crypto.Signer, o pki.LeafOptions) ([]*x509.Certificate, error) {
	if i.client != nil {
		token, err := i.token(ctx)
		if err != nil {
			return nil, err
		}
		return i.client.Enrol(ctx, key, token, o)
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	return i.ca.IssueLeaf(csr, o)
}

func (i *issuer) renew(ctx context.Context, key crypto.Signer, o pki.LeafOptions) ([]*x509.Certificate, error) {
	if i.client != nil {
		return i.client.Renew(ctx, key, o)
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	return i.ca.Renew(csr, i.old[0], o)
}

type serveOptions struct {
	ca                caFlags
	listen, lists     string
	metrics           string
	names             []string
	certFile, certKey string
	certificate       *tls.Certificate
}

func (a *app) pkiServeCmd() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the certificate authority over HTTPS",
		Long: `Serve the certificate authority until SIGTERM or Ctrl-C, which let requests finish.
Developers enrol by a token that mentatctl pki token made, and renew by the
certificate that they have. The revocation lists are served under /crl/ and kept
current. The other pki commands work meanwhile, in the same directory: a
certificate that is revoked is on the list at once.

If there is a time stamp authority (mentatctl pki services), requests for time stamps
are answered under /tsa (RFC 3161) and those about the state of certificates under
/ocsp (RFC 6960), on both addresses: what is signed needs no TLS.

Metrics are served where --metrics-listen says, and nowhere without it: requests by
result, and when the lists and certificates end. They name no client.

The agent CA's key is held in memory, or stays in its PKCS #11 token: its passphrase
or PIN comes from --agent-passphrase-file, from the environment, or is asked for. Without --tls-cert
the server makes itself a certificate, which the authority's root vouches for, and
makes it anew as long as it runs.`,
		Example: `  mentatctl pki serve --listen :8443 --name ca.example.com
  mentatctl pki serve --listen :8443 --tls-cert ca.crt --tls-key ca.key --lists-listen :8080`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			ca, err := a.openCA(cmd.Context(), &o.ca)
			if err != nil {
				return err
			}
			return a.pkiServe(cmd.Context(), ca, &o)
		},
	}
	o.ca.addKey(cmd)
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:8443", "serve on this `ADDRESS`, as HOST:PORT or :PORT for every address")
	cmd.Flags().StringVar(&o.lists, "lists-listen", "", "serve the revocation lists, time stamps and OCSP answers over plain HTTP on this `ADDRESS`, too")
	cmd.Flags().StringVar(&o.metrics, "metrics-listen", "", "serve /metrics for Prometheus over plain HTTP on this `ADDRESS`, too")
	cmd.Flags().StringSliceVar(&o.names, "name", nil, "the host `NAME` or address that clients know the server by; may be repeated (default: that of --listen)")
	cmd.Flags().StringVar(&o.certFile, "tls-cert", "", "the server's certificate and its chain, a PEM `FILE`")
	cmd.Flags().StringVar(&o.certKey, "tls-key", "", "the key of that certificate, a PEM `FILE`")
	return cmd
}

func (o *serveOptions) check(cmd *cobra.Command) error {
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fault.New(fault.Usage, "--listen", "%q is not of the form HOST:PORT", o.listen)
	}
	if err := exclusive(cmd, "name", "tls-cert"); err != nil {
		return err
	}
	switch {
	case (o.certFile == "") != (o.certKey == ""):
		return fault.New(fault.Usage, "", "--tls-cert and --tls-key go together")
	case o.certFile != "":
		c, err := tls.LoadX509KeyPair(o.certFile, o.certKey)
		if err != nil {
			return fault.Wrap(err, fault.Usage, o.certFile, "is not the server's certificate with its key in %s", o.certKey)
		}
		o.certificate = &c
	case len(o.names) > 0:
	case host == "" || net.ParseIP(host).IsUnspecified():
		return fault.New(fault.Usage, "--name", "is needed where --listen names no host").WithHint("give the name that clients know this server by")
	default:
		o.names = []string{host}
	}
	return nil
}

func (a *app) pkiServe(ctx context.Context, ca *pki.CA, o *serveOptions) error {
	var handler slog.Handler = slog.NewJSONHandler(a.stderr, nil)
	if display.IsTerminal(a.stderr) {
		handler = slog.NewTextHandler(a.stderr, nil)
	}
	log := slog.New(handler)
	return remote.Serve(ctx, remote.ServerOptions{
		CA: ca, Listen: o.listen, ListsListen: o.lists, MetricsListen: o.metrics, Names: o.names, Certificate: o.certificate, Clock: a.now, Log: log,
		Ready: func(at remote.Addresses) {
			log.Info("the certificate authority is served", "address", at.Server, "lists", at.Lists, "metrics", at.Metrics, "directory", ca.Dir())
		},
	})
}

type tokenResult struct {
	display.Header
	Token   string    `json:"token"`
	Email   string    `json:"email"`
	Expires time.Time `json:"expires"`
}

// Text is the token alone, so that a script can take it.
func (r *tokenResult) Text(w *display.Writer) { w.Line("%s", r.Token) }

type tokensResult struct {
	display.Header
	Withdrawn int         `json:"withdrawn,omitempty"`
	Tokens    []pki.Token `json:"tokens"`
}

func (r *tokensResult) Text(w *display.Writer) {
	if r.Withdrawn > 0 {
		w.Line("withdrew %s", display.Count(r.Withdrawn, "token", "tokens"))
	}
	var rows [][]string
	for _, t := range r.Tokens {
		rows = append(rows, []string{t.Email, display.Date(t.Created), display.Date(t.Expires)})
	}
	w.Table([]string{"FOR", "MADE", "GOOD UNTIL"}, rows)
}

// tokens lists what is open, after it withdrew an address's.
func (a *app) tokens(ca *pki.CA, withdraw string) error {
	r := &tokensResult{Header: display.Head("pki-tokens")}
	if withdraw != "" {
		var err error
		if r.Withdrawn, err = ca.WithdrawTokens(withdraw, a.now()); err != nil {
			return err
		}
		if r.Withdrawn == 0 {
			return fault.New(fault.NotFound, withdraw, "has no token that is good for anything")
		}
	}
	open, err := ca.Tokens(a.now())
	if err != nil {
		return err
	}
	r.Tokens = append([]pki.Token{}, open...) // an empty list is a list
	return a.printer().Result(r)
}

func (a *app) pkiTokenCmd() *cobra.Command {
	var f caFlags
	var email, withdraw string
	var list bool
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Let somebody request a certificate from the server",
		Long: `Make a token with which whoever has it gets one certificate, for one e-mail
address. It is printed once: the certificate authority keeps only its hash. Give it
to the address's owner on a way that nobody else reads.

--list shows for whom there are tokens that nobody used yet; --withdraw makes those
of one address good for nothing.`,
		Example: `  mentatctl pki token --email developer@mentatlab.com
  mentatctl pki token --email developer@mentatlab.com --life 1h --output json
  mentatctl pki token --withdraw developer@mentatlab.com`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := exclusive(cmd, "email", "list", "withdraw"); err != nil {
				return err
			}
			if err := positive(cmd, "life", life); err != nil {
				return err
			}
			if email == "" && !list && withdraw == "" {
				return fault.New(fault.Usage, "", "token needs --email")
			}
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if email == "" {
				return a.tokens(ca, withdraw)
			}
			secret, t, err := ca.NewToken(email, life, a.now())
			if err != nil {
				return err
			}
			a.printer().Note("a token for %s, good until %s, once", t.Email, display.Date(t.Expires))
			return a.printer().Result(&tokenResult{Header: display.Head("pki-token"), Token: secret, Email: t.Email, Expires: t.Expires})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&email, "email", "", "the developer's `EMAIL`")
	cmd.Flags().BoolVar(&list, "list", false, "make none, list those that nobody used yet")
	cmd.Flags().StringVar(&withdraw, "withdraw", "", "make none, withdraw those of this `EMAIL`")
	cmd.Flags().DurationVar(&life, "life", pki.DefaultTokenLife, "how long it is good for")
	a.outputs(cmd)
	return cmd
}

func (a *app) pkiRenewCmd() *cobra.Command {
	var f caFlags
	var s serverFlags
	var o signOptions
	var r pki.CertRequest
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Have a certificate issued anew before it ends",
		Long: `Have the certificate authority issue a certificate for the holder of one that still
counts. The key stays the same and the certificate's file is replaced, unless
--new-key and --output name files for new ones. Nothing is overwritten; a new key
whose certificate is not there is taken up, as request-cert does.

The certificate authority is found as request-cert finds it; a server wants no
token: the certificate says who asks.`,
		Example: `  mentatctl pki renew
  mentatctl pki renew --new-key ~/.mentat/next.key --output ~/.mentat/next.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(cmd, "validity", r.Validity); err != nil {
				return err
			}
			if (r.KeyFile == "") != (r.CertFile == "") {
				return fault.New(fault.Usage, "", "--new-key and --output go together")
			}
			if r.KeyFile == "" && cmd.Flags().Changed("key-type") {
				return fault.New(fault.Usage, "--key-type", "needs --new-key: the key that is renewed stays what it is")
			}
			return a.pkiRenew(cmd, &f, &s, &o, r)
		},
	}
	f.addKey(cmd)
	s.add(cmd)
	cmd.Flags().StringVar(&o.cert, "cert", "", "the certificate and its chain, a PEM `FILE` (default ~/.mentat/signing.crt)")
	cmd.Flags().StringVar(&o.key, "key", "", "its key, a PEM `FILE` or pkcs11:token=LABEL;object=LABEL (default ~/.mentat/signing.key)")
	cmd.Flags().StringVar(&r.KeyFile, "new-key", "", "make a new key and write it to this `FILE`, or pkcs11:token=LABEL;object=LABEL")
	cmd.Flags().StringVar(&r.CertFile, outputFlag, "", "the `FILE` for the new key's certificate")
	addKeyType(cmd, &r)
	cmd.Flags().DurationVar(&r.Validity, "validity", 0, "how long the certificate counts, at most a year (default a year)")
	cmd.Flags().Var(&a.format, "format", "print the result as text or json")
	fixedCompletion(cmd, "format", "text", "json")
	return cmd
}

func (a *app) pkiRenew(cmd *cobra.Command, f *caFlags, s *serverFlags, o *signOptions, r pki.CertRequest) error {
	ctx := cmd.Context()
	dir, err := home()
	if err != nil && (o.cert == "" || o.key == "") {
		return err
	}
	o.cert, o.key, o.pass = firstOf(o.cert, filepath.Join(dir, "signing.crt")), firstOf(o.key, filepath.Join(dir, "signing.key")), f.pass
	key, old, err := a.signingKey(ctx, o)
	if err != nil {
		return err
	}
	if len(old[0].EmailAddresses) != 1 {
		return fault.New(fault.IdentityUntrusted, o.cert, "is no developer's certificate")
	}
	i, err := a.issuer(cmd, f, s, old, key)
	if err != nil {
		return err
	}
	r.Email, r.Now = old[0].EmailAddresses[0], a.now()
	issue := func(key crypto.Signer) ([]*x509.Certificate, error) {
		if r.KeyFile != "" && keyfile.Match(r.KeyFile, key, old) == nil {
			return nil, fault.New(fault.Exists, r.KeyFile, "is the key that is renewed").WithHint("name another file with --new-key, or leave it out: the key stays the same then")
		}
		return i.renew(ctx, key, r.LeafOptions)
	}
	var chain []*x509.Certificate
	certFile, keyFile := o.cert, o.key
	if r.KeyFile == "" {
		if chain, err = issue(key); err == nil {
			err = pki.ReplaceCert(o.cert, chain)
		}
	} else {
		certFile, keyFile = r.CertFile, r.KeyFile
		chain, err = a.obtain(ctx, &r, &f.pass, issue)
	}
	if err != nil {
		return err
	}
	return a.printer().Result(&requestResult{Header: display.Head("pki-renew"), Certificate: certFile, Key: keyFile, Leaf: infoOf(chain[0]), Issuer: chain[0].Issuer.String()})
}

func (a *app) pkiExportCmd() *cobra.Command {
	var f caFlags
	var file string
	cmd := &cobra.Command{
		Use:   "export root|agent-ca|time-root|log|SERIAL",
		Short: "Write a certificate, or the log, for others",
		Long: `Write the root's certificate, which nodes and clients trust, the agent CA's, that of
the time stamp authority's root, a developer's with its chain, or the log of all
that was issued and revoked, one JSON object a line. Certificates are PEM. A file
may not exist.`,
		Example: `  mentatctl pki export root --output root.pem
  mentatctl pki export 5f1c0a77e0d94c0b8e6ad5a8d7b1c2f3
  mentatctl pki export time-root --output time-root.pem
  mentatctl pki export log --output log.jsonl`,
		Args:              wantArgs(1, 1, "root, agent-ca, time-root, log or a serial number"),
		ValidArgsFunction: a.serialCompletion(&f, "root", "agent-ca", "time-root", "log"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			data, err := exported(ca, args[0])
			if err != nil {
				return err
			}
			if file == "" {
				if _, err := a.stdout.Write(data); err != nil {
					return fault.Wrap(err, fault.Internal, "stdout", "cannot be written")
				}
				return nil
			}
			if err := atomicfile.Create(file, data, 0o644); err != nil {
				if _, serr := os.Lstat(file); serr == nil {
					return fault.New(fault.Exists, file, "is there already and is not overwritten")
				}
				return fault.Wrap(err, fault.AccessDenied, file, "cannot be written")
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&file, outputFlag, "", "the `FILE` to write (default: standard output)")
	return cmd
}

func exported(ca *pki.CA, what string) ([]byte, error) {
	var chain []*x509.Certificate
	switch what {
	case "root":
		chain = []*x509.Certificate{ca.Root()}
	case "agent-ca":
		chain = []*x509.Certificate{ca.Agent()}
	case "time-root":
		if !ca.Services() {
			return nil, fault.New(fault.NotFound, ca.Dir(), "has no time stamp authority").WithHint("mentatctl pki services makes one")
		}
		chain = []*x509.Certificate{ca.TimeRoot()}
	case "log":
		var b bytes.Buffer
		_, err := ca.ExportLog(&b)
		return b.Bytes(), err
	default:
		serial, err := pki.ParseSerial(what)
		if err != nil {
			return nil, fault.New(fault.Usage, what, "is neither root, agent-ca, time-root, log nor a serial number in hexadecimal").WithHint("mentatctl pki list shows serial numbers")
		}
		if chain, err = ca.Chain(serial); err != nil {
			return nil, err
		}
	}
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out, nil
}

type logResult struct {
	display.Header
	pki.Head
}

func (r *logResult) Text(w *display.Writer) {
	w.Line("the log holds: %s", display.Count(int(min(r.Entries, 1<<53)), "entry", "entries"))
	w.Field("head", "%s", r.Hash)
	w.Line("keep the head elsewhere: --since HEAD proves later that nothing before was changed")
}

func (a *app) pkiLogCmd() *cobra.Command {
	var f caFlags
	var since string
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Check the log of all that was issued and revoked",
		Long: `Check that each entry of the log follows from the one before, and that the
certificates and revocations that the certificate authority knows are those of the
log. With --since, check too that the log goes on from a head that was kept.`,
		Example: `  mentatctl pki log
  mentatctl pki log --since sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := a.openCA(cmd.Context(), &f)
			if err != nil {
				return err
			}
			head, err := ca.CheckLog(since)
			if err != nil {
				return err
			}
			return a.printer().Result(&logResult{Header: display.Head("pki-log"), Head: head})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&since, "since", "", "the `HEAD` that the log must go on from")
	a.outputs(cmd)
	return cmd
}

// renewedFrom are the certificates that were renewed from one, and from those,
// and still count.
func renewedFrom(ca *pki.CA, serial *big.Int, now time.Time) ([]string, error) {
	all, err := ca.Issued()
	if err != nil {
		return nil, err
	}
	family, found := []string{serial.Text(16)}, []string(nil)
	for _, r := range all { // oldest first
		if r.RenewedFrom == "" || !slices.Contains(family, r.RenewedFrom) {
			continue
		}
		family = append(family, r.Serial)
		if r.Revoked.IsZero() && now.Before(r.NotAfter) {
			found = append(found, r.Serial)
		}
	}
	return found, nil
}

// dateFlag reads a day, which begins in UTC, or a time.
func dateFlag(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Usage, name, "%q is not a date like 2026-01-15 or 2026-01-15T10:30:00Z", text)
}
