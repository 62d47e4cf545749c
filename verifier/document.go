package verifier

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// envelope is a signed document of another kind than an attestation: a release list,
// a file of trust. It is canonical JSON.
type envelope struct {
	// MediaType says what is signed; it is in what the signature covers.
	MediaType string `json:"media_type"`
	// Timestamp is the signer's own word for when.
	Timestamp        string          `json:"timestamp"`
	Algorithm        string          `json:"algorithm"`
	Signature        string          `json:"signature,omitempty"`
	CertificateChain []string        `json:"certificate_chain"`
	Payload          json.RawMessage `json:"payload"`
}

// document is an envelope whose signature fits its first certificate. Whether that
// is to be believed is not yet known.
type document struct {
	chain     []*x509.Certificate
	timestamp time.Time
	payload   json.RawMessage
	digest    digest.Digest // of what is signed
}

// signDocument signs a payload. It opens its own result before it returns.
func signDocument(mediaType string, payload any, key crypto.Signer, chain []*x509.Certificate, at time.Time) ([]byte, error) {
	chain, err := signingChain(key, chain, at)
	if err != nil {
		return nil, err
	}
	who, alg, err := signerOf(key, chain, "")
	if err != nil {
		return nil, err
	}
	body, err := canonical.Marshal(payload)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "sign", "cannot encode")
	}
	e := envelope{
		MediaType: mediaType, Timestamp: at.UTC().Format(timeLayout), Algorithm: who.Algorithm,
		CertificateChain: who.CertificateChain, Payload: body,
	}
	signed, err := e.signed()
	if err != nil {
		return nil, err
	}
	if e.Signature, err = signPayload(key, alg, signed); err != nil {
		return nil, err
	}
	out, err := canonical.Marshal(e)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "sign", "cannot encode")
	}
	_, err = openDocument("sign", mediaType, out)
	return out, err
}

// signed is what the signature covers.
func (e envelope) signed() ([]byte, error) {
	e.Signature = ""
	body, err := canonical.Marshal(e)
	if err != nil {
		return nil, fault.Wrap(err, fault.SignatureInvalid, "", "cannot be brought into canonical form")
	}
	return pae(e.MediaType, body), nil
}

// openDocument reads a document strictly and checks its signature. Reason:
// [fault.SignatureInvalid], [fault.ChainUntrusted] for a key that is too weak.
func openDocument(name, mediaType string, data []byte) (*document, error) {
	bad := func(format string, args ...any) (*document, error) {
		return nil, fault.New(fault.SignatureInvalid, name, format, args...)
	}
	var e envelope
	if err := strictJSON(data, &e); err != nil {
		return bad("is malformed: %v", err)
	}
	if e.MediaType != mediaType {
		return bad("is of the type %q, wanted is %q", e.MediaType, mediaType)
	}
	d := &document{payload: e.Payload}
	var err error
	if d.timestamp, err = parseTime(e.Timestamp); err != nil {
		return bad("timestamp: %v", err)
	}
	if d.chain, err = parseBlockChain(e.CertificateChain); err != nil {
		return bad("%v", err)
	}
	leaf := d.chain[0]
	if err := checkKey(leaf); err != nil {
		return nil, fault.Wrap(err, fault.ChainUntrusted, name, "cannot be believed")
	}
	alg, err := algorithmFor(leaf.PublicKey, e.Algorithm)
	if err != nil {
		return bad("%v", err)
	}
	signature, err := decodeBase64(e.Signature)
	if err != nil {
		return bad("signature: %v", err)
	}
	signed, err := e.signed()
	if err != nil {
		return nil, err
	}
	if err := leaf.CheckSignature(alg.x509, signed, signature); err != nil {
		return bad("the signature does not fit: %v", err)
	}
	d.digest = digest.FromBytes(signed)
	return d, nil
}

// strictJSON accepts exactly the canonical form of a known structure.
func strictJSON(data []byte, out any) error {
	if err := canonical.Check(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		return err
	}
	again, err := canonical.Marshal(out)
	if err == nil && !bytes.Equal(again, data) {
		err = fault.New(fault.SignatureInvalid, "", "it is not in canonical form")
	}
	return err
}

// believe holds a document to roots and identities at a time: the chain, the signer,
// the time of signing. Revocation is the caller's. It returns the path to the root.
func (d *document) believe(name string, roots *x509.CertPool, ids identities, at time.Time) ([]*x509.Certificate, error) {
	path, err := verifyChain(d.chain, roots, at, nil)
	if err != nil {
		return nil, fault.Wrap(err, fault.ReasonOf(err), name, "cannot be believed")
	}
	leaf := path[0]
	if len(leaf.EmailAddresses) != 1 || !ids.has(normalEmail(leaf.EmailAddresses[0])) {
		return nil, fault.New(fault.IdentityUntrusted, name, "is signed by %q, who is none of those who may", leaf.EmailAddresses)
	}
	switch {
	case d.timestamp.After(at.Add(clockSkew)):
		return nil, fault.New(fault.OutsideValidity, name, "says it was made in the future, at %s", stampText(d.timestamp))
	case d.timestamp.Before(leaf.NotBefore.Truncate(time.Second)):
		return nil, fault.New(fault.OutsideValidity, name, "says it was made at %s, when its certificate was not valid", stampText(d.timestamp))
	}
	return path, nil
}

// poolOf are the roots of some stores.
func poolOf(stores map[string]*Store, names []string) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, name := range slices.Sorted(slices.Values(names)) {
		if s := stores[name]; s != nil {
			for _, root := range s.roots {
				pool.AddCert(root)
			}
		}
	}
	return pool
}
