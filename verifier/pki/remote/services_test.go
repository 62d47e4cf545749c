package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notaryproject/tspclient-go"
	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/pki"
)

// addServices gives the CA a time stamp authority whose key is on disk.
func addServices(tb testing.TB, ca *pki.CA) {
	tb.Helper()
	key := testpki.RSA(tb, "time", 2048)
	if err := ca.AddServices(pki.ServiceOptions{Now: time.Now().Add(-time.Hour), RootKey: testpki.RSA(tb, "time root", 2048), Key: key}); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ca.Dir(), pki.TimeKey), testpki.KeyPEM(tb, key), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func startServices(tb testing.TB) *running {
	tb.Helper()
	return startWith(tb, func(ca *pki.CA) { addServices(tb, ca) })
}

// send posts a body and returns the answer.
func send(tb testing.TB, address, kind string, body []byte) (status int, gotKind string, data []byte) {
	tb.Helper()
	resp, err := http.Post(address, kind, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), data
}

func stampRequest(tb testing.TB) []byte {
	tb.Helper()
	q, err := tspclient.NewRequest(tspclient.RequestOptions{Content: []byte("a signature"), HashAlgorithm: crypto.SHA256})
	if err != nil {
		tb.Fatal(err)
	}
	der, err := q.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func certFile(tb testing.TB, name string, certs ...*x509.Certificate) string {
	tb.Helper()
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: certPEM, Bytes: c.Raw}))
	}
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func openssl(tb testing.TB, args ...string) string {
	tb.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		tb.Skip("openssl is not here: install it (make testdeps)")
	}
	out, err := exec.CommandContext(tb.Context(), program, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestOpenSSLAcceptsOurTimeStamps(t *testing.T) {
	r := startServices(t)
	dir := t.TempDir()
	data, query, reply := filepath.Join(dir, "data"), filepath.Join(dir, "query"), filepath.Join(dir, "reply")
	if err := os.WriteFile(data, []byte("what is stamped"), 0o600); err != nil {
		t.Fatal(err)
	}
	roots := certFile(t, "root.pem", r.ca.TimeRoot())
	for _, hash := range []string{"-sha256", "-sha384", "-sha512"} {
		for _, cert := range []bool{true, false} {
			args := []string{"ts", "-query", "-data", data, hash, "-out", query}
			verify := []string{"ts", "-verify", "-queryfile", query, "-in", reply, "-CAfile", roots}
			if cert {
				args = append(args, "-cert")
			} else {
				verify = append(verify, "-untrusted", certFile(t, "tsa.pem", r.ca.Time()))
			}
			openssl(t, args...)
			q, err := os.ReadFile(query)
			if err != nil {
				t.Fatal(err)
			}
			status, kind, der := send(t, r.lists+stampPath, stampQuery, q)
			if status != http.StatusOK || kind != stampReply {
				t.Fatalf("%d, %s: %s", status, kind, der)
			}
			if err := os.WriteFile(reply, der, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := openssl(t, verify...); !strings.Contains(out, "Verification: OK") {
				t.Errorf("%s: %s", hash, out)
			}
		}
	}
	text := openssl(t, "ts", "-reply", "-in", reply, "-text")
	for _, want := range []string{"Status: Granted", "Policy OID: " + pki.DefaultTimePolicy, "Accuracy: 0x01 seconds", "Ordering: no"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if !strings.Contains(r.log.String(), "msg=stamped address=127.0.0.1:") {
		t.Errorf("log: %s", r.log.String())
	}
}

func TestOpenSSLAcceptsOurOCSPAnswers(t *testing.T) {
	r := startServices(t)
	chain := r.enrolled(t, "dev@example.com")
	issuer, leaf := certFile(t, "agent.pem", r.ca.Agent()), certFile(t, "leaf.pem", chain[0])
	roots := certFile(t, "roots.pem", r.ca.Root(), r.ca.Agent())
	ask := func(hash string) string {
		t.Helper()
		return openssl(t, "ocsp", "-issuer", issuer, hash, "-cert", leaf, "-url", r.lists+ocspPath, "-CAfile", roots, "-no_nonce")
	}
	for _, hash := range []string{"-sha1", "-sha256"} {
		if out := ask(hash); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "leaf.pem: good") {
			t.Error(out)
		}
	}
	if err := r.ca.Revoke(chain[0].SerialNumber, pki.KeyCompromise, time.Now()); err != nil {
		t.Fatal(err)
	}
	if out := ask("-sha1"); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "leaf.pem: revoked") || !strings.Contains(out, "keyCompromise") {
		t.Error(out)
	}
}

// enrolled is a new developer's chain.
func (r *running) enrolled(t *testing.T, email string) []*x509.Certificate {
	t.Helper()
	key := ecKey(t)
	csr, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := r.ca.IssueLeaf(csr, pki.LeafOptions{Email: email, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func TestOurOwnClientsBelieveTheServices(t *testing.T) {
	r := startServices(t)
	chain := r.enrolled(t, "dev@example.com")
	token, stamp, err := fetch.TimeStamp(t.Context(), nil, r.lists+stampPath, []byte("a signature"), pool(r.ca.TimeRoot()))
	if err != nil || len(token) == 0 || time.Since(stamp.Time) > time.Minute {
		t.Errorf("stamp %+v, %v", stamp, err)
	}
	if _, _, err := fetch.TimeStamp(t.Context(), nil, r.lists+stampPath, []byte("a signature"), pool(r.ca.Root())); fault.ReasonOf(err) != fault.ChainUntrusted {
		t.Errorf("believed by the signers' root: %v", err)
	}
	query, err := ocsp.CreateRequest(chain[0], r.ca.Agent(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// By POST and by GET, whatever base64 does to the address: the answer is the same.
	_, kind, byPost := send(t, r.lists+ocspPath, ocspRequest, query)
	if _, err := verifier.ReadOCSP(byPost, chain[0], r.ca.Agent(), time.Now()); err != nil || kind != ocspResponse {
		t.Errorf("%s, %v", kind, err)
	}
	b64 := base64.StdEncoding.EncodeToString(query)
	for _, text := range []string{b64, url.PathEscape(b64), strings.ReplaceAll(b64, "/", "%2F"), url.QueryEscape(b64)} {
		resp, err := http.Get(r.lists + ocspPath + "/" + text)
		if err != nil {
			t.Fatal(err)
		}
		der, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifier.ReadOCSP(der, chain[0], r.ca.Agent(), time.Now()); err != nil || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v, %v", text, err, resp.Header)
		}
	}
	// Over TLS, too.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13}}}
	resp, err := client.Post(r.url+stampPath, stampQuery, bytes.NewReader(stampRequest(t)))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()
}

func TestTheServicesAreBounded(t *testing.T) {
	r := startServices(t)
	large := make([]byte, limits.PKIQueryBytes+1)
	for name, c := range map[string]struct {
		path, kind string
		body       []byte
		want       int
	}{
		"no type":    {stampPath, "", stampRequest(t), http.StatusBadRequest},
		"other type": {stampPath, ocspRequest, stampRequest(t), http.StatusBadRequest},
		"large":      {stampPath, stampQuery, large, http.StatusBadRequest},
		"large OCSP": {ocspPath, ocspRequest, large, http.StatusBadRequest},
		"elsewhere":  {"/v1/enrol", stampQuery, stampRequest(t), http.StatusNotFound},
	} {
		if status, kind, data := send(t, r.lists+c.path, c.kind, c.body); status != c.want || kind != jsonType {
			t.Errorf("%s: %d, %s %s", name, status, kind, data)
		}
	}
	for _, path := range []string{stampPath, ocspPath, ocspPath + "/!", ocspPath + "/" + strings.Repeat("A", 2*limits.PKIQueryBytes)} {
		resp, err := http.Get(r.lists + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("GET %.20s: %s", path, resp.Status)
		}
	}
	// What is refused by the protocol is answered by the protocol.
	if status, kind, _ := send(t, r.lists+stampPath, stampQuery, []byte("noise")); status != http.StatusOK || kind != stampReply {
		t.Errorf("%d, %s", status, kind)
	}
	refusedAt := -1
	for i := range 2*limits.PKIQueryBurst + 1 {
		if status, _, _ := send(t, r.lists+ocspPath, ocspRequest, []byte("noise")); status == http.StatusTooManyRequests {
			refusedAt = i
			break
		}
	}
	if refusedAt < 0 {
		t.Error("an address asks as often as it likes")
	}
}

func TestACAWithoutServicesAnswersNoQueries(t *testing.T) {
	r := start(t)
	for path, kind := range map[string]string{stampPath: stampQuery, ocspPath: ocspRequest} {
		if status, _, data := send(t, r.lists+path, kind, stampRequest(t)); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, data)
		}
	}
}

func TestARevokedResponderIsReplaced(t *testing.T) {
	r := startServices(t)
	leaf := r.enrolled(t, "dev@example.com")[0]
	query, err := ocsp.CreateRequest(leaf, r.ca.Agent(), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := func() (*ocsp.Response, error) {
		_, _, der := send(t, r.lists+ocspPath, ocspRequest, query)
		return ocsp.ParseResponseForCert(der, leaf, r.ca.Agent())
	}
	first, err := answer()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ca.Revoke(first.Certificate.SerialNumber, pki.KeyCompromise, time.Now()); err != nil {
		t.Fatal(err)
	}
	if a, err := answer(); err == nil {
		t.Errorf("a revoked responder says %+v", a)
	}
	second, err := answer()
	if err != nil || second.Certificate.Equal(first.Certificate) {
		t.Errorf("%+v, %v", second, err)
	}
	// Before its certificate ends, there is another.
	r.shift.Store(int64(5 * 24 * time.Hour))
	third, err := answer()
	if err != nil || third.Certificate.Equal(second.Certificate) {
		t.Errorf("%+v, %v", third, err)
	}
}

// Tokens of servers that are killed at any moment: none repeats a serial number.
func TestATimeStampServerThatIsKilledRepeatsNoSerial(t *testing.T) {
	ca := newCA(t, "http://pki.example/crl")
	addServices(t, ca)
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+ca.Dir(), childListsEnv+"=1")
		var stderr safeBuffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		address, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatalf("the server does not start: %v %s", err, stderr.String())
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					token, _, err := fetch.TimeStamp(ctx, nil, "http://"+strings.TrimSpace(address)+stampPath, []byte("x"), pool(ca.TimeRoot()))
					if err != nil {
						continue // it is gone
					}
					serial, err := serialOf(token)
					mu.Lock()
					if err != nil || seen[serial] {
						t.Errorf("serial %s again: %v", serial, err)
					}
					seen[serial] = true
					mu.Unlock()
				}
			})
		}
		time.Sleep(rand.N(250 * time.Millisecond)) // any moment will do
		cmd.Process.Kill()
		cmd.Wait()
		cancel()
		wg.Wait()
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
	t.Logf("%d tokens", len(seen))
}

func serialOf(token []byte) (string, error) {
	signed, err := tspclient.ParseSignedToken(token)
	if err != nil {
		return "", err
	}
	info, err := signed.Info()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", info.SerialNumber), nil
}
