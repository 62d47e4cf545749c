package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Reason is why a certificate is revoked, as RFC 5280 counts.
type Reason int

// The reasons that make sense here. A hold could be lifted again, which no
// list of this CA does.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
)

var reasonNames = map[Reason]string{
	Unspecified:          "unspecified",
	KeyCompromise:        "keyCompromise",
	CACompromise:         "cACompromise",
	AffiliationChanged:   "affiliationChanged",
	Superseded:           "superseded",
	CessationOfOperation: "cessationOfOperation",
	PrivilegeWithdrawn:   "privilegeWithdrawn",
}

// String is RFC 5280's word.
func (r Reason) String() string { return reasonNames[r] }

// ParseReason reads RFC 5280's word for a reason, in any case. Reason of its
// error: [fault.Usage].
func ParseReason(s string) (Reason, error) {
	for r, name := range reasonNames {
		if strings.EqualFold(name, s) {
			return r, nil
		}
	}
	return 0, fault.New(fault.Usage, "reason", "%q is none of %s", s, strings.Join(Reasons(), ", "))
}

// Reasons are all reasons in RFC 5280's words and order.
func Reasons() []string {
	var all []string
	for r := Unspecified; r <= PrivilegeWithdrawn; r++ {
		if name, ok := reasonNames[r]; ok {
			all = append(all, name)
		}
	}
	return all
}

// States of a certificate.
const (
	StateValid   = "valid"
	StateRevoked = "revoked"
	StateExpired = "expired"
)

// State is what a certificate is at a time: revoked rather than expired.
func (r *Record) State(now time.Time) string {
	switch {
	case !r.Revoked.IsZero():
		return StateRevoked
	case now.After(r.NotAfter):
		return StateExpired
	}
	return StateValid
}

// Record is one certificate of the CA.
type Record struct {
	// Serial is hexadecimal.
	Serial      string    `json:"serial"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Email       string    `json:"email,omitempty"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"fingerprint"`
	// Revoked is zero for a certificate that is not revoked.
	Revoked time.Time `json:"revoked,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	// InvalidSince is when the key was lost, as far as whoever revoked it knew.
	InvalidSince time.Time `json:"invalid_since,omitzero"`
	// RenewedFrom is the serial of the certificate that asked for this one.
	RenewedFrom string `json:"renewed_from,omitempty"`
	// Key is the hash of the public key, as SubjectPublicKeyInfo.
	Key string `json:"key,omitempty"`
}

func record(c *x509.Certificate) *Record {
	return &Record{
		Serial: serialText(c.SerialNumber), Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		Email:     strings.Join(c.EmailAddresses, ","),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Fingerprint: fingerprint(c),
		Key: hashOf(c.RawSubjectPublicKeyInfo),
	}
}

const (
	issued  = "issued"
	revoked = "revoked"
	// tightened is that more is refused of a certificate that was revoked already.
	tightened = "revocation-tightened"
	listed    = "listed" // a revocation list was made
	// clockReset is that stamps are made again from a time before the last one's.
	clockReset = "clock-reset"
)

// event is one line of the log.
type event struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	*Record
	// List and Number are a revocation list's.
	List   string   `json:"list,omitempty"`
	Number *big.Int `json:"number,omitempty"`
	// LastStamp and Stamps are those before the clock was reset.
	LastStamp time.Time `json:"last_stamp,omitzero"`
	Stamps    uint64    `json:"stamps,omitempty"`
}

// Issued lists the CA's certificates, oldest first, with what became of them.
func (ca *CA) Issued() ([]Record, error) {
	var all []Record
	err := ca.view(func(d database) error {
		at := map[string]int{}
		_, err := d.each(func(_ []byte, e *entry) error {
			switch {
			case e.Record == nil:
			case e.Event == issued:
				at[e.Serial] = len(all)
				all = append(all, *e.Record)
			case e.Event == revoked || e.Event == tightened:
				if i, ok := at[e.Serial]; ok {
					all[i] = *e.Record
				}
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// ParseSerial reads a serial number as this package prints it; colons may
// divide it, as openssl does. Reason of its error: [fault.Usage].
func ParseSerial(s string) (*big.Int, error) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 {
		return nil, fault.New(fault.Usage, "serial number", "%q is not a positive hexadecimal number", s)
	}
	return n, nil
}

// Revoke is [CA.RevokeSince] where nobody knows when the key was lost.
func (ca *CA) Revoke(serial *big.Int, reason Reason, now time.Time) error {
	_, err := ca.RevokeSince(serial, reason, time.Time{}, now)
	return err
}

// Revocation is what stands of a certificate once it was revoked.
type Revocation struct {
	Record
	// Tightened tells that it was revoked before, and less strictly.
	Tightened bool
}

// RevokeSince revokes a certificate of this CA and publishes a list with the next
// number. since is when its key was lost, if that is known: lists carry it as the
// entry's invalidity date. Revoking the agent CA needs the root key. A key that
// was compromised is certified no more.
//
// What is revoked already can be revoked again if more is refused then: since an
// earlier date, or from the beginning, which is what no date says; or for a worse
// reason. [Unspecified] leaves the reason that stands, and the time of the first
// revocation stays. Reasons: [fault.NotFound] for a serial that this CA did not
// issue, [fault.Exists] for one that is revoked at least as strictly already.
func (ca *CA) RevokeSince(serial *big.Int, reason Reason, since, now time.Time) (Revocation, error) {
	var r Revocation
	if reason.String() == "" {
		return r, fault.New(fault.Usage, "reason", "%d is not one that this CA knows", int(reason))
	}
	a, err := ca.authorityOf(serial)
	if err != nil {
		return r, err
	}
	if _, err := a.key(); err != nil {
		return r, err
	}
	if !since.IsZero() {
		since = since.UTC().Truncate(time.Second)
	}
	err = ca.update(func(d database) error {
		text := serialText(serial)
		c, err := d.find(text)
		switch {
		case err != nil:
			return err
		case c == nil:
			return fault.New(fault.NotFound, "serial number "+text, "is none that this CA issued").WithHint("mentatctl pki list shows those that it did")
		case !since.IsZero() && (since.After(now) || since.Before(c.NotBefore)):
			return fault.New(fault.Usage, "invalidity date", "%s is not between %s, when the certificate began, and now", since.Format(time.RFC3339), c.NotBefore.Format(time.RFC3339))
		}
		what := revoked
		if c.Revoked.IsZero() {
			c.Revoked, c.Reason, c.InvalidSince = now.UTC(), reason.String(), since
		} else {
			what = tightened
			if err := c.tighten(reason, since); err != nil {
				return err
			}
		}
		if err := d.revoke(what, c.Record, now); err != nil {
			return err
		}
		r = Revocation{*c.Record, what == tightened}
		return ca.makeList(d, a, now)
	})
	if err != nil {
		return Revocation{}, err
	}
	return r, ca.publish(a)
}

// tighten changes the revocation that stands to one that refuses more, by the
// measure of a verifier: a list's entry keeps good what was stamped before its
// invalidity date, and without one nothing. It refuses what is not stricter.
func (r *Record) tighten(reason Reason, since time.Time) error {
	standing, err := ParseReason(r.Reason)
	if err != nil {
		return err
	}
	if reason == Unspecified {
		reason = standing
	}
	date, word := earlier(since, r.InvalidSince), reason.weight()-standing.weight()
	if date < 0 || word < 0 {
		return fault.New(fault.Exists, r.Subject, "was revoked at %s already, %s, and is not revoked less strictly", r.Revoked.Format(time.RFC3339), r.standing()).
			WithHint("what may be changed: an earlier --invalid-since, none at all, or a worse --reason")
	}
	if date == 0 && word == 0 {
		return fault.New(fault.Exists, r.Subject, "was revoked at %s already, %s", r.Revoked.Format(time.RFC3339), r.standing())
	}
	r.Reason, r.InvalidSince = reason.String(), since
	return nil
}

// standing says for what and since when the certificate is revoked.
func (r *Record) standing() string {
	if r.InvalidSince.IsZero() {
		return r.Reason + ", with all that it ever signed"
	}
	return r.Reason + ", invalid since " + r.InvalidSince.Format(time.RFC3339)
}

// earlier is 1 if an invalidity date refuses more than another one, -1 if it refuses
// less. The zero time is from the beginning.
func earlier(date, other time.Time) int {
	switch {
	case date.Equal(other):
		return 0
	case date.IsZero() || !other.IsZero() && date.Before(other):
		return 1
	}
	return -1
}

// weight orders reasons by what they have refused: verifiers make no difference, this
// CA certifies a key no more that was compromised, and people read the word.
func (r Reason) weight() int {
	switch r {
	case KeyCompromise:
		return 2
	case CACompromise:
		return 1
	}
	return 0
}

// authority is one of the two issuers, as far as its list is concerned.
type authority struct {
	cert *x509.Certificate
	key  func() (crypto.Signer, error)
	file string
	life time.Duration
}

// authorityOf is who issued the certificate with the serial number, if it is one of
// this CA. Of the time stamp authority there may have been several certificates.
func (ca *CA) authorityOf(serial *big.Int) (authority, error) {
	if serial.Cmp(ca.agent.SerialNumber) == 0 {
		return ca.rootAuthority(), nil
	}
	if ca.services == nil {
		return ca.agentAuthority(), nil
	}
	var c *certificate
	err := ca.view(func(d database) (err error) {
		c, err = d.find(serialText(serial))
		return err
	})
	if err == nil && ca.stamping(c) {
		return ca.timeAuthority(), nil
	}
	return ca.agentAuthority(), err
}

// stamping tells whether c is a certificate of the time stamp authority, be it the
// one that is or one before.
func (ca *CA) stamping(c *certificate) bool {
	return c != nil && ca.services != nil && c.Issuer == ca.services.root.Subject.String()
}

// ListOf is the file of the list that the certificate with the serial number is on
// once it is revoked. Reasons are those of a database that cannot be read.
func (ca *CA) ListOf(serial *big.Int) (string, error) {
	a, err := ca.authorityOf(serial)
	return ca.path(a.file), err
}

// ListFiles are the files of all lists, relative to the CA's directory.
func (ca *CA) ListFiles() []string {
	files := []string{RootCRL, AgentCRL}
	if ca.services != nil {
		files = append(files, TimeCRL)
	}
	return files
}

func (ca *CA) rootAuthority() authority {
	return authority{ca.root, ca.rootKey, RootCRL, rootCRLLife}
}

func (ca *CA) agentAuthority() authority {
	life, err := ca.info.agentCRLLife() // checked by Init and Open
	if err != nil {
		life = agentCRLLife
	}
	return authority{ca.agent, ca.agentKey, AgentCRL, life}
}

// RenewCRL writes a fresh list of the agent CA with the next number. Do so well
// before the old one ends.
func (ca *CA) RenewCRL(now time.Time) error { return ca.renew(ca.agentAuthority(), now) }

// RenewRootCRL is RenewCRL for the root's list, and for that of the time stamp
// authority's root if there is one. It needs their keys, all of them before it renews
// any list.
func (ca *CA) RenewRootCRL(now time.Time) error { return ca.renewAll(ca.roots(), now) }

// RenewAllCRLs is [CA.RenewRootCRL] and [CA.RenewCRL], with all keys or not at all.
func (ca *CA) RenewAllCRLs(now time.Time) error {
	return ca.renewAll(append(ca.roots(), ca.agentAuthority()), now)
}

func (ca *CA) roots() []authority {
	if ca.services == nil {
		return []authority{ca.rootAuthority()}
	}
	return []authority{ca.rootAuthority(), ca.timeAuthority()}
}

func (ca *CA) renewAll(all []authority, now time.Time) error {
	for _, a := range all {
		if _, err := a.key(); err != nil {
			return err
		}
	}
	for _, a := range all {
		if err := ca.renew(a, now); err != nil {
			return err
		}
	}
	return nil
}

func (ca *CA) renew(a authority, now time.Time) error {
	if _, err := a.key(); err != nil {
		return err
	}
	if err := ca.update(func(d database) error { return ca.makeList(d, a, now) }); err != nil {
		return err
	}
	return ca.publish(a)
}

// list is what the database holds of an authority's list.
type list struct {
	// Number is the highest that was ever used.
	Number *big.Int `json:"number"`
	DER    []byte   `json:"der,omitempty"`
}

// makeList makes the next list. Number and list are one transaction: a number
// that was not used up was never seen.
func (ca *CA) makeList(d database, a authority, now time.Time) error {
	key, err := a.key()
	if err != nil {
		return err
	}
	var last list
	if _, err := d.get(listBucket, []byte(a.file), &last); err != nil {
		return err
	}
	if last.Number == nil {
		last.Number = new(big.Int)
	}
	if err := ca.adopt(d, a, last.Number, now); err != nil {
		return err
	}
	entries, err := d.entriesOf(a)
	if err != nil {
		return err
	}
	since, err := asn1.MarshalWithParams(a.cert.NotBefore.UTC(), "generalized")
	if err != nil {
		return fault.Wrap(err, fault.Internal, a.file, "cannot make the revocation list")
	}
	number := new(big.Int).Add(last.Number, big.NewInt(1))
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    number,
		ThisUpdate:                now,
		NextUpdate:                now.Add(a.life),
		RevokedCertificateEntries: entries,
		ExtraExtensions:           []pkix.Extension{{Id: oidExpiredSince, Value: since}},
	}, a.cert, key)
	if err != nil {
		return fault.Wrap(err, fault.Internal, a.file, "cannot make the revocation list")
	}
	if len(der) > limits.CRLBytes {
		return fault.New(fault.ResourceLimit, a.file, "is over %d bytes", limits.CRLBytes)
	}
	if err := d.append(event{Event: listed, Time: now, List: a.file, Number: number}); err != nil {
		return err
	}
	return d.put(listBucket, []byte(a.file), list{Number: number, DER: der})
}

// adopt learns from the published list where it is newer than the database, which
// was then put back from an old copy: its number is not used again, and what it
// revokes stays revoked, as strictly as it says. last is raised to its number.
func (ca *CA) adopt(d database, a authority, last *big.Int, now time.Time) error {
	published, err := ca.published(a)
	if err != nil || published == nil || published.Number.Cmp(last) <= 0 {
		return err
	}
	last.Set(published.Number)
	for _, e := range published.RevokedCertificateEntries {
		serial := serialText(e.SerialNumber)
		c, err := d.find(serial)
		if err != nil {
			return err
		}
		if c != nil && !c.Revoked.IsZero() {
			if err := d.adoptTightened(c.Record, e, now); err != nil {
				return err
			}
			continue
		}
		if c == nil {
			// It was issued after the copy was made: all that is known is its number.
			c = &certificate{Record: &Record{Serial: serial, Issuer: a.cert.Subject.String()}}
			if err := d.append(event{Event: issued, Time: now, Record: c.Record}); err != nil {
				return err
			}
			if err := d.put(certificateBucket, []byte(serial), c); err != nil {
				return err
			}
		}
		c.Revoked, c.Reason, c.InvalidSince = e.RevocationTime.UTC(), reasonOf(e).String(), invalidSince(e)
		if err := d.revoke(revoked, c.Record, now); err != nil {
			return err
		}
	}
	return nil
}

// adoptTightened takes over what a published entry refuses more than the database.
func (d database) adoptTightened(r *Record, e x509.RevocationListEntry, now time.Time) error {
	standing, err := ParseReason(r.Reason)
	if err != nil {
		return err
	}
	date, word := earlier(invalidSince(e), r.InvalidSince) > 0, reasonOf(e).weight() > standing.weight()
	if !date && !word {
		return nil
	}
	if date {
		r.InvalidSince = invalidSince(e)
	}
	if word {
		r.Reason = reasonOf(e).String()
	}
	return d.revoke(tightened, r, now)
}

// reasonOf is an entry's reason, if it is one of this CA.
func reasonOf(e x509.RevocationListEntry) Reason {
	if r := Reason(e.ReasonCode); r.String() != "" {
		return r
	}
	return Unspecified
}

// invalidSince is an entry's invalidity date; zero if there is none, or none that can
// be read: everything is refused then.
func invalidSince(e x509.RevocationListEntry) time.Time {
	for _, x := range e.Extensions {
		var at time.Time
		if x.Id.Equal(oidInvalidityDate) {
			if rest, err := asn1.UnmarshalWithParams(x.Value, &at, "generalized"); err == nil && len(rest) == 0 {
				return at.UTC()
			}
		}
	}
	return time.Time{}
}

// published is the authority's list as it lies on disk; nil if there is none, or
// what is there is not a list of this authority.
func (ca *CA) published(a authority) (*x509.RevocationList, error) {
	data, err := ca.read(a.file, limits.CRLBytes)
	if fault.ReasonOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := x509.ParseRevocationList(data)
	if err != nil || l.Number == nil || l.CheckSignatureFrom(a.cert) != nil {
		return nil, nil //nolint:nilerr // the database's list takes its place
	}
	return l, nil
}

// publish writes the authority's list of the database to where it is fetched
// from, unless it is there.
func (ca *CA) publish(a authority) error {
	return ca.view(func(d database) error {
		var l list
		if found, err := d.get(listBucket, []byte(a.file), &l); err != nil || !found || l.DER == nil {
			return err
		}
		there, err := ca.published(a)
		if err != nil || (there != nil && there.Number.Cmp(l.Number) >= 0) {
			return err
		}
		if err := atomicfile.Write(ca.path(a.file), l.DER, 0o644); err != nil {
			return fault.Wrap(err, fault.AccessDenied, ca.path(a.file), "cannot be written")
		}
		return nil
	})
}

// Refresh does what is due: it publishes lists that a process which was killed
// left in the database, and makes a list of the agent CA anew when half of its
// life is over, or a newer one than the database knows lies on disk. It tells
// when the list that is then published ends.
func (ca *CA) Refresh(now time.Time) (until time.Time, err error) {
	for _, a := range ca.roots() {
		if err := ca.publish(a); err != nil {
			return time.Time{}, err
		}
	}
	a := ca.agentAuthority()
	due := false
	err = ca.view(func(d database) error {
		var l list
		if _, err := d.get(listBucket, []byte(a.file), &l); err != nil {
			return err
		}
		there, err := ca.published(a)
		if err != nil {
			return err
		}
		newer := there != nil && l.Number != nil && there.Number.Cmp(l.Number) > 0
		if current, err := x509.ParseRevocationList(l.DER); err == nil && !newer {
			until = current.NextUpdate
		}
		due = !now.Before(until.Add(-a.life / 2))
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	if !due {
		return until, ca.publish(a)
	}
	return now.Add(a.life), ca.RenewCRL(now)
}

// RootListEnd is until when the published lists of the roots count, whichever ends
// first; zero if there is none. Only the roots' keys make others.
func (ca *CA) RootListEnd() (end time.Time, err error) {
	for i, a := range ca.roots() {
		l, err := ca.published(a)
		if err != nil || l == nil {
			return time.Time{}, err
		}
		if i == 0 || l.NextUpdate.Before(end) {
			end = l.NextUpdate
		}
	}
	return end, nil
}

// oidInvalidityDate is RFC 5280's extension of a list's entry, §5.3.2.
var oidInvalidityDate = asn1.ObjectIdentifier{2, 5, 29, 24}

// oidExpiredSince is X.509's expiredCertsOnCRL: the list says that it keeps what
// expired since.
var oidExpiredSince = asn1.ObjectIdentifier{2, 5, 29, 60}

// entriesOf lists what the authority revoked. Entries stay after the
// certificate expired: a signature's time is only its signer's word.
func (d database) entriesOf(a authority) ([]x509.RevocationListEntry, error) {
	var entries []x509.RevocationListEntry
	err := d.tx.Bucket(revokedBucket).ForEach(func(_, v []byte) error {
		var r Record
		if err := decodeEntry(revokedBucket, v, &r); err != nil || r.Issuer != a.cert.Subject.String() {
			return err
		}
		serial, err := ParseSerial(r.Serial)
		if err != nil {
			return err
		}
		reason, err := ParseReason(r.Reason)
		if err != nil {
			return err
		}
		e := x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.Revoked, ReasonCode: int(reason)}
		if !r.InvalidSince.IsZero() {
			when, err := asn1.MarshalWithParams(r.InvalidSince.UTC(), "generalized")
			if err != nil {
				return fault.Wrap(err, fault.Internal, "invalidity date", "cannot encode")
			}
			e.ExtraExtensions = []pkix.Extension{{Id: oidInvalidityDate, Value: when}}
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}
