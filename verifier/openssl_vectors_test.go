package verifier

import (
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/testpki"
)

// weAlone are the vectors whose chains openssl accepts and we do not, and why. There is
// no list of the other way round: we accept nothing that openssl refuses.
var weAlone = map[string]string{
	"wrong-usage-none":            "openssl has no purpose of signing code; we want it by name",
	"wrong-usage-tls":             "the same",
	"wrong-usage-too-much":        "for code alone: the same key on a server could be made to sign",
	"wrong-key-usage":             "the key usage must allow signatures; without a purpose openssl does not ask",
	"leaf-is-ca":                  "an authority signs certificates, not agents",
	"signed-by-agent-ca-itself":   "the same",
	"issuer-for-tls-only":         "usages of an issuer narrow what it may issue",
	"weak-key":                    "1024 bits are too few; openssl's default level lets them by",
	"weak-agent-ca-key":           "the same",
	"weak-curve":                  "P-256 and P-384 are the curves of the profile",
	"certificate-beside-the-path": "the chain is the path and nothing else",
	"issuer-twice":                "the same",
}

// TestTheChainsOfAllVectorsGetTheVerdictOfOpenSSL holds every chain that a vector
// carries to openssl's verdict at the same time and with the same root.
func TestTheChainsOfAllVectorsGetTheVerdictOfOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not here: install it (make testdeps)")
	}
	root := testpki.New(t).Root
	roots := x509.NewCertPool()
	roots.AddCert(root)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("root"), testpki.PEM(root), 0o600); err != nil {
		t.Fatal(err)
	}
	seen, differ := map[string]bool{}, map[string]bool{}
	for _, vec := range vectors {
		att, err := ReadAttestation(vec.raw(t))
		if err != nil || seen[strings.Join(att.CertificateChain, "")] {
			continue
		}
		seen[strings.Join(att.CertificateChain, "")] = true
		_, ours := verifyChain(att.Chain, roots, testpki.Now, nil)
		err = errors.Join(
			os.WriteFile(file("leaf"), testpki.PEM(att.Chain[0]), 0o600),
			os.WriteFile(file("rest"), testpki.PEM(att.Chain[1:]...), 0o600),
		)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"verify", "-attime", strconv.FormatInt(testpki.Now.Unix(), 10), "-purpose", "any", "-no-CApath", "-no-CAstore", "-CAfile", file("root")}
		if len(att.Chain) > 1 {
			args = append(args, "-untrusted", file("rest"))
		}
		out, err := exec.CommandContext(t.Context(), openssl, append(args, file("leaf"))...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || !strings.Contains(string(out), "verification failed")) {
			t.Fatalf("%s: openssl gave no verdict: %v\n%s", vec.name, err, out)
		}
		theirs := err == nil
		switch {
		case ours == nil && !theirs:
			t.Errorf("%s: we accept what openssl refuses: %s", vec.name, out)
		case ours != nil && theirs:
			differ[vec.name] = true
			if weAlone[vec.name] == "" {
				t.Errorf("%s: openssl accepts it, we say %v, and nothing says why", vec.name, ours)
			}
		}
	}
	for name := range weAlone {
		if !differ[name] {
			t.Errorf("%s: the verdicts are the same, and the table says otherwise", name)
		}
	}
	if len(seen) < 25 {
		t.Errorf("only %d chains were compared", len(seen))
	}
}
