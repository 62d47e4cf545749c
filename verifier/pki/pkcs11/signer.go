package pkcs11

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/mentatlab/mentat/internal/fault"
)

// Options say how a token is reached. Program and PIN are required.
type Options struct {
	// Program is the path of mentat-pkcs11.
	Program string
	// PIN is asked for once.
	PIN func() ([]byte, error)
	// Bits, if not 0, makes an RSA key of that size under the name, which may not be
	// taken.
	Bits int
	// Curve, if not empty, makes one on that elliptic curve instead: P-256.
	Curve string
	// Stderr gets what the program and the library say besides.
	Stderr io.Writer
}

// Signer is a key in a token. It may be used by several goroutines; they take
// turns.
type Signer struct {
	name   string
	public crypto.PublicKey

	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

// Find is the program beside the running one, else on PATH. Reason of its error:
// [fault.NotFound].
func Find() (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), Program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", fault.New(fault.NotFound, Program, "is neither beside this program nor on PATH").WithHint("install it: keys in a token are reached by it")
	}
	return filepath.Abs(path)
}

// Open starts the program and opens the key. It runs until ctx or the signer is
// closed. Reasons: [fault.Usage] for a name, [fault.NotFound] for a token or key
// that is not there, [fault.Exists] for one that is to be made and is there,
// [fault.AccessDenied] for a PIN, [fault.Unavailable] for a program or library that
// fails.
func Open(ctx context.Context, name string, o Options) (*Signer, error) {
	n, err := Parse(name)
	if err != nil {
		return nil, err
	}
	pin, err := o.PIN()
	if err != nil {
		return nil, err
	}
	s := &Signer{name: name, cmd: exec.CommandContext(ctx, o.Program)}
	s.cmd.Stderr = o.Stderr
	for _, v := range os.Environ() {
		// Where the PIN came from, it may stand for itself.
		if _, value, _ := strings.Cut(v, "="); value != string(pin) {
			s.cmd.Env = append(s.cmd.Env, v)
		}
	}
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		s.in, err = s.cmd.StdinPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, o.Program, "cannot be started")
	}
	s.out = bufio.NewReaderSize(out, MaxLine)
	got, err := s.ask(&Request{Open: &n, PIN: string(pin), Generate: o.Bits, Curve: o.Curve})
	if err == nil {
		s.public, err = x509.ParsePKIXPublicKey(got.Public)
		if err != nil {
			err = fault.Wrap(err, fault.Unavailable, name, "its public key is malformed")
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Public is the key's public half.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign signs a digest in the token.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	q := &Request{Digest: digest, Hash: opts.HashFunc().String()}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != opts.HashFunc().Size() {
			return nil, fault.New(fault.Unsupported, s.name, "salts of %d bytes are not supported", pss.SaltLength)
		}
		q.PSS = true
	}
	if _, err := q.Options(); err != nil {
		return nil, err
	}
	got, err := s.ask(q)
	if err != nil {
		return nil, err
	}
	return got.Signature, nil
}

// Delete removes a key that Open made.
func (s *Signer) Delete() error {
	_, err := s.ask(&Request{Delete: true})
	return err
}

// Close ends the program.
func (s *Signer) Close() error {
	err := s.in.Close()
	if werr := s.cmd.Wait(); werr != nil {
		err = fault.Wrap(werr, fault.Unavailable, s.name, "its program failed")
	}
	return err
}

func (s *Signer) ask(q *Request) (*Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := json.Marshal(q)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, s.name, "cannot encode")
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, s.name, "its program is gone")
	}
	line, err = s.out.ReadSlice('\n')
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, s.name, "its program does not answer")
	}
	var got Response
	if err := json.Unmarshal(line, &got); err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, s.name, "its program answers with something else")
	}
	if got.Reason != "" || got.Message != "" {
		return nil, fault.New(known(got.Reason), s.name, "%s", got.Message)
	}
	return &got, nil
}

// known are the reasons that the program gives.
func known(r fault.Reason) fault.Reason {
	if slices.Contains([]fault.Reason{fault.Usage, fault.NotFound, fault.Exists, fault.AccessDenied, fault.Unsupported}, r) {
		return r
	}
	return fault.Unavailable
}
