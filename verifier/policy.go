package verifier

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

// TrustLevel is how far an agent is trusted. It follows from the node's policy.
type TrustLevel string

// The trust levels, lowest first.
const (
	Untrusted TrustLevel = "untrusted" // no attestation, or no store to hold it to
	Signed    TrustLevel = "signed"    // a valid chain and an identity of the scope
	Community TrustLevel = "community" // the signer is on the community list
	Verified  TrustLevel = "verified"  // on the publishers' list, with fresh revocation data
)

// What a gate does with a manifest that it could not fetch.
const (
	Defer = "defer"
	Deny  = "deny"
	allow = "allow"
)

// Binding modes: how closely the signed subject must fit the reference.
const (
	bindExact      = "exact"
	bindRepository = "repository"
	bindNone       = "none"
	bindRemap      = "remap"
)

// Whether a scope's attestations must be time-stamped.
const (
	stampOptional = "optional"
	stampRequired = "required"
)

const (
	policyVersion = 1
	anyIdentity   = "any"
	emailPrefix   = "email:"
	// maxGrace bounds how long a revocation list may be used past its end.
	maxGrace = 30 * 24 * time.Hour
)

// policyFile is the policy as it is written. ParsePolicy turns it into a Policy.
type policyFile struct {
	Version int64       `yaml:"version"`
	Scopes  []scopeFile `yaml:"scopes"`
	Outside outsideFile `yaml:"outside"`
	Exempt  []string    `yaml:"exempt"`
	Trust   trustFile   `yaml:"trust"`
	// Grants are in capabilities.yaml now; the key is known to be refused in words
	// that say so.
	Grants          map[string][]string `yaml:"grants"`
	Revocation      revocationSet       `yaml:"revocation"`
	Releases        []releasesFile      `yaml:"releases"`
	MinimumVersions map[string]string   `yaml:"minimum_versions" scalar:"any"`
	OnUnfetchable   string              `yaml:"on_unfetchable" allowed:"defer|deny"`
	Staging         stagingFile         `yaml:"attestation_required"`
}

type scopeFile struct {
	Name               string         `yaml:"name"`
	Match              []string       `yaml:"match"`
	Stores             []string       `yaml:"stores"`
	TimestampStores    []string       `yaml:"timestamp_stores"`
	Timestamp          string         `yaml:"timestamp" allowed:"optional|required"`
	Identities         []string       `yaml:"identities"`
	IdentityPatterns   []identityFile `yaml:"identity_patterns"`
	RequiredSigners    []requiredFile `yaml:"required_signers"`
	UnsignedContainers string         `yaml:"unsigned_containers" allowed:"allow|deny"`
	UnsignedAgents     string         `yaml:"unsigned_agents" allowed:"allow|deny"`
	Binding            string         `yaml:"binding" allowed:"exact|repository|remap|none"`
	Remap              []remapFile    `yaml:"remap"`
	Level              string         `yaml:"level" allowed:"strict|permissive|audit"`
	Notation           string         `yaml:"notation" allowed:"refuse|accept"`
}

type outsideFile struct {
	OrdinaryImages string `yaml:"ordinary_images" allowed:"allow|deny"`
}

type trustFile struct {
	Community  []string `yaml:"community"`
	Publishers []string `yaml:"publishers"`
}

type revocationSet struct {
	CRLs  []crlFile  `yaml:"crls"`
	OCSP  []ocspFile `yaml:"ocsp"`
	Grace string     `yaml:"grace"`
}

type ocspFile struct {
	Issuer string   `yaml:"issuer"`
	URL    string   `yaml:"url"`
	Hosts  []string `yaml:"hosts"`
}

type crlFile struct {
	Issuer      string `yaml:"issuer"`
	Certificate string `yaml:"certificate"`
	File        string `yaml:"file"`
	URL         string `yaml:"url"`
}

// Policy is what a node enforces. It is immutable; make one with [ParsePolicy].
type Policy struct {
	digest      digest.Digest // of file name and content
	scopes      []scope
	outside     bool // ordinary images outside the scopes may run
	exempt      map[digest.Digest]bool
	community   identities
	publishers  identities
	crls        []CRLSource
	ocsp        []OCSPSource
	grace       time.Duration
	unfetchable string
	staging     staging
	minimum     map[string]string // version by agent id
	releases    []releaseSource
}

// CRLSource says where an issuer's revocation list comes from: exactly one of
// File and URL is set.
type CRLSource struct {
	// Issuer is the issuer's distinguished name as Go prints it.
	Issuer string
	// Certificate is a PEM file with the issuer's certificate; empty when the
	// issuer is a root of a trust store, or when File is set and the chain under
	// judgement shall bring the certificate.
	Certificate string
	File        string
	URL         string
}

// scope is one statement of the policy.
type scope struct {
	name               string
	patterns           []imageref.Pattern
	stores             []string
	stampStores        []string // those of time stamp authorities; none counts without
	stampRequired      bool
	identities         identities
	required           []requirement // all of which must be met
	unsignedContainers bool
	unsignedAgents     bool
	binding            string
	level              lenience
	remap              []remapping
	notation           bool // a Notary Project signature does in the place of an attestation
}

// identities is a set of e-mail addresses in normal form, or everyone.
type identities struct {
	any      bool
	emails   map[string]bool
	patterns []identityPattern
}

func (ids identities) has(email string) bool {
	return email != "" && (ids.any || ids.emails[email])
}

// ParsePolicy reads a policy strictly: every key must be known and every name
// must make sense. Relative paths in it are relative to file's directory. All
// errors have the reason [fault.PolicyInvalid] and name file and line.
func ParsePolicy(file string, data []byte) (*Policy, error) {
	if len(data) > limits.PolicyBytes {
		return nil, fault.New(fault.PolicyInvalid, file, "is over %d bytes", limits.PolicyBytes)
	}
	var f policyFile
	lines, err := strictyaml.Decoder{Reason: fault.PolicyInvalid}.Decode(file, data, &f)
	if err != nil {
		return nil, err
	}
	c := policyCompiler{file: file, lines: lines}
	p := c.compile(&f)
	p.digest = digest.FromString(file + "\x00" + string(data))
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return p, nil
}

// policyCompiler collects problems, so that compile reads like the policy.
type policyCompiler struct {
	file     string
	lines    strictyaml.Lines
	problems []error
}

func (c *policyCompiler) fail(path, format string, args ...any) {
	at := strictyaml.Position(c.file, c.lines.Of(path))
	c.problems = append(c.problems, fault.New(fault.PolicyInvalid, at, "%s: %s", path, fmt.Sprintf(format, args...)))
}

func (c *policyCompiler) compile(f *policyFile) *Policy {
	if f.Version != policyVersion {
		c.fail("version", "is %d, this program knows %d", f.Version, policyVersion)
	}
	if _, said := c.lines["grants"]; said {
		c.fail("grants", "capabilities are granted by the rules of capabilities.yaml, beside this file")
	}
	p := &Policy{
		outside:     c.choice("outside.ordinary_images", f.Outside.OrdinaryImages, "") == allow,
		exempt:      map[digest.Digest]bool{},
		community:   c.identities("trust.community", f.Trust.Community),
		publishers:  c.identities("trust.publishers", f.Trust.Publishers),
		grace:       c.duration("revocation.grace", f.Revocation.Grace, maxGrace),
		unfetchable: c.choice("on_unfetchable", f.OnUnfetchable, Defer),
		staging:     c.staging(f.Staging),
		minimum:     c.minimumVersions("minimum_versions", f.MinimumVersions),
		releases:    c.releases("releases", f.Releases),
	}
	names, patterns := map[string]bool{}, map[string]bool{}
	for i, s := range f.Scopes {
		path := strictyaml.Index("scopes", i)
		compiled := c.scope(path, s)
		if names[s.Name] {
			c.fail(strictyaml.Key(path, "name"), "there are two scopes %q", s.Name)
		}
		names[s.Name] = true
		for j, m := range compiled.patterns {
			if patterns[m.String()] {
				c.fail(strictyaml.Index(strictyaml.Key(path, "match"), j), "%q is there twice", s.Match[j])
			}
			patterns[m.String()] = true
		}
		p.scopes = append(p.scopes, compiled)
	}
	c.apart(p)
	for i, s := range f.Exempt {
		d, err := digest.Parse(s)
		if err != nil {
			c.fail(strictyaml.Index("exempt", i), "%q is not a digest", s)
		}
		p.exempt[d] = true
	}
	issuers := map[string]bool{}
	for i, s := range f.Revocation.CRLs {
		path := strictyaml.Index("revocation.crls", i)
		if issuers[s.Issuer] {
			c.fail(path, "issuer %q is there twice", s.Issuer)
		}
		issuers[s.Issuer] = true
		p.crls = append(p.crls, c.crl(path, s))
	}
	responders := map[string]bool{}
	for i, s := range f.Revocation.OCSP {
		path := strictyaml.Index("revocation.ocsp", i)
		if responders[s.Issuer] {
			c.fail(path, "issuer %q is there twice", s.Issuer)
		}
		responders[s.Issuer] = true
		p.ocsp = append(p.ocsp, c.responder(path, s))
	}
	return p
}

func (c *policyCompiler) scope(path string, s scopeFile) scope {
	key := func(k string) string { return strictyaml.Key(path, k) }
	if s.Name == "" || fault.OneLine(s.Name) != s.Name {
		c.fail(key("name"), "is required, in one line")
	}
	out := scope{
		name:               s.Name,
		unsignedContainers: c.choice(key("unsigned_containers"), s.UnsignedContainers, "") == allow,
		unsignedAgents:     c.choice(key("unsigned_agents"), s.UnsignedAgents, Deny) == allow,
		binding:            c.choice(key("binding"), s.Binding, bindRepository),
		level:              leniencyOf(s.Level),
		notation:           c.choice(key("notation"), s.Notation, notationRefuse) == notationAccept,
	}
	if out.notation && s.Binding != bindNone {
		c.fail(key("notation"), "accept needs binding: none beside it: a Notary Project signature names neither the repository nor the version that it is for, so it can be held to none")
	}
	if len(s.Match) == 0 {
		c.fail(key("match"), "is required: the references that the scope covers")
	}
	for i, text := range s.Match {
		p, ok := imageref.ParsePattern(text)
		if !ok {
			c.fail(strictyaml.Index(key("match"), i), "%q is none of %s", text, imageref.PatternForm)
		}
		out.patterns = append(out.patterns, p)
	}
	out.remap = c.remap(key("remap"), s.Binding, s.Remap, out.patterns)
	if len(s.Stores) == 0 {
		c.fail(key("stores"), "is required: the trust stores that hold for the scope")
	}
	out.stores = c.stores(key("stores"), s.Stores)
	out.stampStores = c.stores(key("timestamp_stores"), s.TimestampStores)
	out.stampRequired = c.choice(key("timestamp"), s.Timestamp, stampOptional) == stampRequired
	if out.stampRequired && len(out.stampStores) == 0 {
		c.fail(key("timestamp"), "needs timestamp_stores: the stores with the roots of time stamp authorities")
	}
	switch {
	case len(s.Identities) == 0 && len(s.IdentityPatterns) == 0:
		c.fail(key("identities"), "is required: the signers that are trusted, as %sNAME@DOMAIN, or [%s]; or identity_patterns", emailPrefix, anyIdentity)
	case slices.Equal(s.Identities, []string{anyIdentity}):
		out.identities.any = true
	default:
		out.identities = c.identities(key("identities"), s.Identities)
	}
	if out.identities.any && len(s.IdentityPatterns) > 0 {
		c.fail(key("identity_patterns"), "has no effect beside identities: [%s]", anyIdentity)
	}
	out.identities.patterns = c.identityPatterns(key("identity_patterns"), s.IdentityPatterns, out.stores)
	out.required = c.required(key("required_signers"), s.RequiredSigners)
	if out.notation && len(out.required) > 0 {
		c.fail(key("notation"), "accept has no place beside required_signers: nobody can countersign a Notary Project signature")
	}
	return out
}

func (c *policyCompiler) stores(path string, names []string) (out []string) {
	for i, name := range names {
		if !validStoreName(name) || slices.Contains(out, name) {
			c.fail(strictyaml.Index(path, i), "%q is not a directory name, or there twice", name)
		}
		out = append(out, name)
	}
	return out
}

// apart holds the stores of signers and of others apart: who vouches for the
// time shall not be able to sign, nor the other way round.
func (c *policyCompiler) apart(p *Policy) {
	signers := map[string]bool{}
	for _, s := range p.scopes {
		for _, name := range s.stores {
			signers[name] = true
		}
	}
	for i, s := range p.scopes {
		for j, name := range s.stampStores {
			if signers[name] {
				c.fail(strictyaml.Index(strictyaml.Key(strictyaml.Index("scopes", i), "timestamp_stores"), j), "the store %q holds roots of signers: time stamp authorities need one of their own", name)
			}
		}
	}
}

// choice returns the value or its default; without a default it is required.
// The values themselves were held to their list by the decoder.
func (c *policyCompiler) choice(path, value, def string) string {
	if value == "" {
		if def == "" {
			c.fail(path, "is required: %s or %s", allow, Deny)
		}
		return def
	}
	return value
}

func (c *policyCompiler) identities(path string, list []string) identities {
	ids := identities{emails: map[string]bool{}}
	for i, s := range list {
		address, ok := strings.CutPrefix(s, emailPrefix)
		normal := normalEmail(address)
		if !ok || normal == "" {
			c.fail(strictyaml.Index(path, i), "%q is not of the form %sNAME@DOMAIN", s, emailPrefix)
		}
		ids.emails[normal] = true
	}
	return ids
}

func (c *policyCompiler) duration(path, value string, most time.Duration) time.Duration {
	if value == "" {
		return 0
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > most {
		c.fail(path, "%q is not a duration such as 24h, of at most %s", value, most)
	}
	return d
}

func (c *policyCompiler) crl(path string, s crlFile) CRLSource {
	if s.Issuer == "" {
		c.fail(path, "issuer is required")
	}
	if (s.File == "") == (s.URL == "") {
		c.fail(path, "exactly one of file and url is required")
	}
	if s.URL != "" {
		c.address(strictyaml.Key(path, "url"), s.URL)
	}
	return CRLSource{Issuer: s.Issuer, Certificate: c.path(s.Certificate), File: c.path(s.File), URL: s.URL}
}

func (c *policyCompiler) address(path, text string) {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		c.fail(path, "%q is not an http or https URL", text)
	}
}

func (c *policyCompiler) responder(path string, s ocspFile) OCSPSource {
	if s.Issuer == "" {
		c.fail(path, "issuer is required")
	}
	if (s.URL == "") == (len(s.Hosts) == 0) {
		c.fail(path, "exactly one of url and hosts is required")
	}
	if s.URL != "" {
		c.address(strictyaml.Key(path, "url"), s.URL)
	}
	for i, host := range s.Hosts {
		// What an URL calls its host: a name, and a port if it says one.
		if u, err := url.Parse("http://" + host); err != nil || host == "" || u.Host != host || u.User != nil || strings.Contains(host, "*") {
			c.fail(strictyaml.Index(strictyaml.Key(path, "hosts"), i), "%q is not HOST or HOST:PORT", host)
		}
	}
	return OCSPSource(s)
}

func (c *policyCompiler) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(c.file), p)
}

// normalEmail lower-cases the domain, which alone is without case, and returns
// "" for what is not an address.
func normalEmail(s string) string {
	at := strings.LastIndexByte(s, '@')
	if at <= 0 || at == len(s)-1 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || strings.Contains(s[:at], "@") {
		return ""
	}
	return s[:at] + strings.ToLower(s[at:])
}

// PolicyKeys are all keys of a policy, as [strictyaml.Keys] names them, but for the
// one that is only known to be refused.
func PolicyKeys() []string {
	return slices.DeleteFunc(strictyaml.Keys(policyFile{}), func(k string) bool { return k == "grants" })
}

// OnUnfetchable is what the pull gate does with a manifest that it cannot fetch:
// [Defer] to the gate before a run, or [Deny].
func (p *Policy) OnUnfetchable() string { return p.unfetchable }

// Exempt tells whether the policy exempts the image with this digest.
func (p *Policy) Exempt(d digest.Digest) bool { return p.exempt[d] }

// CRLs are the configured sources of revocation lists.
func (p *Policy) CRLs() []CRLSource { return slices.Clone(p.crls) }

// stores are the names of all trust stores that the policy names, sorted.
func (p *Policy) stores() []string {
	var names []string
	for _, s := range p.scopes {
		names = append(append(names, s.stores...), s.stampStores...)
	}
	for _, r := range p.releases {
		names = append(names, r.stores...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
