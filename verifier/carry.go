package verifier

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// TrustType is the media type of a signed file of trust.
const TrustType = "application/vnd.mentatlab.trust.v1+json"

const (
	trustVersion = 1
	// carriedPolicy and carriedStores are where a file of trust has its policy and
	// its trust stores.
	carriedPolicy = "policy.yaml"
	carriedStores = "trust"
	// carriedNumber is the file of the state directory that remembers what was
	// imported last.
	carriedNumber = "trust-file"
)

// trustPayload is what a node trusts by, in one piece.
type trustPayload struct {
	Version int64 `json:"version"`
	// Number grows with every file; a node never goes back to a lower one.
	Number int64             `json:"number"`
	Files  map[string][]byte `json:"files"`
}

// starterHint is the end of hints about what a starter policy says.
const starterHint = "; mentatctl pki policy --carry writes a policy like that"

// carried lists, relative to the policy's directory, all files that the policy needs:
// itself, roots, revocation lists with their issuers' certificates, release lists. A
// policy that needs something else cannot be carried.
func carried(p *Policy, policy, trust string) (map[string]string, error) {
	dir := filepath.Dir(policy)
	files := map[string]string{carriedPolicy: policy}
	// place is where it could lie instead, and key what names it there.
	add := func(what, path, key, place, more string) error {
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			at := place + "/" + filepath.Base(path)
			return fault.New(fault.PolicyInvalid, policy, "names the %s %s, which is not below its own directory", what, path).
				WithHint("copy it to %s beside the policy that is carried, and write %s: %s there%s", at, key, at, more)
		}
		files[filepath.ToSlash(rel)] = path
		return nil
	}
	if len(p.ocsp) > 0 {
		return nil, fault.New(fault.PolicyInvalid, policy, "asks OCSP responders, which a node without a network cannot").
			WithHint("leave revocation.ocsp out of the policy that is carried, and name a list of %q under revocation.crls by file:"+starterHint, p.ocsp[0].Issuer)
	}
	for _, src := range p.crls {
		if src.URL != "" || src.Certificate == "" && src.File == "" {
			return nil, fault.New(fault.PolicyInvalid, policy, "names the revocation list of %q by url, which a node without a network cannot fetch", src.Issuer).
				WithHint("fetch it to crl/ beside the policy that is carried, and write file: crl/NAME there in the place of url:" + starterHint)
		}
		if err := add("revocation list", src.File, "file", "crl", starterHint); err != nil {
			return nil, err
		}
		if src.Certificate != "" {
			if err := add("certificate", src.Certificate, "certificate", "issuers", starterHint); err != nil {
				return nil, err
			}
		}
	}
	for _, r := range p.releases {
		if r.url != "" {
			return nil, fault.New(fault.PolicyInvalid, policy, "names the release list %q by url, which a node without a network cannot fetch", r.name).
				WithHint("fetch it to releases/ beside the policy that is carried, and write file: releases/NAME there in the place of url:")
		}
		if err := add("release list", r.file, "file", "releases", ""); err != nil {
			return nil, err
		}
	}
	for _, store := range p.stores() {
		entries, err := os.ReadDir(filepath.Join(trust, store))
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, filepath.Join(trust, store), "cannot read the trust store")
		}
		for _, e := range entries {
			files[carriedStores+"/"+store+"/"+e.Name()] = filepath.Join(trust, store, e.Name())
		}
	}
	return files, nil
}

// ExportTrust makes one signed file of a policy with all that it needs. What an
// import would refuse is refused here. cfg names the policy and the trust stores.
// Reasons: [fault.PolicyInvalid], [fault.RevocationUnknown] for a list that is not
// there or out of date, and those of [Sign].
func ExportTrust(cfg nodeconfig.Verify, number int64, key crypto.Signer, chain []*x509.Certificate, at time.Time, stamps StampReader) ([]byte, error) {
	p, err := LoadPolicy(cfg.Policy)
	if err != nil {
		return nil, err
	}
	files, err := carried(p, cfg.Policy, cfg.Trust)
	if err != nil {
		return nil, err
	}
	payload := trustPayload{Version: trustVersion, Number: number, Files: map[string][]byte{}}
	for name, path := range files {
		if payload.Files[name], err = limits.ReadFile(path, limits.CRLBytes); err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, path, "cannot be carried")
		}
	}
	if err := payload.check("trust file"); err != nil {
		return nil, fault.Wrap(err, fault.Usage, "", "")
	}
	data, err := signDocument(TrustType, payload, key, chain, at)
	if err != nil {
		return nil, err
	}
	if len(data) > limits.TrustFileBytes {
		return nil, fault.New(fault.Usage, "trust file", "is over %d bytes", limits.TrustFileBytes)
	}
	tmp, err := os.MkdirTemp("", "mentat-trust-")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "cannot try the trust file")
	}
	defer os.RemoveAll(tmp)
	t := &TrustFile{payload: payload}
	if _, err := t.unpacked(filepath.Join(tmp, "new"), filepath.Join(tmp, "state"), at, stamps); err != nil {
		return nil, err
	}
	return data, nil
}

func (p *trustPayload) check(name string) error {
	if p.Version != trustVersion || p.Number <= 0 || p.Number >= maxNumber {
		return fault.New(fault.SignatureInvalid, name, "is of version %d with the number %d; this program knows version %d with positive numbers", p.Version, p.Number, trustVersion)
	}
	for file := range p.Files {
		if !filepath.IsLocal(filepath.FromSlash(file)) || strings.Contains(file, `\`) || filepath.ToSlash(filepath.Clean(file)) != file {
			return fault.New(fault.SignatureInvalid, name, "holds the file %q, which is no plain relative path", file)
		}
	}
	return nil
}

// TrustFile is a file of trust whose signature fits. Make one with [ReadTrust].
type TrustFile struct {
	name     string
	document *document
	payload  trustPayload
}

// ReadTrust reads a file of trust and checks that its signature fits; whether its
// signer is to be believed is for [TrustFile.Import]. Reason: [fault.SignatureInvalid].
func ReadTrust(name string, data []byte) (*TrustFile, error) {
	if len(data) > limits.TrustFileBytes {
		return nil, fault.New(fault.SignatureInvalid, name, "is over %d bytes", limits.TrustFileBytes)
	}
	d, err := openDocument(name, TrustType, data)
	if err != nil {
		return nil, err
	}
	t := &TrustFile{name: name, document: d}
	if err := strictJSON(d.payload, &t.payload); err != nil {
		return nil, fault.Wrap(err, fault.SignatureInvalid, name, "is malformed")
	}
	return t, t.payload.check(name)
}

// Number is the file's number.
func (t *TrustFile) Number() int64 { return t.payload.Number }

// Files are the names of what it carries, sorted.
func (t *TrustFile) Files() []string { return slices.Sorted(maps.Keys(t.payload.Files)) }

// TrustImport says what is imported, by whose word and where to.
type TrustImport struct {
	// Roots lead to the signer; they come from elsewhere than from the file.
	Roots *Store
	// Emails are who may sign it, in the spelling of their certificates.
	Emails []string
	// Dir is replaced as a whole. It is a symbolic link, or not there yet.
	Dir string
	// State is the node's directory of revocation data.
	State  string
	Now    time.Time
	Stamps StampReader
}

// Import judges the file and all that it carries, and only then puts it in the place
// of what was imported before, in one step. Reasons: those of a judgement;
// [fault.RevocationUnknown] for a number below one that was imported before;
// [fault.Exists] for a Dir that no import made.
func (t *TrustFile) Import(in TrustImport) error {
	ids := identities{emails: map[string]bool{}}
	for _, e := range in.Emails {
		ids.emails[normalEmail(e)] = true
	}
	for _, root := range in.Roots.roots {
		if err := root.CheckSignatureFrom(root); err != nil {
			return notSelfSigned(root)
		}
	}
	path, err := t.document.believe(t.name, poolOf(map[string]*Store{"": in.Roots}, []string{""}), ids, in.Now)
	if err != nil {
		return err
	}
	if err := t.follows(in.State); err != nil {
		return err
	}
	if info, err := os.Lstat(in.Dir); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return fault.New(fault.Exists, in.Dir, "is there, and was not made by an import").WithHint("import into a directory of its own, which is not there yet")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Internal, in.Dir, "cannot look at it")
	}
	staged, err := os.MkdirTemp(filepath.Dir(in.Dir), "."+filepath.Base(in.Dir)+".")
	if err != nil {
		return fault.Wrap(err, fault.Internal, in.Dir, "cannot make a directory beside it")
	}
	placed := false
	defer func() {
		if !placed {
			_ = os.RemoveAll(staged)
		}
	}()
	v, err := t.unpacked(staged, in.State, in.Now, in.Stamps)
	if err != nil {
		return err
	}
	// The signer, too, is held to the lists of the file and to those of the node.
	j := v.aside()
	if _, err := j.revoked(path, nil); err != nil {
		return fault.Wrap(err, fault.ReasonOf(err), t.name, "its signer cannot be believed")
	}
	if err := t.remember(in.State); err != nil {
		return err
	}
	if err := swapLink(staged, in.Dir); err != nil {
		return fault.Wrap(err, fault.Internal, in.Dir, "cannot put it in its place")
	}
	placed = true
	return nil
}

// aside is a judgement of nothing yet, for what is judged beside artifacts. It
// remembers nothing.
func (v *Verifier) aside() *judge {
	then := v.At(v.clock())
	return &judge{Verifier: then, now: then.clock(), data: then.clock(), verdict: &Verdict{}}
}

// unpacked writes the files into a directory and judges them there: the policy, its
// stores, its revocation lists and release lists, and that nothing is there beside.
func (t *TrustFile) unpacked(dir, state string, now time.Time, stamps StampReader) (*Verifier, error) {
	for name, data := range t.payload.Files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = atomicfile.Write(path, data, 0o644)
		}
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, path, "cannot unpack")
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fault.Wrap(err, fault.Internal, dir, "cannot unpack")
	}
	policy, trust := filepath.Join(dir, carriedPolicy), filepath.Join(dir, carriedStores)
	p, err := LoadPolicy(policy)
	if err != nil {
		return nil, err
	}
	needed, err := carried(p, policy, trust)
	if err != nil {
		return nil, err
	}
	for name := range t.payload.Files {
		if _, ok := needed[name]; !ok {
			return nil, fault.New(fault.PolicyInvalid, t.name, "carries %q, which its policy does not need", name)
		}
	}
	stores, err := LoadStores(trust, p)
	if err != nil {
		return nil, err
	}
	clock := func() time.Time { return now }
	v, err := New(Config{Policy: p, Stores: stores, Stamps: stamps, Revocation: newDiskRevocation(state, p, clock), State: state, Clock: clock})
	if err != nil {
		return nil, err
	}
	return v, v.checkCarried(state)
}

// checkCarried judges the revocation lists and release lists of a policy.
func (v *Verifier) checkCarried(state string) error {
	j := v.aside()
	if _, err := j.roots(); err != nil {
		return err
	}
	for _, src := range v.policy.crls {
		issuers, err := src.Issuers(v.stores)
		if err != nil {
			return err
		}
		if len(issuers) == 0 {
			return fault.New(fault.PolicyInvalid, "revocation list of "+src.Issuer, "its issuer is no root of a trust store, and the policy names no certificate to check it with").
				WithHint("add certificate: FILE beside the file")
		}
		if err := j.usable(src, issuers, state); err != nil {
			return err
		}
	}
	for _, s := range v.policy.releases {
		if err := j.usableReleases(s, state); err != nil {
			return err
		}
	}
	return nil
}

// usable tells whether the list in a source's file is one of the issuers', current,
// and no older than what the node knows.
func (j *judge) usable(src CRLSource, issuers []*x509.Certificate, state string) error {
	var errs []error
	for _, issuer := range issuers {
		ix, err := CompileFile(src.File, issuer, j.now)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if j.now.After(ix.NextUpdate().Add(j.policy.grace)) {
			return fault.New(fault.RevocationUnknown, "revocation list of "+src.Issuer, "is out of date since %s", stampText(ix.NextUpdate()))
		}
		known, err := LoadIndex(state, issuer)
		if err != nil {
			return err
		}
		return ix.follows(known)
	}
	return errors.Join(errs...)
}

// usableReleases tells whether a release list is to be believed, current, and no
// older than the one that the node knows.
func (j *judge) usableReleases(s releaseSource, state string) error {
	l, err := j.believed(s, s.file)
	if err != nil {
		return err
	}
	known, err := keptReleases(s.statePath(state))
	if err != nil {
		return err
	}
	on := "release list " + s.name
	if known != nil && (l.Number < known.Number || l.Number == known.Number && l.document.digest != known.document.digest) {
		return fault.New(fault.RevocationUnknown, on, "has the number %d, and %d is known already", l.Number, known.Number)
	}
	return j.due(on, l)
}

// follows refuses a file that is older than one that was imported before.
func (t *TrustFile) follows(state string) error {
	path := filepath.Join(state, carriedNumber)
	data, err := limits.ReadFile(path, limits.KiB)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var number int64
	var sum digest.Digest
	if err == nil {
		_, err = fmt.Sscanf(string(data), "%d %s\n", &number, &sum)
	}
	switch {
	case err != nil:
		return fault.Wrap(err, fault.RevocationUnknown, path, "does not say which trust file was imported last")
	case t.payload.Number < number, t.payload.Number == number && t.document.digest != sum:
		return fault.New(fault.RevocationUnknown, t.name, "has the number %d, and %d was imported before", t.payload.Number, number).
			WithHint("import a file with a higher number")
	}
	return nil
}

func (t *TrustFile) remember(state string) error {
	path := filepath.Join(state, carriedNumber)
	err := os.MkdirAll(state, 0o755)
	if err == nil {
		err = atomicfile.Write(path, fmt.Appendf(nil, "%d %s\n", t.payload.Number, t.document.digest), 0o644)
	}
	if err != nil {
		return fault.Wrap(err, fault.RevocationUnknown, path, "cannot remember which trust file was imported, without which an older one could come back")
	}
	return nil
}

// swapLink lets the link dir point to staged, in one step. What it pointed to before
// stays for those who read it at that moment; what was before that is removed.
func swapLink(staged, dir string) error {
	old, err := os.Readlink(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	link := staged + ".link"
	if err := os.Symlink(filepath.Base(staged), link); err != nil {
		return err
	}
	if err := os.Rename(link, dir); err != nil {
		return errors.Join(err, os.Remove(link))
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return nil //nolint:nilerr // the new one is in its place; what is left over is only in the way
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(dir)+".")
		if ok && e.IsDir() && strings.Trim(number, "0123456789") == "" && e.Name() != filepath.Base(staged) && e.Name() != old {
			_ = os.RemoveAll(filepath.Join(filepath.Dir(dir), e.Name())) // as above
		}
	}
	return nil
}

// settled resolves the policy's directory once, so that policy, stores and lists are
// of one import, even if the next one comes while they are read.
func settled(cfg nodeconfig.Verify) nodeconfig.Verify {
	dir := filepath.Dir(cfg.Policy)
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return cfg // reading the policy says what is wrong
	}
	if rel, err := filepath.Rel(dir, cfg.Trust); err == nil && filepath.IsLocal(rel) {
		cfg.Trust = filepath.Join(resolved, rel)
	}
	cfg.Policy = filepath.Join(resolved, filepath.Base(cfg.Policy))
	return cfg
}
