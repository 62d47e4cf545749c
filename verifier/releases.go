package verifier

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/strictyaml"
	"github.com/mentatlab/mentat/oci"
)

// ReleasesType is the media type of a signed release list.
const ReleasesType = "application/vnd.mentatlab.releases.v1+json"

const (
	releasesVersion = 1
	// maxNumber keeps numbers within what JSON readers agree on.
	maxNumber = 1 << 53
)

// Releases is a release list: what its signer withdraws. It can only forbid.
type Releases struct {
	Version int64 `json:"version"`
	// Number grows with every list; a node never goes back to a lower one.
	Number int64 `json:"number"`
	// NextUpdate is until when the list counts, as in a revocation list.
	NextUpdate string `json:"next_update"`
	// MinimumVersions are the lowest versions that may run, by agent id.
	MinimumVersions map[string]string `json:"minimum_versions,omitempty"`
	// DeniedPayloads are digests of signed bytes ([Attestation.SignedDigest]), which
	// stay the same however a signature is encoded, or of the manifests of what has no
	// attestation; DeniedModules are of modules.
	DeniedPayloads []digest.Digest `json:"denied_payloads,omitempty"`
	DeniedModules  []digest.Digest `json:"denied_modules,omitempty"`
}

// check refuses a list that makes no sense.
func (r *Releases) check(name string) (time.Time, error) {
	bad := func(format string, args ...any) (time.Time, error) {
		return time.Time{}, fault.New(fault.SignatureInvalid, name, format, args...)
	}
	next, err := parseTime(r.NextUpdate)
	switch {
	case r.Version != releasesVersion:
		return bad("is of version %d, this program knows %d", r.Version, releasesVersion)
	case r.Number <= 0 || r.Number >= maxNumber:
		return bad("has the number %d, which is not positive or too large", r.Number)
	case err != nil:
		return bad("next_update: %v", err)
	}
	for id, version := range r.MinimumVersions {
		if !manifest.ValidID(id) || !manifest.ValidVersion(version) {
			return bad("minimum_versions: %q is no agent's id, or %q no semantic version", id, version)
		}
	}
	for _, d := range slices.Concat(r.DeniedPayloads, r.DeniedModules) {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return bad("%q is not a SHA-256 digest", d)
		}
	}
	return next, nil
}

// SignReleases signs a release list. Reasons: those of [Sign].
func SignReleases(r Releases, key crypto.Signer, chain []*x509.Certificate, at time.Time) ([]byte, error) {
	r.Version = releasesVersion
	next, err := r.check("release list")
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, "", "")
	}
	if !next.After(at) {
		return nil, fault.New(fault.Usage, "release list", "would be over before it is signed")
	}
	data, err := signDocument(ReleasesType, r, key, chain, at)
	if err == nil && len(data) > limits.ReleasesBytes {
		err = fault.New(fault.Usage, "release list", "is over %d bytes", limits.ReleasesBytes)
	}
	return data, err
}

// Successor is who signs the next of some release lists, and whose lists these are.
type Successor struct {
	// Chain is of who signs, leaf first.
	Chain []*x509.Certificate
	// Of is the address of who signed the list before, if that was somebody else.
	Of string
	// Roots are what the certificate of that list must lead to; without any, the
	// authorities in Chain.
	Roots []*x509.Certificate
	Now   time.Time
}

// ContinueReleases reads a list for its successor, and tells who signed it. The
// successor's signature goes under all that it says, and under what it says no more:
// a list of anybody else is refused.
//
// Reasons: [fault.SignatureInvalid], [fault.IdentityUntrusted],
// [fault.ChainUntrusted], [fault.OutsideValidity].
func ContinueReleases(name string, data []byte, by Successor) (*Releases, *x509.Certificate, error) {
	l, err := readReleases(name, data)
	if err != nil {
		return nil, nil, err
	}
	if err := by.follows(name, l.document); err != nil {
		return nil, nil, err
	}
	return &l.Releases, l.document.chain[0], nil
}

// follows tells whether a document is the successor's own, by the very key or, after
// a renewal, by the address that the same issuer certifies, or that of [Successor.Of].
// Names alone say nothing: anybody can give himself any. A certificate that has ended
// since is no obstacle.
func (s Successor) follows(name string, d *document) error {
	leaf, own := d.chain[0], s.Chain[0]
	if s.Of == "" && samePublicKey(leaf.PublicKey, own.PublicKey) {
		return nil
	}
	stranger := func(format string, args ...any) error {
		return fault.New(fault.IdentityUntrusted, name, "is signed by %q, certified by %q, and %s", leaf.EmailAddresses, leaf.Issuer, fmt.Sprintf(format, args...)).
			WithHint("if it is to be continued all the same, name its signer with --continues; else put back the last list that was yours: nodes keep it in verify.state")
	}
	was, err := address(leaf)
	if err != nil || was == "" {
		return stranger("not by the key that signs now")
	}
	if s.Of != "" {
		if was != normalEmail(s.Of) {
			return stranger("not by %q", s.Of)
		}
	} else if now, err := address(own); err != nil || was != now || !bytes.Equal(leaf.RawIssuer, own.RawIssuer) {
		return stranger("by %q, certified by %q, from now on", own.EmailAddresses, own.Issuer)
	}
	if d.timestamp.After(s.Now.Add(clockSkew)) {
		return fault.New(fault.OutsideValidity, name, "says it was made in the future, at %s", stampText(d.timestamp))
	}
	return s.certified(name, d)
}

// authorities are those of the successor's chain that certify him. What merely stands
// behind them in a file does not.
func (s Successor) authorities() []*x509.Certificate {
	n := 1
	for n < len(s.Chain) && s.Chain[n-1].CheckSignatureFrom(s.Chain[n]) == nil {
		n++
	}
	return s.Chain[1:n]
}

// certified holds a document's chain to the authorities that count, at the time of
// signing. It may end below a root: a chain seldom has its root with it.
func (s Successor) certified(name string, d *document) error {
	anchors := s.Roots
	if len(anchors) == 0 {
		anchors = s.authorities()
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range anchors {
		roots.AddCert(c)
	}
	for _, c := range d.chain {
		if err := checkKey(c); err != nil {
			return fault.Wrap(err, fault.ChainUntrusted, name, "cannot be continued")
		}
		between.AddCert(c)
	}
	leaf := d.chain[0]
	err := checkUsage(leaf)
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: d.timestamp, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	}
	if err != nil {
		return fault.Wrap(err, fault.ChainUntrusted, name, "names the signer %q, whose certificate %x leads to none of the authorities that count", leaf.EmailAddresses, leaf.SerialNumber).
			WithHint("put back the last list that was yours: nodes keep it in verify.state; name the root of its signer with --root only if you know that it is his")
	}
	return nil
}

// releaseList is a list as it was read.
type releaseList struct {
	Releases
	document *document
	next     time.Time
}

func readReleases(name string, data []byte) (*releaseList, error) {
	if len(data) > limits.ReleasesBytes {
		return nil, fault.New(fault.SignatureInvalid, name, "is over %d bytes", limits.ReleasesBytes)
	}
	d, err := openDocument(name, ReleasesType, data)
	if err != nil {
		return nil, err
	}
	l := &releaseList{document: d}
	if err := strictJSON(d.payload, &l.Releases); err != nil {
		return nil, fault.Wrap(err, fault.SignatureInvalid, name, "is malformed")
	}
	l.next, err = l.check(name)
	return l, err
}

// releasesFile is one of the policy's releases.
type releasesFile struct {
	Name       string   `yaml:"name"`
	File       string   `yaml:"file"`
	URL        string   `yaml:"url"`
	Stores     []string `yaml:"stores"`
	Identities []string `yaml:"identities"`
}

// releaseSource is where a release list comes from and who may sign it. Exactly one
// of file and url is set.
type releaseSource struct {
	name       string
	file       string
	url        string
	stores     []string
	identities identities
}

func (c *policyCompiler) releases(path string, list []releasesFile) []releaseSource {
	var out []releaseSource
	for i, f := range list {
		at := strictyaml.Index(path, i)
		key := func(k string) string { return strictyaml.Key(at, k) }
		// The name is a file's name in the state directory.
		if !validStoreName(f.Name) || slices.ContainsFunc(out, func(s releaseSource) bool { return s.name == f.Name }) {
			c.fail(key("name"), "%q is not named like a directory, or there twice", f.Name)
		}
		if (f.File == "") == (f.URL == "") {
			c.fail(at, "exactly one of file and url is required: where the signed list is")
		}
		if f.URL != "" {
			c.address(key("url"), f.URL)
		}
		if len(f.Stores) == 0 || slices.ContainsFunc(f.Stores, func(s string) bool { return !validStoreName(s) }) {
			c.fail(key("stores"), "is required: names of the trust stores that hold for the list")
		}
		if len(f.Identities) == 0 {
			c.fail(key("identities"), "is required: who may sign the list, as %sNAME@DOMAIN", emailPrefix)
		}
		out = append(out, releaseSource{f.Name, c.path(f.File), f.URL, f.Stores, c.identities(key("identities"), f.Identities)})
	}
	return out
}

// statePath is where the newest list that was believed is kept.
func (s releaseSource) statePath(state string) string {
	return filepath.Join(state, "releases-"+s.name+".json")
}

// list finds the list that counts: that of the file, unless one with a higher number
// was believed before. What cannot be told is refused, at every level.
func (j *judge) list(s releaseSource) (*releaseList, error) {
	if s.url != "" {
		return j.fetched(s)
	}
	on := "release list " + s.name
	kept := s.statePath(j.state)
	files := map[string]string{s.file: Stamp(s.file), kept: Stamp(kept)}
	known, err := keptReleases(kept)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, on, "the one that was believed before cannot be read").
			WithHint("repair or remove %s", kept)
	}
	counts, err := j.believed(s, s.file)
	switch {
	case err == nil && (known == nil || counts.Number > known.Number):
		if err := j.keep(s, kept); err != nil {
			return nil, err
		}
		files[kept] = Stamp(kept)
	case err == nil && counts.document.digest == known.document.digest:
	case known == nil:
		return nil, fault.Wrap(err, fault.RevocationUnknown, on, "cannot be used").WithHint("get a new one from its signer")
	default:
		if err == nil {
			err = fault.New(fault.RevocationUnknown, s.file, "has the number %d, which is not above %d, which is known already", counts.Number, known.Number)
		}
		j.warn("an older copy of the %s is used: %v", on, err)
		if counts, err = j.believed(s, kept); err != nil {
			return nil, fault.Wrap(err, fault.RevocationUnknown, on, "the one that was believed before cannot be used any more").
				WithHint("get a new one from its signer; if that one was no signer of yours, remove %s", kept)
		}
	}
	j.rest(files)
	return counts, j.due(on, counts)
}

// keptReleases is the list that was believed last, nil for none.
func keptReleases(path string) (*releaseList, error) {
	data, err := limits.ReadFile(path, limits.ReleasesBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot be read")
	}
	return readReleases(path, data)
}

// believed reads a list and holds it to those who may sign it.
func (j *judge) believed(s releaseSource, path string) (*releaseList, error) {
	data, err := limits.ReadFile(path, limits.ReleasesBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot be read")
	}
	return j.believe(s, path, data)
}

// believe holds a list to those who may sign it.
func (j *judge) believe(s releaseSource, path string, data []byte) (*releaseList, error) {
	l, err := readReleases(path, data)
	if err != nil {
		return nil, err
	}
	// One that is renewed has a signer whose certificate counts then.
	now := j.now
	j.now = j.data
	defer func() { j.now = now }()
	chain, err := l.document.believe(path, poolOf(j.stores, s.stores), s.identities, j.now)
	if err != nil {
		return nil, err
	}
	j.untilEnd(chain)
	_, err = j.revoked(chain, nil)
	return l, err
}

// keep remembers a list, so that no older one counts again. Another gate may have
// kept a newer one meanwhile; then this judgement is made by what it read.
func (j *judge) keep(s releaseSource, path string) error {
	if j.looking {
		return nil
	}
	fail := func(err error) error {
		return fault.Wrap(err, fault.RevocationUnknown, path, "cannot remember the release list, without which an older one could come back")
	}
	if err := os.MkdirAll(j.state, 0o755); err != nil {
		return fail(err)
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(j.state, ".lock")).Lock()
	if err != nil {
		return fail(err)
	}
	defer unlock()
	data, err := limits.ReadFile(s.file, limits.ReleasesBytes)
	if err != nil {
		return fail(err)
	}
	l, err := j.believed(s, s.file) // as it is now
	if err != nil {
		return err
	}
	if known, err := keptReleases(path); err != nil || known != nil && known.Number >= l.Number {
		return err
	}
	if err := atomicfile.Write(path, data, 0o644); err != nil {
		return fail(err)
	}
	return nil
}

// due refuses a list that is past its time and the policy's grace.
func (j *judge) due(on string, l *releaseList) error {
	end := l.next.Add(j.policy.grace)
	j.trace.note(on, "number %d, %d minimum versions, %d payloads and %d modules denied", l.Number, len(l.MinimumVersions), len(l.DeniedPayloads), len(l.DeniedModules))
	j.trace.note("signed by", "%s at %s", l.document.chain[0].Subject, stampText(l.document.timestamp))
	j.trace.note("next", "%s", l.NextUpdate)
	j.trace.due(l.next.Add(time.Nanosecond), "the %s is due, unless a new one came", on)
	j.trace.due(end.Add(time.Nanosecond), "the %s is past its grace, unless a new one came", on)
	switch {
	case j.data.After(end):
		return fault.New(fault.RevocationUnknown, on, "is out of date since %s", l.NextUpdate).WithHint("get a new one from its signer")
	case j.data.After(l.next):
		j.warn("the %s is out of date since %s; the policy's grace holds until %s", on, l.NextUpdate, stampText(end))
		j.until(end)
	default:
		j.until(l.next)
	}
	return nil
}

// denies tells whether a list withdraws an artifact.
func (l *releaseList) denies(on, id, version string, att *Attestation, a *oci.Artifact) error {
	switch {
	case att != nil && slices.Contains(l.DeniedPayloads, att.SignedDigest):
		return fault.New(fault.Withdrawn, string(att.SignedDigest), "the signed payload is denied by the %s, number %d", on, l.Number)
	case att == nil && slices.Contains(l.DeniedPayloads, a.Digest):
		// A Notary Project signature is over the manifest's digest, whatever its payload
		// looks like.
		return fault.New(fault.Withdrawn, string(a.Digest), "the manifest is denied by the %s, number %d", on, l.Number)
	case a.Module != nil && slices.Contains(l.DeniedModules, a.Module.Digest):
		return fault.New(fault.Withdrawn, string(a.Module.Digest), "the module is denied by the %s, number %d", on, l.Number)
	}
	return tooLow(id, version, l.MinimumVersions, fmt.Sprintf("the %s, number %d", on, l.Number))
}
