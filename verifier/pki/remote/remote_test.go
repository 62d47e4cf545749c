package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
)

const patience = time.Minute

// newCA makes a CA that exists since an hour ago, with its agent's key on disk.
func newCA(tb testing.TB, crlURL string) *pki.CA {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "ca")
	agent := testpki.RSA(tb, "agent", 2048)
	ca, err := pki.Init(dir, pki.InitOptions{Now: time.Now().Add(-time.Hour), CRLURL: crlURL, RootKey: testpki.RSA(tb, "root", 2048), AgentKey: agent})
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, pki.AgentKey), testpki.KeyPEM(tb, agent), 0o600); err != nil {
		tb.Fatal(err)
	}
	return ca
}

// running is a server under test.
type running struct {
	tb         testing.TB
	ca         *pki.CA
	url, lists string
	metrics    string       // its address
	shift      atomic.Int64 // of the server's clock
	log        *safeBuffer
	stop       func() error
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (r *running) now() time.Time { return time.Now().Add(time.Duration(r.shift.Load())) }

func start(tb testing.TB) *running {
	tb.Helper()
	return startWith(tb, func(*pki.CA) {})
}

// startWith is start with a CA that was prepared.
func startWith(tb testing.TB, prepare func(*pki.CA)) *running {
	tb.Helper()
	r := &running{tb: tb, ca: newCA(tb, "http://pki.example/crl"), log: &safeBuffer{}}
	prepare(r.ca)
	ctx, cancel := context.WithCancel(tb.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- Serve(ctx, ServerOptions{
			CA: r.ca, Listen: "127.0.0.1:0", ListsListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", Names: []string{"127.0.0.1"}, Clock: r.now,
			Log: slog.New(slog.NewTextHandler(r.log, nil)),
			Ready: func(at Addresses) {
				r.url, r.lists, r.metrics = "https://"+at.Server, "http://"+at.Lists, "http://"+at.Metrics
				close(ready)
			},
		})
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("the server does not end")
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		tb.Fatalf("the server ended: %v", err)
	}
	tb.Cleanup(func() {
		if err := r.stop(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

func (r *running) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Root())
	return pool
}

func (r *running) token(email string) string {
	r.tb.Helper()
	secret, _, err := r.ca.NewToken(email, 0, r.now())
	if err != nil {
		r.tb.Fatal(err)
	}
	return secret
}

// issued counts the developers' certificates.
func (r *running) issued() int {
	r.tb.Helper()
	all, err := r.ca.Issued()
	if err != nil {
		r.tb.Fatal(err)
	}
	n := 0
	for _, c := range all {
		if c.Email != "" {
			n++
		}
	}
	return n
}

func (r *running) client(chain []*x509.Certificate, key crypto.Signer) *Client {
	r.tb.Helper()
	c, err := NewClient(ClientOptions{URL: r.url, Roots: r.roots(), Chain: chain, Key: key})
	if err != nil {
		r.tb.Fatal(err)
	}
	return c
}

func (r *running) enrol(key crypto.Signer, email string) []*x509.Certificate {
	r.tb.Helper()
	chain, err := r.client(nil, nil).Enrol(r.tb.Context(), key, r.token(email), pki.LeafOptions{Email: email, Now: time.Now()})
	if err != nil {
		r.tb.Fatal(err)
	}
	return chain
}

func ecKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func TestADeveloperEnrolsAndRenews(t *testing.T) {
	r := start(t)
	for name, key := range map[string]crypto.Signer{"RSA": testpki.RSA(t, "leaf", 2048), "ECDSA": ecKey(t)} {
		t.Run(name, func(t *testing.T) {
			chain := r.enrol(key, "dev@example.com")
			c := r.client(chain, key)
			renewed, err := c.Renew(t.Context(), key, pki.LeafOptions{Email: "dev@example.com", Now: time.Now(), Validity: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			fresh := ecKey(t)
			if other, err := c.Renew(t.Context(), fresh, pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}); err != nil || !other[0].PublicKey.(*ecdsa.PublicKey).Equal(fresh.Public()) {
				t.Errorf("with a new key: %v", err)
			}
			for _, leaf := range []*x509.Certificate{chain[0], renewed[0]} {
				if leaf.Subject.String() != "CN=dev@example.com,O=MentatLab,C=US" || !slices.Equal(leaf.EmailAddresses, []string{"dev@example.com"}) ||
					leaf.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}) ||
					leaf.IsCA || !slices.Equal(leaf.CRLDistributionPoints, []string{"http://pki.example/crl/agent.crl"}) {
					t.Errorf("%+v", leaf)
				}
			}
			if d := time.Until(chain[0].NotAfter); d < 364*24*time.Hour || d > 367*24*time.Hour {
				t.Errorf("it counts for %s", d)
			}
			if d := time.Until(renewed[0].NotAfter); d > time.Hour {
				t.Errorf("the renewed one counts for %s", d)
			}
		})
	}
	if log := r.log.String(); !strings.Contains(log, "dev@example.com") || strings.Contains(log, "mentat-enrol-") {
		t.Errorf("the log: %s", log)
	}
}

// post sends a body as it is.
func (r *running) post(path, kind string, body []byte, cert *tls.Certificate) (int, refusal) {
	r.tb.Helper()
	config := &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13, Time: r.now}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	q, err := http.NewRequestWithContext(r.tb.Context(), http.MethodPost, r.url+path, bytes.NewReader(body))
	if err != nil {
		r.tb.Fatal(err)
	}
	q.Header.Set("Content-Type", kind)
	got, err := (&http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}).Do(q)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer got.Body.Close()
	data, err := io.ReadAll(got.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	var f refusal
	if err := json.Unmarshal(data, &f); err != nil {
		r.tb.Fatalf("%q: %v", data, err)
	}
	return got.StatusCode, f
}

func csrPEM(tb testing.TB, key crypto.Signer, template *x509.CertificateRequest) string {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: requestPEM, Bytes: der}))
}

// unproven is a request for a key that nobody has: its signature is rubbish.
func unproven(tb testing.TB, public crypto.PublicKey) string {
	tb.Helper()
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		tb.Fatal(err)
	}
	return unprovenSPKI(tb, spki)
}

func unprovenSPKI(tb testing.TB, spki []byte) string {
	tb.Helper()
	type info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes asn1.RawValue `asn1:"tag:0"`
	}
	sha256WithRSA := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		info{0, asn1.RawValue{FullBytes: []byte{0x30, 0}}, asn1.RawValue{FullBytes: spki}, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true}},
		sha256WithRSA, asn1.BitString{Bytes: make([]byte, 256), BitLength: 2048},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: requestPEM, Bytes: der}))
}

func rsaOf(bits uint, e int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: e}
}

func body(tb testing.TB, csr, token string) []byte {
	tb.Helper()
	data, err := json.Marshal(request{CSR: csr, Token: token, Email: "dev@example.com"})
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestHostileRequestsAreRefusedAndSpendNothing(t *testing.T) {
	r := start(t)
	r.shift.Store(0)
	token := r.token("dev@example.com")
	key := ecKey(t)
	good := csrPEM(t, key, &x509.CertificateRequest{})
	wrong := func(csr string) []byte { return body(t, csr, token) }
	broken := func() string {
		block, _ := pem.Decode([]byte(good))
		block.Bytes[len(block.Bytes)-3] ^= 1
		return string(pem.EncodeToMemory(block))
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range 3000 {
		names = append(names, fmt.Sprintf("host%d.example.com", i))
	}
	for i, c := range []struct {
		name, path, kind string
		body             []byte
		status           int
		reason           fault.Reason
		says             string
	}{
		{"nothing", enrolPath, jsonType, nil, 400, fault.Usage, "JSON"},
		{"no JSON", enrolPath, jsonType, []byte("hello"), 400, fault.Usage, "JSON"},
		{"another type", enrolPath, "text/plain", body(t, good, token), 400, fault.Usage, "type"},
		{"an unknown member", enrolPath, jsonType, []byte(`{"csr":"","ca":true}`), 400, fault.Usage, "ca"},
		{"a member twice", enrolPath, jsonType, []byte(`{"csr":"a","csr":"b"}`), 400, fault.Usage, "csr"},
		{"a member in capitals", enrolPath, jsonType, []byte(`{"CSR":"a"}`), 400, fault.Usage, "CSR"},
		{"an oversized body", enrolPath, jsonType, bytes.Repeat([]byte(" "), limits.PKIRequestBytes+1), 400, fault.Usage, "over the limit"},
		{"no PEM", enrolPath, jsonType, wrong("csr"), 400, fault.Usage, "PEM"},
		{"two requests", enrolPath, jsonType, wrong(good + good), 400, fault.Usage, "one PEM block"},
		{"a certificate", enrolPath, jsonType, wrong(string(testpki.PEM(r.ca.Root()))), 400, fault.Usage, "PEM"},
		{"rubbish in PEM", enrolPath, jsonType, wrong(string(pem.EncodeToMemory(&pem.Block{Type: requestPEM, Bytes: []byte("x")}))), 400, fault.Usage, "malformed"},
		{"another's signature", enrolPath, jsonType, wrong(broken()), 400, fault.SignatureInvalid, "possession"},
		{"a key that nobody has", enrolPath, jsonType, wrong(unproven(t, rsaOf(2048, 65537))), 400, fault.SignatureInvalid, "possession"},
		{"a small key", enrolPath, jsonType, wrong(csrPEM(t, testpki.RSA(t, "weak", 1024), &x509.CertificateRequest{})), 400, fault.Usage, "1024 bits"},
		{"a large key", enrolPath, jsonType, wrong(unproven(t, rsaOf(8192, 65537))), 400, fault.Usage, "8192 bits"},
		{"a huge key", enrolPath, jsonType, wrong(unproven(t, rsaOf(60_000, 65537))), 400, fault.Usage, "60000 bits"},
		{"a small exponent", enrolPath, jsonType, wrong(unproven(t, rsaOf(2048, 3))), 400, fault.Usage, "exponent 3"},
		{"a curve that is too small", enrolPath, jsonType, wrong(csrPEM(t, testpki.EC(t, "weak", elliptic.P224()), &x509.CertificateRequest{})), 400, fault.Usage, "curve"},
		{"a curve that is too large", enrolPath, jsonType, wrong(csrPEM(t, testpki.EC(t, "large", elliptic.P521()), &x509.CertificateRequest{})), 400, fault.Usage, "curve"},
		{"another kind of key", enrolPath, jsonType, wrong(csrPEM(t, ed, &x509.CertificateRequest{})), 400, fault.Usage, "ed25519"},
		{"too many names", enrolPath, jsonType, wrong(csrPEM(t, key, &x509.CertificateRequest{DNSNames: names})), 400, fault.Usage, "over"},
		{"no token", enrolPath, jsonType, body(t, good, ""), 401, fault.AccessDenied, "token"},
		{"another token", enrolPath, jsonType, body(t, good, token+"x"), 401, fault.AccessDenied, "none of this CA"},
		{"another address", enrolPath, jsonType, []byte(strings.Replace(string(body(t, good, token)), "dev@", "ceo@", 1)), 401, fault.AccessDenied, "another address"},
		{"a long validity", enrolPath, jsonType, []byte(strings.Replace(string(body(t, good, token)), `"token"`, `"validity_seconds":99999999,"token"`, 1)), 400, fault.Usage, "year"},
		{"a negative validity", enrolPath, jsonType, []byte(strings.Replace(string(body(t, good, token)), `"token"`, `"validity_seconds":-1,"token"`, 1)), 400, fault.Usage, "between"},
		{"a renewal by nobody", renewPath, jsonType, []byte(strings.Replace(string(body(t, good, "")), `,"email":"dev@example.com"`, "", 1)), 401, fault.AccessDenied, "certificate"},
		{"a renewal by token", renewPath, jsonType, body(t, good, token), 400, fault.Usage, "neither token"},
		{"nothing there", "/v1/issue", jsonType, body(t, good, token), 404, fault.NotFound, "nothing"},
		{"a list that is posted", listsPath + "agent.crl", jsonType, nil, 404, fault.NotFound, "nothing"},
	} {
		// Each is asked a minute later, so that the rate is not what refuses it.
		r.shift.Store(int64(i) * int64(time.Minute))
		status, f := r.post(c.path, c.kind, c.body, nil)
		if status != c.status || f.Reason != c.reason || !strings.Contains(f.Message, c.says) || strings.Contains(f.Message, r.ca.Dir()) {
			t.Errorf("%s: %d %+v", c.name, status, f)
		}
	}
	if n := r.issued(); n != 0 {
		t.Errorf("%d certificates were issued", n)
	}
	// What is only odd is ignored, and the token was not spent.
	odd := csrPEM(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "MentatLab Root CA"}, EmailAddresses: []string{"ceo@example.com"}, DNSNames: names[:200],
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	})
	chain, err := r.client(nil, nil).ask(t.Context(), enrolPath, request{CSR: odd, Token: token, Email: "dev@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if leaf := chain[0]; leaf.IsCA || len(leaf.DNSNames) != 0 || !slices.Equal(leaf.EmailAddresses, []string{"dev@example.com"}) || leaf.Subject.CommonName != "dev@example.com" {
		t.Errorf("%+v", leaf)
	}
}

// The server does not read it to its end: it hangs up.
func TestAHugeRequestIsNotRead(t *testing.T) {
	r := start(t)
	c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", enrolPath, 1<<40)
	sent := 0
	for block := make([]byte, limits.KiB); sent < 64*limits.MiB; sent += len(block) {
		if _, err := c.Write(block); err != nil {
			break
		}
	}
	if sent >= 64*limits.MiB {
		t.Error("it takes whatever comes")
	}
}

func TestATokenServesOnce(t *testing.T) {
	r := start(t)
	token := r.token("dev@example.com")
	c := r.client(nil, nil)
	o := pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}
	first, second := ecKey(t), ecKey(t)
	chain, err := c.Enrol(t.Context(), first, token, o)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Enrol(t.Context(), first, token, o); err != nil || !again[0].Equal(chain[0]) {
		t.Errorf("the same key: %v", err)
	}
	if _, err := c.Enrol(t.Context(), second, token, o); fault.ReasonOf(err) != fault.AccessDenied || !strings.Contains(err.Error(), "used already") {
		t.Errorf("another key: %v", err)
	}
	r.shift.Store(int64(25 * time.Hour))
	stale, _, err := r.ca.NewToken("dev@example.com", 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enrol(t.Context(), second, stale, o); fault.ReasonOf(err) != fault.AccessDenied || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("a stale one: %v", err)
	}
	if n := r.issued(); n != 1 {
		t.Errorf("%d were issued", n)
	}
}

func TestOnlyAGoodClientCertificateRenews(t *testing.T) {
	r := start(t)
	key := testpki.RSA(t, "leaf", 2048)
	good, lost := r.enrol(key, "dev@example.com"), r.enrol(key, "lost@example.com")
	other := newCA(t, "http://pki.example/crl") // the same names, other certificates
	foreign, err := other.IssueLeaf(mustRequest(t, key), pki.LeafOptions{Email: "dev@example.com", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	server, err := r.ca.IssueServer([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	self := testpki.Issue(t, good[0], good[0], key.Public(), key)
	// Revoked by another process while the server runs.
	beside, err := pki.Open(r.ca.Dir(), pki.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := beside.Revoke(lost[0].SerialNumber, pki.Superseded, time.Now()); err != nil {
		t.Fatal(err)
	}
	before := r.issued()
	body := []byte(fmt.Sprintf(`{"csr":%q}`, csrPEM(t, key, &x509.CertificateRequest{})))
	for _, c := range []struct {
		name   string
		cert   *tls.Certificate
		shift  time.Duration
		status int
		want   fault.Reason
	}{
		{"revoked", pair(key, lost...), 0, 403, fault.Revoked},
		{"expired", pair(key, good...), 367 * 24 * time.Hour, 403, fault.OutsideValidity},
		{"not yet valid", pair(key, good...), -30 * time.Minute, 403, fault.OutsideValidity},
		{"a server's", server, 0, 403, fault.IdentityUntrusted},
		{"signed by itself", pair(key, self), 0, 403, fault.IdentityUntrusted},
		// The agent CA's key is the same in the two CAs: it is one that this CA might
		// have made, and did not.
		{"unknown to the database", pair(key, foreign...), 0, 403, fault.IdentityUntrusted},
	} {
		r.shift.Store(int64(c.shift))
		if status, f := r.post(renewPath, jsonType, body, c.cert); status != c.status || f.Reason != c.want {
			t.Errorf("%s: %d %+v", c.name, status, f)
		}
	}
	r.shift.Store(0)
	if n := r.issued(); n != before {
		t.Errorf("%d were issued", n-before)
	}
	if _, err := r.client(good, key).Renew(t.Context(), key, pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}); err != nil {
		t.Error(err)
	}
	// Whoever has the certificate and not its key ends in the handshake.
	if _, err := r.client(good, ecKey(t)).Renew(t.Context(), key, pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("without its key: %v", err)
	}
}

func mustRequest(tb testing.TB, key crypto.Signer) *x509.CertificateRequest {
	tb.Helper()
	csr, err := pki.NewRequest(key)
	if err != nil {
		tb.Fatal(err)
	}
	return csr
}

func pair(key crypto.Signer, chain ...*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: key}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

func TestWhoAsksTooOftenIsRefused(t *testing.T) {
	r := start(t)
	refused := 0
	for range limits.PKIAddressBurst + 10 {
		if status, f := r.post(enrolPath, jsonType, []byte("{}"), nil); status == 429 && f.Reason == fault.ResourceLimit {
			refused++
		}
	}
	if refused == 0 {
		t.Error("an address is never refused")
	}
	r.shift.Store(int64(time.Hour))
	key := ecKey(t)
	chain := r.enrol(key, "dev@example.com")
	c := r.client(chain, key)
	for i := range limits.PKIRenewals + 1 {
		r.shift.Add(int64(time.Minute))
		_, err := c.Renew(t.Context(), key, pki.LeafOptions{Email: "dev@example.com", Now: time.Now()})
		if want := map[bool]fault.Reason{true: fault.ResourceLimit}[i == limits.PKIRenewals]; fault.ReasonOf(err) != want {
			t.Errorf("renewal %d: %v", i+1, err)
		}
	}
}

func TestManyClientsGetEachTheirOwn(t *testing.T) {
	r := start(t)
	const addresses, each = 10, 4
	serials := make(chan string, addresses*each)
	var wg sync.WaitGroup
	for i := range addresses * each {
		email := fmt.Sprintf("dev%d@example.com", i)
		token, key := r.token(email), ecKey(t)
		wg.Go(func() {
			c := r.client(nil, nil)
			from(c, fmt.Sprintf("127.0.1.%d", 1+i%addresses))
			chain, err := c.Enrol(t.Context(), key, token, pki.LeafOptions{Email: email, Now: time.Now()})
			if err != nil {
				t.Error(err)
				return
			}
			serials <- chain[0].SerialNumber.Text(16)
		})
	}
	wg.Wait()
	close(serials)
	seen := map[string]bool{}
	for s := range serials {
		seen[s] = true
	}
	if len(seen) != addresses*each || r.issued() != addresses*each {
		t.Errorf("%d serials, %d issued", len(seen), r.issued())
	}
	if _, err := r.ca.CheckLog(""); err != nil {
		t.Error(err)
	}
}

// from gives a client another address of this machine.
func from(c *Client, address string) {
	transport, ok := c.http.Transport.(*http.Transport)
	if ok {
		transport.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
	}
}

func TestSlowClientsAreHungUpOnAndKeepNobodyOut(t *testing.T) {
	r := start(t)
	address := strings.TrimPrefix(r.url, "https://")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	var conns []net.Conn
	for range limits.PKIAddressConnections + 5 {
		c, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	// The first speaks TLS, and then sends its request a byte at a time.
	slow := tls.Client(conns[0], &tls.Config{RootCAs: r.roots(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})
	if err := slow.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Write([]byte("POST " + enrolPath + " HTTP/1.1\r\nHost: a\r\nContent-Le")); err != nil {
		t.Fatal(err)
	}
	r.enrol(ecKey(t), "dev@example.com")
	for i, c := range conns {
		var from io.Reader = c
		if i == 0 {
			from = slow
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, from); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is kept", i)
		}
	}
}

func TestARevocationIsPublishedAtOnce(t *testing.T) {
	r := start(t)
	key := ecKey(t)
	chain := r.enrol(key, "dev@example.com")
	before, tag := r.list(r.lists, "")
	beside, err := pki.Open(r.ca.Dir(), pki.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := beside.RevokeSince(chain[0].SerialNumber, pki.KeyCompromise, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	after, _ := r.list(r.lists, tag)
	if after == nil || after.Number.Cmp(before.Number) <= 0 || len(after.RevokedCertificateEntries) != 1 || after.RevokedCertificateEntries[0].SerialNumber.Cmp(chain[0].SerialNumber) != 0 {
		t.Fatalf("%+v", after)
	}
	secure, tag := r.list(r.url, "")
	if secure.Number.Cmp(after.Number) != 0 {
		t.Errorf("list %s over TLS, %s without", secure.Number, after.Number)
	}
	if l, _ := r.list(r.url, tag); l != nil {
		t.Error("a list that did not change was sent again")
	}
	// Nothing else is served without TLS, and nothing else of the directory.
	for _, url := range []string{r.lists + enrolPath, r.lists + healthPath, r.lists + "/crl/", r.lists + "/crl/../ca.db", r.url + "/crl/..%2fca.db", r.url + "/crl/agent-ca.key", r.url + "/ca.db"} {
		if status, _ := r.get(url, ""); status < 400 && status != http.StatusMovedPermanently && status != http.StatusTemporaryRedirect {
			t.Errorf("%s: %d", url, status)
		}
	}
	if status, _ := r.get(r.url+healthPath, ""); status != 200 {
		t.Errorf("health: %d", status)
	}
}

func (r *running) get(url, tag string) (int, []byte) {
	status, data, _ := r.fetch(url, tag)
	return status, data
}

func (r *running) fetch(url, tag string) (int, []byte, string) {
	r.tb.Helper()
	q, err := http.NewRequestWithContext(r.tb.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		r.tb.Fatal(err)
	}
	if tag != "" {
		q.Header.Set("If-None-Match", tag)
	}
	client := &http.Client{
		Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	got, err := client.Do(q)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer got.Body.Close()
	data, err := io.ReadAll(got.Body)
	if err != nil {
		r.tb.Fatal(err)
	}
	return got.StatusCode, data, got.Header.Get("ETag")
}

// list fetches the agent CA's list; nil if it is the one with the tag.
func (r *running) list(base, tag string) (*x509.RevocationList, string) {
	r.tb.Helper()
	status, data, now := r.fetch(base+listsPath+"agent.crl", tag)
	if status == http.StatusNotModified {
		return nil, tag
	}
	l, err := x509.ParseRevocationList(data)
	if status != 200 || err != nil {
		r.tb.Fatalf("%d %v", status, err)
	}
	if err := l.CheckSignatureFrom(r.ca.Agent()); err != nil {
		r.tb.Fatal(err)
	}
	return l, now
}

func TestAServerRefusesToStart(t *testing.T) {
	encrypted := func(t *testing.T) *pki.CA {
		dir := filepath.Join(t.TempDir(), "ca")
		if _, err := pki.Init(dir, pki.InitOptions{Now: time.Now(), CRLURL: "http://pki.example/crl", RootKey: testpki.RSA(t, "root", 2048), AgentPassphrase: []byte("secret")}); err != nil {
			t.Fatal(err)
		}
		ca, err := pki.Open(dir, pki.OpenOptions{AgentPassphrase: func() ([]byte, error) { return []byte("wrong"), nil }})
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		ca     func(*testing.T) *pki.CA
		listen string
		names  []string
		want   fault.Reason
	}{
		"without lists":          {func(t *testing.T) *pki.CA { return newCA(t, "") }, "127.0.0.1:0", []string{"127.0.0.1"}, fault.Usage},
		"without its passphrase": {encrypted, "127.0.0.1:0", []string{"127.0.0.1"}, fault.AccessDenied},
		"without a name":         {func(t *testing.T) *pki.CA { return newCA(t, "http://a/b") }, "127.0.0.1:0", nil, fault.Usage},
		"on an address in use":   {func(t *testing.T) *pki.CA { return newCA(t, "http://a/b") }, taken.Addr().String(), []string{"127.0.0.1"}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			err := Serve(t.Context(), ServerOptions{CA: c.ca(t), Listen: c.listen, Names: c.names, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
				Ready: func(Addresses) { t.Error("it answers") }})
			if fault.ReasonOf(err) != c.want {
				t.Error(err)
			}
		})
	}
}

func TestTheRootsListIsWarnedOfOnceADay(t *testing.T) {
	ca := newCA(t, "http://pki.example/crl")
	log := &safeBuffer{}
	now := time.Now()
	s, err := newServer(ServerOptions{CA: ca, Names: []string{"127.0.0.1"}, Clock: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		after time.Duration
		warns int
	}{{0, 0}, {149, 0}, {151, 1}, {151, 1}, {152, 2}, {400, 3}} {
		now = time.Now().Add(c.after * 24 * time.Hour)
		if err := s.refresh(); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "root's revocation list ends"); n != c.warns {
			t.Errorf("%d: %d warnings after %d days", i, n, c.after)
		}
	}
}

func TestAServersOwnFailureIsNotTold(t *testing.T) {
	r := start(t)
	token := r.token("dev@example.com")
	if err := os.WriteFile(filepath.Join(r.ca.Dir(), "ca.db"), bytes.Repeat([]byte("x"), 1<<15), 0o600); err != nil {
		t.Fatal(err)
	}
	status, f := r.post(enrolPath, jsonType, body(t, csrPEM(t, ecKey(t), &x509.CertificateRequest{}), token), nil)
	if status != 500 || f.Reason != fault.Internal || strings.Contains(f.Message, r.ca.Dir()) {
		t.Errorf("%d %+v", status, f)
	}
	if !strings.Contains(r.log.String(), "database is damaged") {
		t.Error("the log does not say it")
	}
	if err := os.Remove(filepath.Join(r.ca.Dir(), "ca.db")); err != nil {
		t.Fatal(err)
	}
	if status, f := r.post(enrolPath, jsonType, body(t, csrPEM(t, ecKey(t), &x509.CertificateRequest{}), token), nil); status != 500 || strings.Contains(f.Message, r.ca.Dir()) {
		t.Errorf("%d %+v", status, f)
	}
}

func TestAServerMakesItsCertificateAnewInTime(t *testing.T) {
	r := start(t)
	serial := func() string {
		c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13, Time: r.now})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Text(16)
	}
	first := serial()
	r.shift.Store(int64(3 * 24 * time.Hour))
	if serial() != first {
		t.Error("it was made anew early")
	}
	r.shift.Store(int64(30 * 24 * time.Hour))
	if serial() == first {
		t.Error("it was not made anew")
	}
}

func TestAServerThatEndsFinishesItsRequests(t *testing.T) {
	r := start(t)
	key := ecKey(t)
	payload := body(t, csrPEM(t, key, &x509.CertificateRequest{}), r.token("dev@example.com"))
	c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", enrolPath, len(payload))
	answer := bufio.NewReader(c)
	// It reads the body: the request is being served.
	if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("%q %v", line, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	if _, err := answer.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(payload); err != nil {
		t.Fatal(err)
	}
	got, err := http.ReadResponse(answer, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if got.StatusCode != 200 || r.issued() != 1 {
		t.Errorf("%d, %d issued", got.StatusCode, r.issued())
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAClientTakesOnlyWhatItAskedFor(t *testing.T) {
	ca := newCA(t, "http://pki.example/crl")
	key := testpki.RSA(t, "leaf", 2048)
	issue := func(key crypto.Signer, email string, edit func(*x509.Certificate)) string {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(5), EmailAddresses: []string{email}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
		if edit != nil {
			edit(leaf)
		}
		return encodeChain([]*x509.Certificate{testpki.Issue(t, leaf, ca.Agent(), key.Public(), testpki.RSA(t, "agent", 2048)), ca.Agent()})
	}
	good := issue(key, "dev@example.com", nil)
	chain := func(text string) []byte {
		data, err := json.Marshal(answer{Chain: text})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, c := range []struct {
		name   string
		status int
		body   []byte
		want   fault.Reason
	}{
		{"what was asked for", 200, chain(good), ""},
		{"another key", 200, chain(issue(ecKey(t), "dev@example.com", nil)), fault.Unavailable},
		{"another address", 200, chain(issue(key, "ceo@example.com", nil)), fault.Unavailable},
		{"another name in the domain", 200, chain(issue(key, "Dev@example.com", nil)), fault.Unavailable},
		{"a domain in capitals", 200, chain(issue(key, "dev@EXAMPLE.com", nil)), ""},
		{"a CA", 200, chain(issue(key, "dev@example.com", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })), fault.Unavailable},
		{"another purpose", 200, chain(issue(key, "dev@example.com", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), fault.Unavailable},
		{"an ended one", 200, chain(issue(key, "dev@example.com", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), fault.Unavailable},
		{"no chain", 200, chain(strings.Replace(good, encodeChain([]*x509.Certificate{ca.Agent()}), encodeChain([]*x509.Certificate{ca.Root()}), 1)), fault.Unavailable},
		{"a leaf alone", 200, chain(strings.TrimSuffix(good, encodeChain([]*x509.Certificate{ca.Agent()}))), fault.Unavailable},
		{"too long a chain", 200, chain(good + strings.Repeat(encodeChain([]*x509.Certificate{ca.Agent()}), 9)), fault.Unavailable},
		{"rubbish", 200, []byte("<html>"), fault.Unavailable},
		{"much", 200, bytes.Repeat([]byte(" "), limits.PKIAnswerBytes+1), fault.Unavailable},
		{"nothing", 200, nil, fault.Unavailable},
		{"another place", 307, nil, fault.Unavailable},
		{"a page", 502, []byte("<html>"), fault.Unavailable},
		{"a refusal", 401, []byte(`{"reason":"access-denied","message":"no"}`), fault.AccessDenied},
		{"a refusal by a reason that is not a server's", 403, []byte(`{"reason":"trap","message":"no"}`), fault.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					t.Error("it went elsewhere")
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				w.Write(c.body)
			}))
			defer s.Close()
			pool := x509.NewCertPool()
			pool.AddCert(s.Certificate())
			client, err := NewClient(ClientOptions{URL: s.URL, Roots: pool})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Enrol(t.Context(), key, "token", pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}); fault.ReasonOf(err) != c.want {
				t.Error(err)
			}
		})
	}
}

func TestAClientTalksToItsServerOnly(t *testing.T) {
	r := start(t)
	c, err := NewClient(ClientOptions{URL: r.url})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enrol(t.Context(), ecKey(t), r.token("dev@example.com"), pki.LeafOptions{Email: "dev@example.com", Now: time.Now()}); fault.ReasonOf(err) != fault.Unavailable || r.issued() != 0 {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
	for _, url := range []string{"", "http://ca.example.com", "ca.example.com", "https://", "https://u:p@ca.example.com", "https://ca.example.com/?a", "https://ca.example.com/#a"} {
		if _, err := NewClient(ClientOptions{URL: url}); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestCallersAreForgottenOnlyWhoseAllowanceIsWhole(t *testing.T) {
	now := time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)
	r := newCallers(2, time.Minute, 2)
	r.most = 3
	for i, c := range []struct {
		caller string
		after  time.Duration
		want   bool
	}{
		{"a", 0, true}, {"a", 0, true}, {"a", 0, false}, {"a", -time.Hour, false}, {"a", 29 * time.Second, false}, {"a", 31 * time.Second, true},
		{"b", 31 * time.Second, true}, {"c", 31 * time.Second, true}, {"d", 31 * time.Second, false}, {"d", 62 * time.Second, true}, {"e", 62 * time.Second, true}, {"f", 62 * time.Second, false},
	} {
		if got := r.allow(c.caller, now.Add(c.after)); got != c.want {
			t.Errorf("%d: %s is allowed: %v", i, c.caller, got)
		}
	}
	for in, want := range map[string]string{"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[2001:db8::1]:80": "2001:db8::/64", "[fe80::1%eth0]:80": "fe80::/64", "pipe": "pipe"} {
		if got := callerOf(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func FuzzARequestIsRefusedOrProvesItsKey(f *testing.F) {
	key := testpki.RSA(f, "leaf", 2048)
	good := csrPEM(f, key, &x509.CertificateRequest{})
	f.Add(body(f, good, "t"))
	f.Add(body(f, csrPEM(f, testpki.EC(f, "leaf", elliptic.P256()), &x509.CertificateRequest{DNSNames: []string{"a"}}), "t"))
	f.Add(body(f, unproven(f, rsaOf(2048, 65537)), "t"))
	f.Add([]byte(`{"csr":"a","csr":"b"}`))
	f.Add([]byte(`{"validity_seconds":1e9}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, csr, err := parseRequest(data)
		if err != nil {
			if r := fault.ReasonOf(err); r != fault.Usage && r != fault.SignatureInvalid {
				t.Errorf("%v", err)
			}
			return
		}
		if q.ValiditySeconds < 0 || csr.CheckSignature() != nil {
			t.Errorf("%q was taken", data)
		}
	})
}
