package main

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ThalesGroup/crypto11"
	native "github.com/miekg/pkcs11"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki/pkcs11"
)

func main() {
	if err := serve(os.Stdin, os.Stdout, os.Getenv); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", pkcs11.Program, fault.OneLine(err.Error()))
		os.Exit(fault.CLICode(err))
	}
}

// session is one key of one token.
type session struct {
	getenv func(string) string
	token  *crypto11.Context
	key    crypto11.Signer
	made   bool
}

func serve(in io.Reader, out io.Writer, getenv func(string) string) error {
	s := &session{getenv: getenv}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, pkcs11.MaxLine)
	for lines.Scan() {
		answer, err := s.answer(lines.Bytes())
		if err != nil {
			answer = &pkcs11.Response{Reason: fault.ReasonOf(err), Message: fault.OneLine(err.Error())}
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return fault.Wrap(err, fault.Internal, "answer", "cannot encode")
		}
		if _, err := out.Write(append(line, '\n')); err != nil {
			return fault.Wrap(err, fault.Unavailable, "stdout", "cannot be written")
		}
	}
	if s.token != nil {
		return errors.Join(lines.Err(), s.token.Close())
	}
	return lines.Err()
}

func (s *session) answer(line []byte) (*pkcs11.Response, error) {
	var q pkcs11.Request
	if err := json.Unmarshal(line, &q); err != nil {
		return nil, fault.Wrap(err, fault.Usage, "request", "is malformed")
	}
	switch {
	case q.Open != nil:
		return s.open(&q)
	case s.key == nil:
		return nil, fault.New(fault.Usage, "request", "no key is open")
	case q.Delete:
		return s.remove()
	}
	return s.sign(&q)
}

func (s *session) open(q *pkcs11.Request) (*pkcs11.Response, error) {
	if s.token != nil {
		return nil, fault.New(fault.Usage, "request", "a token is open already")
	}
	module := q.Open.Module
	if module == "" {
		module = s.getenv(pkcs11.ModuleEnv)
	}
	if module == "" {
		return nil, fault.New(fault.Usage, "module", "neither module-path nor %s says which library is the token's", pkcs11.ModuleEnv)
	}
	token, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: q.Open.Token, Pin: q.PIN})
	if err != nil {
		return nil, tokenError(err, "token "+q.Open.Token)
	}
	s.token = token
	found, err := token.FindKeyPairs(nil, []byte(q.Open.Object))
	switch {
	case err != nil:
		return nil, tokenError(err, "object "+q.Open.Object)
	case q.Generate != 0 || q.Curve != "":
		return s.generate(q, len(found))
	case len(found) == 0:
		return nil, fault.New(fault.NotFound, "object "+q.Open.Object, "is no key of the token %s", q.Open.Token)
	case len(found) > 1:
		return nil, fault.New(fault.Usage, "object "+q.Open.Object, "the token %s has %d keys by that label", q.Open.Token, len(found))
	}
	s.key = found[0]
	return s.public()
}

func (s *session) generate(q *pkcs11.Request, found int) (*pkcs11.Response, error) {
	if found > 0 {
		return nil, fault.New(fault.Exists, "object "+q.Open.Object, "is there already and is not overwritten")
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "key", "no randomness")
	}
	var key crypto11.Signer
	var err error
	switch q.Curve {
	case "":
		key, err = s.token.GenerateRSAKeyPairWithLabel(id, []byte(q.Open.Object), q.Generate)
	case elliptic.P256().Params().Name:
		key, err = s.token.GenerateECDSAKeyPairWithLabel(id, []byte(q.Open.Object), elliptic.P256())
	default:
		return nil, fault.New(fault.Usage, "curve", "%q is not P-256", q.Curve)
	}
	if err != nil {
		return nil, tokenError(err, "object "+q.Open.Object)
	}
	s.key, s.made = key, true
	return s.public()
}

func (s *session) public() (*pkcs11.Response, error) {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, fault.Wrap(err, fault.Unsupported, "key", "is of a kind that is not used here")
	}
	return &pkcs11.Response{Public: der}, nil
}

func (s *session) sign(q *pkcs11.Request) (*pkcs11.Response, error) {
	opts, err := q.Options()
	if err != nil {
		return nil, err
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		// The library takes no word for the length.
		opts = &rsa.PSSOptions{SaltLength: pss.HashFunc().Size(), Hash: pss.Hash}
	}
	signature, err := s.key.Sign(rand.Reader, q.Digest, opts)
	if err != nil {
		return nil, tokenError(err, "key")
	}
	if err := check(s.key.Public(), q, signature); err != nil {
		return nil, err
	}
	return &pkcs11.Response{Signature: signature}, nil
}

// check refuses a signature that is none: better here than at who verifies it.
func check(public crypto.PublicKey, q *pkcs11.Request, signature []byte) error {
	good := false
	h := pkcs11.Hashes[q.Hash]
	switch key := public.(type) {
	case *rsa.PublicKey:
		if q.PSS {
			good = rsa.VerifyPSS(key, h, q.Digest, signature, &rsa.PSSOptions{SaltLength: h.Size(), Hash: h}) == nil
		} else {
			good = rsa.VerifyPKCS1v15(key, h, q.Digest, signature) == nil
		}
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(key, q.Digest, signature)
	}
	if !good {
		return fault.New(fault.Unavailable, "token", "signed something else")
	}
	return nil
}

func (s *session) remove() (*pkcs11.Response, error) {
	if !s.made {
		return nil, fault.New(fault.Usage, "key", "was not made in this session")
	}
	if err := s.key.Delete(); err != nil {
		return nil, tokenError(err, "key")
	}
	s.key, s.made = nil, false
	return &pkcs11.Response{}, nil
}

// tokenError gives the library's error a reason.
func tokenError(err error, on string) error {
	var code native.Error
	if errors.As(err, &code) {
		switch code {
		case native.CKR_PIN_INCORRECT, native.CKR_PIN_INVALID, native.CKR_PIN_LEN_RANGE, native.CKR_PIN_EXPIRED, native.CKR_PIN_LOCKED, native.CKR_USER_PIN_NOT_INITIALIZED:
			return fault.Wrap(err, fault.AccessDenied, on, "does not take this PIN")
		}
	}
	if err.Error() == "could not find PKCS#11 token" {
		return fault.New(fault.NotFound, on, "is not there")
	}
	return fault.Wrap(err, fault.Unavailable, on, "the token's library fails")
}
