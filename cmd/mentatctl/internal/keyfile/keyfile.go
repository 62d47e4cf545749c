package keyfile

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"runtime"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/pki"
)

// maxBytes bounds a key file with its certificates.
const maxBytes = (limits.ChainCertificates + 2) * limits.CertificatePEMBytes

// Read reads a PEM file. A pipe will do: `--key <(pass show signing)`.
func Read(path, what string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, path, "there is no such %s", what)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the %s", what)
	}
	defer f.Close()
	data, err := limits.Read(f, maxBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the %s", what)
	}
	return data, nil
}

// ReadOwn is Read for a key that is about to be vouched for: a regular file that is
// the running user's and that nobody else may read. Anybody's else would make its
// maker sign under the user's name.
func ReadOwn(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the key")
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Exists, path, "is there already, is no key's file and is not overwritten")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the key")
	}
	defer f.Close()
	opened, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the key")
	}
	if !os.SameFile(info, opened) || !mine(opened) || runtime.GOOS != "windows" && opened.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Exists, path, "is there already, and others can read it or it is another user's: it is neither taken up nor overwritten").
			WithHint("name another file for the key, or remove it")
	}
	data, err := limits.Read(f, maxBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, path, "cannot read the key")
	}
	return data, nil
}

// Exposed tells whether a key file can be read by other users.
func Exposed(path string) bool {
	info, err := os.Stat(path)
	return err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0
}

// Parse reads a private key, and the certificates that stand beside it, from
// PEM text; name is the subject of errors. The passphrase is asked for only if
// the key is encrypted.
func Parse(name string, data []byte, passphrase func() ([]byte, error)) (crypto.Signer, []*x509.Certificate, error) {
	var keys, certs []byte
	found := 0
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			certs = append(certs, pem.EncodeToMemory(block)...)
		case "EC PARAMETERS": // openssl puts them before a key; they say nothing that the key does not
		default:
			found++
			keys = append(keys, pem.EncodeToMemory(block)...)
		}
	}
	if found != 1 {
		return nil, nil, fault.New(fault.Usage, name, "holds %d private keys in PEM, one is wanted", found)
	}
	key, err := pki.ParseKey(name, keys, passphrase)
	if err != nil {
		return nil, nil, err
	}
	if len(certs) == 0 {
		return key, nil, nil
	}
	chain, err := verifier.ParseChain(name, certs)
	return key, chain, err
}

// Match refuses a key that does not belong to the chain's first certificate.
func Match(name string, key crypto.Signer, chain []*x509.Certificate) error {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return fault.New(fault.SignatureInvalid, name, "the key does not belong to the certificate of %s", chain[0].Subject)
	}
	return nil
}
