package pki_test

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
)

// childInitEnv names the directory in which the test's own program makes a CA, until
// it is killed.
const childInitEnv = "TEST_PKI_INIT_CHILD"

// stuckKey is a key that is first asked for after the root's key is on disk, and then
// never answers.
type stuckKey struct{ crypto.Signer }

func (stuckKey) Public() crypto.PublicKey {
	fmt.Println("half made")
	select {}
}

func initChild(dir string) error {
	_, err := pki.Init(dir, pki.InitOptions{Now: now, UnencryptedRoot: true, AgentKey: stuckKey{}})
	return err
}

func TestWhatAKilledInitLeftIsRemovedByTheNext(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "ca")
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childInitEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(out, new(string), new(string)); err != nil {
		t.Fatal(err)
	}
	halves := func() []string {
		found, err := filepath.Glob(filepath.Join(parent, ".ca.init-*", pki.RootKey))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	left := halves()
	if len(left) != 1 {
		t.Fatalf("half made: %v", left)
	}
	// What others have by such names, or nearly, stays.
	for _, name := range []string{".ca.init-x", ".ca.2026", ".cab.init-1", "ca.init-1"} {
		if err := os.Mkdir(filepath.Join(parent, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(parent, ".ca.init-7"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(parent, ".ca.2026"), filepath.Join(parent, ".ca.init-8")); err != nil {
		t.Fatal(err)
	}
	o := pki.InitOptions{Now: now, RootKey: testpki.RSA(t, "root", 2048), AgentKey: brokenKey{testpki.RSA(t, "agent", 2048)}}
	// It fails in the end, and makes no CA in the other's place.
	if _, err := pki.Init(dir, o); err == nil {
		t.Fatal("made a CA with a broken key")
	}
	if now := halves(); len(now) != 1 || now[0] != left[0] {
		t.Errorf("removed what is at work: %v", now)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatal(err)
	}
	o.AgentKey = testpki.RSA(t, "agent", 2048)
	if _, err := pki.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), ".ca.2026 .ca.init-7 .ca.init-8 .ca.init-x .cab.init-1 ca ca.init-1"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
}
