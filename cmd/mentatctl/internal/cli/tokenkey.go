package cli

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/keyfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/pki/pkcs11"
)

// pkcs11Env names the program that loads a token's library.
const pkcs11Env = "MENTAT_PKCS11"

// tokenKeyBits is the size of a key that is made in a token, that of
// specification §2.4.
const tokenKeyBits = 2048

// newTokenKey is what key is made in a token; the zero value makes none.
type newTokenKey struct {
	bits  int
	curve string
}

// tokenKey opens a key in a PKCS #11 token, or makes it. Its program ends with ours.
func (a *app) tokenKey(ctx context.Context, name string, pass *passphraseFlags, kind newTokenKey) (*pkcs11.Signer, error) {
	return a.openTokenKey(ctx, name, kind, func() ([]byte, error) { return a.passphrase(ctx, pass, name) })
}

func (a *app) openTokenKey(ctx context.Context, name string, kind newTokenKey, pin func() ([]byte, error)) (*pkcs11.Signer, error) {
	program := os.Getenv(pkcs11Env)
	if program == "" {
		var err error
		if program, err = pkcs11.Find(); err != nil {
			return nil, err
		}
	}
	return pkcs11.Open(ctx, name, pkcs11.Options{
		Program: program, Bits: kind.bits, Curve: kind.curve, Stderr: a.stderr, PIN: pin,
	})
}

// obtain makes the key where the request says, and has it certified. A key that is
// there, without its certificate's file, is taken up: whoever asked with it before got
// no answer, or could not write it. On an error no certificate is left, and of keys
// those alone that were there, or whose certificate may have been issued.
func (a *app) obtain(ctx context.Context, r *pki.CertRequest, pass *passphraseFlags, issue func(crypto.Signer) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	if _, err := os.Lstat(r.CertFile); err == nil {
		return nil, fault.New(fault.Exists, r.CertFile, "is there already and is not overwritten")
	}
	if pkcs11.Is(r.KeyFile) {
		return a.obtainByToken(ctx, r, pass, issue)
	}
	_, err := os.Lstat(r.KeyFile)
	if err == nil {
		r.Key, err = a.takeUp(ctx, r, pass)
	} else {
		r.Passphrase, err = a.newPassphrase(ctx, pass, r.KeyFile)
	}
	if err != nil {
		return nil, err
	}
	chain, err := r.Obtain(issue)
	return chain, keptFor(r.KeyFile, err)
}

// takeUp reads a key that is there. It is about to be certified as its owner's: it
// must be nobody else's.
func (a *app) takeUp(ctx context.Context, r *pki.CertRequest, pass *passphraseFlags) (crypto.Signer, error) {
	data, err := keyfile.ReadOwn(r.KeyFile)
	if err != nil {
		return nil, err
	}
	key, _, err := keyfile.Parse(r.KeyFile, data, func() ([]byte, error) { return a.passphrase(ctx, pass, r.KeyFile) })
	if err != nil {
		return nil, err
	}
	return key, a.takenUp(r, key.Public())
}

// takenUp tells that a key is taken up, if it is of the kind that is asked for.
func (a *app) takenUp(r *pki.CertRequest, key crypto.PublicKey) error {
	if _, isRSA := key.(*rsa.PublicKey); r.KeyType != "" && isRSA != (r.KeyType == pki.RSAKey) {
		return fault.New(fault.Exists, r.KeyFile, "is there already, is no %s key and is not overwritten", r.KeyType)
	}
	a.printer().Note("%s is there without its certificate %s: the key is taken up", r.KeyFile, r.CertFile)
	return nil
}

// keptFor adds what to do where a certificate may have been issued for the key.
func keptFor(keyFile string, err error) error {
	var open *pki.UnansweredError
	if !errors.As(err, &open) {
		return err
	}
	return fault.Wrap(err, fault.ReasonOf(err), keyFile, "the key is kept, for its certificate may have been issued").
		WithHint("run the same command again, with the same token: the key is taken up")
}

// obtainByToken is obtain for a key in a PKCS #11 token.
func (a *app) obtainByToken(ctx context.Context, r *pki.CertRequest, pass *passphraseFlags, issue func(crypto.Signer) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	kind := newTokenKey{bits: tokenKeyBits}
	if r.KeyType == pki.ECDSAKey {
		kind = newTokenKey{curve: elliptic.P256().Params().Name}
	}
	pin := sync.OnceValues(func() ([]byte, error) { return a.passphrase(ctx, pass, r.KeyFile) })
	key, err := a.openTokenKey(ctx, r.KeyFile, kind, pin)
	taken := fault.ReasonOf(err) == fault.Exists
	if taken {
		key, err = a.openTokenKey(ctx, r.KeyFile, newTokenKey{}, pin)
	}
	if err != nil {
		return nil, err
	}
	if taken {
		if err := a.takenUp(r, key.Public()); err != nil {
			return nil, errors.Join(err, key.Close())
		}
	}
	r.Key = key
	chain, err := r.Obtain(issue)
	var open *pki.UnansweredError
	if err != nil && !taken && !errors.As(err, &open) {
		err = errors.Join(err, key.Delete())
	}
	return chain, errors.Join(keptFor(r.KeyFile, err), key.Close())
}

// keyTypeFlag is pki.KeyType as a flag, which is refused where it is written.
type keyTypeFlag struct{ to *pki.KeyType }

func (f keyTypeFlag) String() string {
	if f.to == nil || *f.to == "" {
		return string(pki.RSAKey)
	}
	return string(*f.to)
}

func (f keyTypeFlag) Type() string { return "string" }

func (f keyTypeFlag) Set(text string) error {
	if !slices.Contains(pki.KeyTypes(), text) {
		return fault.New(fault.Usage, "--key-type", "%q is none of %s", text, strings.Join(pki.KeyTypes(), ", "))
	}
	*f.to = pki.KeyType(text)
	return nil
}

func addKeyType(cmd *cobra.Command, r *pki.CertRequest) {
	cmd.Flags().Var(keyTypeFlag{&r.KeyType}, "key-type", "what key is made: `KIND` is rsa (2048 bits) or ecdsa (P-256)")
	fixedCompletion(cmd, "key-type", pki.KeyTypes()...)
}

// madeKeys are keys in tokens that were made for something which may yet fail.
type madeKeys []*pkcs11.Signer

// settle removes them again if it failed, and ends their programs.
func (m madeKeys) settle(err error) error {
	errs := []error{err}
	for _, key := range m {
		if err != nil {
			errs = append(errs, key.Delete())
		}
		errs = append(errs, key.Close())
	}
	return errors.Join(errs...)
}

// caKey makes a key of a certificate authority in a token; none without a name.
func (a *app) caKey(ctx context.Context, made *madeKeys, flag, name string, bits int, pin func() ([]byte, error)) (crypto.Signer, error) {
	if name == "" {
		return nil, nil
	}
	if !pkcs11.Is(name) {
		return nil, fault.New(fault.Usage, flag, "%q is no key in a token", name).WithHint("it is of the form pkcs11:token=LABEL;object=LABEL; without the flag the key is a file")
	}
	key, err := a.openTokenKey(ctx, name, newTokenKey{bits: bits}, pin)
	if err != nil {
		return nil, err
	}
	*made = append(*made, key)
	return key, nil
}
