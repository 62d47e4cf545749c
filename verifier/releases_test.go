package verifier

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// listed is a node whose policy has a release list.
type listed struct {
	*node
	tb   testing.TB
	file string
}

func newListed(tb testing.TB, p *testpki.PKI) *listed {
	tb.Helper()
	dir := tb.TempDir()
	l := &listed{newNode(p), tb, filepath.Join(dir, "releases.json")}
	l.state = filepath.Join(dir, "state")
	l.policy += fmt.Sprintf("releases: [{name: agents, file: %q, stores: [agents], identities: [\"email:dev@example.com\"]}]\n", l.file)
	return l
}

// list is a list that withdraws nothing of ours.
func list(number int64, edits ...func(*Releases)) Releases {
	r := Releases{Number: number, NextUpdate: testpki.Now.Add(48 * time.Hour).Format(timeLayout)}
	for _, edit := range edits {
		edit(&r)
	}
	return r
}

func (l *listed) publish(p *testpki.PKI, r Releases) []byte {
	l.tb.Helper()
	data, err := SignReleases(r, p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		l.tb.Fatal(err)
	}
	l.put(data)
	return data
}

func (l *listed) put(data []byte) {
	l.tb.Helper()
	if err := os.WriteFile(l.file, data, 0o600); err != nil {
		l.tb.Fatal(err)
	}
}

func (l *listed) judge(raw []byte, reference string) *Verdict {
	l.tb.Helper()
	return l.verifier(l.tb).Verify(l.tb.Context(), Input{Reference: reference, Artifact: read(l.tb, raw), Trace: &Trace{}})
}

func TestWhatAReleaseListWithdrawsIsRefusedAtEveryLevel(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	att, err := ReadAttestation(signed)
	if err != nil {
		t.Fatal(err)
	}
	module := read(t, signed).Module.Digest
	other := digest.FromString("other")
	for name, c := range map[string]struct {
		edit func(*Releases)
		raw  []byte
		ref  string
		want fault.Reason
	}{
		"nothing":                    {func(*Releases) {}, signed, ref, ""},
		"others":                     {func(r *Releases) { r.DeniedPayloads, r.DeniedModules = []digest.Digest{other}, []digest.Digest{other} }, signed, ref, ""},
		"manifest digest as payload": {func(r *Releases) { r.DeniedPayloads = []digest.Digest{digest.FromBytes(signed)} }, signed, ref, ""},
		"payload":                    {func(r *Releases) { r.DeniedPayloads = []digest.Digest{other, att.SignedDigest} }, signed, ref, fault.Withdrawn},
		"module":                     {func(r *Releases) { r.DeniedModules = []digest.Digest{module} }, signed, ref, fault.Withdrawn},
		"module of an unsigned one":  {func(r *Releases) { r.DeniedModules = []digest.Digest{module} }, wasmAgent(t), "registry.example/mixed/a:1", fault.Withdrawn},
		"version":                    {func(r *Releases) { r.MinimumVersions = map[string]string{"mentatlab.echo": "1.0.1"} }, signed, ref, fault.VersionTooLow},
		"version reached":            {func(r *Releases) { r.MinimumVersions = map[string]string{"mentatlab.echo": "1.0.0"} }, signed, ref, ""},
		"ordinary image":             {func(r *Releases) { r.DeniedModules = []digest.Digest{module} }, container(t), "docker.io/library/alpine", ""},
	} {
		for _, level := range levels {
			t.Run(name+"/"+string(level), func(t *testing.T) {
				l := newListed(t, p)
				l.policy = strings.ReplaceAll(l.policy, "    unsigned_containers", "    level: "+string(level)+"\n    unsigned_containers")
				l.publish(p, list(1, c.edit))
				expect(t, l.judge(c.raw, c.ref), c.want)
			})
		}
	}
}

func TestAnOlderReleaseListNeverComesBack(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	deny := func(r *Releases) { r.DeniedModules = []digest.Digest{read(t, signed).Module.Digest} }
	l := newListed(t, p)
	first := l.publish(p, list(1))
	expect(t, l.judge(signed, ref), "")
	l.publish(p, list(2, deny))
	expect(t, l.judge(signed, ref), fault.Withdrawn)
	for name, do := range map[string]func(){
		"the first":       func() { l.put(first) },
		"the same number": func() { l.publish(p, list(2)) },
		"no list":         func() { _ = os.Remove(l.file) },
		"rubbish":         func() { l.put([]byte("{}")) },
		"a stranger's":    func() { l.publish(testpki.New(t, testpki.OtherRoot(t)), list(9)) },
		"another's":       func() { l.publish(testpki.New(t, testpki.LeafEmails("friend@example.com")), list(9)) },
		"an expired one":  func() { l.put(expired(t, p)) },
	} {
		do()
		vd := l.judge(signed, ref)
		if vd.Reason != fault.Withdrawn || len(vd.Warnings) == 0 && name != "an expired one" {
			t.Errorf("%s: %s, %v", name, vd.Line(), vd.Warnings)
		}
		l.publish(p, list(2, deny))
	}
	l.publish(p, list(3))
	expect(t, l.judge(signed, ref), "")
}

// expired is a list with a low number that is long over.
func expired(t *testing.T, p *testpki.PKI) []byte {
	t.Helper()
	r := list(1, func(r *Releases) { r.NextUpdate = testpki.Now.Add(-100 * 24 * time.Hour).Format(timeLayout) })
	r.Version = releasesVersion
	data, err := signDocument(ReleasesType, r, p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAReleaseListThatCannotBeBelievedRefusesEveryAgent(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	for name, c := range map[string]struct {
		do   func(*listed)
		want fault.Reason
	}{
		"no list":          {func(l *listed) {}, fault.RevocationUnknown},
		"a directory":      {func(l *listed) { _ = os.Mkdir(l.file, 0o700) }, fault.RevocationUnknown},
		"empty":            {func(l *listed) { l.put(nil) }, fault.RevocationUnknown},
		"stranger":         {func(l *listed) { l.publish(testpki.New(t, testpki.OtherRoot(t)), list(1)) }, fault.RevocationUnknown},
		"another identity": {func(l *listed) { l.publish(testpki.New(t, testpki.LeafEmails("friend@example.com")), list(1)) }, fault.RevocationUnknown},
		"changed": {func(l *listed) {
			l.put(bytes.Replace(l.publish(p, list(1)), []byte(`"number":1`), []byte(`"number":2`), 1))
		}, fault.RevocationUnknown},
		"not canonical":    {func(l *listed) { l.put(append(l.publish(p, list(1)), '\n')) }, fault.RevocationUnknown},
		"over":             {func(l *listed) { l.put(expired(t, p)) }, fault.RevocationUnknown},
		"an attestation":   {func(l *listed) { l.put(signed) }, fault.RevocationUnknown},
		"another document": {func(l *listed) { l.put(foreign(t, p)) }, fault.RevocationUnknown},
		"signer revoked":   {func(l *listed) { l.publish(p, list(1)); l.agent = p.AgentCRL(testpki.Revoking(p.Leaf)) }, fault.RevocationUnknown},
		"kept one damaged": {func(l *listed) {
			l.publish(p, list(1))
			l.judge(signed, ref)
			if err := os.WriteFile(filepath.Join(l.state, "releases-agents.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, fault.RevocationUnknown},
		"nowhere to keep it": {func(l *listed) {
			l.publish(p, list(1))
			if err := os.WriteFile(l.state, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, fault.RevocationUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			l := newListed(t, p)
			c.do(l)
			expect(t, l.judge(signed, ref), c.want)
			expect(t, l.judge(container(t), "docker.io/library/alpine"), "")
		})
	}
}

// foreign is a list's payload, signed as something else.
func foreign(t *testing.T, p *testpki.PKI) []byte {
	t.Helper()
	r := list(1)
	r.Version = releasesVersion
	data, err := signDocument("application/vnd.example+json", r, p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAReleaseListCountsUntilTheEndOfTheGrace(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	l := newListed(t, p)
	l.publish(p, list(1, func(r *Releases) { r.NextUpdate = testpki.Now.Add(time.Hour).Format(timeLayout) }))
	for after, want := range map[time.Duration]fault.Reason{
		0: "", time.Hour: "", time.Hour + time.Second: "", 25 * time.Hour: "", 25*time.Hour + time.Second: fault.RevocationUnknown,
	} {
		l.clock = func() time.Time { return testpki.Now.Add(after) }
		vd := l.judge(signed, ref)
		if vd.Reason != want || want == "" && after > time.Hour != strings.Contains(strings.Join(vd.Warnings, " "), "release list") {
			t.Errorf("after %s: %s, warnings %v", after, vd.Line(), vd.Warnings)
		}
	}
}

func TestLookingAtAnotherTimeRemembersNoReleaseList(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	l := newListed(t, p)
	l.publish(p, list(1))
	v := l.verifier(t).At(testpki.Now.Add(time.Hour))
	expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, signed)}), "")
	if _, err := os.Stat(filepath.Join(l.state, "releases-agents.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was: %v", err)
	}
}

func TestManyGatesAgreeOnTheNewestReleaseList(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	l := newListed(t, p)
	l.publish(p, list(7))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if vd := l.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, signed)}); !vd.Allowed {
				t.Error(vd.Line())
			}
		})
	}
	wg.Wait()
	if kept, err := keptReleases(filepath.Join(l.state, "releases-agents.json")); err != nil || kept.Number != 7 {
		t.Errorf("%+v, %v", kept, err)
	}
}

func TestReleaseListsThatMakeNoSenseAreNotSigned(t *testing.T) {
	p := testpki.New(t)
	for name, edit := range map[string]func(*Releases){
		"number 0":       func(r *Releases) { r.Number = 0 },
		"number too big": func(r *Releases) { r.Number = 1 << 53 },
		"over":           func(r *Releases) { r.NextUpdate = testpki.Now.Add(-2 * time.Hour).Format(timeLayout) },
		"no end":         func(r *Releases) { r.NextUpdate = "" },
		"no version":     func(r *Releases) { r.MinimumVersions = map[string]string{"a": "latest"} },
		"no id":          func(r *Releases) { r.MinimumVersions = map[string]string{"A b": "1.0.0"} },
		"no digest":      func(r *Releases) { r.DeniedModules = []digest.Digest{"sha256:12"} },
		"SHA-512":        func(r *Releases) { r.DeniedPayloads = []digest.Digest{digest.SHA512.FromString("")} },
	} {
		if _, err := SignReleases(list(1, edit), p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour)); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"no name":       `{file: a.json, stores: [agents], identities: ["email:a@example.com"]}`,
		"a path's name": `{name: "../a", file: a.json, stores: [agents], identities: ["email:a@example.com"]}`,
		"no file":       `{name: a, stores: [agents], identities: ["email:a@example.com"]}`,
		"no stores":     `{name: a, file: a.json, identities: ["email:a@example.com"]}`,
		"no identities": `{name: a, file: a.json, stores: [agents]}`,
		"anybody":       `{name: a, file: a.json, stores: [agents], identities: [any]}`,
	} {
		if _, err := ParsePolicy("p", []byte(testPolicy+"releases: ["+text+"]\n")); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who is who is told by keys: the stranger has every name that the signer has.
func TestAReleaseListIsContinuedByItsOwnSignerOnly(t *testing.T) {
	own := testpki.New(t)
	key := func(name string) testpki.Knob { return testpki.LeafKey(testpki.RSA(t, name, 2048)) }
	otherAgent := func(r *testpki.Recipe) { r.AgentKey = testpki.RSA(t, "other agent CA", 2048) }
	renewed := testpki.New(t, key("renewed"))
	ended := testpki.New(t, key("renewed"), testpki.LeafExpired)
	colleague := testpki.New(t, key("colleague"), testpki.LeafEmails("colleague@example.com"))
	nextCA := testpki.New(t, key("renewed"), otherAgent)
	stranger := testpki.New(t, key("stranger"), testpki.OtherRoot(t), otherAgent)
	elsewhere := testpki.New(t, key("renewed"), otherAgent, func(r *testpki.Recipe) { r.Agent.Subject = testpki.Name("Another CA") })
	authority := testpki.New(t, key("authority"), testpki.LeafIsCA)
	server := testpki.New(t, key("server"), testpki.LeafForTLS)
	of := func(email string, roots ...*x509.Certificate) Successor { return Successor{Of: email, Roots: roots} }
	for name, c := range map[string]struct {
		was  *testpki.PKI
		at   time.Time
		by   Successor
		want fault.Reason
	}{
		"the same certificate":            {was: own},
		"the key that signs now":          {was: testpki.New(t, testpki.OtherRoot(t), otherAgent)},
		"after a renewal":                 {was: renewed},
		"after a renewal that came late":  {was: ended, at: testpki.Now.AddDate(0, 0, -2)},
		"a colleague":                     {was: colleague, want: fault.IdentityUntrusted},
		"a colleague who is named":        {was: colleague, by: of("colleague@EXAMPLE.com")},
		"another than the one named":      {was: colleague, by: of("third@example.com"), want: fault.IdentityUntrusted},
		"the own one, when another is":    {was: own, by: of("colleague@example.com"), want: fault.IdentityUntrusted},
		"no address at all":               {was: own, by: of("colleague"), want: fault.IdentityUntrusted},
		"a stranger of the same names":    {was: stranger, want: fault.ChainUntrusted},
		"that one, named":                 {was: stranger, by: of(testpki.Email), want: fault.ChainUntrusted},
		"that one, named with his root":   {was: stranger, by: of(testpki.Email, stranger.Root)},
		"the same root's next CA":         {was: nextCA, want: fault.ChainUntrusted},
		"that one, and the root is given": {was: nextCA, by: of("", own.Root)},
		"the own CA, and another root is": {was: renewed, by: of("", stranger.Root), want: fault.ChainUntrusted},
		"the same name by another issuer": {was: elsewhere, by: of("", own.Root), want: fault.IdentityUntrusted},
		"that one, named and led to":      {was: elsewhere, by: of(testpki.Email, own.Root)},
		"an authority":                    {was: authority, want: fault.ChainUntrusted},
		"a server's certificate":          {was: server, want: fault.ChainUntrusted},
		"from the future":                 {was: renewed, at: testpki.Now.Add(time.Hour), want: fault.OutsideValidity},
		"from before there was a signer":  {was: renewed, at: testpki.Now.AddDate(-20, 0, 0), want: fault.ChainUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			at := c.at
			if at.IsZero() {
				at = testpki.Now.Add(-time.Hour)
			}
			r := list(7)
			r.Version = releasesVersion
			data := signedBy(t, r, c.was, at)
			// The stranger's root stands in the file, behind what certifies the signer.
			c.by.Chain, c.by.Now = append(own.Chain(), stranger.Root, stranger.Agent), testpki.Now
			got, signer, err := ContinueReleases("list", data, c.by)
			if c.want != "" {
				if fault.ReasonOf(err) != c.want || got != nil || !strings.Contains(err.Error(), c.was.Leaf.EmailAddresses[0]) && c.want != fault.OutsideValidity {
					t.Errorf("%v, wanted is %s", err, c.want)
				}
				return
			}
			if err != nil || got.Number != 7 || !signer.Equal(c.was.Leaf) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// signedBy is a list as whoever has a key can make it.
func signedBy(tb testing.TB, r Releases, p *testpki.PKI, at time.Time) []byte {
	tb.Helper()
	who, alg, err := signerOf(p.LeafKey, p.Chain(), "")
	if err != nil {
		tb.Fatal(err)
	}
	body, err := canonical.Marshal(r)
	if err != nil {
		tb.Fatal(err)
	}
	e := envelope{MediaType: ReleasesType, Timestamp: at.UTC().Format(timeLayout), Algorithm: who.Algorithm, CertificateChain: who.CertificateChain, Payload: body}
	signed, err := e.signed()
	if err != nil {
		tb.Fatal(err)
	}
	if e.Signature, err = signPayload(p.LeafKey, alg, signed); err != nil {
		tb.Fatal(err)
	}
	data, err := canonical.Marshal(e)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// FuzzReadReleases: what is read was signed, and has one form.
func FuzzReadReleases(f *testing.F) {
	p := testpki.New(f)
	data, err := SignReleases(list(1), p.LeafKey, p.Chain(), testpki.Now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Add(bytes.Replace(data, []byte(`"number":1`), []byte(`"number":2`), 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := readReleases("fuzz", raw)
		if err == nil && !bytes.Equal(raw, data) {
			if d, _ := openDocument("fuzz", ReleasesType, raw); d.chain[0].Equal(p.Leaf) {
				t.Fatalf("something else than what was signed is believed: %q", raw)
			}
		}
		if reason := fault.ReasonOf(err); err != nil && reason != fault.SignatureInvalid && reason != fault.ChainUntrusted {
			t.Fatalf("%s: %v", reason, err)
		}
	})
}
