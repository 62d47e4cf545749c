package pki_test

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corex509 "github.com/notaryproject/notation-core-go/x509"
	"github.com/notaryproject/tspclient-go"
	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

func clock() (time.Time, error) { return now, nil }

// serviceKeys spare the time for keys.
func serviceKeys(t *testing.T) pki.ServiceOptions {
	return pki.ServiceOptions{Now: now, RootKey: testpki.RSA(t, "time root", 2048), Key: testpki.RSA(t, "time", 2048)}
}

// serviced is a CA with a time stamp authority.
func serviced(t *testing.T) *pki.CA {
	t.Helper()
	o := serviceKeys(t)
	o.OCSPURL = "http://pki.example/ocsp"
	return quick(t, pki.InitOptions{CRLURL: "http://pki.example/crl", Services: &o})
}

func stampQueryOf(t *testing.T, message []byte) []byte {
	t.Helper()
	q, err := tspclient.NewRequest(tspclient.RequestOptions{Content: message, HashAlgorithm: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	der, err := q.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The one test of the services that spends the time on keys of real size.
func TestATimeStampAuthorityIsApartFromTheSigners(t *testing.T) {
	ca := quick(t, pki.InitOptions{CRLURL: "http://pki.example/crl"})
	if err := ca.AddServices(pki.ServiceOptions{Now: now, Passphrase: []byte("offline"), KeyPassphrase: []byte("online")}); err != nil {
		t.Fatal(err)
	}
	root, cert := ca.TimeRoot(), ca.Time()
	if root.Subject.String() != "CN=MentatLab Time CA,O=MentatLab,C=US" || root.PublicKey.(*rsa.PublicKey).N.BitLen() != 4096 || !root.MaxPathLenZero || !root.NotAfter.Equal(now.AddDate(10, 0, 0)) {
		t.Errorf("root %s, path length %d, until %s", root.Subject, root.MaxPathLen, root.NotAfter)
	}
	if root.CheckSignatureFrom(ca.Root()) == nil || cert.CheckSignatureFrom(ca.Agent()) == nil {
		t.Error("the signers' CA vouches for the time")
	}
	if err := corex509.ValidateTimestampingCertChain([]*x509.Certificate{cert, root}); err != nil {
		t.Error(err)
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageTimeStamping || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.CRLDistributionPoints[0] != "http://pki.example/crl/time.crl" {
		t.Errorf("usages %v, %v, lists %v", cert.ExtKeyUsage, cert.KeyUsage, cert.CRLDistributionPoints)
	}
	for file, mode := range map[string]fs.FileMode{
		pki.TimeRootKey: 0o600, pki.TimeKey: 0o600, pki.TimeRootCert: 0o644, pki.TimeCert: 0o644, pki.TimeCRL: 0o644,
	} {
		if info, err := os.Stat(filepath.Join(ca.Dir(), file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if list := crl(t, ca, pki.TimeCRL, root); list.Number.Int64() != 1 || len(list.RevokedCertificateEntries) != 0 {
		t.Errorf("list %s with %d entries", list.Number, len(list.RevokedCertificateEntries))
	}
	if head, err := ca.CheckLog(""); err != nil || head.Entries == 0 {
		t.Error(err)
	}

	// Opened anew, by the passphrase of what a server holds.
	o := keys(t)
	o.AgentPassphrase = func() ([]byte, error) { return []byte("online"), nil }
	o.Passphrase = func() ([]byte, error) { return nil, errors.New("the offline passphrase is asked for") }
	ca, err := pki.Open(ca.Dir(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Unlock(); err != nil {
		t.Fatal(err)
	}
	message := []byte("a signature")
	der, serial, err := ca.Stamp(stampQueryOf(t, message), clock)
	if err != nil {
		t.Fatal(err)
	}
	var answer tspclient.Response
	if err := answer.UnmarshalBinary(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	stamp, err := timestamp.Reader{}.Verify(answer.TimestampToken.FullBytes, message, pool)
	if err != nil || !stamp.Time.Equal(now) || serial.Sign() <= 0 {
		t.Errorf("stamp %+v, serial %v, error %v", stamp, serial, err)
	}
	// The root's list needs the root's key.
	if err := ca.RenewRootCRL(now); fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("renewed the list: %v", err)
	}
}

func TestServicesAreAddedOnceAndWholeOrNotAtAll(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	if _, _, err := ca.Stamp(stampQueryOf(t, []byte("x")), clock); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("stamped without an authority: %v", err)
	}
	for name, o := range map[string]pki.ServiceOptions{
		"OCSP address": {Now: now, UnencryptedRoot: true, OCSPURL: "ftp://pki.example"}, "policy": {Now: now, UnencryptedRoot: true, TimePolicy: "1.nonsense"},
		"arc": {Now: now, UnencryptedRoot: true, TimePolicy: "3.1"}, "long arc": {Now: now, UnencryptedRoot: true, TimePolicy: "2.25.99999999999"},
		"open root": {Now: now},
	} {
		if err := ca.AddServices(o); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(ca.Dir(), "time")); err == nil {
			t.Fatalf("%s: it was made", name)
		}
	}
	// A process that was killed before leaves this.
	if err := os.Mkdir(filepath.Join(ca.Dir(), ".time.123"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := serviceKeys(t)
	o.TimePolicy = "1.3.6.1.4.1.32473.7"
	if err := ca.AddServices(o); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, filepath.Join(ca.Dir(), pki.TimeCert))
	again := serviceKeys(t)
	again.OCSPURL = "http://elsewhere.example"
	if err := ca.AddServices(again); fault.ReasonOf(err) != fault.Exists {
		t.Errorf("made again: %v", err)
	}
	if !bytes.Equal(before, readFile(t, filepath.Join(ca.Dir(), pki.TimeCert))) || bytes.Contains(readFile(t, filepath.Join(ca.Dir(), "ca.json")), []byte("elsewhere")) {
		t.Error("something was overwritten")
	}
	der, _, err := openWith(t, ca).Stamp(stampQueryOf(t, []byte("x")), clock)
	if err != nil || !bytes.Contains(der, marshalled(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 7})) {
		t.Errorf("the policy is not in the token: %v", err)
	}
}

// What a process leaves that is killed after the transaction and before the last
// step: a certificate that nobody has the key of. The next one is in order.
func TestServicesThatWereNotFinishedAreMadeAnew(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	if err := ca.AddServices(serviceKeys(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(ca.Dir(), "time")); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Open(ca.Dir(), keys(t))
	if err != nil || ca.Services() {
		t.Fatalf("services %v, %v", ca.Services(), err)
	}
	if _, err := ca.Refresh(now); err != nil {
		t.Error(err)
	}
	o := pki.ServiceOptions{Now: now, RootKey: testpki.RSA(t, "another time root", 2048), Key: testpki.RSA(t, "time", 2048)}
	if err := ca.AddServices(o); err != nil {
		t.Fatal(err)
	}
	if list := crl(t, ca, pki.TimeCRL, ca.TimeRoot()); list.Number.Int64() != 2 {
		t.Errorf("list %s", list.Number)
	}
	if _, _, err := ca.Stamp(stampQueryOf(t, []byte("x")), clock); err != nil {
		t.Error(err)
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
}

func marshalled(t *testing.T, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// openWith opens the CA anew with the keys that tests share.
func openWith(t *testing.T, ca *pki.CA) *pki.CA {
	t.Helper()
	o := keys(t)
	o.TimeRootKey, o.TimeKey = testpki.RSA(t, "time root", 2048), testpki.RSA(t, "time", 2048)
	ca, err := pki.Open(ca.Dir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestAnAuthorityThatCannotTellTheTimeStampsNothing(t *testing.T) {
	ca := serviced(t)
	query := stampQueryOf(t, []byte("x"))
	at := func(d time.Duration) func() (time.Time, error) {
		return func() (time.Time, error) { return now.Add(d), nil }
	}
	if _, _, err := ca.Stamp(query, at(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]func() (time.Time, error){"set back": at(30 * time.Minute), "before its certificate": at(-24 * time.Hour), "after its certificate": at(11 * 365 * 24 * time.Hour)} {
		der, _, err := ca.Stamp(query, c)
		var answer tspclient.Response
		if fault.ReasonOf(err) != fault.OutsideValidity || answer.UnmarshalBinary(der) != nil || len(answer.TimestampToken.FullBytes) != 0 {
			t.Errorf("%s: %v, answer %+v", name, err, answer)
		}
	}
	if _, _, err := ca.Stamp(query, at(time.Hour)); err != nil {
		t.Errorf("the time that the last stamp told: %v", err)
	}

	// A revoked authority is on its root's list, and stamps nothing.
	serial := ca.Time().SerialNumber
	if err := ca.Revoke(serial, pki.KeyCompromise, now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if list := crl(t, ca, pki.TimeCRL, ca.TimeRoot()); len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(serial) != 0 {
		t.Errorf("list %+v", list.RevokedCertificateEntries)
	}
	if list := crl(t, ca, pki.AgentCRL, ca.Agent()); len(list.RevokedCertificateEntries) != 0 {
		t.Errorf("the agent CA's list holds %+v", list.RevokedCertificateEntries)
	}
	if _, _, err := ca.Stamp(query, at(3*time.Hour)); fault.ReasonOf(err) != fault.Revoked {
		t.Errorf("stamped by a revoked authority: %v", err)
	}
}

func TestNoTokenRepeatsASerialNumber(t *testing.T) {
	ca := serviced(t)
	seen := map[string]bool{}
	take := func(ca *pki.CA) *big.Int {
		_, serial, err := ca.Stamp(stampQueryOf(t, []byte("x")), clock)
		if err != nil {
			t.Fatal(err)
		}
		if seen[serial.String()] || serial.BitLen() > 159 {
			t.Errorf("serial %x is there twice, or too long", serial)
		}
		seen[serial.String()] = true
		return serial
	}
	take(ca)
	backup := readFile(t, filepath.Join(ca.Dir(), "ca.db"))
	last := take(ca)
	if next := take(openWith(t, ca)); next.Cmp(last) <= 0 {
		t.Errorf("%x after %x", next, last)
	}
	// A database from an old copy counts anew.
	if err := os.WriteFile(filepath.Join(ca.Dir(), "ca.db"), backup, 0o600); err != nil {
		t.Fatal(err)
	}
	take(openWith(t, ca))
	take(openWith(t, ca))
}

func ocspQuery(t *testing.T, c, issuer *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(c, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAnOCSPAnswerSaysWhatTheDatabaseSaysNow(t *testing.T) {
	ca := serviced(t)
	leaf := request(t, ca, "dev@example.com")[0]
	if !slices.Equal(leaf.OCSPServer, []string{"http://pki.example/ocsp"}) {
		t.Errorf("responders %q", leaf.OCSPServer)
	}
	r, err := ca.IssueResponder(now)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cert.CheckSignatureFrom(ca.Agent()) != nil || r.Cert.IsCA || !slices.Equal(r.Cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || r.Cert.NotAfter.Sub(now) > 7*24*time.Hour {
		t.Errorf("responder %+v", r.Cert)
	}
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		a, err := ca.AnswerOCSP(r, ocspQuery(t, leaf, ca.Agent(), hash), now)
		if err != nil || a.Status != "good" {
			t.Fatalf("%+v, %v", a, err)
		}
		if answer, err := verifier.ReadOCSP(a.DER, leaf, ca.Agent(), now); err != nil || !answer.Next.Equal(now.Add(24*time.Hour)) {
			t.Errorf("answer %+v, %v", answer, err)
		}
	}
	since := now.Add(-2 * time.Minute).Truncate(time.Second)
	if _, err := ca.RevokeSince(leaf.SerialNumber, pki.KeyCompromise, since, now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	a, err := ca.AnswerOCSP(r, ocspQuery(t, leaf, ca.Agent(), 0), now.Add(time.Minute))
	if err != nil || a.Status != "revoked" {
		t.Fatalf("%+v, %v", a, err)
	}
	answer, err := ocsp.ParseResponseForCert(a.DER, leaf, ca.Agent())
	if err != nil || answer.Status != ocsp.Revoked || answer.RevocationReason != ocsp.KeyCompromise || !answer.RevokedAt.Equal(now.Add(time.Minute)) {
		t.Errorf("answer %+v, %v", answer, err)
	}
	for id, want := range map[string]time.Time{"1.3.6.1.5.5.7.48.1.6": ca.Agent().NotBefore, "2.5.29.24": since} {
		at := slices.IndexFunc(answer.Extensions, func(e pkix.Extension) bool { return e.Id.String() == id })
		var got time.Time
		if at >= 0 {
			_, err = asn1.UnmarshalWithParams(answer.Extensions[at].Value, &got, "generalized")
		}
		if at < 0 || err != nil || !got.Equal(want) {
			t.Errorf("%s: %s, want %s (%v)", id, got, want, err)
		}
	}

	// What this CA did not issue it does not know, whoever did.
	for name, serial := range map[string]*big.Int{"nobody's": big.NewInt(77), "the agent CA's own": ca.Agent().SerialNumber, "the time stamp authority's": ca.Time().SerialNumber} {
		a, err := ca.AnswerOCSP(r, ocspQuery(t, &x509.Certificate{SerialNumber: serial}, ca.Agent(), 0), now)
		if err != nil || a.Status != "unknown" {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}

	// An answer ends with its responder's certificate.
	late := r.Cert.NotAfter.Add(-time.Hour)
	if a, err := ca.AnswerOCSP(r, ocspQuery(t, leaf, ca.Agent(), 0), late); err != nil || !a.Next.Equal(r.Cert.NotAfter) {
		t.Errorf("until %s, responder until %s: %v", a.Next, r.Cert.NotAfter, err)
	}
}

func TestAnOCSPRequestThatIsNoneIsRefused(t *testing.T) {
	ca := serviced(t)
	r, err := ca.IssueResponder(now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := request(t, ca, "dev@example.com")[0]
	good := ocspQuery(t, leaf, ca.Agent(), 0)
	var outer struct {
		Request struct{ Asked []asn1.RawValue }
	}
	if _, err := asn1.Unmarshal(good, &outer); err != nil {
		t.Fatal(err)
	}
	outer.Request.Asked = append(outer.Request.Asked, outer.Request.Asked[0])
	for name, c := range map[string]struct {
		query  []byte
		want   []byte
		reason fault.Reason
	}{
		"nothing":        {nil, ocsp.MalformedRequestErrorResponse, fault.Usage},
		"noise":          {[]byte("hello"), ocsp.MalformedRequestErrorResponse, fault.Usage},
		"followed":       {append(bytes.Clone(good), 5, 0), ocsp.MalformedRequestErrorResponse, fault.Usage},
		"two":            {marshalled(t, outer), ocsp.MalformedRequestErrorResponse, fault.Usage},
		"another issuer": {ocspQuery(t, ca.Agent(), ca.Root(), 0), ocsp.UnauthorizedErrorResponse, fault.NotFound},
	} {
		if a, err := ca.AnswerOCSP(r, c.query, now); !bytes.Equal(a.DER, c.want) || fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	// A responder that was revoked says nothing more.
	if err := ca.Revoke(r.Cert.SerialNumber, pki.Superseded, now); err != nil {
		t.Fatal(err)
	}
	if a, err := ca.AnswerOCSP(r, good, now); fault.ReasonOf(err) != fault.Revoked || !bytes.Equal(a.DER, ocsp.InternalErrorErrorResponse) {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestTheStarterPolicyNamesTheServices(t *testing.T) {
	ca := serviced(t)
	dir := t.TempDir()
	path, _, err := ca.WriteStarter(dir, pki.PolicyOptions{Match: []string{"*"}, Emails: []string{"dev@example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(readFile(t, path))
	if _, err := verifier.ParsePolicy(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`timestamp_stores: ["agents-time"]`, `CN=MentatLab Time CA`, `url: "http://pki.example/crl/time.crl"`, "ocsp:", `url: "http://pki.example/ocsp"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if got := readFile(t, filepath.Join(dir, "trust", "agents-time", "root.pem")); !bytes.Contains(got, []byte("BEGIN CERTIFICATE")) || bytes.Equal(got, readFile(t, filepath.Join(dir, "trust", "agents", "root.pem"))) {
		t.Errorf("the store holds %s", got)
	}
}

func FuzzAnOCSPRequestIsAnsweredForWhatItAsksOrNotAtAll(f *testing.F) {
	p := testpki.New(f)
	for _, hash := range []crypto.Hash{0, crypto.SHA256} {
		der, err := ocsp.CreateRequest(p.Leaf, p.Agent, &ocsp.RequestOptions{Hash: hash})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, query []byte) {
		q, err := pki.ParseOCSPRequest(query)
		if err == nil && (q.SerialNumber.Sign() <= 0 || len(q.IssuerNameHash) == 0) {
			t.Fatalf("%+v", q)
		}
	})
}

// What is judged before a CA is made is what it writes later.
func TestTheStarterPolicyIsKnownBeforeTheCA(t *testing.T) {
	p := pki.PolicyOptions{Match: []string{"*"}, Emails: []string{"dev@example.com"}}
	services := serviceKeys(t)
	services.OCSPURL = "http://pki.example/ocsp"
	for name, o := range map[string]pki.InitOptions{
		"plain": {}, "its lists are published": {CRLURL: "http://pki.example/crl", Org: "Example", Country: "DE"}, "services": {Services: &services},
	} {
		ca := quick(t, o)
		config := t.TempDir()
		text, err := o.Starter(ca.Dir(), config, p)
		if err != nil || !bytes.Equal(text, ca.StarterPolicy(p)) {
			t.Errorf("%s: %v\n%s\nis not\n%s", name, err, text, ca.StarterPolicy(p))
		}
		if _, _, err := ca.WriteStarter(config, p); err != nil {
			t.Fatal(err)
		}
		// Each file that was written stands in the way of another CA's.
		for _, file := range []string{"policy.yaml", "capabilities.yaml", "trust/agents/root.pem", "issuers/agents-agent-ca.pem"} {
			if _, err := o.Starter(ca.Dir(), config, p); fault.ReasonOf(err) != fault.Exists || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %s: %v", name, file, err)
			}
			if err := os.Remove(filepath.Join(config, file)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := (pki.InitOptions{Country: "Germany"}).Starter("ca", "etc", p); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("of a CA that cannot be: %v", err)
	}
}
