package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// softHSM is where Debian puts the library of its token in software.
var softHSM = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

func softHSMLibrary() string {
	for _, path := range softHSM {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func haveSoftHSM(t *testing.T) bool {
	if _, err := exec.LookPath("softhsm2-util"); err != nil || softHSMLibrary() == "" {
		t.Log("no key is made in a token: install softhsm2 (make testdeps)")
		return false
	}
	return true
}

// initSoftHSM is `softhsm TOKEN PIN`: a token with nothing in it, and the program
// that reaches it.
func initSoftHSM(t *testing.T) func(*testscript.TestScript, bool, []string) {
	program := sync.OnceValues(func() (string, error) { return buildHost(t.TempDir(), "mentat-pkcs11", "../mentat-pkcs11") })
	return func(ts *testscript.TestScript, _ bool, args []string) {
		path, err := program()
		ts.Check(err)
		dir := ts.MkAbs("tokens")
		ts.Check(os.MkdirAll(dir, 0o700))
		config := filepath.Join(dir, "softhsm2.conf")
		ts.Check(os.WriteFile(config, []byte(fmt.Sprintf("directories.tokendir = %s\nlog.level = ERROR\n", dir)), 0o600))
		ts.Setenv("SOFTHSM2_CONF", config)
		ts.Setenv("MENTAT_PKCS11", path)
		ts.Setenv("MENTAT_PKCS11_MODULE", softHSMLibrary())
		ts.Check(ts.Exec("softhsm2-util", "--init-token", "--free", "--label", args[0], "--pin", args[1], "--so-pin", "0000"))
	}
}
