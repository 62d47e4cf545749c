package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// maxSecret bounds a password or passphrase.
const maxSecret = 4096

// passphraseFlags say where a key's passphrase comes from.
type passphraseFlags struct{ env string }

func (f *passphraseFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.env, "passphrase-env", passphraseEnv, "the environment `VARIABLE` with the key's passphrase; without it the terminal is asked")
}

// passphrase returns the passphrase of an existing key.
func (a *app) passphrase(ctx context.Context, f *passphraseFlags, what string) ([]byte, error) {
	if v, ok := os.LookupEnv(f.env); ok && v != "" {
		return []byte(v), nil
	}
	if !display.IsTerminal(a.stdin) {
		return nil, fault.New(fault.AccessDenied, "", "%s is not set and there is no terminal to ask", f.env)
	}
	return a.ask(ctx, fmt.Sprintf("passphrase of %s: ", what))
}

// newPassphrase returns the passphrase for a key that is about to be made; nil
// for a key that shall not be encrypted.
func (a *app) newPassphrase(ctx context.Context, f *passphraseFlags, what string) ([]byte, error) {
	return a.choosePassphrase(ctx, f, what, " (empty: not encrypted)")
}

// rootPassphrase is newPassphrase for a root's key, which is encrypted unless that is
// refused by name.
func (a *app) rootPassphrase(ctx context.Context, f *passphraseFlags, what string, unencrypted bool, token string) ([]byte, error) {
	if unencrypted {
		if os.Getenv(f.env) != "" {
			return nil, fault.New(fault.Usage, "", "--%s and %s exclude each other", unencryptedRootFlag, f.env)
		}
		return nil, nil
	}
	secret, err := a.choosePassphrase(ctx, f, what, "")
	if err == nil && len(secret) == 0 {
		err = fault.New(fault.Usage, what, "there is no passphrase to encrypt it with, and a root's key is not written without").
			WithHint("set %s, or run it on a terminal; or make the key in a token with --%s; or ask for an open file by name: --%s", f.env, token, unencryptedRootFlag)
	}
	return secret, err
}

func (a *app) choosePassphrase(ctx context.Context, f *passphraseFlags, what, empty string) ([]byte, error) {
	if v, ok := os.LookupEnv(f.env); ok && v != "" {
		return []byte(v), nil
	}
	if !display.IsTerminal(a.stdin) {
		return nil, nil
	}
	first, err := a.ask(ctx, fmt.Sprintf("new passphrase of %s%s: ", what, empty))
	if err != nil || len(first) == 0 {
		return nil, err
	}
	second, err := a.ask(ctx, "once more: ")
	if err == nil && !bytes.Equal(first, second) {
		err = fault.New(fault.Usage, what, "the two passphrases differ")
	}
	return first, err
}

// ask reads a line from the terminal without echo.
func (a *app) ask(ctx context.Context, prompt string) ([]byte, error) {
	file, ok := a.stdin.(*os.File)
	if !ok {
		return nil, fault.New(fault.Internal, "stdin", "is not a terminal")
	}
	fd := int(file.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "stdin", "cannot use the terminal")
	}
	fmt.Fprint(a.stderr, "mentatctl: "+fault.OneLine(prompt))
	defer fmt.Fprintln(a.stderr)
	type answer struct {
		secret []byte
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		secret, err := term.ReadPassword(fd)
		answered <- answer{secret, err}
	}()
	select {
	case got := <-answered:
		if got.err != nil {
			return nil, fault.Wrap(got.err, fault.Canceled, "", "nothing was entered")
		}
		return got.secret, nil
	case <-ctx.Done():
		// The read goes on until the process ends; the echo comes back now.
		return nil, fault.Wrap(errors.Join(context.Cause(ctx), term.Restore(fd, before)), fault.Canceled, "", "nothing was entered")
	}
}

// readSecret reads a secret from stdin; a line break at its end is not part of it.
func (a *app) readSecret(what string) (string, error) {
	return secretFrom(a.stdin, "stdin", what)
}

func secretFrom(r io.Reader, name, what string) (string, error) {
	data, err := limits.Read(r, maxSecret)
	if err != nil {
		return "", fault.Wrap(err, fault.Usage, name, "cannot read the %s", what)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	switch {
	case secret == "":
		return "", fault.New(fault.Usage, name, "holds no %s", what)
	case strings.ContainsAny(secret, "\r\n"):
		return "", fault.New(fault.Usage, name, "the %s has more than one line", what)
	}
	return secret, nil
}

// secretFile reads a secret from a file, or a pipe.
func secretFile(path, what string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, path, "there is no such file with the %s", what)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.AccessDenied, path, "cannot read the %s", what)
	}
	defer f.Close()
	secret, err := secretFrom(f, path, what)
	return []byte(secret), err
}
