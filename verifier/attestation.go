package verifier

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
)

const (
	// BlockVersion is the only version of the block that this package knows.
	BlockVersion = "1.0"
	// PayloadType is the type in the pre-authentication encoding. It keeps a
	// signature made for something else from being taken for an attestation.
	PayloadType = "application/vnd.mentatlab.attestation.v1+json"

	// annotationFamily is the common prefix of this and future attestations: a
	// sibling of another version is refused rather than overlooked.
	annotationFamily = "dev.mentatlab.attestation"

	timeLayout = "2006-01-02T15:04:05Z"
)

// Block is the attestation as it stands in the manifest's annotation, in the
// fields of specification §2.2.
type Block struct {
	Version string `json:"version"`
	// Timestamp is the signer's own word for when; it never extends trust.
	Timestamp string `json:"timestamp"`
	Signer    Names  `json:"signer"`
	Algorithm string `json:"algorithm"`
	// Signature is base64 without line breaks. It is not part of what is signed.
	Signature string `json:"signature,omitempty"`
	// CertificateChain is PEM, leaf first, without the root.
	CertificateChain []string `json:"certificate_chain"`
	Subject          Subject  `json:"subject"`
	// NotAfter ends the attestation before its certificate does.
	NotAfter string `json:"not_after,omitempty"`
	// TimestampToken is an RFC 3161 token over the signature, base64 without line
	// breaks. It cannot be part of what is signed.
	TimestampToken string `json:"timestamp_token,omitempty"`
	// Countersignatures are those of further people over what the first signed. They
	// cannot be part of it.
	Countersignatures []Countersignature `json:"countersignatures,omitempty"`
}

// Names are the leaf's distinguished names, for people who read the block.
type Names struct {
	Subject string `json:"subject"`
	Issuer  string `json:"issuer"`
}

// Subject binds the attestation to what was meant to be signed, so that an old
// or foreign artifact cannot be passed off under another name.
type Subject struct {
	// ID and Version are those of the agent manifest.
	ID      string `json:"id"`
	Version string `json:"version"`
	// Repository is host/path without tag or digest.
	Repository string `json:"repository,omitempty"`
}

// Attestation is a block that was read strictly, with the bytes it signs. Its
// signature is not yet checked.
type Attestation struct {
	Block
	// SignedBytes is the pre-authentication encoding that the signature covers.
	SignedBytes []byte
	// SignedDigest is the SHA-256 of SignedBytes. It names what was signed even
	// if the signature is encoded anew.
	SignedDigest digest.Digest
	// Chain is the block's chain, leaf first.
	Chain []*x509.Certificate

	signing            // the first one's
	counters []signing // by [Block.Countersignatures]
	notAfter time.Time // zero when the block has none

	// root is what a Notary Project signature in these terms says its chain ends with.
	root *x509.Certificate
}

// ReadAttestation reads the attestation of an OCI image manifest.
//
// The error's reason is [fault.Unsigned] when there is none,
// [fault.ArtifactInvalid] when the manifest itself breaks a rule and
// [fault.AttestationFormat] when the attestation does. The signature is left to
// [Attestation.CheckSignature].
func ReadAttestation(raw []byte) (*Attestation, error) { return readAttestation(raw, nil) }

func readAttestation(raw []byte, t *tracer) (*Attestation, error) {
	text, err := findBlock(raw)
	t.note("bytes", "%d", len(text))
	if t.part("found", err) != nil {
		return nil, err
	}
	if err := t.part("canonical form of the manifest", checkCanonical(raw)); err != nil {
		return nil, err
	}
	a, err := readBlock(raw, text)
	if err == nil {
		t.block(a)
	}
	return a, t.part("block", err)
}

// findBlock returns the text of a manifest's attestation.
func findBlock(raw []byte) (string, error) {
	if len(raw) > limits.OCIManifestBytes {
		return "", fault.New(fault.ArtifactInvalid, "manifest", "is over %d bytes", limits.OCIManifestBytes)
	}
	m, err := oci.ParseManifest(raw)
	if err != nil {
		return "", err
	}
	text, present := m.Annotations[oci.AnnotationAttestation]
	for key := range m.Annotations {
		if key != oci.AnnotationAttestation && strings.HasPrefix(strings.ToLower(key), annotationFamily) {
			return "", malformed("annotation %q is of a version that this program does not know", key)
		}
	}
	if !present {
		return "", fault.New(fault.Unsigned, "", "carries no attestation")
	}
	return text, nil
}

func checkCanonical(raw []byte) error {
	again, err := canonical.JSON(raw)
	if err != nil {
		return malformed("the manifest cannot be brought into canonical form: %v", err)
	}
	if !bytes.Equal(again, raw) {
		return malformed("the manifest is not in canonical form")
	}
	return nil
}

func readBlock(raw []byte, text string) (*Attestation, error) {
	block, err := parseBlock(text)
	if err != nil {
		return nil, err
	}
	a := &Attestation{Block: *block}
	if err := a.decode(); err != nil {
		return nil, err
	}
	if a.SignedBytes, err = signedBytes(raw, a.Block); err != nil {
		return nil, err
	}
	a.payload = a.SignedBytes
	a.SignedDigest = digest.FromBytes(a.SignedBytes)
	if err := a.readCountersignatures(); err != nil {
		return nil, err
	}
	return a, nil
}

// parseBlock accepts exactly the canonical form of a block of a known version:
// marshalling what was understood must give the text back.
func parseBlock(text string) (*Block, error) {
	data := []byte(text)
	switch {
	case len(data) == 0:
		return nil, malformed("is empty")
	case len(data) > limits.AttestationBytes:
		return nil, malformed("is over %d bytes", limits.AttestationBytes)
	}
	if err := canonical.Check(data); err != nil {
		return nil, malformed("is malformed: %v", err)
	}
	var probe struct {
		Version json.RawMessage `json:"version"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return nil, malformed("is not an object: %v", err)
	}
	if string(probe.Version) != strconv.Quote(BlockVersion) {
		return nil, malformed("is of version %s; this program knows %q", orNone(probe.Version), BlockVersion)
	}
	var block Block
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&block); err != nil {
		return nil, malformed("is malformed: %v", err)
	}
	again, err := canonical.Marshal(block)
	if err != nil {
		return nil, malformed("is malformed: %v", err)
	}
	if !bytes.Equal(again, data) {
		return nil, malformed("is not in canonical form")
	}
	return &block, nil
}

func orNone(v json.RawMessage) string {
	if len(v) == 0 {
		return "none"
	}
	return string(v)
}

// decode fills the parsed fields from the block's texts and holds the block to
// what its own leaf certificate says.
func (a *Attestation) decode() error {
	var err error
	first := Countersignature{
		Timestamp: a.Timestamp, Signer: a.Signer, Algorithm: a.Algorithm,
		CertificateChain: a.CertificateChain, Signature: a.Signature, TimestampToken: a.TimestampToken,
	}
	if a.signing, err = first.read(); err != nil {
		return err
	}
	a.Chain = a.chain
	if a.NotAfter != "" {
		if a.notAfter, err = parseTime(a.NotAfter); err != nil {
			return malformed("not_after: %v", err)
		}
		if !a.notAfter.After(a.timestamp) {
			return malformed("not_after is not later than timestamp")
		}
	}
	if a.Subject.ID == "" || a.Subject.Version == "" {
		return malformed("subject needs id and version")
	}
	if a.Subject.Repository != "" && !imageref.ValidRepository(a.Subject.Repository) {
		return malformed("subject.repository %q is not host/path in lower case", a.Subject.Repository)
	}
	return nil
}

// CheckSignature checks integrity only: that the first certificate's key signed
// this manifest, and that of each countersignature the same. It says nothing about
// whether any of these keys is trusted.
func (a *Attestation) CheckSignature() error {
	if err := a.check(); err != nil {
		return err
	}
	for i := range a.counters {
		if err := a.counters[i].check(); err != nil {
			return onCountersignature(err, i)
		}
	}
	return nil
}

// signedBytes is what a signature covers: the manifest in canonical form, with
// the block in its place, without the block's signature, token and
// countersignatures.
func signedBytes(raw []byte, block Block) ([]byte, error) {
	block.Signature, block.TimestampToken, block.Countersignatures = "", "", nil
	text, err := canonical.Marshal(block)
	if err != nil {
		return nil, fault.Wrap(err, fault.AttestationFormat, "attestation", "cannot be brought into canonical form")
	}
	body, err := withAnnotation(raw, text)
	if err != nil {
		return nil, err
	}
	return pae(PayloadType, body), nil
}

// withAnnotation returns the canonical manifest whose attestation annotation is
// text, whatever it was before.
func withAnnotation(raw, text []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, "manifest", "is malformed")
	}
	annotations := map[string]string{}
	if old, ok := m["annotations"]; ok {
		if err := json.Unmarshal(old, &annotations); err != nil {
			return nil, fault.Wrap(err, fault.ArtifactInvalid, "manifest", "annotations are malformed")
		}
		if annotations == nil { // "annotations": null
			annotations = map[string]string{}
		}
	}
	annotations[oci.AnnotationAttestation] = string(text)
	encoded, err := json.Marshal(annotations)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "manifest", "cannot encode annotations")
	}
	m["annotations"] = encoded
	out, err := canonical.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, "manifest", "cannot be brought into canonical form")
	}
	return out, nil
}

// pae is DSSE's pre-authentication encoding.
func pae(payloadType string, body []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(body) + len(payloadType) + 32)
	b.WriteString("DSSEv1 ")
	b.WriteString(strconv.Itoa(len(payloadType)))
	b.WriteByte(' ')
	b.WriteString(payloadType)
	b.WriteByte(' ')
	b.WriteString(strconv.Itoa(len(body)))
	b.WriteByte(' ')
	b.Write(body)
	return b.Bytes()
}

// parseTime takes one spelling of an instant, so that equal blocks are equal
// bytes.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(timeLayout, s)
	if err != nil || t.Format(timeLayout) != s {
		return time.Time{}, fault.New(fault.AttestationFormat, "", "%q is not of the form 2026-01-15T10:30:00Z", s)
	}
	return t, nil
}

// decodeBase64 takes the one canonical encoding. The standard decoder would
// skip line breaks and, unless strict, stray bits.
func decodeBase64(s string) ([]byte, error) {
	if s == "" {
		return nil, fault.New(fault.AttestationFormat, "", "is empty")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != s {
		return nil, fault.New(fault.AttestationFormat, "", "is not base64 in one line")
	}
	return b, nil
}

func malformed(format string, args ...any) *fault.Error {
	return fault.New(fault.AttestationFormat, "attestation", format, args...)
}
