package pkcs11_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki/pkcs11"
)

// helperEnv says how the test's own program behaves in mentat-pkcs11's place.
const helperEnv = "TEST_PKCS11"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		pretend(mode)
		return
	}
	os.Exit(m.Run())
}

// pretend answers as a broken program would.
func pretend(mode string) {
	var q pkcs11.Request
	if err := json.NewDecoder(os.Stdin).Decode(&q); err != nil {
		fmt.Println(err)
		return
	}
	if strings.Contains(strings.Join(append(os.Args, os.Environ()...), "\n"), q.PIN) {
		fmt.Println("the PIN is for all to see")
		return
	}
	switch mode {
	case "rubbish":
		fmt.Println("hello")
	case "long":
		fmt.Println(strings.Repeat("x", pkcs11.MaxLine+1))
	case "silent":
	case "no key":
		fmt.Println(`{"public":"AAAA"}`)
	case "another reason":
		fmt.Println(`{"reason":"revoked","message":"no"}`)
	case "pin":
		fmt.Println(`{"reason":"access-denied","message":"does not take this PIN"}`)
	case "gone":
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return
		}
		line, err := json.Marshal(pkcs11.Response{Public: der})
		if err != nil {
			return
		}
		fmt.Println(string(line))
	}
}

func open(t *testing.T, name string) (*pkcs11.Signer, error) {
	t.Helper()
	return pkcs11.Open(t.Context(), name, pkcs11.Options{Program: os.Args[0], PIN: func() ([]byte, error) { return []byte("pin-8421"), nil }})
}

func TestABrokenProgramIsAnError(t *testing.T) {
	for mode, want := range map[string]fault.Reason{
		"rubbish": fault.Unavailable, "long": fault.Unavailable, "silent": fault.Unavailable, "no key": fault.Unavailable,
		"another reason": fault.Unavailable, "pin": fault.AccessDenied,
	} {
		t.Setenv(helperEnv, mode)
		t.Setenv("MENTAT_PASSPHRASE", "pin-8421")
		if s, err := open(t, "pkcs11:token=a;object=b"); s != nil || fault.ReasonOf(err) != want {
			t.Errorf("%s: %v", mode, err)
		}
	}
	t.Setenv(helperEnv, "gone")
	s, err := open(t, "pkcs11:token=a;object=b")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	if _, err := s.Sign(rand.Reader, sum[:], crypto.SHA256); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("a program that is gone: %v", err)
	}
	if _, err := s.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}); fault.ReasonOf(err) != fault.Unsupported {
		t.Errorf("an odd salt: %v", err)
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA384} {
		if _, err := s.Sign(rand.Reader, sum[:], h); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s of another length: %v", h, err)
		}
	}
	if _, err := pkcs11.Open(t.Context(), "pkcs11:token=a;object=b", pkcs11.Options{Program: "/does/not/exist", PIN: func() ([]byte, error) { return nil, nil }}); fault.ReasonOf(err) != fault.Unavailable {
		t.Error(err)
	}
}

func TestNamesAreReadStrictly(t *testing.T) {
	for in, want := range map[string]pkcs11.Name{
		"pkcs11:token=a;object=b":                              {Token: "a", Object: "b"},
		"pkcs11:object=my%20key;token=x?module-path=/lib/p.so": {Token: "x", Object: "my key", Module: "/lib/p.so"},
	} {
		if got, err := pkcs11.Parse(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "pkcs11:", "pkcs11:token=a", "pkcs11:object=b", "pkcs11:token=a;object=", "pkcs11:token=a;token=a;object=b", "pkcs11:token=a;object=b;id=%01",
		"pkcs11:token=a;object=b?pin-value=1234", "pkcs11:token=a;object=b;pin-value=1234", "pkcs11:token=a;object=b?pin-source=/x",
		"pkcs11:token=a;object=b?module-path=lib.so", "pkcs11:token=a;object=b?module-path=/a&module-path=/b", "pkcs11:token=%zz;object=b",
		"pkcs11:token=a%00;object=b", "pkcs11:token=a;x=y;pin-value=1234", "pkcs11:token=a;object=b?", "file:x", "pkcs11:token=a;object=" + strings.Repeat("b", 2000),
	} {
		if got, err := pkcs11.Parse(in); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
		if strings.Contains(in, "1234") {
			if _, err := pkcs11.Parse(in); strings.Contains(err.Error(), "1234") {
				t.Errorf("the PIN is repeated: %v", err)
			}
		}
	}
}

func FuzzANameHasATokenAndAnObject(f *testing.F) {
	for _, s := range []string{"pkcs11:token=a;object=b", "pkcs11:object=my%20key;token=x?module-path=/lib/p.so", "pkcs11:token=a;object=b?pin-value=1", "pkcs11:token=%;object=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := pkcs11.Parse(s)
		if err == nil && (n.Token == "" || n.Object == "" || !pkcs11.Is(s)) || err != nil && fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%q: %+v, %v", s, n, err)
		}
	})
}
