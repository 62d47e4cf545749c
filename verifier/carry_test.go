package verifier

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
)

// carrier is a directory with a policy that can be carried, and a node.
type carrier struct {
	tb       testing.TB
	pki      *testpki.PKI
	dir      string // of the policy
	imported string
	state    string
	files    map[string][]byte
}

const carriedText = `version: 1
scopes:
  - name: agents
    match: ["registry.example/agents/**"]
    stores: [agents]
    identities: ["email:dev@example.com"]
    unsigned_containers: deny
outside: {ordinary_images: deny}
revocation:
  crls:
    - {issuer: "CN=MentatLab Root CA,O=MentatLab,C=US", file: crl/root.crl}
    - {issuer: "CN=MentatLab Agent CA,O=MentatLab,C=US", file: crl/agent.crl, certificate: issuers/agent.pem}
releases: [{name: ours, file: releases/ours.json, stores: [agents], identities: ["email:dev@example.com"]}]
`

func newCarrier(tb testing.TB, p *testpki.PKI) *carrier {
	tb.Helper()
	dir := tb.TempDir()
	c := &carrier{tb: tb, pki: p, dir: filepath.Join(dir, "etc"), imported: filepath.Join(dir, "node", "imported"), state: filepath.Join(dir, "state")}
	if err := os.Mkdir(filepath.Dir(c.imported), 0o700); err != nil {
		tb.Fatal(err)
	}
	releases, err := SignReleases(list(1), p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		tb.Fatal(err)
	}
	c.files = map[string][]byte{
		"policy.yaml":           []byte(carriedText),
		"trust/agents/root.pem": testpki.PEM(p.Root),
		"issuers/agent.pem":     testpki.PEM(p.Agent),
		"crl/root.crl":          p.RootCRL(),
		"crl/agent.crl":         p.AgentCRL(),
		"releases/ours.json":    releases,
	}
	return c
}

// export writes the files and makes one of them.
func (c *carrier) export(number int64) ([]byte, error) {
	c.tb.Helper()
	if err := os.RemoveAll(c.dir); err != nil {
		c.tb.Fatal(err)
	}
	for name, data := range c.files {
		path := filepath.Join(c.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			c.tb.Fatal(err)
		}
	}
	cfg := nodeconfig.Verify{Policy: filepath.Join(c.dir, "policy.yaml"), Trust: filepath.Join(c.dir, "trust")}
	return ExportTrust(cfg, number, c.pki.LeafKey, c.pki.Chain(), testpki.Now.Add(-time.Minute), nil)
}

// sign makes a file without looking at what it carries.
func (c *carrier) sign(number int64) []byte {
	c.tb.Helper()
	data, err := signDocument(TrustType, trustPayload{Version: trustVersion, Number: number, Files: c.files}, c.pki.LeafKey, c.pki.Chain(), testpki.Now.Add(-time.Minute))
	if err != nil {
		c.tb.Fatal(err)
	}
	return data
}

func (c *carrier) importFile(data []byte, edits ...func(*TrustImport)) error {
	c.tb.Helper()
	t, err := ReadTrust("node.trust", data)
	if err != nil {
		return err
	}
	roots, err := NewStore("operator", c.pki.Root)
	if err != nil {
		c.tb.Fatal(err)
	}
	in := TrustImport{Roots: roots, Emails: []string{testpki.Email}, Dir: c.imported, State: c.state, Now: testpki.Now}
	for _, edit := range edits {
		edit(&in)
	}
	return t.Import(in)
}

func TestATrustFileBringsANodeAllThatItJudgesBy(t *testing.T) {
	p := testpki.New(t)
	c := newCarrier(t, p)
	signed := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	open := func() *Verifier {
		t.Helper()
		v, err := Open(nodeconfig.Verify{Policy: filepath.Join(c.imported, "policy.yaml"), Trust: filepath.Join(c.imported, "trust"), State: c.state}, testpki.Clock, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	judge := func(want fault.Reason) {
		t.Helper()
		expect(t, open().Verify(t.Context(), Input{Reference: ref, Artifact: signed}), want)
	}
	data, err := c.export(1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the same again changes nothing
		if err := c.importFile(data); err != nil {
			t.Fatal(err)
		}
		judge("")
	}
	c.files["policy.yaml"] = []byte(carriedText + "minimum_versions: {mentatlab.echo: 2.0.0}\n")
	next, err := c.export(2)
	if err != nil {
		t.Fatal(err)
	}
	under := open()
	if err := c.importFile(next); err != nil {
		t.Fatal(err)
	}
	judge(fault.VersionTooLow)
	// A judgement that was under way is made by the files that it began with.
	expect(t, under.Verify(t.Context(), Input{Reference: ref, Artifact: signed}), "")
	if err := c.importFile(data); fault.ReasonOf(err) != fault.RevocationUnknown {
		t.Errorf("an older file comes back: %v", err)
	}
	judge(fault.VersionTooLow)
	left, err := os.ReadDir(filepath.Dir(c.imported))
	if err != nil || len(left) != 3 {
		t.Errorf("beside the link, what it points to and what it pointed to there is more: %v, %v", left, err)
	}
}

func TestWhatIsWrongInATrustFileChangesNothing(t *testing.T) {
	p := testpki.New(t)
	oldList, err := SignReleases(list(3), p.LeafKey, p.Chain(), testpki.Now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	stranger := testpki.New(t, testpki.OtherRoot(t))
	for name, w := range map[string]struct {
		do   func(*carrier)
		edit func(*TrustImport)
		want fault.Reason
	}{
		"another root":      {edit: func(in *TrustImport) { in.Roots, _ = NewStore("operator", stranger.Root) }, want: fault.ChainUntrusted},
		"another signer":    {edit: func(in *TrustImport) { in.Emails = []string{"friend@example.com"} }, want: fault.IdentityUntrusted},
		"nobody may":        {edit: func(in *TrustImport) { in.Emails = nil }, want: fault.IdentityUntrusted},
		"signer expired":    {edit: func(in *TrustImport) { in.Now = p.Leaf.NotAfter.Add(time.Hour) }, want: fault.OutsideValidity},
		"lower number":      {do: func(c *carrier) { c.tb.Helper(); c.seen("9 sha256:x\n") }, want: fault.RevocationUnknown},
		"same number":       {do: func(c *carrier) { c.seen("5 sha256:x\n") }, want: fault.RevocationUnknown},
		"number damaged":    {do: func(c *carrier) { c.seen("?\n") }, want: fault.RevocationUnknown},
		"no policy":         {do: func(c *carrier) { delete(c.files, "policy.yaml") }, want: fault.PolicyInvalid},
		"broken policy":     {do: func(c *carrier) { c.files["policy.yaml"] = []byte("version: 9\n") }, want: fault.PolicyInvalid},
		"no root":           {do: func(c *carrier) { delete(c.files, "trust/agents/root.pem") }, want: fault.PolicyInvalid},
		"leaf as root":      {do: func(c *carrier) { c.files["trust/agents/root.pem"] = testpki.PEM(p.Leaf) }, want: fault.PolicyInvalid},
		"something beside":  {do: func(c *carrier) { c.files["config.toml"] = []byte("x") }, want: fault.PolicyInvalid},
		"a path out":        {do: func(c *carrier) { c.files["../policy.yaml"] = []byte("x") }, want: fault.SignatureInvalid},
		"an absolute path":  {do: func(c *carrier) { c.files["/etc/x"] = []byte("x") }, want: fault.SignatureInvalid},
		"a list missing":    {do: func(c *carrier) { delete(c.files, "crl/agent.crl") }, want: fault.RevocationUnknown},
		"a stranger's list": {do: func(c *carrier) { c.files["crl/root.crl"] = stranger.RootCRL() }, want: fault.RevocationUnknown},
		"a list too old":    {do: func(c *carrier) { c.files["crl/agent.crl"] = p.AgentCRL(testpki.Until(testpki.Now.Add(-time.Hour))) }, want: fault.RevocationUnknown},
		"signer revoked":    {do: func(c *carrier) { c.files["crl/agent.crl"] = p.AgentCRL(testpki.Revoking(p.Leaf)) }, want: fault.Revoked},
		"no release list":   {do: func(c *carrier) { delete(c.files, "releases/ours.json") }, want: fault.RevocationUnknown},
		"list by url":       {do: func(c *carrier) { c.policy("file: crl/root.crl", "url: http://pki.example/root.crl") }, want: fault.PolicyInvalid},
		"list elsewhere":    {do: func(c *carrier) { c.policy("file: crl/root.crl", "file: /etc/root.crl") }, want: fault.PolicyInvalid},
		"release list below what is known": {do: func(c *carrier) {
			c.seen("1 sha256:x\n")
			if err := os.WriteFile(filepath.Join(c.state, "releases-ours.json"), oldList, 0o600); err != nil {
				c.tb.Fatal(err)
			}
		}, want: fault.RevocationUnknown},
		"a directory that no import made": {do: func(c *carrier) {
			if err := os.Mkdir(c.imported, 0o700); err != nil {
				c.tb.Fatal(err)
			}
		}, want: fault.Exists},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCarrier(t, p)
			if w.do != nil {
				w.do(c)
			}
			if w.edit == nil {
				w.edit = func(*TrustImport) {}
			}
			before, _ := os.ReadFile(filepath.Join(c.state, carriedNumber))
			err := c.importFile(c.sign(5), w.edit)
			if got := fault.ReasonOf(err); got != w.want {
				t.Fatalf("%s, want %s: %v", got, w.want, err)
			}
			if _, err := os.Stat(filepath.Join(c.imported, "policy.yaml")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it was imported: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(c.imported), ".*")); len(left) != 0 {
				t.Errorf("left over: %v", left)
			}
			if after, _ := os.ReadFile(filepath.Join(c.state, carriedNumber)); !bytes.Equal(before, after) {
				t.Errorf("the number changed to %q", after)
			}
		})
	}
}

func (c *carrier) seen(text string) {
	c.tb.Helper()
	if err := errors.Join(os.MkdirAll(c.state, 0o700), os.WriteFile(filepath.Join(c.state, carriedNumber), []byte(text), 0o600)); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *carrier) policy(old, with string) {
	c.tb.Helper()
	text := strings.Replace(string(c.files["policy.yaml"]), old, with, 1)
	if text == string(c.files["policy.yaml"]) {
		c.tb.Fatalf("%q is not in the policy", old)
	}
	c.files["policy.yaml"] = []byte(text)
}

func TestWhatAnImportWouldRefuseIsNotExported(t *testing.T) {
	p := testpki.New(t)
	for name, do := range map[string]func(*carrier){
		"old list": func(c *carrier) { c.files["crl/agent.crl"] = p.AgentCRL(testpki.Until(testpki.Now.Add(-time.Hour))) },
		"url":      func(c *carrier) { c.policy("file: crl/root.crl", "url: http://pki.example/root.crl") },
		"no store": func(c *carrier) { delete(c.files, "trust/agents/root.pem") },
		"elsewhere": func(c *carrier) {
			c.policy("file: crl/root.crl", fmt.Sprintf("file: %q", filepath.Join(c.tb.TempDir(), "x")))
		},
	} {
		c := newCarrier(t, p)
		do(c)
		if data, err := c.export(1); err == nil || data != nil {
			t.Errorf("%s: exported", name)
		}
	}
	if _, err := newCarrier(t, p).export(0); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("number 0: %v", err)
	}
}

func TestATrustFileThatWasChangedIsNotRead(t *testing.T) {
	c := newCarrier(t, testpki.New(t))
	data := c.sign(1)
	for name, changed := range map[string][]byte{
		"number":        bytes.Replace(data, []byte(`"number":1`), []byte(`"number":2`), 1),
		"newline":       append(bytes.Clone(data), '\n'),
		"cut":           data[:len(data)-1],
		"empty":         nil,
		"release list":  c.files["releases/ours.json"],
		"another field": bytes.Replace(data, []byte(`{"algorithm"`), []byte(`{"a":1,"algorithm"`), 1),
	} {
		if _, err := ReadTrust("x", changed); fault.ReasonOf(err) != fault.SignatureInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
