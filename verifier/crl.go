package verifier

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// CRLIndex is a revocation list made ready for looking up: the serial numbers
// sorted, the signature already checked. It is immutable.
type CRLIndex struct {
	head   crlHead
	number *big.Int
	blocks []crlBlock
	// entries are crlEntryBytes each, sorted by serial number, in blocks.
	entries io.ReaderAt
}

// crlHead is the readable head of an index file.
type crlHead struct {
	Version int `json:"version"`
	// Issuer is for people; Key is what counts: it names the issuer's name and
	// public key, so that another CA of the same name has another index.
	Issuer     string    `json:"issuer"`
	Key        string    `json:"key"`
	Number     string    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	// Points limits the list to certificates with one of these distribution
	// points; empty means all that the issuer issued.
	Points []string `json:"points,omitempty"`
	// ExpiredSince is from when on the list keeps certificates that expired; zero
	// when it does not say so.
	ExpiredSince time.Time `json:"expired_since,omitzero"`
	// Digest is the SHA-256 of the list it was compiled from.
	Digest string    `json:"digest"`
	Count  int       `json:"count"`
	Source CRLOrigin `json:"source"`
}

// CRLOrigin says where an index came from and when, to tell whether it is due.
type CRLOrigin struct {
	File string `json:"file,omitempty"`
	// Size and Modified describe File as it was when it was compiled.
	Size     int64     `json:"size,omitempty"`
	Modified time.Time `json:"modified,omitzero"`
	URL      string    `json:"url,omitempty"`
	Fetched  time.Time `json:"fetched,omitzero"`
}

// revocation is what a list says of one certificate.
type revocation struct {
	at time.Time
	// reason is RFC 5280's reason code; 0 when the list gives none.
	reason int
	// invalid is from when on the key counts as lost; zero when the list does not
	// say, and then everything that it signed is.
	invalid time.Time
}

// after tells whether the certificate became invalid only after the stamp.
func (r revocation) after(stamp *TimeStamp) bool {
	return stamp != nil && !r.invalid.IsZero() && stamp.latest().Before(r.invalid)
}

const (
	// An entry is serial number, time of revocation, reason, invalidity date.
	crlReasonAt   = maxSerialBytes + 8
	crlInvalidAt  = crlReasonAt + 1
	crlEntryBytes = crlInvalidAt + 8
	maxHeadBytes  = 64 * limits.KiB
	// maxCRLEntries follows from the size limit: no entry takes fewer bytes.
	maxCRLEntries = limits.CRLBytes / 20
	// clockSkew is how far ahead of this node's clock an issuer's may be.
	clockSkew = 5 * time.Minute
)

var (
	oidDeltaCRL     = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidInvalidity   = asn1.ObjectIdentifier{2, 5, 29, 24}
	oidExpiredSince = asn1.ObjectIdentifier{2, 5, 29, 60}
)

// revocationAlgorithms are those that lists and OCSP answers may be signed with.
var revocationAlgorithms = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
}

// CompileCRL checks a revocation list (DER or PEM) against its issuer's
// certificate and makes an index of it. now guards against lists from the
// future. Whether the list is still current is decided when it is used.
//
// Reason: [fault.RevocationUnknown] for every list that cannot be used.
func CompileCRL(data []byte, issuer *x509.Certificate, origin CRLOrigin, now time.Time) (*CRLIndex, error) {
	if len(data) > limits.CRLBytes {
		return nil, badCRL(issuer, "is over %d bytes", limits.CRLBytes)
	}
	if bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) != 0 {
			return nil, badCRL(issuer, "is not one PEM revocation list")
		}
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, badCRL(issuer, "is malformed: %v", err)
	}
	if len(list.Raw) != len(data) {
		return nil, badCRL(issuer, "is malformed: %d bytes follow it", len(data)-len(list.Raw))
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return nil, badCRL(issuer, "was issued by %q", list.Issuer)
	}
	if !slices.Contains(revocationAlgorithms, list.SignatureAlgorithm) {
		return nil, badCRL(issuer, "is signed with %s, which is not allowed", list.SignatureAlgorithm)
	}
	if err := checkKey(issuer); err != nil {
		return nil, err
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, badCRL(issuer, "is not signed by its issuer: %v", err)
	}
	switch {
	case list.Number == nil || list.Number.Sign() < 0 || len(list.Number.Bytes()) > maxSerialBytes:
		return nil, badCRL(issuer, "has no usable number")
	case list.NextUpdate.IsZero() || !list.NextUpdate.After(list.ThisUpdate):
		return nil, badCRL(issuer, "does not say until when it counts")
	case list.ThisUpdate.After(now.Add(clockSkew)):
		return nil, badCRL(issuer, "is from the future: %s", list.ThisUpdate.UTC().Format(timeLayout))
	case len(list.RevokedCertificateEntries) > maxCRLEntries:
		return nil, badCRL(issuer, "has over %d entries", maxCRLEntries)
	}
	ix := &CRLIndex{number: list.Number}
	ix.head = crlHead{
		Version:    crlIndexVersion,
		Issuer:     issuer.Subject.String(),
		Key:        issuerKey(issuer),
		Number:     list.Number.String(),
		ThisUpdate: list.ThisUpdate.UTC(),
		NextUpdate: list.NextUpdate.UTC(),
		Digest:     hexSum(data),
		Source:     origin,
	}
	for _, ext := range list.Extensions {
		switch {
		case ext.Id.Equal(oidDeltaCRL):
			return nil, badCRL(issuer, "is a delta list; a complete one is needed")
		case ext.Id.Equal(oidIssuingPoint):
			if ix.head.Points, err = issuingPoints(ext.Value); err != nil {
				return nil, badCRL(issuer, "covers only a part of what was issued: %v", err)
			}
		case ext.Id.Equal(oidExpiredSince):
			if ix.head.ExpiredSince, err = generalizedTime(ext.Value); err != nil {
				return nil, badCRL(issuer, "does not say clearly which expired certificates it lists: %v", err)
			}
		case ext.Critical:
			return nil, badCRL(issuer, "has the unknown critical extension %s", ext.Id)
		}
	}
	if err := ix.fill(list.RevokedCertificateEntries, issuer); err != nil {
		return nil, err
	}
	return ix, nil
}

func badCRL(issuer *x509.Certificate, format string, args ...any) *fault.Error {
	return fault.New(fault.RevocationUnknown, "revocation list of "+issuer.Subject.String(), format, args...)
}

// fill sorts the entries in. A serial that is listed twice keeps its earliest
// entry, with the earlier invalidity date: none is earliest.
func (ix *CRLIndex) fill(list []x509.RevocationListEntry, issuer *x509.Certificate) error {
	rows := make([][crlEntryBytes]byte, 0, len(list))
	for _, e := range list {
		if e.SerialNumber == nil || e.SerialNumber.Sign() <= 0 || len(e.SerialNumber.Bytes()) > maxSerialBytes {
			return badCRL(issuer, "lists a serial number that is not positive or is over %d bytes", maxSerialBytes)
		}
		var invalid uint64
		for _, ext := range e.Extensions {
			if ext.Id.Equal(oidInvalidity) {
				at, err := generalizedTime(ext.Value)
				if err != nil || at.Unix() <= 0 {
					return badCRL(issuer, "has an entry with an impossible invalidity date")
				}
				invalid = uint64(at.Unix())
				continue
			}
			// Among them certificateIssuer: an indirect list speaks for others.
			if ext.Critical {
				return badCRL(issuer, "has an entry with the unknown critical extension %s", ext.Id)
			}
		}
		if e.ReasonCode < 0 || e.ReasonCode > 10 || e.RevocationTime.Unix() < 0 {
			return badCRL(issuer, "has an entry with an impossible reason or time")
		}
		var row [crlEntryBytes]byte
		e.SerialNumber.FillBytes(row[:maxSerialBytes])
		binary.BigEndian.PutUint64(row[maxSerialBytes:], uint64(e.RevocationTime.Unix()))
		row[crlReasonAt] = byte(e.ReasonCode)
		binary.BigEndian.PutUint64(row[crlInvalidAt:], invalid)
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b [crlEntryBytes]byte) int { return bytes.Compare(a[:], b[:]) })
	entries := make([]byte, 0, len(rows)*crlEntryBytes)
	for i := range rows {
		row := rows[i][:]
		if i > 0 && bytes.Equal(row[:maxSerialBytes], rows[i-1][:maxSerialBytes]) {
			kept := entries[len(entries)-crlEntryBytes:]
			if bytes.Compare(row[crlInvalidAt:], kept[crlInvalidAt:]) < 0 {
				copy(kept[crlInvalidAt:], row[crlInvalidAt:])
			}
			continue
		}
		entries = append(entries, row...)
	}
	ix.hold(entries)
	return nil
}

func generalizedTime(value []byte) (time.Time, error) {
	var t time.Time
	rest, err := asn1.UnmarshalWithParams(value, &t, "generalized")
	if err == nil && len(rest) > 0 {
		err = fault.New(fault.RevocationUnknown, "", "bytes follow the time")
	}
	return t.UTC(), err
}

// issuingPoints accepts an issuing distribution point that has nothing but full
// URIs: the flags beside it narrow a list in ways that no caller expects.
func issuingPoints(value []byte) ([]string, error) {
	partial := fault.New(fault.RevocationUnknown, "", "its issuing distribution point is not a plain list of URIs")
	input := cryptobyte.String(value)
	var idp, point, names cryptobyte.String
	if !input.ReadASN1(&idp, cbasn1.SEQUENCE) || !input.Empty() ||
		!idp.ReadASN1(&point, cbasn1.Tag(0).ContextSpecific().Constructed()) || !idp.Empty() ||
		!point.ReadASN1(&names, cbasn1.Tag(0).ContextSpecific().Constructed()) || !point.Empty() || names.Empty() {
		return nil, partial
	}
	var uris []string
	for !names.Empty() {
		var uri cryptobyte.String
		if !names.ReadASN1(&uri, cbasn1.Tag(6).ContextSpecific()) || len(uri) == 0 {
			return nil, partial
		}
		uris = append(uris, string(uri))
	}
	return uris, nil
}

func entryTime(b []byte) time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(b)&(1<<62-1)), 0).UTC()
}

// Number is the list's number: a list with a lower one is older.
func (ix *CRLIndex) Number() *big.Int { return new(big.Int).Set(ix.number) }

// ThisUpdate and NextUpdate bound the time the list is meant for.
func (ix *CRLIndex) ThisUpdate() time.Time { return ix.head.ThisUpdate }

// NextUpdate is when a newer list should be there.
func (ix *CRLIndex) NextUpdate() time.Time { return ix.head.NextUpdate }

// Len is the number of revoked certificates.
func (ix *CRLIndex) Len() int { return ix.head.Count }

// Origin says where the list came from.
func (ix *CRLIndex) Origin() CRLOrigin { return ix.head.Source }

// follows refuses a list that is older than one already known: a source that is
// rolled back must not bring revoked certificates back to life.
func (ix *CRLIndex) follows(known *CRLIndex) error {
	if known == nil || known.head.Key != ix.head.Key || ix.head.Digest == known.head.Digest {
		return nil
	}
	if c := ix.number.Cmp(known.number); c < 0 || c == 0 && ix.head.ThisUpdate.Before(known.head.ThisUpdate) {
		return fault.New(fault.RevocationUnknown, "revocation list of "+ix.head.Issuer,
			"has number %s, older than %s, which is known already", ix.head.Number, known.head.Number)
	}
	return nil
}

// covers tells whether the list speaks about c at all.
func (ix *CRLIndex) covers(c *x509.Certificate) bool {
	return len(ix.head.Points) == 0 || slices.ContainsFunc(ix.head.Points, func(p string) bool {
		return slices.Contains(c.CRLDistributionPoints, p)
	})
}

// keeps tells whether the list would still have c after it expired. Issuers may
// drop such entries, and then their absence means nothing.
func (ix *CRLIndex) keeps(c *x509.Certificate) bool {
	return !ix.head.ExpiredSince.IsZero() && !ix.head.ExpiredSince.After(c.NotAfter)
}

// issuerKey names an issuer by name and public key.
func issuerKey(issuer *x509.Certificate) string {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(issuer.RawSubject))))
	h.Write(issuer.RawSubject)
	h.Write(issuer.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(h.Sum(nil))
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// reasonName gives RFC 5280's word for a reason code.
func reasonName(code int) string {
	names := strings.Fields("unspecified keyCompromise cACompromise affiliationChanged superseded cessationOfOperation certificateHold - removeFromCRL privilegeWithdrawn aACompromise")
	if code < 0 || code >= len(names) {
		return names[0]
	}
	return names[code]
}
