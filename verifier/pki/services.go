package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier/pki/tsa"
)

// Files of the time stamp authority, relative to the CA's directory. It is there
// if their directory is.
const (
	TimeRootCert = "time/root.crt"
	TimeRootKey  = "time/root.key"
	TimeCert     = "time/tsa.crt"
	TimeKey      = "time/tsa.key"
	TimeCRL      = "crl/time.crl"

	timeDir          = "time"
	timeKeyPrefix    = "time/tsa"
	servicesLockFile = ".services.lock"
)

const (
	// DefaultTimePolicy is what a time stamp authority says that it stamps under,
	// when its keeper named no policy: one of the arc for examples, by which nobody
	// promises anything.
	DefaultTimePolicy = "2.999.1"
	// maxBack is how far behind the last stamp the clock may be: requests are not
	// served in the order in which they looked at it.
	maxBack = 2 * time.Second
	// timeYears is how long a time stamp authority's certificate counts.
	timeYears = 1
)

// stampBucket holds what the next stamp must go on from. Only a CA with a time
// stamp authority has it.
var (
	stampBucket = []byte("stamps")
	lastStamp   = []byte("last")
)

// stampState is what the database holds of the stamps.
type stampState struct {
	Count uint64    `json:"count"`
	Time  time.Time `json:"time"`
}

// ServiceOptions say how a time stamp authority is made, and where certificates
// say that an OCSP responder is. Required are Now, and one of Passphrase, RootKey
// and UnencryptedRoot.
type ServiceOptions struct {
	// OCSPURL is the http or https address that certificates name from then on; empty
	// leaves what was said before.
	OCSPURL string
	// TimePolicy is the policy's object identifier; default [DefaultTimePolicy].
	TimePolicy string
	// Passphrase encrypts the root's key, KeyPassphrase that of the authority, which
	// a server needs: without KeyPassphrase that lies open.
	Passphrase, KeyPassphrase []byte
	// UnencryptedRoot lets the root's key lie open where there is no passphrase.
	UnencryptedRoot bool
	// RootKey and Key are used instead of new keys, which are then not written.
	RootKey, Key crypto.Signer
	// RootKeyName and KeyName are the names by which they are had again, by
	// [OpenOptions.Token].
	RootKeyName, KeyName string
	Now                  time.Time
}

func (o *ServiceOptions) checkRoot() error {
	return checkRoot("time stamp authority's root key", o.RootKey, o.Passphrase, o.UnencryptedRoot)
}

// services is a CA's time stamp authority, with a root of its own.
type services struct {
	root, cert *x509.Certificate
	// keyFile is where the authority's key is, or would be if it were a file.
	keyFile string
}

// AddServices makes a time stamp authority beside the CA: a root of its own, since
// who vouches for the time shall not be able to sign, its first list and the
// certificate of the authority, for a year. From then on a server answers requests
// for stamps and about the state of certificates. Nothing that is there is
// overwritten. Nobody else may use ca meanwhile, other processes may. Reasons:
// [fault.Exists], [fault.Usage].
func (ca *CA) AddServices(o ServiceOptions) error {
	return ca.changeServices(func() error { return ca.addServices(o) })
}

// changeServices has do change the time stamp authority, as it is on disk, one
// process at a time, after what a process that was killed left is removed.
func (ca *CA) changeServices(do func() error) error {
	unlock, err := lockedfile.MutexAt(ca.path(servicesLockFile)).Lock()
	if err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(servicesLockFile), "cannot lock the CA")
	}
	defer unlock()
	// It takes over a CA from before the database: its description is of the new
	// version then.
	if err := ca.view(func(database) error { return nil }); err != nil {
		return err
	}
	text, err := ca.read(infoFile, limits.PolicyBytes)
	if err != nil {
		return err
	}
	var i info
	if err := i.parse(ca.path(infoFile), text); err != nil {
		return err
	}
	ca.info, ca.services = i, nil
	if err := ca.openServices(); err != nil {
		return err
	}
	if err := ca.removeStale(); err != nil {
		return err
	}
	return do()
}

// removeStale removes keys of time stamp authorities that are none, or none any
// more.
func (ca *CA) removeStale() error {
	stale := func(dir string, is func(name string) bool) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fault.Wrap(err, fault.AccessDenied, dir, "cannot be read")
		}
		for _, e := range entries {
			if !is(e.Name()) {
				continue
			}
			if path := filepath.Join(dir, e.Name()); os.RemoveAll(path) != nil {
				return fault.New(fault.AccessDenied, path, "is left over and cannot be removed")
			}
		}
		return nil
	}
	if err := stale(ca.dir, func(name string) bool { return strings.HasPrefix(name, "."+timeDir+".") }); err != nil || ca.services == nil {
		return err
	}
	return stale(ca.path(timeDir), func(name string) bool {
		file := path.Join(timeDir, name)
		return isTimeKey(file) && file != ca.services.keyFile
	})
}

// isTimeKey tells whether the file is for a key of a time stamp authority, be it
// the one that is or one before.
func isTimeKey(file string) bool {
	return strings.HasPrefix(file, timeKeyPrefix) && strings.HasSuffix(file, ".key")
}

// withoutTimeKeys forgets the names of keys that keep refuses.
func (i info) withoutTimeKeys(keep func(file string) bool) info {
	i.Keys = maps.Clone(i.Keys)
	maps.DeleteFunc(i.Keys, func(file, _ string) bool { return (isTimeKey(file) || file == TimeRootKey) && !keep(file) })
	return i
}

// reached tells tests how far a change came.
func (ca *CA) reached(step string) {
	if ca.onStep != nil {
		ca.onStep(step)
	}
}

func (ca *CA) addServices(o ServiceOptions) error {
	if _, err := os.Lstat(ca.path(timeDir)); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Exists, ca.path(timeDir), "is there already and is not overwritten").
			WithHint("--renew gives the time stamp authority a new key and certificate")
	}
	if err := o.checkRoot(); err != nil {
		return err
	}
	i := ca.info.withoutTimeKeys(func(string) bool { return false }).withKeys(map[string]string{TimeRootKey: o.RootKeyName, TimeKey: o.KeyName})
	if o.TimePolicy != "" {
		i.TimePolicy = o.TimePolicy
	}
	last := i.withOCSP(o.OCSPURL)
	if err := last.check(); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(ca.dir, "."+timeDir+".*")
	if err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.dir, "cannot make a directory")
	}
	if err := ca.makeServices(temp, i, last, o); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return ca.publish(ca.timeAuthority())
}

// withOCSP is i with the address of a responder, if there is one.
func (i info) withOCSP(address string) info {
	if address != "" {
		i.OCSPURL = address
	}
	return i
}

// makeServices fills temp, which is ours alone, and puts it in its place: a process
// that is killed before leaves a CA without these services. Of what ca.json says,
// names of keys come before, since the place must not be without them; the
// responder's address, which certificates repeat, comes after there is one.
func (ca *CA) makeServices(temp string, i, last info, o ServiceOptions) error {
	s, err := ca.certifyServices(temp, &o)
	if err != nil {
		return err
	}
	ca.reached("keys")
	list := authority{s.root, func() (crypto.Signer, error) { return o.RootKey, nil }, TimeCRL, rootCRLLife}
	if err := ca.update(func(d database) error {
		if _, err := d.tx.CreateBucketIfNotExists(stampBucket); err != nil {
			return fault.Wrap(err, fault.Internal, databaseFile, "cannot make %s", stampBucket)
		}
		if err := d.add(s.cert, nil, o.Now); err != nil {
			return err
		}
		return ca.makeList(d, list, o.Now)
	}); err != nil {
		return err
	}
	ca.reached("database")
	if err := ca.writeInfo(i); err != nil {
		return err
	}
	ca.reached("names")
	if err := os.Chmod(temp, 0o755); err != nil {
		return fault.Wrap(err, fault.AccessDenied, temp, "cannot be opened for readers")
	}
	if err := os.Rename(temp, ca.path(timeDir)); err != nil {
		return fault.Wrap(err, fault.Exists, ca.path(timeDir), "cannot be put in its place")
	}
	ca.info, ca.services = i, s
	ca.keys.TimeRootKey, ca.keys.TimeKey = o.RootKey, o.Key
	ca.reached("place")
	if last.OCSPURL == i.OCSPURL {
		return nil
	}
	if err := ca.writeInfo(last); err != nil {
		return err
	}
	ca.info = last
	return nil
}

// certifyServices makes keys and certificates, and writes them into dir.
func (ca *CA) certifyServices(dir string, o *ServiceOptions) (*services, error) {
	at := func(file string) string { return filepath.Join(dir, filepath.Base(file)) }
	var err error
	if o.RootKey == nil {
		if o.RootKey, err = writeNewKey(at(TimeRootKey), rootBits, o.Passphrase); err != nil {
			return nil, err
		}
	}
	if o.Key == nil {
		if o.Key, err = writeNewKey(at(TimeKey), agentBits, o.KeyPassphrase); err != nil {
			return nil, err
		}
	}
	s := &services{keyFile: TimeKey}
	if s.root, err = ca.certify(&x509.Certificate{
		Subject: ca.info.timeRootName(), NotAfter: o.Now.AddDate(rootYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, nil, o.RootKey.Public(), o.RootKey, o.Now); err != nil {
		return nil, err
	}
	if s.cert, err = ca.certifyTime(s.root, o.RootKey, o.Key.Public(), o.Now); err != nil {
		return nil, err
	}
	for file, c := range map[string]*x509.Certificate{TimeRootCert: s.root, TimeCert: s.cert} {
		if err := createFile(at(file), encodeCert(c), 0o644); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// certifyTime makes the authority's certificate. Its key is on a machine in the
// network: it counts for a year, its stamps for longer.
func (ca *CA) certifyTime(root *x509.Certificate, rootKey crypto.Signer, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject: ca.info.name(ca.info.Org + " Time"), NotAfter: now.AddDate(timeYears, 0, 0),
		BasicConstraintsValid: true, CRLDistributionPoints: ca.info.crlURL(TimeCRL),
	}
	if err := tsa.Profile(t); err != nil {
		return nil, err
	}
	return ca.certify(t, root, pub, rootKey, now)
}

// openServices reads the time stamp authority's certificates, if there is one.
func (ca *CA) openServices() error {
	if _, err := os.Lstat(ca.path(timeDir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s := &services{}
	var err error
	if s.root, err = ca.readCert(TimeRootCert); err != nil {
		return err
	}
	if s.cert, err = ca.readCert(TimeCert); err != nil {
		return err
	}
	if err := s.cert.CheckSignatureFrom(s.root); err != nil {
		return fault.Wrap(err, fault.ChainUntrusted, ca.path(TimeCert), "was not issued by %s", TimeRootCert)
	}
	if s.keyFile, err = ca.timeKeyFile(s.cert.PublicKey); err != nil {
		return err
	}
	ca.services = s
	return nil
}

// timeKeyFile is where the key is that belongs to pub: a key that came by a renewal
// has a name of its own, so that certificate and key change in one step.
func (ca *CA) timeKeyFile(pub crypto.PublicKey) (string, error) {
	file, err := renewedKeyFile(pub)
	if err != nil || ca.info.Keys[file] != "" {
		return file, err
	}
	if _, err := os.Lstat(ca.path(file)); errors.Is(err, fs.ErrNotExist) {
		return TimeKey, nil
	}
	return file, nil
}

func renewedKeyFile(pub crypto.PublicKey) (string, error) {
	id, err := keyID(pub)
	return timeKeyPrefix + "-" + hex.EncodeToString(id) + ".key", err
}

// Services tells whether the CA has a time stamp authority and answers OCSP
// requests.
func (ca *CA) Services() bool { return ca.services != nil }

// TimeRoot and Time are the certificates of the time stamp authority's root and of
// itself, nil without one.
func (ca *CA) TimeRoot() *x509.Certificate {
	if ca.services == nil {
		return nil
	}
	return ca.services.root
}

// Time is described at TimeRoot.
func (ca *CA) Time() *x509.Certificate {
	if ca.services == nil {
		return nil
	}
	return ca.services.cert
}

func (ca *CA) timeAuthority() authority {
	return authority{ca.services.root, ca.timeRootKey, TimeCRL, rootCRLLife}
}

func (ca *CA) timeRootKey() (crypto.Signer, error) {
	return ca.key(&ca.keys.TimeRootKey, TimeRootKey, ca.services.root, ca.keys.Passphrase)
}

func (ca *CA) timeKey() (crypto.Signer, error) {
	return ca.key(&ca.keys.TimeKey, ca.services.keyFile, ca.services.cert, ca.onlinePassphrase())
}

// Stamp answers a request for a time stamp by the clock, which may say that it
// cannot tell the time ([fault.OutsideValidity]). There is always an answer to send,
// unless the CA itself fails; an error says why it is a refusal. Reasons: those of
// [tsa.Authority.Answer], [fault.NotFound] without a time stamp authority.
func (ca *CA) Stamp(query []byte, clock func() (time.Time, error)) ([]byte, *big.Int, error) {
	if ca.services == nil {
		return nil, nil, fault.New(fault.NotFound, ca.dir, "has no time stamp authority").WithHint("make one with mentatctl pki services")
	}
	key, err := ca.timeKey()
	if err != nil {
		return nil, nil, err
	}
	policy, err := parseOID(ca.info.timePolicy())
	if err != nil {
		return nil, nil, err
	}
	var serial *big.Int
	answer, err := tsa.Authority{Cert: ca.services.cert, Key: key, Policy: policy}.Answer(query, func() (tsa.Ticket, error) {
		t, err := ca.ticket(clock)
		serial = t.Serial
		return t, err
	})
	return answer, serial, err
}

// ticket takes the next serial number. It is on disk before anything carries it,
// and half of it is random: a database that was put back from an old copy repeats
// none either.
func (ca *CA) ticket(clock func() (time.Time, error)) (t tsa.Ticket, err error) {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return t, fault.Wrap(err, fault.Internal, "serial number", "no randomness")
	}
	cert := ca.services.cert
	err = ca.update(func(d database) error {
		now, err := clock()
		if err != nil {
			return err
		}
		now = now.UTC()
		c, err := d.find(serialText(cert.SerialNumber))
		switch {
		case err != nil:
			return err
		case c == nil || !c.Revoked.IsZero():
			return fault.New(fault.Revoked, cert.Subject.String(), "is revoked or unknown: it stamps nothing more").WithHint(renewHint)
		case now.Before(cert.NotBefore) || now.After(cert.NotAfter):
			return fault.New(fault.OutsideValidity, cert.Subject.String(), "counts from %s to %s", cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339)).WithHint(renewHint)
		}
		if _, err := d.tx.CreateBucketIfNotExists(stampBucket); err != nil {
			return fault.Wrap(err, fault.Internal, databaseFile, "cannot make %s", stampBucket)
		}
		var last stampState
		if _, err := d.get(stampBucket, lastStamp, &last); err != nil {
			return err
		}
		if now.Before(last.Time.Add(-maxBack)) {
			return fault.New(fault.OutsideValidity, "clock", "was set back to %s: the last time stamp is of %s", now.Format(time.RFC3339), last.Time.Format(time.RFC3339)).
				WithHint("set it right; if that time was wrong: mentatctl pki services --reset-clock")
		}
		if last.Count++; now.After(last.Time) {
			last.Time = now
		}
		t.Time = now
		t.Serial = new(big.Int).Lsh(new(big.Int).SetUint64(last.Count), 64)
		t.Serial.Or(t.Serial, new(big.Int).SetBytes(random))
		return d.put(stampBucket, lastStamp, last)
	})
	return t, err
}

func (i info) timePolicy() string {
	if i.TimePolicy == "" {
		return DefaultTimePolicy
	}
	return i.TimePolicy
}

// parseOID reads an object identifier in its dotted form.
func parseOID(text string) (asn1.ObjectIdentifier, error) {
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil || part != strconv.FormatUint(n, 10) {
			id = nil
			break
		}
		id = append(id, int(n))
	}
	if len(id) < 2 || len(id) > 20 || id[0] > 2 || (id[0] < 2 && id[1] > 39) {
		return nil, fault.New(fault.Usage, "policy of the time stamp authority", "%q is not an object identifier like %s", text, DefaultTimePolicy)
	}
	return id, nil
}

// checkHTTP refuses what is not an address of a server.
func checkHTTP(what, text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fault.New(fault.Usage, what, "%q is not an http or https URL", text)
	}
	return nil
}
