package pkcs11

import (
	"crypto"
	"crypto/rsa"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Program is the name of the program that loads a token's library. It is started
// without arguments and reads a [Request] a line from its standard input, the
// first with the key's name and the PIN, and answers each with a [Response] a
// line. It ends when its input does.
const Program = "mentat-pkcs11"

// ModuleEnv is the variable with the library's path, where a name has none.
const ModuleEnv = "MENTAT_PKCS11_MODULE"

// MaxLine bounds a request and an answer.
const MaxLine = 64 * limits.KiB

// Request asks for one thing.
type Request struct {
	// Open is the first, and names the key.
	Open *Name  `json:"open,omitempty"`
	PIN  string `json:"pin,omitempty"`
	// Generate makes the key, by RSA with so many bits; one by that name may not be there.
	Generate int `json:"generate,omitempty"`
	// Curve makes one on this elliptic curve instead: P-256.
	Curve string `json:"curve,omitempty"`
	// Digest is what is signed; Hash is its algorithm's name as crypto.Hash prints
	// it. PSS says that a signature by RSA is so padded, with a salt of the hash's
	// length.
	Digest []byte `json:"digest,omitempty"`
	Hash   string `json:"hash,omitempty"`
	PSS    bool   `json:"pss,omitempty"`
	// Delete removes the key, which must have been made in this session.
	Delete bool `json:"delete,omitempty"`
}

// Response answers one request. Reason is empty if it was done.
type Response struct {
	// Public is the key opened, as SubjectPublicKeyInfo.
	Public    []byte       `json:"public,omitempty"`
	Signature []byte       `json:"signature,omitempty"`
	Reason    fault.Reason `json:"reason,omitempty"`
	Message   string       `json:"message,omitempty"`
}

// Hashes are the algorithms of digests that are signed, by name.
var Hashes = map[string]crypto.Hash{
	crypto.SHA256.String(): crypto.SHA256, crypto.SHA384.String(): crypto.SHA384, crypto.SHA512.String(): crypto.SHA512,
}

// Options are how the digest of a request is signed. Reason of its error:
// [fault.Usage].
func (q *Request) Options() (crypto.SignerOpts, error) {
	h, ok := Hashes[q.Hash]
	if !ok || len(q.Digest) != h.Size() {
		return nil, fault.New(fault.Usage, "digest", "%d bytes are none of %q", len(q.Digest), q.Hash)
	}
	if q.PSS {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}, nil
	}
	return h, nil
}
