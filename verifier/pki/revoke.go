package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
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
	var all []string
	for r := Unspecified; r <= PrivilegeWithdrawn; r++ {
		name, ok := reasonNames[r]
		if ok && strings.EqualFold(name, s) {
			return r, nil
		}
		if ok {
			all = append(all, name)
		}
	}
	return 0, fault.New(fault.Usage, "reason", "%q is none of %s", s, strings.Join(all, ", "))
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
}

func record(c *x509.Certificate) *Record {
	return &Record{
		Serial: serialText(c.SerialNumber), Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		Email:     strings.Join(c.EmailAddresses, ","),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Fingerprint: fingerprint(c),
	}
}

const (
	issued  = "issued"
	revoked = "revoked"
	listed  = "listed" // a revocation list was made
)

// event is one line of the log.
type event struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	*Record
	// List and Number are a revocation list's.
	List   string   `json:"list,omitempty"`
	Number *big.Int `json:"number,omitempty"`
}

func (ca *CA) readLog() ([]event, error) {
	data, err := ca.read(logFile, maxLogBytes)
	if err != nil {
		return nil, err
	}
	var events []event
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	for dec.More() {
		var e event
		if err := dec.Decode(&e); err != nil {
			return nil, fault.Wrap(err, fault.Internal, ca.path(logFile), "entry %d is malformed", len(events)+1)
		}
		events = append(events, e)
	}
	return events, nil
}

// appendLog writes the log anew with e at its end, so that no reader ever sees
// half an entry.
func (ca *CA) appendLog(e event) error {
	old, err := ca.read(logFile, maxLogBytes)
	if err != nil && fault.ReasonOf(err) != fault.NotFound {
		return err
	}
	e.Time = e.Time.UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fault.Wrap(err, fault.Internal, logFile, "cannot encode an entry")
	}
	data := append(append(bytes.Clone(old), line...), '\n')
	if err := atomicfile.Write(ca.path(logFile), data, 0o600); err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(logFile), "cannot be written")
	}
	return nil
}

// Issued lists the CA's certificates, oldest first, with what became of them.
func (ca *CA) Issued() ([]Record, error) {
	events, err := ca.readLog()
	if err != nil {
		return nil, err
	}
	var all []Record
	at := map[string]int{}
	for _, e := range events {
		switch {
		case e.Record == nil:
		case e.Event == issued:
			at[e.Serial] = len(all)
			all = append(all, *e.Record)
		case e.Event == revoked:
			if i, ok := at[e.Serial]; ok {
				all[i].Revoked, all[i].Reason = e.Revoked, e.Reason
			}
		}
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

// Revoke revokes a certificate of this CA and writes a fresh list with the next
// number. Revoking the agent CA needs the root key. Reasons:
// [fault.NotFound] for a serial that this CA did not issue, [fault.Exists] for
// one that is revoked already.
func (ca *CA) Revoke(serial *big.Int, reason Reason, now time.Time) error {
	if reason.String() == "" {
		return fault.New(fault.Usage, "reason", "%d is not one that this CA knows", int(reason))
	}
	unlock, err := ca.lock()
	if err != nil {
		return err
	}
	defer unlock()
	all, err := ca.Issued()
	if err != nil {
		return err
	}
	text := serialText(serial)
	var found *Record
	for i := range all {
		if all[i].Serial == text {
			found = &all[i]
		}
	}
	switch {
	case found == nil:
		return fault.New(fault.NotFound, "serial number "+text, "is none that this CA issued")
	case !found.Revoked.IsZero():
		return fault.New(fault.Exists, found.Subject, "was revoked at %s already", found.Revoked.Format(time.RFC3339))
	}
	a := ca.agentAuthority()
	if serial.Cmp(ca.agent.SerialNumber) == 0 {
		a = ca.rootAuthority()
	}
	// The key first: without it nothing shall be in the log.
	if _, err := a.key(); err != nil {
		return err
	}
	found.Revoked, found.Reason = now.UTC(), reason.String()
	if err := ca.appendLog(event{Event: revoked, Time: now, Record: found}); err != nil {
		return err
	}
	return ca.writeCRL(a, now)
}

// authority is one of the two issuers, as far as its list is concerned.
type authority struct {
	cert *x509.Certificate
	key  func() (crypto.Signer, error)
	file string
	life time.Duration
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

// RenewRootCRL is RenewCRL for the root's list. It needs the root key.
func (ca *CA) RenewRootCRL(now time.Time) error { return ca.renew(ca.rootAuthority(), now) }

func (ca *CA) renew(a authority, now time.Time) error {
	unlock, err := ca.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return ca.writeCRL(a, now)
}

// writeCRL makes the list from the log. The caller holds the lock, or the
// directory is not yet in place.
func (ca *CA) writeCRL(a authority, now time.Time) error {
	key, err := a.key()
	if err != nil {
		return err
	}
	events, err := ca.readLog()
	if err != nil {
		return err
	}
	number, err := ca.lastNumber(a, events)
	if err != nil {
		return err
	}
	number.Add(number, big.NewInt(1))
	entries, err := entriesOf(a, events)
	if err != nil {
		return err
	}
	since, err := asn1.MarshalWithParams(a.cert.NotBefore.UTC(), "generalized")
	if err != nil {
		return fault.Wrap(err, fault.Internal, a.file, "cannot make the revocation list")
	}
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
	// The number is spent before the list is out, so that it is never used twice.
	if err := ca.appendLog(event{Event: listed, Time: now, List: a.file, Number: number}); err != nil {
		return err
	}
	if err := atomicfile.Write(ca.path(a.file), der, 0o644); err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(a.file), "cannot be written")
	}
	return nil
}

// lastNumber is the highest number in the log and in the list on disk: either
// may have been restored from an old copy.
func (ca *CA) lastNumber(a authority, events []event) (*big.Int, error) {
	last := new(big.Int)
	for _, e := range events {
		if e.Event == listed && e.List == a.file && e.Number != nil && e.Number.Cmp(last) > 0 {
			last.Set(e.Number)
		}
	}
	data, err := ca.read(a.file, limits.CRLBytes)
	if fault.ReasonOf(err) == fault.NotFound {
		return last, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, ca.path(a.file), "is malformed")
	}
	if list.Number != nil && list.Number.Cmp(last) > 0 {
		last.Set(list.Number)
	}
	return last, nil
}

// oidExpiredSince is X.509's expiredCertsOnCRL: the list says that it keeps what
// expired since.
var oidExpiredSince = asn1.ObjectIdentifier{2, 5, 29, 60}

// entriesOf lists what the authority revoked. Entries stay after the
// certificate expired: a time stamp keeps its signatures good, unless it was
// revoked.
func entriesOf(a authority, events []event) ([]x509.RevocationListEntry, error) {
	var entries []x509.RevocationListEntry
	for _, e := range events {
		if e.Event != revoked || e.Record == nil || e.Issuer != a.cert.Subject.String() {
			continue
		}
		serial, err := ParseSerial(e.Serial)
		if err != nil {
			return nil, err
		}
		reason, err := ParseReason(e.Reason)
		if err != nil {
			return nil, err
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.Revoked, ReasonCode: int(reason)})
	}
	return entries, nil
}
