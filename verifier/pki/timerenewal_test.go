package pki_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/digitorus/pkcs7"
	"github.com/notaryproject/tspclient-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

func clockAt(at time.Time) func() (time.Time, error) {
	return func() (time.Time, error) { return at, nil }
}

// renewed are options by which the shared authority is renewed.
func renewed(t *testing.T, at time.Time) pki.ServiceOptions {
	return pki.ServiceOptions{Now: at, Key: testpki.RSA(t, "renewed time", 2048)}
}

// token is a stamp of the message, at a time.
func token(t *testing.T, ca *pki.CA, message []byte, at time.Time) []byte {
	t.Helper()
	q, err := tspclient.NewRequest(tspclient.RequestOptions{Content: message, HashAlgorithm: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	q.CertReq = true
	query, err := q.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	der, _, err := ca.Stamp(query, clockAt(at))
	if err != nil {
		t.Fatal(err)
	}
	var answer tspclient.Response
	if err := answer.UnmarshalBinary(der); err != nil {
		t.Fatal(err)
	}
	return answer.TimestampToken.FullBytes
}

// signedBy is the certificate that a token counts by, under the root.
func signedBy(t *testing.T, token, message []byte, root *x509.Certificate) *x509.Certificate {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(root)
	stamp, err := timestamp.Reader{}.Verify(token, message, pool)
	if err != nil {
		t.Fatal(err)
	}
	return stamp.Path[0]
}

func TestARenewedAuthorityStampsByANewKeyUnderTheSameRoot(t *testing.T) {
	ca := serviced(t)
	message := []byte("a signature")
	root, old := ca.TimeRoot(), ca.Time()
	if !old.NotAfter.Equal(now.AddDate(1, 0, 0)) {
		t.Errorf("the certificate counts until %s", old.NotAfter)
	}
	// The last stamp before its end, and none after.
	end := old.NotAfter.Add(-time.Minute)
	before := token(t, ca, message, end)
	if _, _, err := ca.Stamp(stampQueryOf(t, message), clockAt(old.NotAfter.Add(time.Second))); fault.ReasonOf(err) != fault.OutsideValidity {
		t.Errorf("stamped after its end: %v", err)
	}
	later := old.NotAfter.AddDate(0, 1, 0)
	o := renewed(t, later)
	o.OCSPURL, o.TimePolicy = "http://new.example/ocsp", "1.3.6.1.4.1.32473.8"
	if err := ca.RenewServices(o); err != nil {
		t.Fatal(err)
	}
	if !ca.TimeRoot().Equal(root) || ca.Time().Equal(old) || ca.Time().CheckSignatureFrom(root) != nil || !ca.Time().NotAfter.Equal(later.AddDate(1, 0, 0)) {
		t.Errorf("now %s until %s, root %s", ca.Time().SerialNumber, ca.Time().NotAfter, ca.TimeRoot().SerialNumber)
	}
	for name, ca := range map[string]*pki.CA{"this one": ca, "opened anew": openRenewed(t, ca)} {
		after := token(t, ca, message, later.Add(time.Second))
		if got := signedBy(t, after, message, root); !got.Equal(ca.Time()) {
			t.Errorf("%s: stamped by %s", name, got.SerialNumber)
		}
		// What the old one stamped counts after its end, by the same root.
		if got := signedBy(t, before, message, root); !got.Equal(old) {
			t.Errorf("%s: an old stamp is by %s", name, got.SerialNumber)
		}
		if chain, err := ca.Chain(old.SerialNumber); err != nil || len(chain) != 1 || !chain[0].Equal(old) {
			t.Errorf("%s: the old certificate: %v, %v", name, chain, err)
		}
	}
	if leaf := requestAt(t, ca, later); leaf.OCSPServer[0] != o.OCSPURL {
		t.Errorf("responders %v", leaf.OCSPServer)
	}
	// The old certificate can be revoked still, on the list of its root, which says
	// that it keeps what expired.
	if err := ca.Revoke(old.SerialNumber, pki.Superseded, later.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	list := crl(t, ca, pki.TimeCRL, root)
	if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(old.SerialNumber) != 0 {
		t.Errorf("list %+v", list.RevokedCertificateEntries)
	}
	if name, err := ca.ListOf(old.SerialNumber); err != nil || filepath.Base(name) != "time.crl" {
		t.Errorf("%s, %v", name, err)
	}
	if _, _, err := ca.Stamp(stampQueryOf(t, message), clockAt(later.Add(time.Hour))); err != nil {
		t.Errorf("the new one goes with the old: %v", err)
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
}

func requestAt(t *testing.T, ca *pki.CA, at time.Time) *x509.Certificate {
	t.Helper()
	chain, err := ca.RequestCert(pki.CertRequest{
		LeafOptions: pki.LeafOptions{Email: "dev@example.com", Now: at},
		CertFile:    filepath.Join(t.TempDir(), "signing.crt"), Key: testpki.RSA(t, "leaf", 2048),
	})
	if err != nil {
		t.Fatal(err)
	}
	return chain[0]
}

func openRenewed(t *testing.T, ca *pki.CA) *pki.CA {
	t.Helper()
	o := keys(t)
	o.TimeRootKey, o.TimeKey = testpki.RSA(t, "time root", 2048), testpki.RSA(t, "renewed time", 2048)
	ca, err := pki.Open(ca.Dir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestATokenTellsNoTimeButTheStampedOne(t *testing.T) {
	ca := serviced(t)
	der := token(t, ca, []byte("x"), now)
	if bytes.Contains(der, marshalled(t, pkcs7.OIDAttributeSigningTime)) {
		t.Error("there is a signing time")
	}
	signedBy(t, der, []byte("x"), ca.TimeRoot())
}

func TestARevokedAuthorityIsReplaced(t *testing.T) {
	ca := serviced(t)
	old := ca.Time()
	if err := ca.Revoke(old.SerialNumber, pki.KeyCompromise, now); err != nil {
		t.Fatal(err)
	}
	warned(t, ca, now, "revoked")
	if err := ca.RenewServices(renewed(t, now)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.Stamp(stampQueryOf(t, []byte("x")), clock); err != nil {
		t.Error(err)
	}
	if r := stateOf(t, ca, old.SerialNumber); r.Revoked.IsZero() {
		t.Error("the old certificate is good again")
	}
	// Its key never comes back.
	if err := ca.RenewServices(pki.ServiceOptions{Now: now, Key: testpki.RSA(t, "time", 2048)}); fault.ReasonOf(err) != fault.Revoked {
		t.Errorf("renewed by a compromised key: %v", err)
	}
}

func stateOf(t *testing.T, ca *pki.CA, serial *big.Int) pki.Record {
	t.Helper()
	all, err := ca.Issued()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Serial == serial.Text(16) {
			return r
		}
	}
	t.Fatalf("no certificate %x", serial)
	return pki.Record{}
}

// warned holds the warnings at a time to one with the text, or to none.
func warned(t *testing.T, ca *pki.CA, at time.Time, text string) {
	t.Helper()
	got, err := ca.TimeWarnings(at)
	if err != nil || (len(got) == 0) != (text == "") || !strings.Contains(strings.Join(got, "\n"), text) {
		t.Errorf("at %s warned of %q, %v; want %q", at, got, err, text)
	}
}

func TestAnAuthorityThatEndsIsWarnedOf(t *testing.T) {
	warned(t, quick(t, pki.InitOptions{}), now, "")
	ca := serviced(t)
	end := ca.Time().NotAfter
	for at, text := range map[time.Time]string{now: "", end.AddDate(0, 0, -31): "", end.AddDate(0, 0, -30): "ends at", end: "ends at", end.Add(time.Second): "ended at"} {
		warned(t, ca, at, text)
	}
	// One that runs hears of it when another was put in its place.
	if err := openWith(t, ca).RenewServices(renewed(t, now)); err != nil {
		t.Fatal(err)
	}
	warned(t, ca, now, "start the server again")
	warned(t, openRenewed(t, ca), now, "")
}

func TestARenewalThatCannotBeIsRefusedAndChangesNothing(t *testing.T) {
	if err := quick(t, pki.InitOptions{}).RenewServices(renewed(t, now)); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("renewed what is not there: %v", err)
	}
	ca := serviced(t)
	key := testpki.RSA(t, "time", 2048)
	before := readFile(t, filepath.Join(ca.Dir(), pki.TimeCert))
	head, err := ca.CheckLog("")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    pki.ServiceOptions
		want fault.Reason
	}{
		"the old key":      {pki.ServiceOptions{Now: now, Key: key}, fault.Usage},
		"a root":           {pki.ServiceOptions{Now: now, RootKey: key}, fault.Usage},
		"a root's name":    {pki.ServiceOptions{Now: now, RootKeyName: "pkcs11:token=a;object=b"}, fault.Usage},
		"a passphrase":     {pki.ServiceOptions{Now: now, Passphrase: []byte("x")}, fault.Usage},
		"an open root":     {pki.ServiceOptions{Now: now, UnencryptedRoot: true}, fault.Usage},
		"an address":       {pki.ServiceOptions{Now: now, OCSPURL: "nonsense"}, fault.Usage},
		"a policy":         {pki.ServiceOptions{Now: now, TimePolicy: "nonsense"}, fault.Usage},
		"an expired root":  {renewed(t, now.AddDate(11, 0, 0)), fault.OutsideValidity},
		"an expired root ": {pki.ServiceOptions{Now: now.AddDate(11, 0, 0)}, fault.OutsideValidity},
	} {
		if err := ca.RenewServices(c.o); fault.ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	without, err := pki.Open(ca.Dir(), keys(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := without.RenewServices(renewed(t, now)); fault.ReasonOf(err) != fault.NotFound || !strings.Contains(err.Error(), "only the root's key") {
		t.Errorf("renewed without the root's key: %v", err)
	}
	// A key that is kept well is not replaced by one that lies open.
	enc := quick(t, pki.InitOptions{})
	o := serviceKeys(t)
	o.Key, o.KeyPassphrase = nil, []byte("online")
	if err := enc.AddServices(o); err != nil {
		t.Fatal(err)
	}
	if err := enc.RenewServices(pki.ServiceOptions{Now: now}); fault.ReasonOf(err) != fault.Usage || !strings.Contains(err.Error(), "is encrypted") {
		t.Errorf("renewed in the clear: %v", err)
	}
	if err := enc.RenewServices(pki.ServiceOptions{Now: now, KeyPassphrase: []byte("online")}); err != nil {
		t.Error(err)
	}
	if keys := timeKeys(t, enc.Dir()); len(keys) != 1 || !bytes.Contains(readFile(t, keys[0]), []byte("ENCRYPTED")) {
		t.Errorf("keys %v", keys)
	}
	named := quick(t, pki.InitOptions{})
	o = serviceKeys(t)
	o.KeyName = "pkcs11:token=online;object=time"
	if err := named.AddServices(o); err != nil {
		t.Fatal(err)
	}
	if err := named.RenewServices(pki.ServiceOptions{Now: now, KeyPassphrase: []byte("x")}); fault.ReasonOf(err) != fault.Usage || !strings.Contains(err.Error(), "is in a token") {
		t.Errorf("renewed out of the token: %v", err)
	}
	o = renewed(t, now)
	o.KeyName = "pkcs11:token=online;object=time2"
	if err := named.RenewServices(o); err != nil {
		t.Fatal(err)
	}
	if text := string(readFile(t, filepath.Join(named.Dir(), "ca.json"))); !strings.Contains(text, o.KeyName) || strings.Contains(text, `object=time"`) {
		t.Errorf("ca.json says %s", text)
	}
	asked := ""
	again, err := pki.Open(named.Dir(), pki.OpenOptions{AgentKey: testpki.RSA(t, "agent", 2048), Token: func(name string) (crypto.Signer, error) {
		asked = name
		return o.Key, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Unlock(); err != nil || asked != o.KeyName {
		t.Errorf("opened %q: %v", asked, err)
	}

	if after, err := ca.CheckLog(head.Hash); err != nil || after != head || !bytes.Equal(before, readFile(t, filepath.Join(ca.Dir(), pki.TimeCert))) || len(timeKeys(t, ca.Dir())) != 0 {
		t.Errorf("a refused renewal changed something: %+v, %v", after, err)
	}
}

// timeKeys are the key files of time stamp authorities.
func timeKeys(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "time"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var keys []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "tsa") && strings.HasSuffix(e.Name(), ".key") {
			keys = append(keys, filepath.Join(dir, "time", e.Name()))
		}
	}
	return keys
}

// childStepEnv names the step at which the test's own program is to be killed.
const childStepEnv = "TEST_PKI_STEP"

const rootKeyFile = "root-of-time.key" // beside the CA's directory

// halfway adds services or renews them until it reaches the step.
func halfway(dir, step string) error {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), rootKeyFile))
	if err != nil {
		return err
	}
	root, err := pki.ParseKey(rootKeyFile, data, nil)
	if err != nil {
		return err
	}
	ca, err := pki.Open(dir, pki.OpenOptions{TimeRootKey: root})
	if err != nil {
		return err
	}
	ca.OnStep(func(reached string) {
		if reached == step {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	o := pki.ServiceOptions{Now: now, OCSPURL: "http://pki.example/ocsp"}
	if ca.Services() {
		return ca.RenewServices(o)
	}
	o.RootKey = root
	return ca.AddServices(o)
}

func killAt(t *testing.T, ca *pki.CA, step string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(ca.Dir()), rootKeyFile), testpki.KeyPEM(t, testpki.RSA(t, "time root", 2048)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+ca.Dir(), childStepEnv+"="+step)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("was not killed at %q: %v %s", step, err, out)
	}
}

// reopened is the CA as another process finds it, which has the root's key.
func reopened(t *testing.T, ca *pki.CA) *pki.CA {
	t.Helper()
	o := keys(t)
	o.TimeRootKey = testpki.RSA(t, "time root", 2048)
	ca, err := pki.Open(ca.Dir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// whole demands an authority that stamps, one key and nothing left over.
func whole(t *testing.T, ca *pki.CA) {
	t.Helper()
	if _, _, err := reopened(t, ca).Stamp(stampQueryOf(t, []byte("x")), clock); err != nil {
		t.Error(err)
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
	if left := leftOver(t, ca.Dir()); len(left) != 0 || len(timeKeys(t, ca.Dir())) != 1 {
		t.Errorf("left over %v, keys %v", left, timeKeys(t, ca.Dir()))
	}
}

func leftOver(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".time.") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestServicesOfAProcessThatIsKilledAreWholeOrNotThere(t *testing.T) {
	for _, c := range []struct {
		step  string
		there bool
	}{{"keys", false}, {"database", false}, {"names", false}, {"place", true}} {
		t.Run(c.step, func(t *testing.T) {
			ca := quick(t, pki.InitOptions{})
			killAt(t, ca, c.step)
			ca = reopened(t, ca)
			if ca.Services() != c.there || (len(leftOver(t, ca.Dir())) == 1) == c.there {
				t.Fatalf("services %v, left over %v", ca.Services(), leftOver(t, ca.Dir()))
			}
			// No certificate names a responder that is not there.
			if leaf := requestAt(t, ca, now); !c.there && len(leaf.OCSPServer) != 0 {
				t.Errorf("responders %v", leaf.OCSPServer)
			}
			o := pki.ServiceOptions{Now: now, OCSPURL: "http://pki.example/ocsp"}
			var err error
			if c.there {
				if _, _, serr := ca.Stamp(stampQueryOf(t, []byte("x")), clock); serr != nil {
					t.Error(serr)
				}
				err = ca.RenewServices(o)
			} else {
				o.RootKey = testpki.RSA(t, "time root", 2048)
				err = ca.AddServices(o)
			}
			if err != nil {
				t.Fatal(err)
			}
			if leaf := requestAt(t, ca, now); len(leaf.OCSPServer) != 1 {
				t.Errorf("responders %v", leaf.OCSPServer)
			}
			whole(t, ca)
		})
	}
}

func TestARenewalOfAProcessThatIsKilledHappensOrNot(t *testing.T) {
	for _, c := range []struct {
		step string
		done bool
	}{{"key", false}, {"database", false}, {"names", false}, {"place", true}} {
		t.Run(c.step, func(t *testing.T) {
			ca := serviced(t)
			if err := os.WriteFile(filepath.Join(ca.Dir(), pki.TimeKey), testpki.KeyPEM(t, testpki.RSA(t, "time", 2048)), 0o600); err != nil {
				t.Fatal(err)
			}
			old := ca.Time()
			killAt(t, ca, c.step)
			ca = reopened(t, ca)
			if ca.Time().Equal(old) == c.done || len(timeKeys(t, ca.Dir())) != 2 {
				t.Fatalf("renewed %v, keys %v", !ca.Time().Equal(old), timeKeys(t, ca.Dir()))
			}
			if _, _, err := ca.Stamp(stampQueryOf(t, []byte("x")), clock); err != nil {
				t.Error(err)
			}
			if err := ca.RenewServices(pki.ServiceOptions{Now: now}); err != nil {
				t.Fatal(err)
			}
			whole(t, ca)
		})
	}
}

func TestRenewalsTakeTurns(t *testing.T) {
	ca := serviced(t)
	var wg sync.WaitGroup
	for range 3 {
		other := reopened(t, ca)
		wg.Go(func() {
			if err := other.RenewServices(pki.ServiceOptions{Now: now}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	whole(t, ca)
}

func TestServicesOfACAFromBeforeTheDatabaseKeepItsVersion(t *testing.T) {
	ca := quick(t, pki.InitOptions{})
	old(t, ca)
	ca, err := pki.Open(ca.Dir(), keys(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.AddServices(serviceKeys(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := openWith(t, ca).CheckLog(""); err != nil {
		t.Error(err)
	}
}

func TestAClockThatJumpedIsResetByWordOnly(t *testing.T) {
	if _, err := quick(t, pki.InitOptions{}).ResetClock(now); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("reset what is not there: %v", err)
	}
	ca := serviced(t)
	query := stampQueryOf(t, []byte("x"))
	if _, err := ca.ResetClock(now); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("reset before the first stamp: %v", err)
	}
	token(t, ca, []byte("x"), now)
	if _, err := ca.ResetClock(now); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("reset a clock that is right: %v", err)
	}
	future := now.AddDate(0, 6, 0)
	token(t, ca, []byte("x"), future)
	// A new certificate is no way around it.
	if err := ca.RenewServices(renewed(t, now)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.Stamp(query, clock); fault.ReasonOf(err) != fault.OutsideValidity || !strings.Contains(fmt.Sprint(err), "--reset-clock") {
		t.Errorf("stamped before the last stamp: %v", err)
	}
	reset, err := ca.ResetClock(now)
	if err != nil || !reset.From.Equal(future) || !reset.To.Equal(now) || reset.Stamps != 2 {
		t.Fatalf("%+v, %v", reset, err)
	}
	if _, _, err := ca.Stamp(query, clock); err != nil {
		t.Error(err)
	}
	if _, _, err := ca.Stamp(query, clockAt(now.Add(-time.Minute))); fault.ReasonOf(err) != fault.OutsideValidity {
		t.Errorf("stamped before the reset: %v", err)
	}
	var log bytes.Buffer
	if _, err := ca.ExportLog(&log); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	for _, want := range []string{`"event":"clock-reset"`, `"last_stamp":"` + future.UTC().Format(time.RFC3339), `"stamps":2`} {
		if !strings.Contains(lines[len(lines)-1], want) {
			t.Errorf("no %s in %s", want, lines[len(lines)-1])
		}
	}
	if _, err := ca.CheckLog(""); err != nil {
		t.Error(err)
	}
}
