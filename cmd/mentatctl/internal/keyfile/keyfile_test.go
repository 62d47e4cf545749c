package keyfile

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

func TestAKeyIsFoundAmongItsCertificates(t *testing.T) {
	p := testpki.New(t)
	key := testpki.KeyPEM(t, p.LeafKey)
	chain := testpki.PEM(p.Chain()...)
	for name, c := range map[string]struct {
		text   []byte
		certs  int
		reason fault.Reason
	}{
		"key alone":         {key, 0, ""},
		"key, then chain":   {append(bytes.Clone(key), chain...), 2, ""},
		"chain, then key":   {append(bytes.Clone(chain), key...), 2, ""},
		"words around them": {append([]byte("Bag Attributes\n"), key...), 0, ""},
		"two keys":          {append(bytes.Clone(key), key...), 0, fault.Usage},
		"no key":            {chain, 0, fault.Usage},
		"nothing":           {nil, 0, fault.Usage},
		"another PEM":       {[]byte("-----BEGIN THING-----\nAAAA\n-----END THING-----\n"), 0, fault.Usage},
	} {
		got, certs, err := Parse("name", c.text, nil)
		if fault.ReasonOf(err) != c.reason || len(certs) != c.certs || (got == nil) != (c.reason != "") {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "name: ") {
			t.Errorf("%s: the error does not name its subject: %v", name, err)
		}
	}
}

func TestAKeyOfSomebodyElseIsRefused(t *testing.T) {
	p := testpki.New(t)
	if err := Match("x", p.LeafKey, p.Chain()); err != nil {
		t.Error(err)
	}
	if err := Match("x", p.AgentKey, p.Chain()); fault.ReasonOf(err) != fault.SignatureInvalid {
		t.Errorf("got %v", err)
	}
}

func TestAFileThatIsTooLargeIsNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, make([]byte, maxBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, "key"); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("got %v", err)
	}
	if _, err := Read(path+".none", "key"); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestAnOpenKeyFileIsNoticed(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // there are no such modes
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if Exposed(path) {
		t.Error("0600 is not open")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if !Exposed(path) {
		t.Error("0640 is open")
	}
}

func TestOnlyTheUsersOwnKeyIsVouchedFor(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no modes there")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "signing.key")
	if err := os.WriteFile(path, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := ReadOwn(path); err != nil || string(data) != "key" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := ReadOwn(dir); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("a directory: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadOwn(path); fault.ReasonOf(err) != fault.Exists {
			t.Errorf("another user's: %v", err)
		}
		if err := os.Chown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadOwn(path); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("a group's: %v", err)
	}
}
