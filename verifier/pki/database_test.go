package pki_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
)

// childEnv names the CA that the test's own program works on when it was started
// to be killed.
const childEnv = "TEST_PKI_CHILD"

func TestMain(m *testing.M) {
	if step := os.Getenv(childStepEnv); step != "" {
		fmt.Fprintln(os.Stderr, halfway(os.Getenv(childEnv), step))
		os.Exit(1)
	}
	if dir := os.Getenv(childInitEnv); dir != "" {
		fmt.Fprintln(os.Stderr, initChild(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, busy(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// busy issues, renews and revokes until it is killed, and prints what it did
// once it is done.
func busy(dir string) error {
	ca, err := pki.Open(dir, pki.OpenOptions{})
	if err != nil {
		return err
	}
	for {
		csr, err := newRequest()
		if err != nil {
			return err
		}
		secret, _, err := ca.NewToken("dev@example.com", 0, now)
		if err != nil {
			return err
		}
		chain, err := ca.Enrol(csr, secret, pki.LeafOptions{Email: "dev@example.com", Now: now})
		if err != nil {
			return err
		}
		fmt.Printf("issued %x\n", chain[0].SerialNumber)
		again, err := ca.Renew(csr, chain[0], pki.LeafOptions{Now: now})
		if err != nil {
			return err
		}
		fmt.Printf("issued %x\n", again[0].SerialNumber)
		if err := ca.Revoke(chain[0].SerialNumber, pki.Superseded, now); err != nil {
			return err
		}
		fmt.Printf("revoked %x\n", chain[0].SerialNumber)
		if err := ca.Revoke(chain[0].SerialNumber, pki.KeyCompromise, now); err != nil {
			return err
		}
	}
}

func TestAKilledProcessLosesAndRepeatsNoSerial(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	if err := os.WriteFile(filepath.Join(ca.Dir(), pki.AgentKey), testpki.KeyPEM(t, testpki.RSA(t, "agent", 2048)), 0o600); err != nil {
		t.Fatal(err)
	}
	issued, revoked := map[string]bool{}, map[string]bool{}
	number := new(big.Int)
	for round := range 20 {
		for _, line := range killed(t, ca.Dir(), round%7) {
			what, serial, ok := strings.Cut(line, " ")
			switch {
			case !ok:
				t.Fatalf("the child says %q", line)
			case what == "revoked":
				revoked[serial] = true
			case issued[serial]:
				t.Errorf("%s was issued twice", serial)
			default:
				issued[serial] = true
			}
		}
		if _, err := ca.CheckLog(""); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Refresh(now); err != nil {
			t.Fatal(err)
		}
		list := crl(t, ca, pki.AgentCRL, ca.Agent())
		if list.Number.Cmp(number) < 0 {
			t.Errorf("list %s after %s", list.Number, number)
		}
		number = list.Number
		for _, e := range list.RevokedCertificateEntries {
			delete(revoked, fmt.Sprintf("%x", e.SerialNumber))
		}
		if len(revoked) != 0 {
			t.Errorf("said to be revoked and not on the list: %v", revoked)
		}
	}
	if len(issued) < 20 {
		t.Errorf("only %d were issued", len(issued))
	}
	all, err := ca.Issued()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		delete(issued, r.Serial)
	}
	if len(issued) != 0 {
		t.Errorf("given out and forgotten: %v", issued)
	}
}

// killed starts a busy child, kills it some time after it said that many lines,
// and returns all it said.
func killed(t *testing.T, dir string, lines int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	s := bufio.NewScanner(out)
	for len(said) <= lines && s.Scan() {
		said = append(said, s.Text())
	}
	for range mrand.N(2_000_000) {
		_ = lines
	}
	cmd.Process.Kill()
	for s.Scan() {
		said = append(said, s.Text())
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the child: %s", stderr.String())
	}
	// The last line may be cut short; what was said in full counts.
	if n := len(said); n > 0 && !strings.HasPrefix(said[n-1], "issued ") && !strings.HasPrefix(said[n-1], "revoked ") {
		said = said[:n-1]
	}
	return said
}

// old turns a CA into one from before the database.
func old(t *testing.T, ca *pki.CA) {
	t.Helper()
	var log bytes.Buffer
	if _, err := ca.ExportLog(&log); err != nil {
		t.Fatal(err)
	}
	var out []byte
	dec := json.NewDecoder(&log)
	for dec.More() {
		e := map[string]any{}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"sequence", "previous", "key", "renewed_from"} {
			delete(e, name)
		}
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, line...), '\n')
	}
	info := readFile(t, filepath.Join(ca.Dir(), "ca.json"))
	for name, data := range map[string][]byte{"log.jsonl": out, "ca.json": bytes.Replace(info, []byte(`"version": 2`), []byte(`"version": 1`), 1)} {
		if err := os.WriteFile(filepath.Join(ca.Dir(), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(ca.Dir(), "ca.db")); err != nil {
		t.Fatal(err)
	}
}

func TestACAFromBeforeTheDatabaseIsTakenOver(t *testing.T) {
	for name, interrupted := range map[string]func(dir string) error{
		"at once":                      func(string) error { return nil },
		"after it was cut short early": func(dir string) error { return os.WriteFile(filepath.Join(dir, ".ca.db.new"), []byte("half"), 0o600) },
		"after it was cut short late":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.db"), []byte("half"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			ca := quick(t, pki.InitOptions{})
			first, second := request(t, ca, "a@example.com")[0], request(t, ca, "b@example.com")[0]
			if err := ca.Revoke(first.SerialNumber, pki.KeyCompromise, now); err != nil {
				t.Fatal(err)
			}
			before := crl(t, ca, pki.AgentCRL, ca.Agent())
			old(t, ca)
			if err := interrupted(ca.Dir()); err != nil {
				t.Fatal(err)
			}
			ca = mustOpen(t, ca.Dir(), keys(t))
			all, err := ca.Issued()
			if err != nil || len(all) != 3 || all[1].Reason != "keyCompromise" || !all[2].Revoked.IsZero() || all[2].Email != "b@example.com" {
				t.Fatalf("%+v, %v", all, err)
			}
			if head, err := ca.CheckLog(""); err != nil || head.Entries != 7 {
				t.Errorf("%+v, %v", head, err)
			}
			// The last step is a rename that nothing rests on.
			kept, log := filepath.Join(ca.Dir(), "log.jsonl.migrated"), filepath.Join(ca.Dir(), "log.jsonl")
			if err := os.Rename(kept, log); err != nil {
				t.Fatal(err)
			}
			if head, err := mustOpen(t, ca.Dir(), keys(t)).CheckLog(""); err != nil || head.Entries != 7 {
				t.Errorf("%+v, %v", head, err)
			}
			if err := os.Rename(log, kept); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(ca.Dir(), "log.jsonl")); err == nil {
				t.Error("the old log is still where an old program would go on with it")
			}
			if err := ca.Revoke(first.SerialNumber, pki.KeyCompromise, now); fault.ReasonOf(err) != fault.Exists {
				t.Error(err)
			}
			if _, err := ca.Renew(csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{}), second, pki.LeafOptions{Now: now}); err != nil {
				t.Error(err)
			}
			if err := ca.Revoke(second.SerialNumber, pki.Superseded, now); err != nil {
				t.Fatal(err)
			}
			after := crl(t, ca, pki.AgentCRL, ca.Agent())
			if after.Number.Cmp(before.Number) <= 0 || len(after.RevokedCertificateEntries) != 2 {
				t.Errorf("list %s with %d entries after %s", after.Number, len(after.RevokedCertificateEntries), before.Number)
			}
		})
	}
}

func TestAnOldLogThatIsDamagedIsNotTakenOver(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"half an entry": func(log []byte) []byte { return append(log, `{"event":"issued","ti`...) },
		"an unknown kind": func(log []byte) []byte {
			return bytes.Replace(log, []byte(`"event":"issued"`), []byte(`"event":"lost"`), 1)
		},
		"a serial twice": func(log []byte) []byte { return append(bytes.Clone(log), log...) },
		"no certificate": func(log []byte) []byte { return append(log, `{"event":"issued","time":"2026-01-15T10:30:00Z"}`...) },
	} {
		ca := quick(t, pki.InitOptions{})
		old(t, ca)
		path := filepath.Join(ca.Dir(), "log.jsonl")
		if err := os.WriteFile(path, change(readFile(t, path)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := mustOpen(t, ca.Dir(), keys(t)).RenewCRL(now); fault.ReasonOf(err) != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
		for _, made := range []string{"ca.db", ".ca.db.new"} {
			if _, err := os.Stat(filepath.Join(ca.Dir(), made)); err == nil {
				t.Errorf("%s: %s was made", name, made)
			}
		}
	}
}

// What was published after the copy was made is not forgotten.
func TestADatabaseFromABackupLearnsFromThePublishedList(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	early := request(t, ca, "a@example.com")[0]
	path := filepath.Join(ca.Dir(), "ca.db")
	backup := readFile(t, path)
	late := request(t, ca, "b@example.com")[0]
	for _, c := range []*x509.Certificate{early, late} {
		if err := ca.Revoke(c.SerialNumber, pki.KeyCompromise, now); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	if until, err := ca.Refresh(now.Add(time.Minute)); err != nil || !until.After(now.Add(time.Hour)) {
		t.Fatalf("%s, %v", until, err)
	}
	list := crl(t, ca, pki.AgentCRL, ca.Agent())
	if list.Number.Int64() != 4 || len(list.RevokedCertificateEntries) != 2 {
		t.Errorf("list %s with %d entries", list.Number, len(list.RevokedCertificateEntries))
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
	csr := csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{})
	if _, err := ca.Renew(csr, early, pki.LeafOptions{Now: now}); fault.ReasonOf(err) != fault.Revoked {
		t.Error(err)
	}
}

func TestAListThatIsDueIsMadeAnew(t *testing.T) {
	ca := quick(t, pki.InitOptions{AgentCRLLife: 4 * time.Hour})
	for _, c := range []struct {
		after  time.Duration
		number int64
	}{{0, 1}, {119 * time.Minute, 1}, {2 * time.Hour, 2}, {3 * time.Hour, 2}, {100 * time.Hour, 3}} {
		until, err := ca.Refresh(now.Add(c.after))
		if err != nil || !until.After(now.Add(c.after)) {
			t.Fatalf("%s: %s, %v", c.after, until, err)
		}
		if n := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); n != c.number {
			t.Errorf("after %s it is list %d", c.after, n)
		}
	}
	// Killed between transaction and publication.
	path := filepath.Join(ca.Dir(), pki.AgentCRL)
	if err := os.WriteFile(path, []byte("half a li"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Refresh(now.Add(100 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := crl(t, ca, pki.AgentCRL, ca.Agent()).Number.Int64(); n != 3 {
		t.Errorf("list %d took the place of half a one", n)
	}
}

func TestAChangedLogIsNoticed(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	request(t, ca, "a@example.com")
	head, err := ca.CheckLog("")
	if err != nil || head.Entries != 4 || !strings.HasPrefix(head.Hash, "sha256:") {
		t.Fatalf("%+v, %v", head, err)
	}
	request(t, ca, "mallory@example.com")
	kept, err := ca.CheckLog(head.Hash)
	if err != nil {
		t.Errorf("the log went on: %v", err)
	}
	if _, err := quick(t, pki.InitOptions{}).CheckLog(head.Hash); fault.ReasonOf(err) != fault.DigestMismatch {
		t.Errorf("another log: %v", err)
	}
	path := filepath.Join(ca.Dir(), "ca.db")
	data := readFile(t, path)
	changed := bytes.ReplaceAll(data, []byte("mallory@example.com"), []byte("charlie@example.com"))
	if bytes.Equal(data, changed) {
		t.Fatal("nothing was changed")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	// Nothing follows the last entry: only a head that was kept elsewhere tells.
	if _, err := ca.CheckLog(kept.Hash); fault.ReasonOf(err) != fault.DigestMismatch {
		t.Errorf("the last entry was changed: %v", err)
	}
	changed = bytes.ReplaceAll(readFile(t, path), []byte("a@example.com"), []byte("x@example.com"))
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.CheckLog(""); fault.ReasonOf(err) != fault.DigestMismatch {
		t.Errorf("a changed log: %v", err)
	}
}

func TestATokenIsForOneCertificateOfOneAddress(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	csr := csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{})
	other := csrOf(t, testpki.EC(t, "other", elliptic.P256()), &x509.CertificateRequest{})
	secret, token, err := ca.NewToken("Dev@EXAMPLE.com", time.Hour, now)
	if err != nil || token.Email != "Dev@example.com" || !token.Expires.Equal(now.Add(time.Hour)) {
		t.Fatalf("%+v, %v", token, err)
	}
	if bytes.Contains(readFile(t, filepath.Join(ca.Dir(), "ca.db")), []byte(secret)) {
		t.Error("the secret itself is on disk")
	}
	enrol := func(csr *x509.CertificateRequest, secret, email string, at time.Time) ([]*x509.Certificate, error) {
		return ca.Enrol(csr, secret, pki.LeafOptions{Email: email, Now: at})
	}
	issued := func() int {
		all, err := ca.Issued()
		if err != nil {
			t.Fatal(err)
		}
		return len(all) - 1
	}
	for name, try := range map[string]func() error{
		"another address": func() error { _, err := enrol(csr, secret, "ceo@example.com", now); return err },
		"expired":         func() error { _, err := enrol(csr, secret, "Dev@example.com", now.Add(2*time.Hour)); return err },
		"a clock set back": func() error {
			_, err := enrol(csr, secret, "Dev@example.com", now.Add(-2*time.Hour))
			return err
		},
		"unknown":   func() error { _, err := enrol(csr, secret[:len(secret)-1]+"_", "Dev@example.com", now); return err },
		"empty":     func() error { _, err := enrol(csr, "", "Dev@example.com", now); return err },
		"its hash":  func() error { _, err := enrol(csr, "sha256:00", "Dev@example.com", now); return err },
		"very long": func() error { _, err := enrol(csr, strings.Repeat(secret, 1000), "Dev@example.com", now); return err },
	} {
		if err := try(); fault.ReasonOf(err) != fault.AccessDenied || issued() != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	chain, err := enrol(csr, secret, "Dev@EXAMPLE.com", now)
	if err != nil || chain[0].EmailAddresses[0] != "Dev@example.com" {
		t.Fatal(err)
	}
	// An answer that was lost may be asked for again, by the key's holder.
	again, err := enrol(csr, secret, "Dev@example.com", now)
	if err != nil || !again[0].Equal(chain[0]) || issued() != 1 {
		t.Errorf("%v, %d issued", err, issued())
	}
	if _, err := enrol(other, secret, "Dev@example.com", now); fault.ReasonOf(err) != fault.AccessDenied || !strings.Contains(err.Error(), "used already") || issued() != 1 {
		t.Errorf("replayed: %v", err)
	}
	if err := ca.Revoke(chain[0].SerialNumber, pki.KeyCompromise, now); err != nil {
		t.Fatal(err)
	}
	if _, err := enrol(csr, secret, "Dev@example.com", now); fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("a revoked certificate: %v", err)
	}
	fresh, _, err := ca.NewToken("Dev@example.com", 0, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enrol(csr, fresh, "Dev@example.com", now); fault.ReasonOf(err) != fault.Revoked || issued() != 1 {
		t.Errorf("a compromised key: %v", err)
	}
	// Refused, it is not used up.
	if _, err := enrol(other, fresh, "Dev@example.com", now); err != nil || issued() != 2 {
		t.Error(err)
	}
	for _, life := range []time.Duration{-1, time.Second, 31 * 24 * time.Hour} {
		if _, _, err := ca.NewToken("dev@example.com", life, now); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: %v", life, err)
		}
	}
}

func TestATokenCanBeWithdrawn(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	csr := csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{})
	secrets := map[string]string{}
	for i, email := range []string{"a@example.com", "b@example.com", "used@example.com"} {
		secret, _, err := ca.NewToken(email, time.Hour, now.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		secrets[email] = secret
	}
	enrol := func(email string) error {
		_, err := ca.Enrol(csr, secrets[email], pki.LeafOptions{Email: email, Now: now.Add(time.Minute)})
		return err
	}
	if err := enrol("used@example.com"); err != nil {
		t.Fatal(err)
	}
	open, err := ca.Tokens(now.Add(time.Minute))
	if err != nil || len(open) != 2 || open[0].Email != "a@example.com" || open[1].Email != "b@example.com" {
		t.Errorf("%+v, %v", open, err)
	}
	for email, want := range map[string]int{"a@EXAMPLE.com": 1, "used@example.com": 0, "nobody@example.com": 0} {
		if n, err := ca.WithdrawTokens(email, now.Add(time.Minute)); err != nil || n != want {
			t.Errorf("%s: %d, %v", email, n, err)
		}
	}
	if err := enrol("a@example.com"); fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("withdrawn: %v", err)
	}
	if err := enrol("b@example.com"); err != nil {
		t.Error(err)
	}
	if open, err := ca.Tokens(now.Add(2 * time.Hour)); err != nil || len(open) != 0 {
		t.Errorf("%+v, %v", open, err)
	}
	if _, err := ca.WithdrawTokens("nobody", now); fault.ReasonOf(err) != fault.Usage {
		t.Error(err)
	}
}

func TestOnlyACurrentCertificateOfThisCAIsRenewed(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	csr := csrOf(t, testpki.EC(t, "leaf", elliptic.P256()), &x509.CertificateRequest{})
	good := request(t, ca, "dev@example.com")[0]
	chain, err := ca.Renew(csr, good, pki.LeafOptions{Email: "ceo@example.com", Now: now.Add(time.Hour)})
	if err != nil || !slices.Equal(chain[0].EmailAddresses, good.EmailAddresses) {
		t.Fatalf("%v", err)
	}
	all, err := ca.Issued()
	if err != nil || all[2].RenewedFrom != all[1].Serial {
		t.Errorf("%+v, %v", all, err)
	}
	lost := request(t, ca, "lost@example.com")[0]
	if err := ca.Revoke(lost.SerialNumber, pki.KeyCompromise, now); err != nil {
		t.Fatal(err)
	}
	server, err := ca.IssueServer([]string{"ca.example.com", "127.0.0.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	forged := testpki.New(t).Leaf
	for name, c := range map[string]struct {
		cert *x509.Certificate
		at   time.Time
		want fault.Reason
	}{
		"revoked":          {lost, now, fault.Revoked},
		"expired":          {good, now.AddDate(1, 0, 1), fault.OutsideValidity},
		"not yet valid":    {good, now.AddDate(0, 0, -1), fault.OutsideValidity},
		"another CA's":     {forged, now, fault.IdentityUntrusted},
		"a server's":       {server.Leaf, now, fault.IdentityUntrusted},
		"the CA's own":     {ca.Agent(), now, fault.IdentityUntrusted},
		"the root's":       {ca.Root(), now, fault.IdentityUntrusted},
		"an unknown one's": {request(t, quick(t, pki.InitOptions{}), "dev@example.com")[0], now, fault.IdentityUntrusted},
	} {
		if chain, err := ca.Renew(csr, c.cert, pki.LeafOptions{Now: c.at}); chain != nil || fault.ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAServersCertificateIsForServersOnly(t *testing.T) {
	ca := quick(t, pki.InitOptions{CRLURL: "http://pki.example/crl"})
	cert, err := ca.IssueServer([]string{"CA.example.com", "127.0.0.1", "::1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if c := cert.Leaf; !slices.Equal(c.DNSNames, []string{"ca.example.com"}) || len(c.IPAddresses) != 2 || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || c.IsCA || len(c.CRLDistributionPoints) != 1 {
		t.Errorf("%+v", c)
	}
	for _, names := range [][]string{nil, {""}, {"*.example.com"}, {"a b"}, {"-a"}, {strings.Repeat("a.", 200) + "a"}, {"exämple.com"}} {
		if _, err := ca.IssueServer(names, now); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%q: %v", names, err)
		}
	}
}

// The loss turns out to be earlier, or to be one: that is said by another revocation,
// which can only have more refused.
func TestARevocationIsMadeStricterAndNeverLess(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	c := request(t, ca, "dev@example.com")[0]
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	at, first := day(10), day(10)
	for _, step := range []struct {
		name   string
		reason pki.Reason
		since  time.Time
		want   fault.Reason
		reads  string // the reason that stands then
		stands time.Time
	}{
		{"at first", pki.Superseded, day(8), "", "superseded", day(8)},
		{"the same", pki.Superseded, day(8), fault.Exists, "superseded", day(8)},
		{"a later date", pki.Superseded, day(9), fault.Exists, "superseded", day(8)},
		{"a later date for a worse reason", pki.KeyCompromise, day(9), fault.Exists, "superseded", day(8)},
		{"another word alone", pki.AffiliationChanged, day(8), fault.Exists, "superseded", day(8)},
		{"an earlier date", pki.Unspecified, day(7), "", "superseded", day(7)},
		{"a worse reason", pki.KeyCompromise, day(7), "", "keyCompromise", day(7)},
		{"an earlier date for a better reason", pki.Superseded, day(5), fault.Exists, "keyCompromise", day(7)},
		{"an earlier date again", pki.KeyCompromise, day(6), "", "keyCompromise", day(6)},
		{"a date before it was issued", pki.KeyCompromise, day(-1), fault.Usage, "keyCompromise", day(6)},
		{"no date", pki.Unspecified, time.Time{}, "", "keyCompromise", time.Time{}},
		{"a date where none stands", pki.KeyCompromise, day(1), fault.Exists, "keyCompromise", time.Time{}},
		{"none again", pki.KeyCompromise, time.Time{}, fault.Exists, "keyCompromise", time.Time{}},
	} {
		before := crl(t, ca, pki.AgentCRL, ca.Agent())
		at = at.Add(time.Hour)
		got, err := ca.RevokeSince(c.SerialNumber, step.reason, step.since, at)
		if fault.ReasonOf(err) != step.want || err == nil && got.Tightened != (step.name != "at first") {
			t.Errorf("%s: %+v, %v", step.name, got, err)
		}
		if step.want == fault.Exists && !strings.Contains(err.Error(), step.reads) {
			t.Errorf("%s: what stands is not said: %v", step.name, err)
		}
		list := crl(t, ca, pki.AgentCRL, ca.Agent())
		grown := list.Number.Cmp(before.Number) > 0
		if grown != (step.want == "") || len(list.RevokedCertificateEntries) != 1 {
			t.Fatalf("%s: list %s after %s", step.name, list.Number, before.Number)
		}
		e := list.RevokedCertificateEntries[0]
		if date := invalidityOf(t, e); !date.Equal(step.stands) || e.RevocationTime.Before(first) || !e.RevocationTime.Equal(first.Add(time.Hour)) {
			t.Errorf("%s: revoked at %s, invalid since %s", step.name, e.RevocationTime, date)
		}
		all, err := ca.Issued()
		if err != nil || len(all) != 2 || all[1].Reason != step.reads || !all[1].InvalidSince.Equal(step.stands) {
			t.Errorf("%s: %+v, %v", step.name, all, err)
		}
		if _, err := ca.CheckLog(""); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	var log bytes.Buffer
	if _, err := ca.ExportLog(&log); err != nil || strings.Count(log.String(), `"event":"revoked"`) != 1 || strings.Count(log.String(), `"event":"revocation-tightened"`) != 4 {
		t.Errorf("%v in\n%s", err, log.String())
	}
	// The key became a compromised one.
	if _, err := ca.IssueLeaf(csrOf(t, testpki.RSA(t, "leaf", 2048), &x509.CertificateRequest{}), pki.LeafOptions{Email: "dev@example.com", Now: at}); fault.ReasonOf(err) != fault.Revoked {
		t.Errorf("its key is certified again: %v", err)
	}
}

// invalidityOf is an entry's invalidity date, zero without one.
func invalidityOf(t *testing.T, e x509.RevocationListEntry) (at time.Time) {
	t.Helper()
	for _, ext := range e.Extensions {
		if ext.Id.String() == "2.5.29.24" {
			if _, err := asn1.UnmarshalWithParams(ext.Value, &at, "generalized"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return at
}

func TestARevocationThatIsNotTheLogsIsNoticed(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	c := request(t, ca, "dev@example.com")[0]
	for _, reason := range []pki.Reason{pki.Superseded, pki.KeyCompromise} {
		if err := ca.Revoke(c.SerialNumber, reason, now); err != nil {
			t.Fatal(err)
		}
	}
	// What stands in the log has its sequence number before the serial.
	stands := regexp.MustCompile(`(\{"serial":"[0-9a-f]+"[^{}]*"reason":")keyCompromise"`)
	path := filepath.Join(ca.Dir(), "ca.db")
	changed := stands.ReplaceAll(readFile(t, path), []byte(`${1}unspecified  "`))
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.CheckLog(""); fault.ReasonOf(err) != fault.DigestMismatch || !strings.Contains(err.Error(), "another revocation") {
		t.Error(err)
	}
}

// A database from before a revocation was made stricter learns that, too.
func TestADatabaseFromABackupLearnsWhatBecameStricter(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	c := request(t, ca, "dev@example.com")[0]
	since, later := now.Add(2*time.Hour), now.Add(4*time.Hour)
	if _, err := ca.RevokeSince(c.SerialNumber, pki.Superseded, since, later); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(ca.Dir(), "ca.db")
	backup := readFile(t, path)
	if _, err := ca.RevokeSince(c.SerialNumber, pki.KeyCompromise, since.Add(-time.Hour), later); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ca.RenewCRL(later); err != nil {
		t.Fatal(err)
	}
	e := crl(t, ca, pki.AgentCRL, ca.Agent()).RevokedCertificateEntries[0]
	if e.ReasonCode != int(pki.KeyCompromise) || !invalidityOf(t, e).Equal(since.Add(-time.Hour)) {
		t.Errorf("reason %d, invalid since %s", e.ReasonCode, invalidityOf(t, e))
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
}

func TestARevocationTellsSinceWhen(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	c := request(t, ca, "dev@example.com")[0]
	later := now.Add(48 * time.Hour)
	for name, since := range map[string]time.Time{"in the future": later.Add(time.Minute), "before it was issued": now.Add(-time.Hour)} {
		if _, err := ca.RevokeSince(c.SerialNumber, pki.KeyCompromise, since, later); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
	since := now.Add(24 * time.Hour)
	if _, err := ca.RevokeSince(c.SerialNumber, pki.KeyCompromise, since, later); err != nil {
		t.Fatal(err)
	}
	if openssl, err := exec.LookPath("openssl"); err == nil {
		out, err := exec.Command(openssl, "crl", "-inform", "DER", "-noout", "-text", "-in", filepath.Join(ca.Dir(), pki.AgentCRL)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Invalidity Date") || !strings.Contains(string(out), "Jan 16 10:30:00 2026 GMT") {
			t.Errorf("openssl: %v\n%s", err, out)
		}
	}
	entries := crl(t, ca, pki.AgentCRL, ca.Agent()).RevokedCertificateEntries
	if len(entries) != 1 {
		t.Fatalf("%+v", entries)
	}
	for _, ext := range entries[0].Extensions {
		if ext.Id.String() != "2.5.29.24" {
			continue
		}
		var got time.Time
		if _, err := asn1.UnmarshalWithParams(ext.Value, &got, "generalized"); err != nil || !got.Equal(since) || ext.Critical {
			t.Errorf("%s, %v", got, err)
		}
		return
	}
	t.Errorf("no invalidity date: %+v", entries[0].Extensions)
}

// Also of a certificate that expired meanwhile, and the list says so.
func TestAListKeepsWhatExpired(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	c := request(t, ca, "dev@example.com")[0]
	if err := ca.Revoke(c.SerialNumber, pki.Superseded, now); err != nil {
		t.Fatal(err)
	}
	if err := ca.RenewCRL(now.AddDate(2, 0, 0)); err != nil {
		t.Fatal(err)
	}
	list := crl(t, ca, pki.AgentCRL, ca.Agent())
	if len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("%d entries", len(list.RevokedCertificateEntries))
	}
	for _, ext := range list.Extensions {
		var since time.Time
		if ext.Id.String() != "2.5.29.60" {
			continue
		}
		if _, err := asn1.UnmarshalWithParams(ext.Value, &since, "generalized"); err != nil || !since.Equal(ca.Agent().NotBefore) || ext.Critical {
			t.Errorf("%s, %v", since, err)
		}
		return
	}
	t.Error("the list does not say it")
}

func TestTheAgentsKeyMayBeEncrypted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := pki.Init(dir, pki.InitOptions{Now: now, RootKey: testpki.RSA(t, "root", 2048), AgentPassphrase: []byte("online")}); err != nil {
		t.Fatal(err)
	}
	pass := func(s string) pki.Passphrase { return func() ([]byte, error) { return []byte(s), nil } }
	for name, c := range map[string]struct {
		o    pki.OpenOptions
		want fault.Reason
	}{
		"its own":    {pki.OpenOptions{AgentPassphrase: pass("online"), Passphrase: pass("offline")}, ""},
		"the only":   {pki.OpenOptions{Passphrase: pass("online")}, ""},
		"the root's": {pki.OpenOptions{AgentPassphrase: pass("offline")}, fault.AccessDenied},
		"none":       {pki.OpenOptions{}, fault.AccessDenied},
	} {
		if err := mustOpen(t, dir, c.o).Unlock(); fault.ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// newRequest makes a request outside of a test.
func newRequest() (*x509.CertificateRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}
