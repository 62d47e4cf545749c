package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/verifier"
)

const runRules = `version: 1
rules:
  - name: mine
    trust: [verified]
    allow: ["network:https:*.example.com", "llm:*"]
    deny: ["network:https:admin.example.com"]
    inject:
      - {capability: "network:https:api.example.com", header: x-key, secret: {file: key}}
      - {capability: "network:https:vault.example.com", header: x-key, secret: {mount: /secrets/vault/token}}
llm: {providers: [{name: p, url: "https://llm.example/v1", models: ["gpt-*"]}]}
`

func runnableAgent(t *testing.T) *runnable {
	t.Helper()
	m, err := manifest.Parse("manifest.yaml", []byte("id: example.a\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\nwasm:\n  capabilities: [\"network:https:*.example.com\", \"env:A\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	return &runnable{agent: m, verdict: unsigned(), own: true}
}

func rulesFile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for name, text := range map[string]string{"capabilities.yaml": runRules, "key": "a-file-secret\n", "vault/token": "a-mount-secret"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestARunIsGrantedWhatFlagsAndTheirRulesSay(t *testing.T) {
	dir := rulesFile(t)
	var stderr bytes.Buffer
	a := &app{stderr: &stderr}
	given := capability.Given{Env: map[string]string{}, Mounts: []capability.Mount{{Source: filepath.Join(dir, "vault"), Destination: "/secrets/vault", ReadOnly: true}}}

	// Flags alone.
	g, err := a.operatorGrant(runnableAgent(t), &runOptions{allow: []string{"network:http:127.0.0.1:8080"}}, capability.Given{})
	if err != nil || strings.Join(g.Capabilities(), " ") != "network:http:127.0.0.1/32:8080" || g.Network == nil || len(g.Secrets) > 0 {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err = a.operatorGrant(runnableAgent(t), &runOptions{}, capability.Given{}); err != nil || len(g.Grants) > 0 || g.Network != nil {
		t.Errorf("without a flag: %+v, %v", g, err)
	}

	// Rules, for what the manifest asks for.
	o := &runOptions{capabilities: filepath.Join(dir, "capabilities.yaml"), allow: []string{"llm:gpt-4o"}}
	if g, err = a.operatorGrant(runnableAgent(t), o, given); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(g.Capabilities(), " "); got != "llm:gpt-4o network:https:*.example.com" {
		t.Errorf("granted %s", got)
	}
	secrets, err := readSecrets(g, given)
	if err != nil || len(secrets) != 2 {
		t.Fatalf("%v, %v", secrets, err)
	}
	for _, in := range g.Network.Inject {
		want := map[bool]string{true: "a-mount-secret", false: "a-file-secret"}[strings.Contains(in.Capability, "vault")]
		if secrets[in.Secret] != want {
			t.Errorf("%s gets %q", in.Capability, secrets[in.Secret])
		}
	}
	// The directory with the secret is the host's alone, although a flag gives it.
	if len(g.Preopens) > 0 || len(g.Withheld) != 1 {
		t.Errorf("preopens %v, withheld %q", g.Preopens, g.Withheld)
	}
	if _, err := readSecrets(g, capability.Given{}); fault.ReasonOf(err) != fault.NotFound || !strings.Contains(err.Error(), "--dir HOST::/secrets/vault::ro") {
		t.Errorf("%v", err)
	}

	// Somebody else's agent has the trust level that the policy gives it.
	const directory = "filesystem:read:/secrets/vault"
	for level, want := range map[verifier.TrustLevel]string{verifier.Verified: "network:https:*.example.com", verifier.Signed: directory, verifier.Untrusted: directory} {
		r := runnableAgent(t)
		r.own, r.verdict = false, &verifier.Verdict{Allowed: true, Trust: level}
		stderr.Reset()
		g, err := a.operatorGrant(r, &runOptions{capabilities: o.capabilities}, given)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(g.Capabilities(), " "); got != want {
			t.Errorf("%s: granted %q, want %q", level, got, want)
		}
		if strings.Contains(stderr.String(), "untrusted") != (level == verifier.Untrusted) {
			t.Errorf("%s: %s", level, &stderr)
		}
	}
}

func TestWhatCannotBeGivenIsSaid(t *testing.T) {
	dir := rulesFile(t)
	a := &app{stderr: &bytes.Buffer{}}
	rules := filepath.Join(dir, "capabilities.yaml")
	for allow, want := range map[string]struct {
		reason fault.Reason
		text   string
	}{
		"nonsense":                        {fault.Usage, "unknown kind"},
		"filesystem:read:/data":           {fault.Usage, "--dir HOST::/data"},
		"env:TOKEN":                       {fault.Usage, "--env TOKEN=VALUE"},
		"network:https:admin.example.com": {fault.PolicyDenied, `the rule "mine" of the node's policy denies it`},
		"llm:claude":                      {fault.PolicyDenied, "the node has nothing that serves it"},
		"extension:x":                     {fault.PolicyDenied, "the node has nothing that serves it"},
	} {
		g, err := a.operatorGrant(runnableAgent(t), &runOptions{allow: []string{allow}, capabilities: rules}, capability.Given{})
		if g != nil || fault.ReasonOf(err) != want.reason || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v, %v", allow, g, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "gone"), filepath.Join(dir, "key")} {
		if _, err := a.operatorGrant(runnableAgent(t), &runOptions{capabilities: path}, capability.Given{}); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "key")); err != nil {
		t.Fatal(err)
	}
	g, err := a.operatorGrant(runnableAgent(t), &runOptions{capabilities: rules}, capability.Given{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readSecrets(g, capability.Given{}); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}
