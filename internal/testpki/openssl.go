package testpki

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
)

const tsaConfig = `[tsa]
dir = %[1]s
serial = $dir/serial
signer_cert = $dir/tsa.pem
certs = $dir/root.pem
signer_key = $dir/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
`

// Serve answers time stamp requests with openssl's authority, by t's keys and the
// system's clock. The test is skipped where there is no openssl.
func (t *TSA) Serve() (url string) {
	t.tb.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.tb.Skip("openssl is not here: install it (make testdeps)")
	}
	dir := t.tb.TempDir()
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.tb.Fatal(err)
		}
	}
	put("tsa.pem", PEM(t.Cert))
	put("root.pem", PEM(t.Root))
	put("tsa.key", KeyPEM(t.tb, t.Key))
	put("serial", []byte("01\n"))
	put("tsa.cnf", fmt.Appendf(nil, tsaConfig, dir))
	var turn = make(chan struct{}, 1) // the serial number's file is one
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn <- struct{}{}
		defer func() { <-turn }()
		query, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "query"), query, 0o600)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		cmd := exec.CommandContext(r.Context(), openssl, "ts", "-reply", "-config", filepath.Join(dir, "tsa.cnf"), "-section", "tsa", "-queryfile", filepath.Join(dir, "query"))
		reply, err := cmd.Output()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/timestamp-reply")
		_, _ = w.Write(reply) // a client that went away is its own matter
	}))
	t.tb.Cleanup(srv.Close)
	return srv.URL
}
