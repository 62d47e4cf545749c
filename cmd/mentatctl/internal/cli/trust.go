package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/keyfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

// trustFlags say what an artifact is judged by: a node's configuration, a
// policy with its trust stores, or roots named on the command line.
type trustFlags struct {
	config     string
	policy     string
	trust      string
	ca         string
	roots      []string
	crls       []string
	timeRoots  []string
	identities []string
	// capabilities is a capability policy; empty is the one of the node or beside
	// the policy.
	capabilities string
}

func (f *trustFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "judge as the node with this configuration `FILE` would (default: $"+nodeconfig.Env+" or "+nodeconfig.DefaultPath+")")
	cmd.Flags().StringVar(&f.policy, "policy", "", "judge by this policy `FILE`")
	cmd.Flags().StringVar(&f.trust, "trust", "", "the `DIR` of the policy's trust stores (default: trust beside the policy)")
}

// addRoots adds the flags that stand in for a policy.
func (f *trustFlags) addRoots(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.roots, "root", nil, "judge by the root certificates in this PEM `FILE`; may be repeated")
	cmd.Flags().StringArrayVar(&f.crls, "crl", nil, "a revocation list `FILE` for --root; may be repeated")
	cmd.Flags().StringArrayVar(&f.timeRoots, "timestamp-root", nil, "believe time stamps that lead to the root certificates in this PEM `FILE`, with --root; may be repeated")
	cmd.Flags().StringVar(&f.ca, "ca", "", "judge by the roots and the revocation lists of the certificate authority in this `DIR`")
	cmd.Flags().StringArrayVar(&f.identities, "identity", nil, "accept this signer's `EMAIL` only, with --root or --ca; may be repeated")
}

func (f *trustFlags) check(cmd *cobra.Command) error {
	for _, err := range []error{
		exclusive(cmd, "policy", "config"), exclusive(cmd, "policy", "root", "ca"), exclusive(cmd, "config", "root", "ca"),
		needs(cmd, "trust", "policy"), needs(cmd, "crl", "root"), needs(cmd, "timestamp-root", "root"), needs(cmd, "identity", "root", "ca"),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// addCapabilities adds the flag of commands that tell what an agent may do.
func (f *trustFlags) addCapabilities(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.capabilities, "capabilities", "", "grant by the capability policy in this `FILE` (default: the node's, or capabilities.yaml beside --policy)")
}

// judgement is a verifier and by what it judges.
type judgement struct {
	*verifier.Verifier
	by           string
	capabilities *policy.Policy
	// revocation is where OCSP answers are kept.
	revocation nodeconfig.Verify
	// elsewhen says that it is of another time.
	elsewhen bool
}

// Verify judges, and asks OCSP responders where the policy wants it: of another time
// than now they could tell nothing.
func (j *judgement) Verify(ctx context.Context, in verifier.Input) *verifier.Verdict {
	if j.elsewhen {
		return j.Verifier.Verify(ctx, in)
	}
	return fetch.Judge(ctx, j.Verifier, j.revocation, nil, in, j.Verifier.Verify)
}

// judgement puts a verifier together with the capability policy that goes with
// it.
func (f *trustFlags) judgement(v *verifier.Verifier, by string, cfg nodeconfig.Capability) (*judgement, error) {
	if f.capabilities != "" {
		cfg.Policy = f.capabilities
	}
	rules, err := policy.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &judgement{Verifier: v, by: by, capabilities: rules}, nil
}

// judgementOn is a judgement by a policy, with what was fetched for it.
func (f *trustFlags) judgementOn(v *verifier.Verifier, verify nodeconfig.Verify, cfg nodeconfig.Capability) (*judgement, error) {
	j, err := f.judgement(v, "policy "+verify.Policy, cfg)
	if err != nil {
		return nil, err
	}
	j.revocation = verify
	return j, nil
}

// beside is a node's capability configuration with the policy beside another
// one, if there is one.
func beside(path string) (nodeconfig.Capability, error) {
	cfg := nodeconfig.Capability{Media: nodeMedia}
	name := filepath.Join(filepath.Dir(path), capabilitiesName)
	there, err := policy.Exists(name)
	if err != nil {
		return cfg, fault.Wrap(err, fault.PolicyInvalid, name, "cannot tell whether there is such a policy")
	}
	if there {
		cfg.Policy = name
	}
	return cfg, nil
}

const (
	// capabilitiesName is the capability policy's name beside a policy.
	capabilitiesName = "capabilities.yaml"
	// nodeMedia stands for a node's media store where no node is known.
	nodeMedia = "/var/lib/mentat/media"
)

// verifier opens what the flags name. Without any it is the node's policy, and
// developer mode where there is none.
func (a *app) verifier(ctx context.Context, f *trustFlags) (*judgement, error) {
	switch {
	case len(f.roots) > 0 || f.ca != "":
		return a.rootsVerifier(f)
	case f.policy != "":
		trust := f.trust
		if trust == "" {
			trust = filepath.Join(filepath.Dir(f.policy), "trust")
		}
		state, err := cacheDir("revocation")
		if err != nil {
			return nil, err
		}
		verify := nodeconfig.Verify{Policy: f.policy, Trust: trust, State: state}
		v, err := a.policyVerifier(ctx, verify)
		if err != nil {
			return nil, err
		}
		cfg, err := beside(f.policy)
		if err != nil {
			return nil, err
		}
		return f.judgementOn(v, verify, cfg)
	}
	cfg, err := nodeconfig.Load(f.config)
	if err != nil {
		return nil, err
	}
	if cfg.Verify.Policy == "" {
		v, err := verifier.Open(cfg.Verify, a.now, timestamp.Reader{})
		if err != nil {
			return nil, err
		}
		return f.judgement(v, "", cfg.Capability)
	}
	if !writable(cfg.Verify.State) {
		// The node's own state belongs to root; revocation lists are then fetched
		// for this person.
		if cfg.Verify.State, err = cacheDir("revocation"); err != nil {
			return nil, err
		}
	}
	v, err := a.policyVerifier(ctx, cfg.Verify)
	if err != nil {
		return nil, err
	}
	return f.judgementOn(v, cfg.Verify, cfg.Capability)
}

func (a *app) policyVerifier(ctx context.Context, cfg nodeconfig.Verify) (*verifier.Verifier, error) {
	v, err := verifier.Open(cfg, a.now, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		return nil, err
	}
	if err := fetch.Refresh(ctx, v, cfg, nil, false); err != nil {
		// The verdict says what it means that a list is not there or too old.
		a.printer().Note("warning: revocation lists were not refreshed: %s", fault.Text(err))
	}
	return v, nil // it reads the lists when it judges
}

// writable tells whether files can be made in a directory.
func writable(dir string) bool {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return false
	}
	_ = f.Close()
	return os.Remove(f.Name()) == nil
}

// cacheDir makes a directory of this person's caches.
func cacheDir(name string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fault.Wrap(err, fault.NotFound, "", "cannot find the cache directory").WithHint("set HOME or XDG_CACHE_HOME")
	}
	dir := filepath.Join(base, "mentat", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fault.Wrap(err, fault.Internal, dir, "cannot make the cache directory")
	}
	return dir, nil
}

// The trust stores of roots from the command line.
const (
	storeName     = "command-line"
	timeStoreName = "command-line-time"
)

// rootsVerifier judges by roots: everything must be signed, whoever signed.
func (a *app) rootsVerifier(f *trustFlags) (*judgement, error) {
	roots, timeRoots, crls, by := f.roots, f.timeRoots, f.crls, "roots "+strings.Join(f.roots, ", ")
	hint := "give the issuers' revocation lists with --crl"
	if f.ca != "" {
		in := func(name string) string { return filepath.Join(f.ca, filepath.FromSlash(name)) }
		roots, crls = append(roots, in(pki.RootCert)), append(crls, in(pki.RootCRL), in(pki.AgentCRL))
		if _, err := os.Lstat(in(pki.TimeRootCert)); err == nil {
			timeRoots, crls = append(timeRoots, in(pki.TimeRootCert)), append(crls, in(pki.TimeCRL))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Wrap(err, fault.AccessDenied, in(pki.TimeRootCert), "cannot be read")
		}
		by = "certificate authority " + f.ca
		hint = "name its root with --root, and the issuers' revocation lists with --crl"
	}
	stores := map[string]*verifier.Store{}
	for name, paths := range map[string][]string{storeName: roots, timeStoreName: timeRoots} {
		if len(paths) == 0 {
			continue
		}
		trusted, err := rootCertificates(paths)
		if err != nil {
			return nil, err
		}
		if stores[name], err = verifier.NewStore(name, trusted...); err != nil {
			return nil, err
		}
	}
	trust, err := verifier.ParsePolicy("the command line", rootsPolicy(f.identities, len(timeRoots) > 0))
	if err != nil {
		return nil, err
	}
	source := &crlFiles{app: a, paths: crls}
	v, err := verifier.New(verifier.Config{Policy: trust, Stores: stores, Revocation: source, Stamps: timestamp.Reader{}, ListHint: hint, Clock: a.now})
	if err != nil {
		return nil, err
	}
	return f.judgement(v, by, nodeconfig.Capability{Media: nodeMedia})
}

// rootCertificates reads the root certificates in PEM files.
func rootCertificates(paths []string) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, path := range paths {
		certs, err := readChain(path, "root certificate")
		if err != nil {
			return nil, err
		}
		roots = append(roots, certs...)
	}
	return roots, nil
}

func rootsPolicy(identities []string, stamps bool) []byte {
	timeStores := ""
	if stamps {
		timeStores = "    timestamp_stores: [" + timeStoreName + "]\n"
	}
	who := []string{`"any"`}
	if len(identities) > 0 {
		who = nil
		for _, email := range identities {
			who = append(who, fmt.Sprintf("%q", "email:"+email))
		}
	}
	return fmt.Appendf(nil, `version: 1
scopes:
  - name: command line
    match: ["*"]
    stores: [%s]
%s    identities: [%s]
    unsigned_containers: deny
    unsigned_agents: deny
    binding: none
outside: {ordinary_images: deny}
`, storeName, timeStores, strings.Join(who, ", "))
}

// readChain reads the certificates in a PEM file; what says which they should be.
func readChain(path, what string) ([]*x509.Certificate, error) {
	data, err := keyfile.Read(path, what)
	if err != nil {
		return nil, err
	}
	return verifier.ParseChain(path, data)
}

// crlFiles are revocation lists named on the command line. Whose list a file is
// shows once the chain under judgement brings its issuer.
type crlFiles struct {
	app   *app
	paths []string
}

// Index implements verifier.RevocationSource.
func (c *crlFiles) Index(issuer *x509.Certificate) (*verifier.CRLIndex, error) {
	var all verifier.Indexes
	for _, path := range c.paths {
		list, err := readCRL(path)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			continue
		}
		ix, err := verifier.CompileFile(path, issuer, c.app.now())
		if err != nil {
			return nil, err
		}
		all = append(all, ix)
	}
	return all.Index(issuer)
}

// readCRL reads a revocation list, which it does not judge.
func readCRL(path string) (*x509.RevocationList, error) {
	data, err := limits.ReadFile(path, limits.CRLBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot read the revocation list")
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "not a revocation list")
	}
	return list, nil
}

func countersignerText(c verifier.Countersigner) string {
	if c.Counts {
		return c.Email
	}
	who := c.Email
	if who == "" {
		who = c.Subject
	}
	return who + ", who does not count: " + c.Why
}

// verdictText shows a verdict for people.
func verdictText(w *display.Writer, vd *verifier.Verdict) {
	if vd.Signer != nil {
		w.Field("signer", "%s", vd.Signer.Email)
		w.Field("issuer", "%s", vd.Signer.Issuer)
	}
	w.Field("signature", "%s", vd.Signature)
	for i, c := range vd.Countersigners {
		name := ""
		if i == 0 {
			name = "with"
		}
		w.Field(name, "%s", countersignerText(c))
	}
	if !vd.NotAfter.IsZero() {
		w.Field("ends", "%s, as its signer says", vd.NotAfter.UTC().Format(shownTime))
	}
	w.Field("scope", "%s", vd.Scope)
	if vd.Allowed && vd.Enforced {
		w.Field("trust", "%s", vd.Trust)
	}
	w.Field("artifact", "%s", vd.Digest)
	if vd.Enforced { // what developer mode means is said once, below
		w.List("warning", vd.Warnings)
	}
}
