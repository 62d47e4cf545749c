package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/keyfile"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/toolchain"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/pki/pkcs11"
)

type signResult struct {
	display.Header
	Agents []signedAgent `json:"agents"`
}

type signedAgent struct {
	Directory string        `json:"directory"`
	Manifest  string        `json:"manifest"`
	ID        string        `json:"id"`
	Version   string        `json:"version"`
	Artifact  digest.Digest `json:"artifact"`
	Packed    bool          `json:"packed"`
	Signer    string        `json:"signer"`
	Issuer    string        `json:"issuer"`
	Expires   time.Time     `json:"expires"`
	BoundTo   string        `json:"bound_to,omitempty"`
	// Stamped is the time that a time stamp authority vouches for.
	Stamped time.Time `json:"stamped,omitzero"`
	// Authority is the subject of its certificate.
	Authority string `json:"timestamp_authority,omitempty"`
	// Also are the formats of further signatures, which publish attaches.
	Also []string `json:"also,omitempty"`
}

func (r *signResult) Text(w *display.Writer) {
	for _, s := range r.Agents {
		w.Line("signed %s %s", s.ID, s.Version)
		w.Field("artifact", "%s", s.Artifact)
		w.Field("signer", "%s", s.Signer)
		w.Field("issuer", "%s", s.Issuer)
		w.Field("expires", "%s", display.Date(s.Expires))
		if s.BoundTo != "" {
			w.Field("bound to", "%s", s.BoundTo)
		} else {
			w.Field("bound to", "no repository: manifest.yaml names no image")
		}
		if !s.Stamped.IsZero() {
			w.Field("stamped", "%s by %s", s.Stamped.Format(time.RFC3339), s.Authority)
		}
		w.List("also signed", s.Also)
		w.Field("written to", "%s", s.Manifest)
	}
}

type signOptions struct {
	manifest   string
	cert, key  string
	keyEnv     string
	algorithm  string
	repository string
	validFor   time.Duration
	stamp      stampFlags
	also, root string
	pass       passphraseFlags
	build      buildOptions
}

func (a *app) signCmd() *cobra.Command {
	o := signOptions{build: buildOptions{kind: toolchain.None}}
	cmd := &cobra.Command{
		Use:   "sign [DIR|MANIFEST]...",
		Short: "Attest an agent's artifact",
		Long: `Sign the packed artifact of one agent or several. The attestation covers the OCI
manifest with everything that it names, and is bound to the agent's id, version
and repository. It is stored in the artifact (DIR/.mentat/layout) and, to be
read, in manifest.yaml. An artifact that is missing, or older than manifest.yaml
or the module, is packed first.

With --timestamp, or a "timestamp" in ~/.mentat/config.toml, an RFC 3161 authority
stamps the signature: where a node's policy names that authority, the signature
then stays good after its certificate expires.

With --also notation the artifact gets a Notary Project signature, too, by the same
key: publish attaches it, and notation verifies it. MentatLab's own gates judge by the
attestation alone.

Key and certificate are ~/.mentat/signing.key and ~/.mentat/signing.crt, unless
flags name others. A key variable or file may hold the certificates too.`,
		Example: `  mentatctl sign agent/
  mentatctl sign --key-env SIGNING_KEY agents/*/manifest.yaml
  mentatctl sign \
    --cert ~/.mentat/signing.crt \
    --key ~/.mentat/signing.key \
    --manifest agents/my-agent/manifest.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(o.check(cmd), needs(cmd, "root", "also"), positive(cmd, "valid-for", o.validFor)); err != nil {
				return err
			}
			if o.manifest != "" {
				if len(args) > 0 {
					return fault.New(fault.Usage, "", "--manifest and the argument %q exclude each other", args[0])
				}
				args = []string{o.manifest}
			}
			if len(args) == 0 {
				args = []string{"."}
			}
			if err := o.stamp.resolve(); err != nil {
				return err
			}
			key, chain, err := a.signingKey(cmd.Context(), &o)
			if err != nil {
				return err
			}
			r := &signResult{Header: display.Head("sign")}
			err = each(args, func(path string) error {
				s, err := a.sign(cmd.Context(), path, &o, key, chain)
				if err == nil {
					r.Agents = append(r.Agents, *s)
				}
				return err
			})
			return a.results(r, len(r.Agents) > 0, err)
		},
	}
	cmd.Flags().StringVar(&o.manifest, "manifest", "", "the agent's manifest `FILE`, instead of an argument")
	o.addKey(cmd)
	cmd.Flags().StringVar(&o.algorithm, "algorithm", "", "the signature `ALGORITHM`: SHA256withRSA, SHA256withRSA-PSS or SHA256withECDSA (default: by the key)")
	cmd.Flags().StringVar(&o.repository, "repository", "", "bind the attestation to this `REPOSITORY` (default: that of the manifest's image)")
	cmd.Flags().DurationVar(&o.validFor, "valid-for", 0, "end the attestation after this `DURATION`, before its certificate ends")
	cmd.Flags().StringVar(&o.also, "also", "", "make a further signature in this `FORMAT`: notation")
	cmd.Flags().StringVar(&o.root, "root", "", "the root of the signing certificate, a PEM `FILE`, which --also notation needs where the chain does not end with it")
	o.stamp.add(cmd)
	o.build.remote.add(cmd)
	a.outputs(cmd)
	a.progresses(cmd)
	return cmd
}

// addKey adds the flags that say what to sign with.
func (o *signOptions) addKey(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.cert, "cert", "", "the signing certificate and its chain, a PEM `FILE`, leaf first")
	cmd.Flags().StringVar(&o.key, "key", "", "the signing key, a PEM `FILE` or pkcs11:token=LABEL;object=LABEL")
	cmd.Flags().StringVar(&o.keyEnv, "key-env", "", "the environment `VARIABLE` with the signing key as PEM text")
	o.pass.add(cmd)
}

func (o *signOptions) check(cmd *cobra.Command) error {
	return errors.Join(
		exclusive(cmd, "key", "key-env"),
		needs(cmd, "cert", "key", "key-env"),
		o.knownFormat(),
	)
}

// alsoNotation is the one format of further signatures.
const alsoNotation = "notation"

func (o *signOptions) knownFormat() error {
	if o.also != "" && o.also != alsoNotation {
		return fault.New(fault.Usage, "--also", "%q is not known, allowed is %s", o.also, alsoNotation)
	}
	return nil
}

// notation makes the further signature over the signed manifest, nil when none is
// asked for.
func (o *signOptions) notation(target ocispec.Descriptor, req verifier.SignRequest) ([]byte, error) {
	if o.also == "" {
		return nil, nil
	}
	chain := slices.Clone(req.Chain)
	if o.root != "" {
		root, err := readChain(o.root, "root certificate")
		if err != nil {
			return nil, err
		}
		if !chain[len(chain)-1].Equal(root[0]) {
			chain = append(chain, root...)
		}
	}
	order := notation.Request{Target: target, Key: req.Key, Chain: chain, Time: req.Time}
	if req.NotAfter != nil {
		order.Expiry = *req.NotAfter
	}
	return notation.Sign(order)
}

// signingKey loads what to sign with.
func (a *app) signingKey(ctx context.Context, o *signOptions) (crypto.Signer, []*x509.Certificate, error) {
	dir, err := home()
	if err != nil && (o.key == "" && o.keyEnv == "" || o.cert == "") {
		return nil, nil, err
	}
	ownCert := filepath.Join(dir, "signing.crt")
	var name string
	var data []byte
	var key crypto.Signer
	var chain []*x509.Certificate
	switch {
	case pkcs11.Is(o.key):
		name = o.key
		if key, err = a.tokenKey(ctx, name, &o.pass, newTokenKey{}); err != nil {
			return nil, nil, err
		}
	case o.keyEnv != "":
		name = "$" + o.keyEnv
		data = []byte(os.Getenv(o.keyEnv))
		if len(data) == 0 {
			return nil, nil, fault.New(fault.Usage, name, "the variable is not set or empty, it should hold the signing key")
		}
	default:
		name = o.key
		if name == "" {
			name = filepath.Join(dir, "signing.key")
		}
		if data, err = keyfile.Read(name, "signing key"); err != nil {
			return nil, nil, withHint(err, fault.NotFound, "mentatctl pki request-cert makes a key and its certificate")
		}
		if keyfile.Exposed(name) {
			a.printer().Note("warning: %s can be read by other users", name)
		}
	}
	if key == nil {
		key, chain, err = keyfile.Parse(name, data, func() ([]byte, error) { return a.passphrase(ctx, &o.pass, name) })
		if err != nil {
			return nil, nil, err
		}
	}
	certName := name
	switch {
	case o.cert != "":
		certName = o.cert
	case len(chain) == 0 && o.key == "":
		certName = ownCert
	case len(chain) == 0:
		return nil, nil, fault.New(fault.Usage, name, "there is no certificate beside the key").WithHint("name it with --cert")
	}
	if certName != name {
		if chain, err = readChain(certName, "signing certificate"); err != nil {
			return nil, nil, withHint(err, fault.NotFound, "mentatctl pki request-cert makes one")
		}
	}
	return key, chain, keyfile.Match(certName, key, chain)
}

// withHint adds a hint to an error of one reason.
func withHint(err error, reason fault.Reason, hint string) error {
	var fe *fault.Error
	if errors.As(err, &fe) && fe.Reason == reason && fe.Hint == "" {
		hinted := *fe
		hinted.Hint = hint
		return &hinted
	}
	return err
}

func (a *app) sign(ctx context.Context, path string, o *signOptions, key crypto.Signer, chain []*x509.Certificate) (*signedAgent, error) {
	d, err := agentdir.Open(path)
	if err != nil {
		return nil, err
	}
	packed, err := a.packIfStale(ctx, d, &o.build)
	if err != nil {
		return nil, err
	}
	layout, root, artifact, err := d.Layout(ctx)
	if err != nil {
		return nil, err
	}
	now := a.now()
	req := verifier.SignRequest{
		Raw: artifact.Raw, Key: key, Chain: chain, Algorithm: o.algorithm, Time: now,
		Subject: verifier.Subject{ID: d.Manifest.ID, Version: d.Manifest.Version},
	}
	if repository := o.repository; repository != "" || d.Manifest.Image != "" {
		if repository == "" {
			repository = d.Manifest.Image
		}
		if req.Subject.Repository, err = repositoryOf(repository); err != nil {
			return nil, err
		}
	}
	expires := chain[0].NotAfter
	if o.validFor > 0 {
		end := now.Add(o.validFor)
		req.NotAfter = &end
		if end.Before(expires) {
			expires = end
		}
	}
	var stamp *verifier.TimeStamp
	if o.stamp.url != "" {
		req.Stamp = func(signature []byte) (token []byte, _ *verifier.TimeStamp, err error) {
			token, stamp, err = fetch.TimeStamp(ctx, nil, o.stamp.url, signature, o.stamp.roots)
			return token, stamp, err
		}
	}
	if old, err := verifier.ReadAttestation(artifact.Raw); err == nil && len(old.Countersignatures) > 0 {
		a.printer().Note("%s: its countersignatures are over the attestation that is replaced, and go with it", d.Path)
	}
	signed, block, err := verifier.Sign(req)
	if err != nil {
		return nil, err
	}
	// All signatures before any is kept.
	target := ocispec.Descriptor{MediaType: root.MediaType, Digest: digest.FromBytes(signed), Size: int64(len(signed))}
	envelope, err := o.notation(target, req)
	if err != nil {
		return nil, err
	}
	desc, err := d.SetSigned(ctx, layout, root, signed, block)
	if err != nil {
		return nil, err
	}
	if err := d.SetNotation(desc.Digest, envelope); err != nil {
		return nil, err
	}
	s := &signedAgent{
		Directory: d.Path, Manifest: d.ManifestPath(), ID: d.Manifest.ID, Version: d.Manifest.Version,
		Artifact: desc.Digest, Packed: packed, Signer: signerName(chain[0]), Issuer: chain[0].Issuer.String(),
		Expires: expires.UTC(), BoundTo: req.Subject.Repository,
	}
	if envelope != nil {
		s.Also = []string{alsoNotation}
	}
	if stamp != nil {
		s.Stamped, s.Authority = stamp.Time.UTC(), stamp.Path[0].Subject.String()
	}
	return s, nil
}

func signerName(c *x509.Certificate) string {
	if len(c.EmailAddresses) == 1 {
		return c.EmailAddresses[0]
	}
	return c.Subject.String()
}

// packIfStale packs an agent whose artifact is missing or is not what the
// directory holds. It never compiles: what is signed is what was built.
func (a *app) packIfStale(ctx context.Context, d *agentdir.Dir, o *buildOptions) (bool, error) {
	drifted, err := d.SourcesDrifted()
	if err != nil {
		return false, err
	}
	if drifted {
		return false, fault.New(fault.DigestMismatch, d.Path, "the sources changed since %s was built", d.Manifest.Module).
			WithHint("mentatctl build %s", d.Path)
	}
	_, _, artifact, err := d.Layout(ctx)
	switch {
	case err == nil:
		drift, err := d.Drift(artifact)
		if err != nil || len(drift) == 0 {
			return false, err
		}
	case fault.ReasonOf(err) != fault.NotFound:
		return false, err
	}
	if problems := d.Manifest.Lint(); len(problems) > 0 {
		return false, errors.Join(problems...)
	}
	built := agentdir.Built{Kind: toolchain.None}
	if lock, err := d.ReadLock(); err != nil {
		return false, err
	} else if lock != nil && lock.Sources != "" {
		if same, err := d.SourcesCurrent(lock); err != nil {
			return false, err
		} else if same {
			built = agentdir.Built{Kind: lock.Toolchain, Inputs: lock.Inputs}
		}
	}
	progress := a.newProgress()
	defer progress.Close()
	_, _, err = a.pack(ctx, d, built, o, progress)
	return true, withHint(err, fault.NotFound, "mentatctl build "+d.Path)
}
