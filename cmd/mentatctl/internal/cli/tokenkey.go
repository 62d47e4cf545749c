package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"os"

	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/pki/pkcs11"
)

// pkcs11Env names the program that loads a token's library.
const pkcs11Env = "MENTAT_PKCS11"

// tokenKeyBits is the size of a key that is made in a token, that of
// specification §2.4.
const tokenKeyBits = 2048

// tokenKey opens a key in a PKCS #11 token, or makes it if bits is not 0. Its
// program ends with ours.
func (a *app) tokenKey(ctx context.Context, name string, pass *passphraseFlags, bits int) (*pkcs11.Signer, error) {
	program := os.Getenv(pkcs11Env)
	if program == "" {
		var err error
		if program, err = pkcs11.Find(); err != nil {
			return nil, err
		}
	}
	return pkcs11.Open(ctx, name, pkcs11.Options{
		Program: program, Bits: bits, Stderr: a.stderr,
		PIN: func() ([]byte, error) { return a.passphrase(ctx, pass, name) },
	})
}

// obtain makes the key where the request says, and has it certified. On an error
// neither key nor certificate is left.
func (a *app) obtain(ctx context.Context, r *pki.CertRequest, pass *passphraseFlags, issue func(crypto.Signer) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	if !pkcs11.Is(r.KeyFile) {
		var err error
		if r.Passphrase, err = a.newPassphrase(ctx, pass, r.KeyFile); err != nil {
			return nil, err
		}
		return r.Obtain(issue)
	}
	key, err := a.tokenKey(ctx, r.KeyFile, pass, tokenKeyBits)
	if err != nil {
		return nil, err
	}
	r.Key = key
	chain, err := r.Obtain(issue)
	if err != nil {
		err = errors.Join(err, key.Delete())
	}
	return chain, errors.Join(err, key.Close())
}
