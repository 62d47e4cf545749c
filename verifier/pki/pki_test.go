package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/pki"
)

var now = testpki.Now

// quick makes a CA without spending time on keys. Its key files are written by
// the test where one needs them.
func quick(t *testing.T, o pki.InitOptions) *pki.CA {
	t.Helper()
	o.Now, o.RootKey, o.AgentKey = now, testpki.RSA(t, "root", 2048), testpki.RSA(t, "agent", 2048)
	ca, err := pki.Init(filepath.Join(t.TempDir(), "ca"), o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func keys(t *testing.T) pki.OpenOptions {
	return pki.OpenOptions{RootKey: testpki.RSA(t, "root", 2048), AgentKey: testpki.RSA(t, "agent", 2048)}
}

func request(t *testing.T, ca *pki.CA, email string) []*x509.Certificate {
	t.Helper()
	dir := t.TempDir()
	chain, err := ca.RequestCert(pki.CertRequest{
		LeafOptions: pki.LeafOptions{Email: email, Now: now},
		CertFile:    filepath.Join(dir, "signing.crt"), Key: testpki.RSA(t, "leaf", 2048),
	})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func crl(t *testing.T, ca *pki.CA, file string, issuer *x509.Certificate) *x509.RevocationList {
	t.Helper()
	list, err := x509.ParseRevocationList(readFile(t, filepath.Join(ca.Dir(), file)))
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		t.Fatal(err)
	}
	return list
}

// The one test that spends the time on keys of real size.
func TestInitFollowsTheSpecification(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "ca")
	ca, err := pki.Init(dir, pki.InitOptions{Passphrase: []byte("correct horse"), CRLURL: "http://pki.example/crl/", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	root, agent := ca.Root(), ca.Agent()
	for _, c := range []struct {
		cert    *x509.Certificate
		subject string
		bits    int
		until   time.Time
		pathLen int
	}{
		{root, "CN=MentatLab Root CA,O=MentatLab,C=US", 4096, now.AddDate(10, 0, 0), 1},
		{agent, "CN=MentatLab Agent CA,O=MentatLab,C=US", 3072, now.AddDate(5, 0, 0), 0},
	} {
		if c.cert.Subject.String() != c.subject || c.cert.PublicKey.(*rsa.PublicKey).N.BitLen() != c.bits ||
			!c.cert.NotAfter.Equal(c.until) || c.cert.MaxPathLen != c.pathLen || !c.cert.IsCA ||
			c.cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(c.cert.ExtKeyUsage) != 0 ||
			c.cert.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: %d bits, until %s, path length %d", c.cert.Subject, c.cert.PublicKey.(*rsa.PublicKey).N.BitLen(), c.cert.NotAfter, c.cert.MaxPathLen)
		}
	}
	if len(root.CRLDistributionPoints) != 0 || agent.CRLDistributionPoints[0] != "http://pki.example/crl/root.crl" {
		t.Errorf("distribution points %v, %v", root.CRLDistributionPoints, agent.CRLDistributionPoints)
	}
	for file, mode := range map[string]fs.FileMode{
		pki.RootKey: 0o600, pki.AgentKey: 0o600, pki.RootCert: 0o644, pki.AgentCert: 0o644, pki.RootCRL: 0o644, pki.AgentCRL: 0o644, "ca.db": 0o600,
	} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the CA: %v, %v", entries, err)
	}
	if w := ca.Warnings(); len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
	if list := crl(t, ca, pki.RootCRL, root); list.Number.Int64() != 1 || list.NextUpdate.Sub(now) < 100*24*time.Hour {
		t.Errorf("root list %s until %s", list.Number, list.NextUpdate)
	}
	if list := crl(t, ca, pki.AgentCRL, agent); list.Number.Int64() != 1 || list.NextUpdate.Sub(now) != 24*time.Hour {
		t.Errorf("agent list %s until %s", list.Number, list.NextUpdate)
	}

	// Opened anew, with key files.
	asked := 0
	ca, err = pki.Open(dir, pki.OpenOptions{Passphrase: func() ([]byte, error) { asked++; return []byte("correct horse"), nil }})
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	r := pki.CertRequest{LeafOptions: pki.LeafOptions{Email: "dev@Example.COM", Now: now}, CertFile: filepath.Join(home, ".mentat", "signing.crt"), KeyFile: filepath.Join(home, ".mentat", "signing.key")}
	chain, err := ca.RequestCert(r)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if len(chain) != 2 || leaf.Subject.String() != "CN=dev@example.com,O=MentatLab,C=US" || leaf.PublicKey.(*rsa.PublicKey).N.BitLen() != 2048 ||
		!leaf.NotAfter.Equal(now.AddDate(1, 0, 0)) || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning ||
		len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != "dev@example.com" || leaf.CRLDistributionPoints[0] != "http://pki.example/crl/agent.crl" {
		t.Errorf("leaf %+v", leaf)
	}
	if asked != 0 {
		t.Error("asked for the root's passphrase to issue a leaf")
	}
	if info, err := os.Stat(r.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	key, err := pki.ParseKey(r.KeyFile, readFile(t, r.KeyFile), nil)
	if err != nil || !leaf.PublicKey.(*rsa.PublicKey).Equal(key.Public()) {
		t.Errorf("key: %v", err)
	}
	if fromFile, err := verifier.ParseChain(r.CertFile, readFile(t, r.CertFile)); err != nil || len(fromFile) != 2 {
		t.Errorf("%d certificates, %v", len(fromFile), err)
	}
	before := readFile(t, r.KeyFile)
	if _, err := ca.RequestCert(r); fault.ReasonOf(err) != fault.Exists || !bytes.Equal(before, readFile(t, r.KeyFile)) {
		t.Errorf("overwritten: %v", err)
	}
	if err := ca.RenewRootCRL(now); err != nil || asked != 1 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	wrong, err := pki.Open(dir, pki.OpenOptions{Passphrase: func() ([]byte, error) { return []byte("wrong"), nil }})
	if err != nil {
		t.Fatal(err)
	}
	for _, ca := range []*pki.CA{wrong, mustOpen(t, dir, pki.OpenOptions{})} {
		if err := ca.RenewRootCRL(now); fault.ReasonOf(err) != fault.AccessDenied {
			t.Errorf("%v", err)
		}
	}
	if openssl, err := exec.LookPath("openssl"); err == nil {
		for _, args := range [][]string{
			{"pkey", "-in", filepath.Join(dir, pki.RootKey), "-passin", "pass:correct horse", "-noout"},
			{"verify", "-attime", "1768473000", "-purpose", "any", "-crl_check_all", "-CAfile", filepath.Join(dir, pki.RootCert), "-CRLfile", pemCRL(t, dir, pki.RootCRL), "-CRLfile", pemCRL(t, dir, pki.AgentCRL), "-untrusted", filepath.Join(dir, pki.AgentCert), r.CertFile},
		} {
			if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
				t.Errorf("openssl %v: %v\n%s", args, err, out)
			}
		}
	} else {
		t.Log("openssl is not here: its opinion was not asked")
	}
}

func pemCRL(t *testing.T, dir, file string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: readFile(t, filepath.Join(dir, file))}), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func mustOpen(t *testing.T, dir string, o pki.OpenOptions) *pki.CA {
	t.Helper()
	ca, err := pki.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestInitRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, "x")
	for name, c := range map[string]struct {
		dir  string
		edit func(*pki.InitOptions)
		want fault.Reason
	}{
		"a directory in use": {full, nil, fault.Exists},
		"a file":             {file, nil, fault.Exists},
		"below a file":       {filepath.Join(file, "ca"), nil, fault.Exists},
		"a long name":        {"", func(o *pki.InitOptions) { o.Org = strings.Repeat("x", 60) }, fault.Usage},
		"a name of lines":    {"", func(o *pki.InitOptions) { o.Org = "a\nb" }, fault.Usage},
		"a country":          {"", func(o *pki.InitOptions) { o.Country = "usa" }, fault.Usage},
		"a list address":     {"", func(o *pki.InitOptions) { o.CRLURL = "ldap://x/y" }, fault.Usage},
		"a query":            {"", func(o *pki.InitOptions) { o.CRLURL = "http://x/y?z" }, fault.Usage},
		"a list's life":      {"", func(o *pki.InitOptions) { o.AgentCRLLife = -time.Hour }, fault.Usage},
		"no clock":           {"", func(o *pki.InitOptions) { o.Now = time.Time{} }, fault.Internal},
		"an open root":       {"", func(o *pki.InitOptions) { o.RootKey = nil }, fault.Usage},
		"an open time root":  {"", func(o *pki.InitOptions) { o.Services = &pki.ServiceOptions{Now: now} }, fault.Usage},
		"a broken key":       {"", func(o *pki.InitOptions) { o.AgentKey = brokenKey{o.AgentKey} }, fault.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := c.dir
			if dir == "" {
				dir = filepath.Join(parent, "ca")
			}
			o := pki.InitOptions{Now: now, RootKey: testpki.RSA(t, "root", 2048), AgentKey: testpki.RSA(t, "agent", 2048)}
			if c.edit != nil {
				c.edit(&o)
			}
			if ca, err := pki.Init(dir, o); ca != nil || fault.ReasonOf(err) != c.want {
				t.Errorf("got %v (%s)", err, fault.ReasonOf(err))
			}
			if left, _ := os.ReadDir(parent); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

type brokenKey struct{ crypto.Signer }

func (brokenKey) Public() crypto.PublicKey { return nil }

func TestAnEmptyDirectoryMayBeUsed(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.InitOptions{Now: now, RootKey: testpki.RSA(t, "root", 2048), AgentKey: testpki.RSA(t, "agent", 2048)}); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir, keys(t))
}

func TestOpenRefuses(t *testing.T) {
	for name, breakIt := range map[string]func(dir string) error{
		"nothing":        func(dir string) error { return os.RemoveAll(dir) },
		"no certificate": func(dir string) error { return os.Remove(filepath.Join(dir, pki.AgentCert)) },
		"unknown version": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ca.json"), []byte(`{"version":3}`), 0o600)
		},
		"unknown key": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ca.json"), []byte(`{"version":1,"x":1}`), 0o600)
		},
		"rubbish": func(dir string) error { return os.WriteFile(filepath.Join(dir, pki.RootCert), []byte("x"), 0o600) },
		"another's root": func(dir string) error {
			return os.Rename(filepath.Join(dir, pki.AgentCert), filepath.Join(dir, pki.RootCert))
		},
		"root as agent CA": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, pki.AgentCert), []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), 0o600)
		},
	} {
		ca := quick(t, pki.InitOptions{})
		if err := breakIt(ca.Dir()); err != nil {
			t.Fatal(err)
		}
		if got, err := pki.Open(ca.Dir(), keys(t)); got != nil || err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	ca := quick(t, pki.InitOptions{})
	other := mustOpen(t, ca.Dir(), pki.OpenOptions{AgentKey: testpki.RSA(t, "mallory", 2048)})
	if err := other.RenewCRL(now); fault.ReasonOf(err) != fault.ChainUntrusted {
		t.Errorf("a list by another key: %v", err)
	}
}

func TestOnlyTheKeyIsTakenFromARequest(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	key := testpki.EC(t, "leaf", elliptic.P256())
	csr := csrOf(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, EmailAddresses: []string{"ceo@example.com"}, DNSNames: []string{"example.com"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	})
	chain, err := ca.IssueLeaf(csr, pki.LeafOptions{Email: "dev@example.com", Now: now, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if leaf.IsCA || len(leaf.DNSNames) != 0 || leaf.Subject.CommonName != "dev@example.com" || leaf.EmailAddresses[0] != "dev@example.com" || !leaf.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("%+v", leaf)
	}
	if len(leaf.CRLDistributionPoints) != 0 {
		t.Error("names a list that is published nowhere")
	}

	csr.Signature[5] ^= 1
	if _, err := ca.IssueLeaf(csr, pki.LeafOptions{Email: "dev@example.com", Now: now}); fault.ReasonOf(err) != fault.SignatureInvalid {
		t.Errorf("without possession of the key: %v", err)
	}
	for _, weak := range []crypto.Signer{testpki.RSA(t, "weak", 1024), testpki.EC(t, "weak", elliptic.P224())} {
		if _, err := ca.IssueLeaf(csrOf(t, weak, &x509.CertificateRequest{}), pki.LeafOptions{Email: "dev@example.com", Now: now}); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("a weak key: %v", err)
		}
	}
	good := csrOf(t, key, &x509.CertificateRequest{})
	for _, o := range []pki.LeafOptions{
		{Email: "", Now: now}, {Email: "dev", Now: now}, {Email: "dev@", Now: now}, {Email: "Dev <dev@example.com>", Now: now}, {Email: "dév@example.com", Now: now},
		{Email: strings.Repeat("x", 70) + "@example.com", Now: now}, {Email: "a@b\n", Now: now},
		{Email: "dev@example.com", Now: now, Validity: -time.Hour}, {Email: "dev@example.com", Now: now, Validity: 400 * 24 * time.Hour},
	} {
		if _, err := ca.IssueLeaf(good, o); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := ca.IssueLeaf(good, pki.LeafOptions{Email: "dev@example.com", Now: now.AddDate(6, 0, 0)}); fault.ReasonOf(err) != fault.OutsideValidity {
		t.Errorf("issued by an expired CA: %v", err)
	}
	late, err := ca.IssueLeaf(good, pki.LeafOptions{Email: "dev@example.com", Now: now.AddDate(4, 6, 0)})
	if err != nil || !late[0].NotAfter.Equal(ca.Agent().NotAfter) {
		t.Errorf("outlives its issuer: %v", err)
	}
}

func csrOf(t *testing.T, key crypto.Signer, template *x509.CertificateRequest) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestAFailedRequestLeavesNoFile(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	noKeys := mustOpen(t, ca.Dir(), pki.OpenOptions{})
	dir := t.TempDir()
	_, err := noKeys.RequestCert(pki.CertRequest{
		LeafOptions: pki.LeafOptions{Email: "dev@example.com", Now: now},
		CertFile:    filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k"),
	})
	if fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRevokeWritesAFreshListWithTheNextNumber(t *testing.T) {
	ca := quick(t, pki.InitOptions{AgentCRLLife: 6 * time.Hour})
	first, second := request(t, ca, "a@example.com")[0], request(t, ca, "b@example.com")[0]
	later := now.Add(time.Hour)
	if err := ca.Revoke(first.SerialNumber, pki.KeyCompromise, later); err != nil {
		t.Fatal(err)
	}
	list := crl(t, ca, pki.AgentCRL, ca.Agent())
	if list.Number.Int64() != 2 || len(list.RevokedCertificateEntries) != 1 || !list.ThisUpdate.Equal(later) || !list.NextUpdate.Equal(later.Add(6*time.Hour)) {
		t.Errorf("list %+v", list)
	}
	if e := list.RevokedCertificateEntries[0]; e.SerialNumber.Cmp(first.SerialNumber) != 0 || e.ReasonCode != 1 || !e.RevocationTime.Equal(later) {
		t.Errorf("entry %+v", e)
	}
	if err := ca.Revoke(first.SerialNumber, pki.Superseded, later); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("twice: %v", err)
	}
	if err := ca.Revoke(big.NewInt(7), pki.KeyCompromise, later); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("unknown serial: %v", err)
	}
	if err := ca.Revoke(second.SerialNumber, pki.Reason(8), later); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("unknown reason: %v", err)
	}
	if got := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); got != 2 {
		t.Errorf("refused revocations made list %d", got)
	}
	reopened := mustOpen(t, ca.Dir(), keys(t))
	if err := reopened.Revoke(second.SerialNumber, pki.Unspecified, later); err != nil {
		t.Fatal(err)
	}
	if err := reopened.RenewCRL(later); err != nil {
		t.Fatal(err)
	}
	if list := crl(t, ca, pki.AgentCRL, ca.Agent()); list.Number.Int64() != 4 || len(list.RevokedCertificateEntries) != 2 {
		t.Errorf("list %s with %d entries", list.Number, len(list.RevokedCertificateEntries))
	}
	// The agent CA itself is the root's to revoke.
	if err := ca.Revoke(ca.Agent().SerialNumber, pki.CACompromise, later); err != nil {
		t.Fatal(err)
	}
	if list := crl(t, ca, pki.RootCRL, ca.Root()); list.Number.Int64() != 2 || len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("root list %+v", list)
	}
	all, err := ca.Issued()
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, r := range all {
		if r.Revoked.IsZero() || r.Reason == "" {
			t.Errorf("%+v is not revoked", r)
		}
	}
}

func TestNumbersGrowEvenWhenFilesAreRestored(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	path := filepath.Join(ca.Dir(), pki.AgentCRL)
	log := filepath.Join(ca.Dir(), "ca.db")
	oldCRL, oldLog := readFile(t, path), readFile(t, log)
	for range 3 {
		if err := ca.RenewCRL(now); err != nil {
			t.Fatal(err)
		}
	}
	restore := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore(path, oldCRL)
	if err := ca.RenewCRL(now); err != nil {
		t.Fatal(err)
	}
	if n := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); n != 5 {
		t.Errorf("number %d after the list was restored", n)
	}
	restore(log, oldLog)
	if err := ca.RenewCRL(now); err != nil {
		t.Fatal(err)
	}
	if n := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); n != 6 {
		t.Errorf("number %d after the log was restored", n)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := ca.RenewCRL(now); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("a list was made from no database: %v", err)
	}
}

func TestADamagedDatabaseIsRefused(t *testing.T) {
	page := os.Getpagesize()
	for name, damage := range map[string]func([]byte) []byte{
		"a beginning":     func(data []byte) []byte { return data[:2*page] },
		"nothing":         func([]byte) []byte { return nil },
		"rubbish":         func([]byte) []byte { return bytes.Repeat([]byte("x"), 1<<15) },
		"no page of data": func(data []byte) []byte { return append(data[:2*page:2*page], make([]byte, len(data))...) },
	} {
		t.Run(name, func(t *testing.T) {
			ca := quick(t, pki.InitOptions{})
			path := filepath.Join(ca.Dir(), "ca.db")
			if err := os.WriteFile(path, damage(readFile(t, path)), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := ca.RenewCRL(now); fault.ReasonOf(err) != fault.Internal || !strings.Contains(err.Error(), "the CA's database is damaged") {
					t.Error(err)
				}
			}
			if n := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); n != 1 {
				t.Errorf("list %d was made", n)
			}
		})
	}
}

func TestProcessesTakeTurns(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	var wg sync.WaitGroup
	errs := make([]error, 8)
	csr := csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{})
	for i := range errs {
		wg.Go(func() {
			mine, err := pki.Open(ca.Dir(), keys(t))
			if err != nil {
				errs[i] = err
				return
			}
			chain, err := mine.IssueLeaf(csr, pki.LeafOptions{Email: "dev@example.com", Now: now})
			if err != nil {
				errs[i] = err
				return
			}
			errs[i] = mine.Revoke(chain[0].SerialNumber, pki.Superseded, now)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if list := crl(t, ca, pki.AgentCRL, ca.Agent()); list.Number.Int64() != 9 || len(list.RevokedCertificateEntries) != 8 {
		t.Errorf("list %s with %d entries", list.Number, len(list.RevokedCertificateEntries))
	}
}

func TestParseKeyReadsWhatPeopleHave(t *testing.T) {
	rsaKey, ecKey := testpki.RSA(t, "leaf", 2048), testpki.EC(t, "leaf", elliptic.P256())
	sec1, err := x509.MarshalECPrivateKey(ecKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		want fault.Reason
	}{
		"pkcs8":                          {testpki.KeyPEM(t, rsaKey), ""},
		"pkcs1":                          {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey.(*rsa.PrivateKey))}), ""},
		"sec1":                           {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), ""},
		"empty":                          {nil, fault.Usage},
		"certificate":                    {testpki.PEM(testpki.New(t).Leaf), fault.Usage},
		"damaged":                        {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), fault.Usage},
		"oversized":                      {bytes.Repeat([]byte("x"), 1<<20), fault.Usage},
		"encrypted without a passphrase": {pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), fault.AccessDenied},
	} {
		key, err := pki.ParseKey("key", c.data, nil)
		if fault.ReasonOf(err) != c.want || (key == nil) != (err != nil) {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
}

func TestReasonsReadAsTheyPrint(t *testing.T) {
	for r := pki.Reason(0); r < 12; r++ {
		if r.String() == "" {
			continue
		}
		if got, err := pki.ParseReason(strings.ToUpper(r.String())); err != nil || got != r {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
	if _, err := pki.ParseReason("certificateHold"); fault.ReasonOf(err) != fault.Usage {
		t.Error(err)
	}
	for s, ok := range map[string]bool{"0a": true, "0A:ff": true, "": false, "xyz": false, "0": false, "-1": false, strings.Repeat("f", 41): false} {
		if n, err := pki.ParseSerial(s); (err == nil) != ok {
			t.Errorf("%q: %v, %v", s, n, err)
		}
	}
}

func TestTheStarterPolicyIsAccepted(t *testing.T) {
	for name, o := range map[string]pki.InitOptions{
		"files": {Org: `Ümläut "quoted" & <sons>`, Country: "DE"},
		"urls":  {CRLURL: "https://pki.example/lists"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := quick(t, o)
			dir := t.TempDir()
			opts := pki.PolicyOptions{Match: []string{"127.0.0.1:5000/agents/**"}, Emails: []string{"dev@example.com"}, Publishers: []string{"dev@example.com"}, Grace: "1h", Allow: []string{"env:A"}}
			path, capabilities, err := ca.WriteStarter(dir, opts)
			if err != nil {
				t.Fatal(err)
			}
			rules, err := policy.Load(capabilities)
			if err != nil {
				t.Fatal(err)
			}
			if got := rules.Rules(policy.Subject{Agent: "a", Trust: "signed", Reference: "127.0.0.1:5000/agents/a:1"}); len(got) != 1 || len(got[0].Allow) != 1 {
				t.Errorf("%+v", got)
			}
			if got := rules.Rules(policy.Subject{Agent: "a", Trust: "signed", Reference: "127.0.0.1:5000/others/a:1"}); len(got) != 0 {
				t.Errorf("%+v", got)
			}
			if _, err := policy.Parse("p", pki.StarterCapabilities(pki.PolicyOptions{})); err != nil {
				t.Error(err)
			}
			cfg := nodeconfig.Verify{Policy: path, Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "state")}
			v, err := verifier.Open(cfg, testpki.Clock, nil)
			if err != nil {
				t.Fatal(err)
			}
			stores, err := verifier.LoadStores(cfg.Trust, v.Policy())
			if err != nil {
				t.Fatal(err)
			}
			for _, src := range v.Policy().CRLs() {
				issuers, err := src.Issuers(stores)
				if err != nil || len(issuers) != 1 {
					t.Fatalf("%+v: %v, %v", src, issuers, err)
				}
				if src.File != "" {
					if _, err := verifier.CompileFile(src.File, issuers[0], now); err != nil {
						t.Error(err)
					}
				}
			}
			if _, _, err := ca.WriteStarter(dir, opts); fault.ReasonOf(err) != fault.Exists {
				t.Errorf("overwritten: %v", err)
			}
			if err := ca.WriteTrustStore(dir, "agents"); err != nil {
				t.Errorf("the same again: %v", err)
			}
			other := quick(t, pki.InitOptions{})
			if err := other.WriteTrustStore(dir, "agents"); fault.ReasonOf(err) != fault.Exists {
				t.Errorf("another CA's over it: %v", err)
			}
		})
	}
}

func TestAnOpenRootKeyIsWarnedOf(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	if w := ca.Warnings(); len(w) != 0 {
		t.Errorf("a key that lives elsewhere: %q", w)
	}
	if err := os.WriteFile(filepath.Join(ca.Dir(), pki.RootKey), testpki.KeyPEM(t, testpki.RSA(t, "root", 2048)), 0o600); err != nil {
		t.Fatal(err)
	}
	if w := ca.Warnings(); len(w) != 1 {
		t.Errorf("warnings %q", w)
	}
}
