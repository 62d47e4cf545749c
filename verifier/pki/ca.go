package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Files of a CA, relative to its directory.
const (
	RootCert  = "root.crt"
	RootKey   = "root.key"
	AgentCert = "agent-ca.crt"
	AgentKey  = "agent-ca.key"
	RootCRL   = "crl/root.crl"
	AgentCRL  = "crl/agent.crl"

	infoFile     = "ca.json"
	databaseFile = "ca.db"
	lockFile     = ".lock"
)

// Validity periods of specification §2.4, and of revocation lists.
const (
	day           = 24 * time.Hour
	rootYears     = 10
	agentYears    = 5
	leafYears     = 1
	rootCRLLife   = 180 * day
	agentCRLLife  = day
	maxCRLLife    = 366 * day
	infoVersion   = 2
	maxLogBytes   = 256 * limits.MiB
	backdate      = 5 * time.Minute // for nodes whose clocks are behind
	maxFieldBytes = 64              // RFC 5280's bound on organization and common names
)

// InitOptions say what CA to make. Required are Now, and one of Passphrase, RootKey
// and UnencryptedRoot.
type InitOptions struct {
	// Org and Country stand in every subject; the defaults are MentatLab, US.
	Org, Country string
	// CRLURL is the http or https address under which the files of crl/ will be
	// published; certificates then name their list there. Empty: they name
	// none, and every node's policy must name the lists.
	CRLURL string
	// Passphrase encrypts the root key.
	Passphrase []byte
	// UnencryptedRoot lets the root key lie open where there is no passphrase. Who
	// reads it makes agent CAs that every node believes, for ten years.
	UnencryptedRoot bool
	// Now is when the CA begins.
	Now time.Time
	// AgentCRLLife is how long a list of the agent CA counts; default one day.
	AgentCRLLife time.Duration
	// AgentPassphrase encrypts the agent CA's key. Without one it lies open.
	AgentPassphrase []byte
	// RootKey and AgentKey are used instead of new keys, which are then not
	// written: they live elsewhere.
	RootKey, AgentKey crypto.Signer
	// RootKeyName and AgentKeyName are the names by which RootKey and AgentKey are had
	// again, by [OpenOptions.Token].
	RootKeyName, AgentKeyName string
	// Services, if not nil, adds a time stamp authority, as [CA.AddServices] does.
	Services *ServiceOptions
}

// OpenOptions say how a CA's keys are reached. The zero value reads key files
// that are not encrypted.
type OpenOptions struct {
	Passphrase Passphrase
	// AgentPassphrase is asked for the agent CA's key; nil means Passphrase.
	AgentPassphrase Passphrase
	// RootKey and AgentKey are used instead of the key files.
	RootKey, AgentKey crypto.Signer
	// TimeRootKey and TimeKey likewise, for the time stamp authority.
	TimeRootKey, TimeKey crypto.Signer
	// Token opens a key that is remembered by its name. It is called once for each,
	// when it is first needed.
	Token func(name string) (crypto.Signer, error)
}

// withKeys adds names of keys; empty ones say nothing.
func (i info) withKeys(names map[string]string) info {
	keys := maps.Clone(i.Keys)
	for file, name := range names {
		if name == "" {
			continue
		}
		if keys == nil {
			keys = map[string]string{}
		}
		keys[file] = name
	}
	i.Keys = keys
	return i
}

// CA is a certificate authority on disk. Its methods may be called by several
// goroutines and processes at once.
type CA struct {
	dir         string
	info        info
	root, agent *x509.Certificate
	services    *services // nil without a time stamp authority

	mu   sync.Mutex // of keys
	keys OpenOptions

	turn   sync.Mutex // of the database, within this process
	broken error      // what a damaged database was refused with

	onStep func(string) // for tests that stop a change halfway
}

type info struct {
	Version      int    `json:"version"`
	Org          string `json:"organization"`
	Country      string `json:"country"`
	CRLURL       string `json:"crl_url,omitempty"`
	AgentCRLLife string `json:"agent_crl_life"`
	// OCSPURL is the responder that certificates name.
	OCSPURL string `json:"ocsp_url,omitempty"`
	// TimePolicy is the time stamp authority's.
	TimePolicy string `json:"time_policy,omitempty"`
	// Keys are the names of keys that are elsewhere, by the file that would hold them.
	Keys map[string]string `json:"keys,omitempty"`
}

// parse reads ca.json, of this version or the one before.
func (i *info) parse(name string, text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(i); err != nil || (i.Version != infoVersion && i.Version != oldInfoVersion) {
		return fault.New(fault.Usage, name, "is malformed or of another version")
	}
	return i.check()
}

func (i info) agentCRLLife() (time.Duration, error) {
	d, err := time.ParseDuration(i.AgentCRLLife)
	if err != nil || d <= 0 || d > maxCRLLife {
		return 0, fault.New(fault.Usage, infoFile, "agent_crl_life %q is not a duration between 0 and %s", i.AgentCRLLife, maxCRLLife)
	}
	return d, nil
}

// crlURL is where a list is published, nil if nowhere.
func (i info) crlURL(file string) []string {
	if i.CRLURL == "" {
		return nil
	}
	return []string{strings.TrimSuffix(i.CRLURL, "/") + "/" + filepath.Base(file)}
}

// ocspURL is where certificates say that an OCSP responder is, nil for nowhere.
func (i info) ocspURL() []string {
	if i.OCSPURL == "" {
		return nil
	}
	return []string{i.OCSPURL}
}

// Init makes a CA in dir, with the first list of each authority. The directory
// must not exist or be empty; else the reason is [fault.Exists]. What was left by one
// that was killed is removed.
func Init(dir string, o InitOptions) (*CA, error) {
	i := o.info()
	if err := checkInit(i, o); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case len(entries) > 0:
		return nil, fault.New(fault.Exists, dir, "is not empty").WithHint("a CA is never overwritten: choose another directory")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(err, fault.Exists, dir, "cannot be used for a CA")
	}
	// The CA is made beside its place and moved there: half a CA would be worse
	// than none.
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, dir, "cannot be used for a CA")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, dir, "cannot make the directory")
	}
	if err := removeHalves(dir); err != nil {
		return nil, err
	}
	temp, release, err := makeHalf(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, dir, "cannot make the directory")
	}
	defer release()
	ca, err := build(temp, i, o)
	if err == nil {
		err = move(temp, dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(temp))
	}
	ca.dir = dir
	return ca, nil
}

// info is what ca.json will say.
func (o InitOptions) info() info {
	i := info{Version: infoVersion, Org: o.Org, Country: o.Country, CRLURL: o.CRLURL, AgentCRLLife: o.AgentCRLLife.String()}
	if i.Org == "" {
		i.Org = "MentatLab"
	}
	if i.Country == "" {
		i.Country = "US"
	}
	if o.AgentCRLLife == 0 {
		i.AgentCRLLife = agentCRLLife.String()
	}
	i = i.withKeys(map[string]string{RootKey: o.RootKeyName, AgentKey: o.AgentKeyName})
	if o.Services != nil {
		i.OCSPURL, i.TimePolicy = o.Services.OCSPURL, o.Services.TimePolicy
	}
	return i
}

func checkInit(i info, o InitOptions) error {
	if o.Now.IsZero() {
		return fault.New(fault.Internal, "pki init", "has no clock")
	}
	if err := checkRoot("root key", o.RootKey, o.Passphrase, o.UnencryptedRoot); err != nil {
		return err
	}
	if o.Services != nil {
		if err := o.Services.checkRoot(); err != nil {
			return err
		}
	}
	return i.check()
}

// checkRoot refuses to write a root's key into an open file that nobody asked for.
func checkRoot(what string, key crypto.Signer, passphrase []byte, unencrypted bool) error {
	if key != nil || len(passphrase) > 0 || unencrypted {
		return nil
	}
	return fault.New(fault.Usage, what, "there is no passphrase to encrypt it with, and it is not written without").
		WithHint("give a passphrase, make the key in a token, or ask for an open file by name: --unencrypted-root")
}

func (i info) check() error {
	if len(i.Org) > maxFieldBytes-len(" Agent CA") || fault.OneLine(i.Org) != i.Org {
		return fault.New(fault.Usage, "organization", "%q is too long or not one line", i.Org)
	}
	if len(i.Country) != 2 || i.Country != strings.ToUpper(i.Country) {
		return fault.New(fault.Usage, "country", "%q is not a code of two capital letters", i.Country)
	}
	if i.CRLURL != "" {
		u, err := url.Parse(i.CRLURL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return fault.New(fault.Usage, "CRL address", "%q is not an http or https URL of a directory", i.CRLURL)
		}
	}
	if i.OCSPURL != "" {
		if err := checkHTTP("OCSP address", i.OCSPURL); err != nil {
			return err
		}
	}
	if _, err := parseOID(i.timePolicy()); err != nil {
		return err
	}
	_, err := i.agentCRLLife()
	return err
}

// build fills dir, which is ours alone.
func build(dir string, i info, o InitOptions) (*CA, error) {
	ca := &CA{dir: dir, info: i, keys: OpenOptions{RootKey: o.RootKey, AgentKey: o.AgentKey}}
	if err := os.Mkdir(filepath.Join(dir, "crl"), 0o755); err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, dir, "cannot make the directory")
	}
	var err error
	if ca.keys.RootKey == nil {
		if ca.keys.RootKey, err = ca.newKeyFile(RootKey, rootBits, o.Passphrase); err != nil {
			return nil, err
		}
	}
	if ca.keys.AgentKey == nil {
		if ca.keys.AgentKey, err = ca.newKeyFile(AgentKey, agentBits, o.AgentPassphrase); err != nil {
			return nil, err
		}
	}
	if err := ca.makeAuthorities(o.Now); err != nil {
		return nil, err
	}
	if err := ca.writeInfo(i); err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{
		RootCert:  encodeCert(ca.root),
		AgentCert: encodeCert(ca.agent),
	} {
		if err := ca.create(name, data, 0o644); err != nil {
			return nil, err
		}
	}
	if err := createDatabase(ca.path(databaseFile), func(d database) error { return d.add(ca.agent, nil, o.Now) }); err != nil {
		return nil, err
	}
	if err := ca.RenewRootCRL(o.Now); err != nil {
		return nil, err
	}
	if err := ca.RenewCRL(o.Now); err != nil {
		return nil, err
	}
	if o.Services == nil {
		return ca, nil
	}
	return ca, ca.AddServices(*o.Services)
}

func (ca *CA) makeAuthorities(now time.Time) error {
	i := ca.info
	var err error
	ca.root, err = ca.certify(&x509.Certificate{
		Subject:               i.rootName(),
		NotAfter:              now.AddDate(rootYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}, nil, ca.keys.RootKey.Public(), ca.keys.RootKey, now)
	if err != nil {
		return err
	}
	// No extended key usage: it would narrow what the leaves may say, and
	// readers disagree about what it means on a CA.
	ca.agent, err = ca.certify(&x509.Certificate{
		Subject:               i.agentName(),
		NotAfter:              now.AddDate(agentYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		CRLDistributionPoints: i.crlURL(RootCRL),
	}, ca.root, ca.keys.AgentKey.Public(), ca.keys.RootKey, now)
	return err
}

func (i info) name(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{i.Org}, Country: []string{i.Country}}
}

func (i info) rootName() pkix.Name     { return i.name(i.Org + " Root CA") }
func (i info) agentName() pkix.Name    { return i.name(i.Org + " Agent CA") }
func (i info) timeRootName() pkix.Name { return i.name(i.Org + " Time CA") }

// certify issues t for pub. A nil issuer makes it self-signed.
func (ca *CA) certify(t, issuer *x509.Certificate, pub crypto.PublicKey, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	var err error
	if t.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	if t.SubjectKeyId, err = keyID(pub); err != nil {
		return nil, err
	}
	t.NotBefore = now.Add(-backdate)
	if issuer == nil {
		issuer = t
	} else {
		if t.NotBefore.Before(issuer.NotBefore) {
			t.NotBefore = issuer.NotBefore
		}
		if t.NotAfter.After(issuer.NotAfter) {
			t.NotAfter = issuer.NotAfter
		}
	}
	if !t.NotAfter.After(now) {
		return nil, fault.New(fault.OutsideValidity, issuer.Subject.String(), "has expired and issues nothing more")
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, pub, key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, t.Subject.String(), "cannot issue the certificate")
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, t.Subject.String(), "cannot read the certificate just issued")
	}
	return c, nil
}

// Open opens the CA in dir. Keys are read when they are first needed. Reasons:
// [fault.NotFound], [fault.ChainUntrusted] when its parts do not fit together.
func Open(dir string, o OpenOptions) (*CA, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, dir, "is no CA directory")
	}
	ca := &CA{dir: dir, keys: o}
	text, err := ca.read(infoFile, limits.PolicyBytes)
	if err != nil {
		return nil, err
	}
	if err := ca.info.parse(ca.path(infoFile), text); err != nil {
		return nil, err
	}
	if ca.root, err = ca.readCert(RootCert); err != nil {
		return nil, err
	}
	if ca.agent, err = ca.readCert(AgentCert); err != nil {
		return nil, err
	}
	if err := ca.agent.CheckSignatureFrom(ca.root); err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, ca.path(AgentCert), "was not issued by %s", RootCert)
	}
	return ca, ca.openServices()
}

// Unlock reads the agent CA's key, and the time stamp authority's if there is one,
// so that nothing asks for a passphrase later.
func (ca *CA) Unlock() error {
	if _, err := ca.agentKey(); err != nil || ca.services == nil {
		return err
	}
	_, err := ca.timeKey()
	return err
}

// Lists tells whether certificates name the list that revokes them.
func (ca *CA) Lists() bool { return ca.info.CRLURL != "" }

// Dir is the CA's directory.
func (ca *CA) Dir() string { return ca.dir }

// Root is the root's certificate.
func (ca *CA) Root() *x509.Certificate { return ca.root }

// Agent is the agent CA's certificate.
func (ca *CA) Agent() *x509.Certificate { return ca.agent }

// Warnings are what its owner should know, one line each.
func (ca *CA) Warnings() []string {
	var all []string
	for _, file := range []string{RootKey, TimeRootKey} {
		data, err := ca.read(file, limits.CertificatePEMBytes)
		if err != nil {
			continue
		}
		if block, _ := pem.Decode(data); block != nil && block.Type != pemEncryptedKey {
			all = append(all, ca.path(file)+" is not encrypted: move it off this machine")
		}
	}
	return all
}

// CertRequest asks for a certificate and says where it goes.
type CertRequest struct {
	LeafOptions
	// CertFile gets the chain, KeyFile the key. Neither may exist.
	CertFile, KeyFile string
	// Passphrase encrypts the key file.
	Passphrase []byte
	// KeyType is what key is made.
	KeyType KeyType
	// Key is used instead of a new one; KeyFile is then not written.
	Key crypto.Signer
}

// RequestCert makes a key, has its certificate issued and writes both. On an error
// neither file is left, unless the certificate was issued or may have been: the key is
// kept then, to ask again with. Reasons: [fault.Exists], those of [CA.IssueLeaf].
func (ca *CA) RequestCert(r CertRequest) ([]*x509.Certificate, error) {
	return r.Obtain(func(key crypto.Signer) ([]*x509.Certificate, error) {
		csr, err := NewRequest(key)
		if err != nil {
			return nil, err
		}
		return ca.IssueLeaf(csr, r.LeafOptions)
	})
}

// UnansweredError is that of who was asked for a certificate and may have issued it,
// only nobody knows.
type UnansweredError struct{ Err error }

func (e *UnansweredError) Error() string { return e.Err.Error() }

// Unwrap exposes what went wrong.
func (e *UnansweredError) Unwrap() error { return e.Err }

// Obtain is [CA.RequestCert] with whoever issues the key's certificate.
func (r CertRequest) Obtain(issue func(crypto.Signer) ([]*x509.Certificate, error)) (chain []*x509.Certificate, err error) {
	files := []string{r.CertFile}
	if r.Key == nil {
		files = append(files, r.KeyFile)
	}
	for _, file := range files {
		if file == "" {
			return nil, fault.New(fault.Usage, "certificate request", "names no file")
		}
		if _, err := os.Lstat(file); err == nil {
			return nil, fault.New(fault.Exists, file, "is there already and is not overwritten")
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, fault.Wrap(err, fault.AccessDenied, file, "cannot make its directory")
		}
	}
	if _, _, err := r.check(); err != nil {
		return nil, err // before the time for a key is spent
	}
	key := r.Key
	if key == nil {
		if key, err = r.KeyType.make(); err == nil {
			err = writeKey(r.KeyFile, key, r.Passphrase)
		}
		if err != nil {
			return nil, err
		}
	}
	if chain, err = issue(key); err != nil {
		var open *UnansweredError
		if r.Key == nil && !errors.As(err, &open) {
			err = errors.Join(err, os.Remove(r.KeyFile))
		}
		return nil, err
	}
	// What cannot be written now was issued all the same, by a token that is used up.
	if err = createFile(r.CertFile, encodeCert(chain...), 0o644); err != nil {
		return nil, &UnansweredError{Err: err}
	}
	return chain, nil
}

// NewRequest is a request for a certificate of the key: it proves that the key
// is held and says nothing else.
func NewRequest(key crypto.Signer) (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certificate request", "cannot make it")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certificate request", "cannot read it back")
	}
	return csr, nil
}

// normalEmail checks an address and lower-cases its domain.
func normalEmail(s string) (string, error) {
	a, err := mail.ParseAddress(s)
	at := strings.LastIndexByte(s, '@')
	if err != nil || a.Address != s || at < 0 || len(s) > maxFieldBytes || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", fault.New(fault.Usage, "e-mail address", "%q is not one of the form NAME@DOMAIN, of at most %d characters", s, maxFieldBytes)
	}
	return s[:at] + strings.ToLower(s[at:]), nil
}

func (ca *CA) path(name string) string { return filepath.Join(ca.dir, filepath.FromSlash(name)) }

func (ca *CA) read(name string, limit int64) ([]byte, error) {
	path := ca.path(name)
	data, err := limits.ReadFile(path, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, path, "is not there; is this a CA directory?").WithHint("make one with mentatctl pki init")
	case errors.Is(err, limits.ErrExceeded):
		return nil, fault.Wrap(err, fault.ResourceLimit, path, "cannot be read")
	case err != nil:
		return nil, fault.Wrap(err, fault.AccessDenied, path, "cannot be read")
	}
	return data, nil
}

func (ca *CA) readCert(name string) (*x509.Certificate, error) {
	data, err := ca.read(name, limits.CertificatePEMBytes)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fault.New(fault.ChainUntrusted, ca.path(name), "is not a certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, ca.path(name), "is a malformed certificate")
	}
	return c, nil
}

func (ca *CA) create(name string, data []byte, mode fs.FileMode) error {
	return createFile(ca.path(name), data, mode)
}

func createFile(path string, data []byte, mode fs.FileMode) error {
	err := atomicfile.Create(path, data, mode)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, path, "is there already and is not overwritten")
	}
	if err != nil {
		return fault.Wrap(err, fault.AccessDenied, path, "cannot be written")
	}
	return nil
}

func (ca *CA) newKeyFile(name string, bits int, passphrase []byte) (crypto.Signer, error) {
	return writeNewKey(ca.path(name), bits, passphrase)
}

func writeNewKey(path string, bits int, passphrase []byte) (crypto.Signer, error) {
	key, err := newKey(bits)
	if err != nil {
		return nil, err
	}
	return key, writeKey(path, key, passphrase)
}

func writeKey(path string, key crypto.Signer, passphrase []byte) error {
	data, err := marshalKey(key, passphrase)
	if err != nil {
		return err
	}
	return createFile(path, data, 0o600)
}

func (ca *CA) agentKey() (crypto.Signer, error) {
	return ca.key(&ca.keys.AgentKey, AgentKey, ca.agent, ca.onlinePassphrase())
}

// onlinePassphrase is that of the keys which a server holds.
func (ca *CA) onlinePassphrase() Passphrase {
	if ca.keys.AgentPassphrase != nil {
		return ca.keys.AgentPassphrase
	}
	return ca.keys.Passphrase
}

func (ca *CA) rootKey() (crypto.Signer, error) {
	return ca.key(&ca.keys.RootKey, RootKey, ca.root, ca.keys.Passphrase)
}

func (ca *CA) key(slot *crypto.Signer, name string, c *x509.Certificate, pass Passphrase) (crypto.Signer, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if *slot == nil {
		key, err := ca.readKey(name, pass)
		if err != nil {
			return nil, err
		}
		*slot = key
	}
	pub, ok := (*slot).Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(c.PublicKey) {
		return nil, fault.New(fault.ChainUntrusted, ca.path(name), "is not the key of %s", c.Subject)
	}
	return *slot, nil
}

// readKey reads a key from its file, or opens it where it is.
func (ca *CA) readKey(name string, pass Passphrase) (crypto.Signer, error) {
	if elsewhere := ca.info.Keys[name]; elsewhere != "" {
		if ca.keys.Token == nil {
			return nil, fault.New(fault.Unsupported, elsewhere, "cannot be opened here")
		}
		return ca.keys.Token(elsewhere)
	}
	data, err := ca.read(name, limits.CertificatePEMBytes)
	if fault.ReasonOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, ca.path(name), "is not there, and what is asked for needs this key").WithHint("%s", putBack(name))
	}
	if err != nil {
		return nil, err
	}
	return ParseKey(ca.path(name), data, pass)
}

// putBack says what to do about a key's file that is not there. The roots' are where
// they should be.
func putBack(name string) string {
	if name == RootKey || name == TimeRootKey {
		return "put it back for as long as this takes"
	}
	return "put it back, from a backup if need be"
}

// lock keeps other processes out of the CA until unlock is called.
func (ca *CA) lock() (unlock func(), err error) {
	unlock, err = lockedfile.MutexAt(ca.path(lockFile)).Lock()
	if err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, ca.path(lockFile), "cannot lock the CA")
	}
	return unlock, nil
}

// move puts the finished CA in its place; an empty directory may be there.
func move(temp, dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Exists, dir, "cannot be used for a CA")
	}
	if err := os.Rename(temp, dir); err != nil {
		return fault.Wrap(err, fault.AccessDenied, dir, "cannot be used for a CA")
	}
	return nil
}

func encodeCert(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

func fingerprint(c *x509.Certificate) string { return hashOf(c.Raw) }

func serialText(n *big.Int) string { return fmt.Sprintf("%x", n) }
