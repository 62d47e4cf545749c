package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"

	"github.com/youmark/pkcs8"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Key sizes of specification §2.4.
const (
	rootBits  = 4096
	agentBits = 3072
	leafBits  = 2048
	// leastExponent is the smallest of an RSA key that NIST SP 800-56B allows.
	leastExponent = 65537
)

const (
	pemKey          = "PRIVATE KEY"
	pemEncryptedKey = "ENCRYPTED PRIVATE KEY"
)

// encryption is PBES2 with AES-256-CBC and PBKDF2-HMAC-SHA-256, which openssl
// reads as well.
var encryption = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
}

// Passphrase asks for the passphrase of an encrypted key. It is called only
// when one is needed.
type Passphrase func() ([]byte, error)

// ParseKey reads a private key in PEM: PKCS #8, encrypted or not, or the older
// forms of RSA and EC keys. name is the subject of its errors, which never hold
// key material. passphrase may be nil. Reasons: [fault.Usage],
// [fault.AccessDenied] for a passphrase that is missing or wrong.
func ParseKey(name string, data []byte, passphrase Passphrase) (crypto.Signer, error) {
	if len(data) > limits.CertificatePEMBytes {
		return nil, fault.New(fault.Usage, name, "is too large for a private key")
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fault.New(fault.Usage, name, "is not a private key in PEM form")
	}
	var key any
	var err error
	switch block.Type {
	case pemKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case pemEncryptedKey:
		if passphrase == nil {
			return nil, fault.New(fault.AccessDenied, name, "is encrypted, and there is no passphrase")
		}
		secret, perr := passphrase()
		if perr != nil {
			return nil, fault.Wrap(perr, fault.AccessDenied, name, "is encrypted, and there is no passphrase")
		}
		if key, _, err = pkcs8.ParsePrivateKey(block.Bytes, secret); err != nil {
			return nil, fault.New(fault.AccessDenied, name, "cannot be decrypted with this passphrase")
		}
	default:
		return nil, fault.New(fault.Usage, name, "is a PEM block of type %q, not a private key", block.Type)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, name, "is a malformed private key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.Usage, name, "is a key of type %T, which cannot sign", key)
	}
	return signer, nil
}

// marshalKey encodes a key as PKCS #8, encrypted if there is a passphrase.
func marshalKey(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "key", "cannot encode")
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
	}
	der, err := pkcs8.MarshalPrivateKey(key, passphrase, encryption)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "key", "cannot encrypt")
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemEncryptedKey, Bytes: der}), nil
}

// KeyType is a kind of key that is made for a developer.
type KeyType string

// The kinds of keys.
const (
	RSAKey   KeyType = "rsa"   // of specification §2.4's size; the default
	ECDSAKey KeyType = "ecdsa" // on P-256
)

// KeyTypes are all kinds.
func KeyTypes() []string { return []string{string(RSAKey), string(ECDSAKey)} }

// make makes a key. Reason of its error: [fault.Usage] for another kind.
func (k KeyType) make() (crypto.Signer, error) {
	switch k {
	case "", RSAKey:
		return newKey(leafBits)
	case ECDSAKey:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "key", "cannot generate")
		}
		return key, nil
	}
	return nil, fault.New(fault.Usage, "key type", "%q is none of %s", string(k), strings.Join(KeyTypes(), ", "))
}

func newKey(bits int) (crypto.Signer, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "key", "cannot generate")
	}
	return key, nil
}

// checkPublicKey holds a requester's key to what verifiers accept.
func checkPublicKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < leafBits || bits > rootBits {
			return fault.New(fault.Usage, "certificate request", "its RSA key has %d bits, allowed are %d to %d", bits, leafBits, rootBits)
		}
		if key.E < leastExponent || key.E%2 == 0 {
			return fault.New(fault.Usage, "certificate request", "its RSA key has the exponent %d, allowed are odd ones from %d on", key.E, leastExponent)
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fault.New(fault.Usage, "certificate request", "its curve is not P-256 or P-384")
		}
	default:
		return fault.New(fault.Usage, "certificate request", "its key type %T is not supported", pub)
	}
	return nil
}

// newSerial is 128 bits of randomness.
func newSerial() (*big.Int, error) {
	for {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "serial number", "no randomness")
		}
		if n.Sign() > 0 {
			return n, nil
		}
	}
}

// keyID names a public key as RFC 7093 method 1 does.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, "key", "cannot be used in a certificate")
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}
