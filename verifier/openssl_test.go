package verifier

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/testpki"
)

// TestChainsGetTheVerdictOfOpenSSL asks both about the same chains at the same time.
// This openssl may have no purpose of signing code, so that a wrong usage is where we
// alone refuse; nowhere may we accept what it refuses.
func TestChainsGetTheVerdictOfOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not here: install it (make testdeps)")
	}
	for _, c := range []struct {
		name       string
		knob       testpki.Knob
		ours, them bool
	}{
		{"good", func(*testpki.Recipe) {}, true, true},
		{"leaf expired", testpki.LeafExpired, false, false},
		{"leaf not yet valid", testpki.LeafNotYetValid, false, false},
		{"agent CA expired", testpki.AgentExpired, false, false},
		{"root expired", testpki.RootExpired, false, false},
		{"unknown critical extension", testpki.LeafCritical, false, false},
		{"leaf for TLS", testpki.LeafForTLS, false, true},
		{"leaf without usage", testpki.LeafWithoutUsage, false, true},
		{"agent CA for TLS", testpki.AgentForTLS, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := testpki.New(t, c.knob)
			vd := newNode(p).verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))})
			dir := t.TempDir()
			file := func(name string) string { return filepath.Join(dir, name) }
			if err := errors.Join(
				os.WriteFile(file("root"), testpki.PEM(p.Root), 0o600),
				os.WriteFile(file("agent"), testpki.PEM(p.Agent), 0o600),
				os.WriteFile(file("leaf"), testpki.PEM(p.Leaf), 0o600),
			); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), openssl, "verify", "-attime", strconv.FormatInt(testpki.Now.Unix(), 10), "-purpose", "any",
				"-no-CApath", "-no-CAstore", "-CAfile", file("root"), "-untrusted", file("agent"), file("leaf")).CombinedOutput()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || !strings.Contains(string(out), "verification failed")) {
				t.Fatalf("openssl gave no verdict: %v\n%s", err, out)
			}
			if them := err == nil; vd.Allowed != c.ours || them != c.them || vd.Allowed && !them {
				t.Errorf("ours: %s\nopenssl's: %s", vd.Line(), out)
			}
		})
	}
}
