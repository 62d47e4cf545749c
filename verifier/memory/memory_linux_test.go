package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

const (
	repository = "registry.example/agents/echo"
	ref        = repository + ":1.0.0"
	policyText = `version: 1
scopes:
  - {name: agents, match: ["registry.example/agents/**"], stores: [agents], identities: ["email:dev@example.com"], unsigned_containers: deny, unsigned_agents: %s}
outside: {ordinary_images: deny}
trust: {publishers: ["email:dev@example.com"]}
revocation:
  grace: %s
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: agent.crl}
`
)

// node is a node's files, a memory and a signed agent.
type node struct {
	*testing.T
	dir    string
	pki    *testpki.PKI
	now    time.Time
	memory *Memory
	layout *oci.Layout
	desc   ocispec.Descriptor
	in     verifier.Input
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{T: t, dir: t.TempDir(), pki: testpki.New(t), now: testpki.Now}
	n.put("trust/agents/root.pem", testpki.PEM(n.pki.Root))
	n.put("root.crl", n.pki.RootCRL())
	n.put("agent.crl", n.pki.AgentCRL())
	n.policy("deny", "0s")
	var err error
	if n.memory, err = Open(filepath.Join(n.dir, "verdicts")); err != nil {
		t.Fatal(err)
	}
	n.agent(true)
	return n
}

func (n *node) policy(unsigned, grace string) {
	n.Helper()
	n.put("policy.yaml", fmt.Appendf(nil, policyText, unsigned, grace))
}

func (n *node) put(name string, data []byte) {
	n.Helper()
	path := filepath.Join(n.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		n.Fatal(err)
	}
}

// agent builds the agent that is judged.
func (n *node) agent(signed bool) {
	n.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: mentatlab.echo\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n"))
	if err != nil {
		n.Fatal(err)
	}
	if n.layout, err = oci.CreateLayout(n.TempDir()); err != nil {
		n.Fatal(err)
	}
	if n.desc, err = oci.Build(n.Context(), oci.BuildInput{Agent: m, Module: []byte("\x00asm\x01\x00\x00\x00")}, n.layout); err != nil {
		n.Fatal(err)
	}
	raw, err := oci.ReadBlob(n.Context(), n.layout, n.desc, limits.OCIManifestBytes)
	if err != nil {
		n.Fatal(err)
	}
	if signed {
		raw, _, err = verifier.Sign(verifier.SignRequest{
			Raw: raw, Key: n.pki.LeafKey, Chain: n.pki.Chain(), Time: testpki.Now,
			Subject: verifier.Subject{ID: m.ID, Version: m.Version, Repository: repository},
		})
		if err != nil {
			n.Fatal(err)
		}
		if n.desc, err = n.layout.ReplaceManifest(n.Context(), n.desc, raw); err != nil {
			n.Fatal(err)
		}
	}
	a, err := oci.Read(n.Context(), n.layout, raw)
	if err != nil {
		n.Fatal(err)
	}
	n.in = verifier.Input{Reference: ref, Artifact: a}
}

func (n *node) config() nodeconfig.Verify {
	return nodeconfig.Verify{Policy: filepath.Join(n.dir, "policy.yaml"), Trust: filepath.Join(n.dir, "trust"), State: filepath.Join(n.dir, "state")}
}

func (n *node) open() (*verifier.Verifier, error) {
	return verifier.Open(n.config(), func() time.Time { return n.now }, nil)
}

// verify judges as a new process of the node would.
func (n *node) verify() *verifier.Verdict {
	n.Helper()
	v, err := n.open()
	if err != nil {
		n.Fatal(err)
	}
	if err := fetch.Refresh(n.Context(), v, n.config(), nil, false); err != nil {
		n.Log(err)
	}
	return n.memory.Verify(n.Context(), v, n.in)
}

func (n *node) kept() []string {
	n.Helper()
	entries, err := os.ReadDir(n.memory.dir)
	if err != nil {
		n.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestAVerdictIsUsedAgain(t *testing.T) {
	n := newNode(t)
	first, second := n.verify(), n.verify()
	if !first.Allowed || first.Remembered || !second.Remembered {
		t.Fatalf("%s, then %s", first.Line(), second.Line())
	}
	if first.Trust != verifier.Verified || second.Trust != first.Trust || *second.Signer != *first.Signer || len(second.Checks) != len(first.Checks) ||
		second.SignedDigest != first.SignedDigest || second.Digest != first.Digest || !strings.Contains(second.Line(), "as judged before") {
		t.Errorf("%+v, then %+v", first, second)
	}
}

func TestAVerdictHoldsOnlyWhileWhatItRestsOnIsTheSame(t *testing.T) {
	for name, c := range map[string]struct {
		change func(n *node)
		reason fault.Reason // "" for another judgement with the same outcome
	}{
		"the certificate is revoked":  {change: func(n *node) { n.put("agent.crl", n.pki.AgentCRL(testpki.Revoking(n.pki.Leaf), testpki.Numbered(99))) }, reason: fault.Revoked},
		"the lists come to their end": {change: func(n *node) { n.now = n.now.AddDate(2, 0, 0) }, reason: fault.OutsideValidity},
		"the revocation index is lost": {change: func(n *node) {
			if err := os.RemoveAll(filepath.Join(n.dir, "state")); err != nil {
				n.Fatal(err)
			}
		}},
		"the list is another file of the same size and time": {change: func(n *node) {
			path := filepath.Join(n.dir, "agent.crl")
			info, err := os.Stat(path)
			if err != nil {
				n.Fatal(err)
			}
			n.put("other.crl", n.pki.AgentCRL())
			if err := errors.Join(os.Chtimes(filepath.Join(n.dir, "other.crl"), info.ModTime(), info.ModTime()), os.Rename(filepath.Join(n.dir, "other.crl"), path)); err != nil {
				n.Fatal(err)
			}
		}},
		"the policy":            {change: func(n *node) { n.policy("allow", "0s") }},
		"the roots":             {change: func(n *node) { n.put("trust/agents/root.pem", testpki.PEM(testpki.New(n, testpki.OtherRoot(n)).Root)) }, reason: fault.ChainUntrusted},
		"the repository":        {change: func(n *node) { n.in.Reference = "registry.example/agents/other:1.0.0" }, reason: fault.BindingMismatch},
		"the scope":             {change: func(n *node) { n.in.Reference = "elsewhere.example/echo:1.0.0" }, reason: fault.PolicyDenied},
		"the tag":               {change: func(n *node) { n.in.Reference = repository + ":2.0.0" }},
		"the index":             {change: func(n *node) { n.in.Index = digest.FromString("index") }},
		"the signature":         {change: func(n *node) { n.agent(false) }, reason: fault.Unsigned},
		"the time is set back":  {change: func(n *node) { n.now = n.now.Add(-time.Second) }},
		"the program":           {change: func(n *node) { n.memory.program += "'" }},
		"the memory is damaged": {change: func(n *node) { n.spoil(func([]byte) []byte { return []byte("{}") }) }},
		"the memory is cut off": {change: func(n *node) { n.spoil(func(b []byte) []byte { return b[:len(b)/2] }) }},
		"a refusal in the place": {change: func(n *node) {
			n.spoil(func(b []byte) []byte { return bytes.Replace(b, []byte(`"allowed":true`), []byte(`"allowed":false`), 1) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.verify()
			if vd := n.verify(); !vd.Remembered {
				t.Fatalf("nothing is remembered: %s", vd.Line())
			}
			c.change(n)
			if vd := n.verify(); vd.Remembered || vd.Reason != c.reason || vd.Allowed != (c.reason == "") {
				t.Errorf("%s, remembered %v", vd.Line(), vd.Remembered)
			}
		})
	}
}

// spoil changes the one file of the memory.
func (n *node) spoil(change func([]byte) []byte) {
	n.Helper()
	names := n.kept()
	if len(names) != 1 {
		n.Fatalf("kept is %q", names)
	}
	path := filepath.Join(n.memory.dir, names[0])
	data, err := os.ReadFile(path)
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		n.Fatal(err)
	}
}

// A remembered verdict rests on what the countersigners' certificates rest on, too.
func TestACountersignedVerdictHoldsOnlyWhileItsCountersignersCount(t *testing.T) {
	const bob = "bob@example.com"
	ends := testpki.Now.Add(2 * time.Hour)
	for name, c := range map[string]struct {
		change func(n *node, bob *testpki.PKI)
		reason fault.Reason
	}{
		"nothing": {func(*node, *testpki.PKI) {}, ""},
		"a countersigner is revoked": {func(n *node, bob *testpki.PKI) {
			n.put("agent.crl", n.pki.AgentCRL(testpki.Revoking(bob.Leaf), testpki.Numbered(99)))
		}, fault.SignersMissing},
		"a countersigner's certificate ends": {func(n *node, _ *testpki.PKI) { n.now = ends.Add(time.Second) }, fault.SignersMissing},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.put("policy.yaml", bytes.Replace(fmt.Appendf(nil, policyText, "deny", "0s"), []byte("unsigned_agents"),
				[]byte(`required_signers: [{at_least: 2, of: ["email:dev@example.com", "email:`+bob+`"]}], unsigned_agents`), 1))
			p := testpki.New(t, testpki.LeafEmails(bob), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)), func(r *testpki.Recipe) { r.Leaf.NotAfter = ends })
			raw, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: n.in.Artifact.Raw, Key: p.LeafKey, Chain: p.Chain(), Time: n.now})
			if err != nil {
				t.Fatal(err)
			}
			if n.in.Artifact, err = oci.Read(t.Context(), n.layout, raw); err != nil {
				t.Fatal(err)
			}
			n.verify()
			vd := n.verify()
			if !vd.Remembered || len(vd.Counted()) != 1 || vd.Counted()[0] != bob {
				t.Fatalf("%s, remembered %v, by %q", vd.Line(), vd.Remembered, vd.Counted())
			}
			c.change(n, p)
			if vd := n.verify(); vd.Remembered != (c.reason == "") || vd.Reason != c.reason {
				t.Errorf("%s, remembered %v", vd.Line(), vd.Remembered)
			}
		})
	}
}

func TestOnlyWhatWasAllowedWithoutAWarningIsKept(t *testing.T) {
	for name, prepare := range map[string]func(n *node){
		"a refusal":             func(n *node) { n.put("agent.crl", n.pki.AgentCRL(testpki.Revoking(n.pki.Leaf), testpki.Numbered(99))) },
		"an unsigned agent":     func(n *node) { n.policy("allow", "0s"); n.agent(false) },
		"a list within a grace": func(n *node) { n.policy("deny", "720h"); n.now = n.now.AddDate(0, 0, 20) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			prepare(n)
			for range 2 {
				if vd := n.verify(); vd.Remembered {
					t.Errorf("remembered: %s", vd.Line())
				}
			}
			if names := n.kept(); len(names) > 0 {
				t.Errorf("kept is %q", names)
			}
		})
	}
}

func TestADirectoryOfOthersIsNoMemory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if m, err := Open(dir); err == nil || !strings.Contains(err.Error(), "lets others in") {
		t.Errorf("%v, %v", m, err)
	}
}

func TestAMemoryStaysSmall(t *testing.T) {
	n := newNode(t)
	for i := range limits.Verdicts + 1 {
		n.put(fmt.Sprintf("verdicts/%d", i), nil)
	}
	n.verify()
	if names := n.kept(); len(names) > 1 {
		t.Errorf("%d are kept", len(names))
	}
	if vd := n.verify(); !vd.Allowed {
		t.Error(vd.Line())
	}
}

func TestManyJudgeAtOnce(t *testing.T) {
	n := newNode(t)
	n.verify()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if vd := n.verify(); !vd.Allowed || vd.Trust != verifier.Verified {
				t.Error(vd.Line())
			}
		})
	}
	wg.Wait()
}

// counted counts what is asked of a store.
type counted struct {
	oci.Fetcher
	asked int
}

func (c *counted) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	c.asked++
	return c.Fetcher.Fetch(ctx, desc)
}

func TestContentIsAskedForOnceAndIsWhatItsDigestSays(t *testing.T) {
	n := newNode(t)
	store := &counted{Fetcher: n.layout}
	read := func() []byte {
		t.Helper()
		data, err := oci.ReadBlob(t.Context(), n.memory.Blobs(store), n.desc, limits.OCIManifestBytes)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	want := read()
	if again := read(); store.asked != 1 || !bytes.Equal(again, want) {
		t.Errorf("asked %d times", store.asked)
	}
	n.spoil(func(b []byte) []byte { b[0]++; return b })
	if again := read(); store.asked != 2 || !bytes.Equal(again, want) {
		t.Errorf("asked %d times after it was damaged", store.asked)
	}
	absent := n.desc
	absent.Digest = digest.FromString("absent")
	if _, err := oci.ReadBlob(t.Context(), n.memory.Blobs(n.layout), absent, limits.OCIManifestBytes); err == nil {
		t.Error("read what is not there")
	}
	if names := n.kept(); len(names) != 1 {
		t.Errorf("kept is %q", names)
	}
}
