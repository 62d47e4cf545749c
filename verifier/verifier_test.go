package verifier

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
)

func TestTheScopeDecides(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	broken := annotate(t, signed, "{}")
	signedContainer := mustSign(t, container(t), p.LeafKey, p.Chain())
	v := newNode(p).verifier(t)
	for _, c := range []struct {
		name, reference string
		raw             []byte
		want            fault.Reason
		trust           TrustLevel
		scope           string
	}{
		{"signed agent in its scope", ref, signed, "", Signed, "agents"},
		{"by digest", repository + "@" + string(digest.FromBytes(signed)), signed, "", Signed, "agents"},
		{"by tag and digest", ref + "@" + string(digest.FromBytes(signed)), signed, "", Signed, "agents"},
		{"unsigned agent", ref, wasmAgent(t), fault.Unsigned, "", "agents"},
		{"unsigned container in an enforced scope", ref, container(t), fault.Unsigned, "", "agents"},
		{"signed container", ref, signedContainer, "", Signed, "agents"},
		{"broken", ref, broken, fault.AttestationFormat, "", ""},
		{"another repository of the scope", "registry.example/agents/other:1.0.0", signed, fault.BindingMismatch, "", "agents"},
		{"unsigned agent where it is allowed", "registry.example/mixed/a:1", wasmAgent(t), "", Untrusted, "mixed"},
		{"unsigned container where it is allowed", "registry.example/mixed/a:1", container(t), "", Untrusted, "mixed"},
		{"broken where unsigned is allowed", "registry.example/mixed/a:1", broken, fault.AttestationFormat, "", ""},
		{"unbound scope", "registry.example/mixed/a/b:1", signed, "", Signed, "mixed"},
		{"scope's own path is not below it", "registry.example/agents:1", signed, fault.PolicyDenied, "", ""},
		{"scope's name as a mere prefix", "registry.example/agents2/echo:1", signed, fault.PolicyDenied, "", ""},
		{"ordinary image outside", "docker.io/library/alpine:3", container(t), "", Untrusted, ""},
		{"ordinary image by its short name", "alpine", container(t), "", Untrusted, ""},
		{"signed container outside", "docker.io/library/alpine:3", signedContainer, "", Untrusted, ""},
		{"broken outside", "docker.io/library/alpine:3", broken, fault.AttestationFormat, "", ""},
		{"unsigned agent outside", "docker.io/library/alpine:3", wasmAgent(t), fault.Unsigned, "", ""},
		{"signed agent outside", "docker.io/library/alpine:3", signed, fault.PolicyDenied, "", ""},
		{"signed agent of unknown name", "", signed, fault.PolicyDenied, "", ""},
		{"container of unknown name", "", container(t), "", Untrusted, ""},
		{"unreadable name", "::::", signed, fault.PolicyDenied, "", ""},
		{"upper case host is the same host", "REGISTRY.example/agents/echo:1.0.0", signed, "", Signed, "agents"},
		{"default port is the same host", "registry.example:443/agents/echo:1.0.0", container(t), fault.Unsigned, "", "agents"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vd := v.Verify(t.Context(), Input{Reference: c.reference, Artifact: read(t, c.raw)})
			expect(t, vd, c.want)
			if c.want == "" && vd.Trust != c.trust || vd.Scope != c.scope || !vd.Enforced || vd.Developer {
				t.Errorf("trust %q, scope %q in %+v", vd.Trust, vd.Scope, vd)
			}
		})
	}
}

func TestTheMostSpecificPatternWins(t *testing.T) {
	p := policy(t, `version: 1
scopes:
  - {name: all, match: ["*"], stores: [a], identities: [any], unsigned_containers: allow}
  - {name: host, match: ["r.example/**"], stores: [a], identities: [any], unsigned_containers: allow}
  - {name: path, match: ["r.example/a/**"], stores: [a], identities: [any], unsigned_containers: allow}
  - {name: exact, match: ["r.example/a/b"], stores: [a], identities: [any], unsigned_containers: allow}
  - {name: port, match: ["127.0.0.1:5000/agents/**"], stores: [a], identities: [any], unsigned_containers: allow}
outside: {ordinary_images: deny}
`)
	for reference, want := range map[string]string{
		"r.example/a/b:1":             "exact",
		"r.example/a/b/c:1":           "path",
		"r.example/a/bc":              "path",
		"r.example/ab":                "host",
		"r.example:443/a/b":           "exact",
		"R.example/a/b":               "exact",
		"r.example:444/a/b":           "all",
		"localhost/a/b":               "all",
		"":                            "all",
		"127.0.0.1:5000/agents/echo":  "port",
		"127.0.0.1:5001/agents/echo":  "all",
		"127.0.0.1:5000/agents":       "all",
		"127.0.0.1:5000/agents/a/b:x": "port",
	} {
		if got := p.scope(imageref.Parse(reference)); got == nil || got.name != want {
			t.Errorf("%q: scope %+v, want %s", reference, got, want)
		}
	}
}

func TestExemptIsByDigestAndNeverForWASM(t *testing.T) {
	p := testpki.New(t)
	image, agent := container(t), wasmAgent(t)
	broken := annotate(t, image, "{}")
	n := newNode(p)
	n.policy = strings.Replace(n.policy, "trust:", "exempt: ["+strings.Join([]string{
		string(digest.FromBytes(image)), string(digest.FromBytes(agent)), string(digest.FromBytes(broken)),
	}, ", ")+"]\ntrust:", 1)
	v := n.verifier(t)
	index := digest.FromBytes(image)
	other := mustSign(t, container(t), p.LeafKey, p.Chain(), func(b *Block) { b.Subject.Repository = "" })
	for _, c := range []struct {
		raw   []byte
		index digest.Digest
		want  fault.Reason
	}{
		{image, "", ""},
		{agent, "", fault.Unsigned},
		{broken, "", fault.AttestationFormat},
		{other, "", fault.BindingMismatch},
		{other, index, ""},
		{wasmAgent(t), index, fault.Unsigned},
	} {
		expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, c.raw), Index: c.index}), c.want)
	}
}

func TestDeveloperModeTrustsNobodyAndRefusesTheBroken(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	v, err := Open(nodeconfig.Verify{}, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		raw  []byte
		want fault.Reason
	}{
		{"unsigned", wasmAgent(t), ""},
		{"signed", signed, ""},
		{"container", container(t), ""},
		{"broken", annotate(t, signed, "{}"), fault.AttestationFormat},
		{"changed", annotate(t, agentOf(t, "echo", "\x00asm\x01\x00\x00\x00\x00"), string(marshal(t, blockOf(t, signed)))), fault.SignatureInvalid},
		{"of another agent", mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.Subject.ID = "x.y" }), fault.BindingMismatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			vd := v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, c.raw)})
			expect(t, vd, c.want)
			if vd.Trust != Untrusted || !vd.Developer || vd.Enforced || vd.Signer != nil {
				t.Errorf("%+v", vd)
			}
			if c.want == "" && len(vd.Warnings) != 1 {
				t.Errorf("wanted one warning, got %q", vd.Warnings)
			}
		})
	}
}

func TestWhatCannotBeJudgedIsRefused(t *testing.T) {
	p := testpki.New(t)
	v := newNode(p).verifier(t)
	expect(t, v.Verify(t.Context(), Input{Reference: ref}), fault.Internal)
	expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: &oci.Artifact{}}), fault.DigestMismatch)
	a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	a.Raw = append([]byte(nil), a.Raw...)
	a.Raw[len(a.Raw)-2] ^= 1
	expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: a}), fault.DigestMismatch)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expect(t, v.Verify(ctx, Input{Reference: ref, Artifact: read(t, wasmAgent(t))}), fault.Canceled)
}

func TestAContainerWithoutAnImageIsAnUnsignedOneOfUnknownName(t *testing.T) {
	const everything = `scopes:
  - {name: all, match: ["*"], stores: [agents], identities: [any], unsigned_containers: %}
`
	for _, c := range []struct {
		name, policy string
		want         fault.Reason
	}{
		{"allowed outside", "outside: {ordinary_images: allow}\n", ""},
		{"denied outside", "outside: {ordinary_images: deny}\n", fault.PolicyDenied},
		{"scope of everything denies", strings.Replace(everything, "%", "deny", 1) + "outside: {ordinary_images: allow}\n", fault.Unsigned},
		{"scope of everything allows", strings.Replace(everything, "%", "allow", 1) + "outside: {ordinary_images: deny}\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(testpki.New(t))
			n.policy = "version: 1\n" + c.policy
			vd := n.verifier(t).Verify(t.Context(), Input{})
			expect(t, vd, c.want)
			if vd.Trust != Untrusted {
				t.Errorf("trust %s", vd.Trust)
			}
		})
	}
	v, err := Open(nodeconfig.Verify{}, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, v.Verify(t.Context(), Input{}), "")
	expect(t, v.Verify(t.Context(), Input{Reference: ref}), fault.Internal)
}

func TestTrustLevelsComeFromThePolicy(t *testing.T) {
	for _, c := range []struct {
		email string
		crl   time.Time // end of the agent CA's list
		want  TrustLevel
	}{
		{"someone@example.com", testpki.Now.Add(time.Hour), Signed},
		{"friend@example.com", testpki.Now.Add(time.Hour), Community},
		{"friend@example.com", testpki.Now.Add(-time.Hour), Community},
		{"publisher@example.com", testpki.Now.Add(time.Hour), Verified},
		{"publisher@example.com", testpki.Now.Add(-time.Hour), Signed}, // not fresh
	} {
		p := testpki.New(t, testpki.LeafEmails(c.email))
		n := newNode(p)
		n.agent = p.AgentCRL(testpki.Until(c.crl))
		vd := n.verifier(t).Verify(t.Context(), Input{Reference: "registry.example/mixed/x:1", Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))})
		expect(t, vd, "")
		if vd.Trust != c.want {
			t.Errorf("%s, list until %s: trust %s, want %s", c.email, c.crl, vd.Trust, c.want)
		}
		if late := c.crl.Before(testpki.Now); late != (len(vd.Warnings) > 0) {
			t.Errorf("warnings %q", vd.Warnings)
		}
	}
}

func TestExactBindingHoldsTheTagToTheVersion(t *testing.T) {
	p := testpki.New(t)
	const repo = "registry.example/agents/exact"
	raw := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.Subject.Repository = repo })
	v := newNode(p).verifier(t)
	for reference, want := range map[string]fault.Reason{
		repo + ":1.0.0":  "",
		repo + ":1.0.1":  fault.BindingMismatch,
		repo + ":latest": fault.BindingMismatch,
		repo + "@" + string(digest.FromBytes(raw)):   "",
		repo + ":2@" + string(digest.FromBytes(raw)): fault.BindingMismatch,
		repo: "", // no tag was asked for
	} {
		expect(t, v.Verify(t.Context(), Input{Reference: reference, Artifact: read(t, raw)}), want)
	}
}

func TestEveryCertificateMustBeRevocableAndCurrent(t *testing.T) {
	p := testpki.New(t)
	noPoint := testpki.New(t, testpki.LeafWithoutCRL)
	revokedLeaf := p.AgentCRL(testpki.Revoking(p.Leaf))
	for _, c := range []struct {
		name        string
		pki         *testpki.PKI
		root, agent []byte
		want        fault.Reason
		says        string
	}{
		{"both lists", p, p.RootCRL(), p.AgentCRL(), "", ""},
		{"leaf revoked", p, p.RootCRL(), revokedLeaf, fault.Revoked, "keyCompromise"},
		{"agent CA revoked", p, p.RootCRL(testpki.Revoking(p.Agent)), p.AgentCRL(), fault.Revoked, "Agent CA"},
		{"another leaf revoked", p, p.RootCRL(), p.AgentCRL(testpki.Revoking(testpki.New(t, testpki.LeafSerial(5)).Leaf)), "", ""},
		{"leaf's serial on the root's list", p, p.RootCRL(testpki.Revoking(p.Leaf)), p.AgentCRL(), "", ""},
		{"no root list", p, nil, p.AgentCRL(), fault.RevocationUnknown, "no revocation list"},
		{"no agent list", p, p.RootCRL(), nil, fault.RevocationUnknown, "no revocation list"},
		{"no agent list and none named", noPoint, p.RootCRL(), nil, fault.RevocationUnknown, "never be revoked"},
		{"stale in grace", p, p.RootCRL(), p.AgentCRL(testpki.Until(testpki.Now.Add(-time.Hour))), "", ""},
		{"stale", p, p.RootCRL(), p.AgentCRL(testpki.Until(testpki.Now.Add(-25 * time.Hour))), fault.RevocationUnknown, "out of date"},
		{"stale root list", p, p.RootCRL(testpki.Until(testpki.Now.Add(-25 * time.Hour))), p.AgentCRL(), fault.RevocationUnknown, "out of date"},
		{"stale but revoked", p, p.RootCRL(), p.AgentCRL(testpki.Until(testpki.Now.Add(-25*time.Hour)), testpki.Revoking(p.Leaf)), fault.Revoked, ""},
		{"no root list but revoked", p, nil, revokedLeaf, fault.Revoked, ""},
		{"list of another distribution point", p, p.RootCRL(), p.AgentCRL(issuingPoint("http://pki.example/crl/other.crl")), fault.RevocationUnknown, "not among"},
		{"list of its distribution point", p, p.RootCRL(), p.AgentCRL(issuingPoint("http://pki.example/crl/agent.crl")), "", ""},
		{"list of the same name by another key", p, p.RootCRL(), nil, fault.RevocationUnknown, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(c.pki)
			n.root, n.agent = c.root, c.agent
			vd := n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), c.pki.LeafKey, c.pki.Chain()))})
			expect(t, vd, c.want)
			if !strings.Contains(vd.Message, c.says) {
				t.Errorf("%q does not say %q", vd.Message, c.says)
			}
		})
	}
}

func TestRootExpiredIsOutsideValidity(t *testing.T) {
	p := testpki.New(t, testpki.RootExpired)
	vd := newNode(p).verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))})
	expect(t, vd, fault.OutsideValidity)
}

func TestVerdictsSpeakJSON(t *testing.T) {
	p := testpki.New(t)
	v := newNode(p).verifier(t)
	raw := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	for _, in := range []Input{{Reference: ref, Artifact: read(t, raw)}, {Reference: "registry.example/agents/other", Artifact: read(t, raw)}} {
		vd := v.Verify(t.Context(), in)
		data, err := json.Marshal(vd)
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]any
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if back["allowed"] != vd.Allowed || (back["reason"] == nil) != vd.Allowed || back["signer"].(map[string]any)["email"] != testpki.Email {
			t.Errorf("%s", data)
		}
		last := vd.Checks[len(vd.Checks)-1]
		if last.OK != vd.Allowed {
			t.Errorf("last check %+v of %+v", last, vd)
		}
	}
}

// disk lays a node's files out.
type disk struct {
	cfg nodeconfig.Verify
	crl string
}

func newDisk(t *testing.T, p *testpki.PKI) disk {
	t.Helper()
	dir := t.TempDir()
	d := disk{nodeconfig.Verify{Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "state")}, filepath.Join(dir, "agent.crl")}
	put(t, filepath.Join(d.cfg.Trust, "agents", "root.pem"), testpki.PEM(p.Root))
	put(t, filepath.Join(dir, "root.crl"), p.RootCRL())
	put(t, d.crl, p.AgentCRL())
	put(t, d.cfg.Policy, []byte(strings.Replace(testPolicy, "revocation: {grace: 24h}", `revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl}
`, 1)))
	return d
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		t.Fatal(err)
	}
}

func TestARevocationInAFileCountsAtOnce(t *testing.T) {
	p := testpki.New(t)
	d := newDisk(t, p)
	v, err := Open(d.cfg, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	in := Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))}
	expect(t, v.Verify(t.Context(), in), "")
	put(t, d.crl, p.AgentCRL(testpki.Numbered(2), testpki.Revoking(p.Leaf)))
	expect(t, v.Verify(t.Context(), in), fault.Revoked)
	put(t, d.crl, p.AgentCRL()) // rolled back
	vd := v.Verify(t.Context(), in)
	expect(t, vd, fault.Revoked)
	if !strings.Contains(strings.Join(vd.Warnings, " "), "older than 2") {
		t.Errorf("warnings %q", vd.Warnings)
	}
	put(t, d.crl, []byte("half a li"))
	expect(t, v.Verify(t.Context(), in), fault.Revoked)
	fresh, err := Open(d.cfg, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Another process goes on from what the first one knew.
	expect(t, fresh.Verify(t.Context(), in), fault.Revoked)
	if err := os.Remove(d.crl); err != nil {
		t.Fatal(err)
	}
	vd = fresh.Verify(t.Context(), in)
	expect(t, vd, fault.Revoked)
	if !strings.Contains(strings.Join(vd.Warnings, " "), "may not be the newest") {
		t.Errorf("warnings %q", vd.Warnings)
	}
}

func TestAListInAFileThatWasNeverReadRefuses(t *testing.T) {
	p := testpki.New(t)
	d := newDisk(t, p)
	in := Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))}
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(d.crl, []byte("half a li"), 0o600) },
		func() error { return os.Remove(d.crl) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		v, err := Open(d.cfg, testpki.Clock, nil)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, v.Verify(t.Context(), in), fault.RevocationUnknown)
	}
}

func TestAnIndexOnDiskIsUsedWithoutItsList(t *testing.T) {
	p := testpki.New(t)
	d := newDisk(t, p)
	if err := os.MkdirAll(d.cfg.State, 0o755); err != nil {
		t.Fatal(err)
	}
	ix, err := CompileCRL(p.AgentCRL(testpki.Numbered(7), testpki.Revoking(p.Leaf)), p.Agent, CRLOrigin{URL: "http://x"}, testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := StoreIndex(d.cfg.State, p.Agent, ix); err != nil {
		t.Fatal(err)
	}
	v, err := Open(d.cfg, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The file beside the policy has number 1 and revokes nobody.
	expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))}), fault.Revoked)
}

func TestOpenRefusesABrokenConfiguration(t *testing.T) {
	p := testpki.New(t)
	for name, breakIt := range map[string]func(t *testing.T, d *disk){
		"policy missing":      func(t *testing.T, d *disk) { d.cfg.Policy += "x" },
		"policy is directory": func(t *testing.T, d *disk) { d.cfg.Policy = t.TempDir() },
		"policy malformed":    func(t *testing.T, d *disk) { put(t, d.cfg.Policy, []byte("version: 1\nscope: []\n")) },
		"policy empty":        func(t *testing.T, d *disk) { put(t, d.cfg.Policy, nil) },
		"policy oversized":    func(t *testing.T, d *disk) { put(t, d.cfg.Policy, make([]byte, 2<<20)) },
		"store missing":       func(t *testing.T, d *disk) { d.cfg.Trust = t.TempDir() },
		"store empty": func(t *testing.T, d *disk) {
			if err := os.Remove(filepath.Join(d.cfg.Trust, "agents", "root.pem")); err != nil {
				t.Fatal(err)
			}
		},
		"store with a leaf": func(t *testing.T, d *disk) {
			put(t, filepath.Join(d.cfg.Trust, "agents", "leaf.pem"), testpki.PEM(p.Leaf))
		},
		"store with an agent CA": func(t *testing.T, d *disk) {
			put(t, filepath.Join(d.cfg.Trust, "agents", "a.crt"), testpki.PEM(p.Agent))
		},
		"store with a key": func(t *testing.T, d *disk) {
			put(t, filepath.Join(d.cfg.Trust, "agents", "a.pem"), testpki.KeyPEM(t, p.LeafKey))
		},
		"store with rubbish":      func(t *testing.T, d *disk) { put(t, filepath.Join(d.cfg.Trust, "agents", "a.pem"), []byte("hello")) },
		"store with another file": func(t *testing.T, d *disk) { put(t, filepath.Join(d.cfg.Trust, "agents", "README"), nil) },
		"store with a subdirectory": func(t *testing.T, d *disk) {
			put(t, filepath.Join(d.cfg.Trust, "agents", "x", "a.pem"), testpki.PEM(p.Root))
		},
		"store with a link": func(t *testing.T, d *disk) {
			if err := os.Symlink("root.pem", filepath.Join(d.cfg.Trust, "agents", "b.pem")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, p)
			breakIt(t, &d)
			if v, err := Open(d.cfg, testpki.Clock, nil); fault.ReasonOf(err) != fault.PolicyInvalid || v != nil {
				t.Errorf("got %v, %v", v, err)
			}
		})
	}
}

// BenchmarkVerify is the whole judgement with key sizes as in specification §2.4
// and 100,000 revoked certificates, without any cache of verdicts.
func BenchmarkVerify(b *testing.B) {
	p := testpki.New(b, testpki.AgentKey(testpki.RSA(b, "bench agent", 3072)), func(r *testpki.Recipe) { r.RootKey = testpki.RSA(b, "bench root", 4096) })
	n := newNode(p)
	n.agent = p.AgentCRL(bigList(100_000))
	v := n.verifier(b)
	a := read(b, mustSign(b, wasmAgent(b), p.LeafKey, p.Chain()))
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		vd := v.Verify(b.Context(), Input{Reference: ref, Artifact: a})
		took = append(took, time.Since(start))
		if !vd.Allowed {
			b.Fatal(vd.Line())
		}
	}
	slices.Sort(took)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*q/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", q))
	}
}
