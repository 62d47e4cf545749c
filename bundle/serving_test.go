package bundle

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// online asks for something of every kind that the node serves.
const online = `
wasm:
  deadline: 10m
  capabilities: ["network:https:*.example.com", "llm:gpt-4o", "media:read", "extension:acme.search", "env:GREETING"]
`

const serving = `version: 1
rules:
  - name: no-admin
    deny: ["network:*:admin.example.com"]
  - name: web
    agents: ["mentatlab.*"]
    allow: ["network:https:*.example.com", "llm:*", "media:read", "extension:acme.search"]
    private: ["10.0.0.0/8"]
    inject:
      - capability: network:https:api.example.com
        header: x-key
        secret: {file: secrets/api}
      - capability: network:https:vault.example.com
        header: x-token
        secret: {mount: /var/run/vault/token}
network:
  ca: ca.pem
llm:
  providers: [{name: p, url: "https://llm.example/v1", models: ["gpt-*"], secret: {file: secrets/llm}}]
extensions:
  - {name: acme.search, command: [EXTENSION, --fast]}
sandbox: {memory: 32MB, deadline: 1m}
`

// served is a world whose signed agent asks for everything that the node serves,
// in a container with a secret volume as Kubernetes makes them.
func served(t *testing.T) (w *world, volume string) {
	w = enforcing(t)
	program := filepath.Join(w.etc, "search")
	w.file("search", []byte("a static program"))
	w.file("ca.pem", []byte("certificates"))
	w.file("secrets/api", []byte("first-secret-value\n"))
	w.file("secrets/llm", []byte("second-secret-value"))
	w.grants(strings.Replace(serving, "EXTENSION", program, 1))
	w.create(ref, w.sign(w.agent(online)))
	volume = t.TempDir()
	if err := os.Mkdir(filepath.Join(volume, "..data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "..data", "token"), []byte("third-secret-value\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data/token", filepath.Join(volume, "token")); err != nil {
		t.Fatal(err)
	}
	w.write(withVolume(volume))
	return w, volume
}

func withVolume(volume string) *specs.Spec {
	spec := plain()
	spec.Process.Env = append(spec.Process.Env, "GREETING=hello")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/var/run/vault", Type: "bind", Source: volume, Options: []string{"rbind", "ro"}})
	return spec
}

func TestWhatAnAgentWasGrantedIsServedFromTheNodesFiles(t *testing.T) {
	w, volume := served(t)
	w.runs(true)
	doc := w.document()
	if n := doc.Network; n == nil || n.CAFile != hostdoc.CAPath || n.Mode != hostdoc.NetworkRestricted || len(n.Inject) != 2 || !slices.Equal(n.AllowPrivate, []string{"10.0.0.0/8"}) {
		t.Errorf("network %+v", n)
	}
	if l := doc.LLM; l == nil || l.CAFile != hostdoc.CAPath || len(l.Providers) != 1 {
		t.Errorf("models %+v", l)
	}
	if m := doc.Media; m == nil || m.Dir != hostdoc.MediaDir {
		t.Errorf("media %+v", m)
	}
	if len(doc.Extensions) != 1 || !slices.Equal(doc.Extensions[0].Command, []string{"/run/mentat/extension/acme.search", "--fast"}) {
		t.Errorf("extensions %+v", doc.Extensions)
	}
	if len(doc.Holes) != 1 || doc.Holes[0].Rule != "no-admin" || doc.Grants[0].Rule != "web" {
		t.Errorf("holes %v, grants %v", doc.Holes, doc.Grants)
	}
	if doc.Limits.MemoryBytes != 32*limits.MiB || doc.Limits.DeadlineMillis != 60_000 {
		t.Errorf("limits %+v", doc.Limits)
	}
	if len(doc.Env) != 0 || len(doc.Denials) != 1 {
		t.Errorf("environment %v, denials %v", doc.Env, doc.Denials)
	}

	mounts := map[string]specs.Mount{}
	for _, m := range w.spec().Mounts {
		mounts[m.Destination] = m
	}
	for at, want := range map[string]struct {
		source string
		option string
	}{
		hostdoc.CAPath:                      {filepath.Join(w.etc, "ca.pem"), "ro"},
		hostdoc.MediaDir:                    {filepath.Join(w.etc, "var/media"), "rw"},
		"/run/mentat/extension/acme.search": {filepath.Join(w.etc, "search"), "ro"},
	} {
		m := mounts[at]
		if m.Source != want.source || !slices.Contains(m.Options, want.option) || !slices.Contains(m.Options, "nosuid") {
			t.Errorf("%s: %+v", at, m)
		}
		// What is mounted into the read-only directory has a place there.
		if _, err := os.Stat(filepath.Join(w.dir, privateDir, strings.TrimPrefix(at, hostdoc.Dir))); err != nil {
			t.Error(err)
		}
	}
	if slices.Contains(mounts["/run/mentat/extension/acme.search"].Options, "noexec") {
		t.Error("the extension's program cannot be run")
	}
	if _, there := mounts["/var/run/vault"]; there || !strings.Contains(strings.Join(doc.Notices, "\n"), "/var/run/vault: it holds a secret") {
		t.Errorf("the secret volume %s is the guest's, too: %q", volume, doc.Notices)
	}
	if info, err := os.Stat(filepath.Join(w.etc, "var/media")); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&fs.ModeSticky == 0 {
		t.Errorf("the media store is %v, %v", info, err)
	}
}

func TestSecretsAreInAFileOfTheHostsAlone(t *testing.T) {
	w, _ := served(t)
	w.runs(true)
	doc := w.document()
	if doc.SecretsFile != hostdoc.SecretsPath {
		t.Fatalf("the file is %q", doc.SecretsFile)
	}
	name := filepath.Join(w.dir, privateDir, "secrets.json")
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("%v, %v", info, err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var values hostdoc.Secrets
	if err := json.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, in := range doc.Network.Inject {
		got[in.Header] = values[in.Secret]
	}
	if got["x-key"] != "first-secret-value" || got["x-token"] != "third-secret-value" || values[doc.LLM.Providers[0].Secret] != "second-secret-value" || len(values) != 3 {
		t.Errorf("%v", values)
	}
	// Neither document, specification nor log says any of them.
	for _, text := range []string{string(w.bytes(specName)), string(w.bytes(originalName)), string(w.bytes(filepath.Join(privateDir, "host.json"))), w.log.String()} {
		if strings.Contains(text, "secret-value") {
			t.Errorf("a secret is in %s", text)
		}
	}
}

func TestAnAgentWithoutGrantsHoldsNothing(t *testing.T) {
	w, _ := served(t)
	w.create(ref, w.sign(w.agent("")))
	w.runs(true)
	doc := w.document()
	if doc.Network != nil || doc.LLM != nil || doc.Media != nil || doc.Extensions != nil || doc.SecretsFile != "" || len(doc.Holes) > 0 {
		t.Errorf("%+v", doc)
	}
	for _, m := range w.spec().Mounts {
		if strings.HasPrefix(m.Source, w.etc) && m.Destination != hostdoc.AuditDir {
			t.Errorf("mounted %+v", m)
		}
	}
	if _, err := os.Stat(filepath.Join(w.dir, privateDir, "secrets.json")); err == nil {
		t.Error("there is a file of secrets")
	}
}

func TestWhatCannotBeServedIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, volume string)
		reason fault.Reason
		says   string
	}{
		"no such secret": {func(w *world, _ string) { _ = os.Remove(filepath.Join(w.etc, "secrets/api")) }, fault.NotFound, "secrets/api"},
		"a secret that is no file": {func(w *world, _ string) {
			_ = os.Remove(filepath.Join(w.etc, "secrets/api"))
			_ = os.Mkdir(filepath.Join(w.etc, "secrets/api"), 0o700)
		}, fault.AccessDenied, "not a regular file"},
		"an empty secret":         {func(w *world, _ string) { w.file("secrets/api", []byte("\n")) }, fault.PolicyInvalid, "not one line of printable ASCII"},
		"a secret of two lines":   {func(w *world, _ string) { w.file("secrets/api", []byte("top-one\ntop-two\n")) }, fault.PolicyInvalid, "not one line of printable ASCII"},
		"a secret in other bytes": {func(w *world, _ string) { w.file("secrets/api", []byte("top\xffone")) }, fault.PolicyInvalid, "printable ASCII"},
		"a secret too long":       {func(w *world, _ string) { w.file("secrets/api", []byte(strings.Repeat("top", limits.SecretBytes))) }, fault.AccessDenied, "over the limit"},
		"no such mount":           {func(w *world, _ string) { w.write(plain()) }, fault.NotFound, "the container has no such mount"},
		"a mount without it":      {func(_ *world, volume string) { _ = os.Remove(filepath.Join(volume, "token")) }, fault.NotFound, "/var/run/vault/token"},
		"a mount that is none": {func(w *world, _ string) {
			spec := plain()
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/var/run/vault", Type: "tmpfs", Source: "tmpfs"})
			w.write(spec)
		}, fault.NotFound, "no such mount"},
		"a link out of the volume": {func(w *world, volume string) {
			_ = os.Remove(filepath.Join(volume, "token"))
			_ = os.Symlink(filepath.Join(w.etc, "secrets/llm"), filepath.Join(volume, "token"))
		}, fault.AccessDenied, "escapes"},
		"a link with dots": {func(w *world, volume string) {
			_ = os.Remove(filepath.Join(volume, "token"))
			rel, _ := filepath.Rel(volume, filepath.Join(w.etc, "secrets/llm"))
			_ = os.Symlink(rel, filepath.Join(volume, "token"))
		}, fault.AccessDenied, "escapes"},
		"no authorities":        {func(w *world, _ string) { _ = os.Remove(filepath.Join(w.etc, "ca.pem")) }, fault.NotFound, "network.ca"},
		"no extension":          {func(w *world, _ string) { _ = os.Remove(filepath.Join(w.etc, "search")) }, fault.NotFound, "acme.search"},
		"no such media store":   {func(w *world, _ string) { w.grants(string(w.etcFile("capabilities.yaml")) + "media: {dir: nowhere}\n") }, fault.NotFound, "media.dir"},
		"a broken policy":       {func(w *world, _ string) { w.grants("version: 1\nrules: [{name: a}]\n") }, fault.PolicyInvalid, "the rule does nothing"},
		"a policy that is gone": {func(w *world, _ string) { _ = os.Remove(filepath.Join(w.etc, "capabilities.yaml")) }, fault.PolicyInvalid, "cannot read the capability policy"},
	} {
		t.Run(name, func(t *testing.T) {
			w, volume := served(t)
			c.change(w, volume)
			text := w.refusal(c.reason)
			if !strings.Contains(text, c.says) {
				t.Errorf("%q does not say %q", text, c.says)
			}
			if strings.Contains(text, "top") || strings.Contains(text, "secret-value") {
				t.Errorf("it says the secret: %q", text)
			}
		})
	}
}

// etcFile is a file of the node's configuration.
func (w *world) etcFile(name string) []byte {
	w.Helper()
	data, err := os.ReadFile(filepath.Join(w.etc, name))
	if err != nil {
		w.Fatal(err)
	}
	return data
}

func TestABrokenCapabilityPolicyStopsNoContainer(t *testing.T) {
	w := enforcing(t)
	w.grants("nonsense")
	w.create(mixed, w.image())
	w.runs(false)
}

func TestASecretMayBeAMountOfOneFile(t *testing.T) {
	w, volume := served(t)
	spec := plain()
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/var/run/vault/token", Type: "bind", Source: filepath.Join(volume, "..data", "token"), Options: []string{"bind", "ro"}})
	w.write(spec)
	w.runs(true)
	if !strings.Contains(string(w.bytes(filepath.Join(privateDir, "secrets.json"))), "third-secret-value") {
		t.Error("it was not read")
	}
}
