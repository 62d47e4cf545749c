package testnet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// CA is a certificate authority.
type CA struct {
	// File is its certificate as PEM.
	File string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority that nobody else trusts.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	ca := &CA{File: filepath.Join(tb.TempDir(), "ca.pem"), cert: cert, key: key}
	if err := os.WriteFile(ca.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return ca
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Certificate is one for a server of these names and addresses, valid until the
// given time.
func (ca *CA) Certificate(tb testing.TB, until time.Time, names ...string) tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Server is a server on loopback.
type Server struct {
	*httptest.Server
	// Port is where it listens on 127.0.0.1.
	Port string
}

// At is the server's URL under a name, with a path.
func (s *Server) At(name, path string) string {
	u, err := url.Parse(s.URL)
	if err != nil {
		panic(err) // httptest made it
	}
	return u.Scheme + "://" + name + ":" + s.Port + path
}

func wrap(tb testing.TB, s *httptest.Server) *Server {
	tb.Helper()
	tb.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	return &Server{Server: s, Port: port}
}

// Plain serves HTTP.
func Plain(tb testing.TB, h http.Handler) *Server {
	tb.Helper()
	return wrap(tb, httptest.NewServer(h))
}

// Secure serves HTTPS, HTTP/2 included, under names; edit may change the server
// before it starts.
func (ca *CA) Secure(tb testing.TB, h http.Handler, edit func(*httptest.Server), names ...string) *Server {
	tb.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Certificate(tb, time.Now().Add(time.Hour), names...)}, MinVersion: tls.VersionTLS12}
	// Failed handshakes are what some tests are about.
	s.Config.ErrorLog = nil
	if edit != nil {
		edit(s)
	}
	s.StartTLS()
	return wrap(tb, s)
}

// Resolver answers from a table: for each name, one answer after the other, and
// the last one from then on. It knows no other names.
type Resolver struct {
	mu    sync.Mutex
	names map[string][][]netip.Addr
	asked map[string]int
}

// NewResolver knows nothing yet.
func NewResolver() *Resolver {
	return &Resolver{names: map[string][][]netip.Addr{}, asked: map[string]int{}}
}

// Set gives a name its answers; each holds addresses, separated by spaces.
func (r *Resolver) Set(name string, answers ...string) *Resolver {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = nil
	for _, answer := range answers {
		var list []netip.Addr
		for _, a := range strings.Fields(answer) {
			list = append(list, netip.MustParseAddr(a))
		}
		r.names[name] = append(r.names[name], list)
	}
	return r
}

// Asked counts the questions for a name.
func (r *Resolver) Asked(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[name]
}

// LookupNetIP answers the next question.
func (r *Resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := strings.TrimSuffix(host, ".")
	answers := r.names[name]
	n := r.asked[name]
	r.asked[name]++
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return answers[min(n, len(answers)-1)], nil
}

// KeyDER is a certificate's private key in PKCS #8.
func KeyDER(c tls.Certificate) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(c.PrivateKey) }
