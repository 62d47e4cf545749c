package nodeconfig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnEmptyFileMeansTheDefaults(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "config.toml"), "")
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	want := defaults()
	want.Dir, want.Verify.Trust = dir, filepath.Join(dir, "trust")
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
}

func TestRelativePathsAreRelativeToTheFile(t *testing.T) {
	dir := t.TempDir()
	c, err := Load(write(t, filepath.Join(dir, "config.toml"), `
[verify]
policy = "p.yaml"
trust = "/abs/trust"
state = "s"
memory = "v"
hosts_dir = "h"
docker_config = "d.json"
credential_providers = "k.yaml"
credential_provider_dir = "/opt/bin"
[capability]
policy = "c.yaml"
media = "media"
[audit]
spool = "spool"
log = "log"
anchor = "a"
required = true
[service]
listen = "127.0.0.1:9"
[host]
binary = "bin/mentat-host"
net_binary = "bin/other"
[cache]
dir = "c"
memory = "m"
[runtime]
binary = "runc-of-mine"
[sandbox]
memory_mb = 64
temp_dirs_mb = 2
deadline_seconds = 3
cpu_seconds = 4
cpu_quota_ms = 500
open_files = 100
network = "restricted"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Verify:     Verify{Policy: dir + "/p.yaml", Trust: "/abs/trust", State: dir + "/s", Memory: dir + "/v", HostsDir: dir + "/h", DockerConfig: dir + "/d.json", CredentialProviders: dir + "/k.yaml", CredentialProviderDir: "/opt/bin"},
		Capability: Capability{Policy: dir + "/c.yaml", Media: dir + "/media"},
		Audit:      Audit{Spool: dir + "/spool", Log: dir + "/log", Anchor: dir + "/a", Required: true},
		Service:    Service{Listen: "127.0.0.1:9"},
		Host:       Host{Binary: dir + "/bin/mentat-host", NetBinary: dir + "/bin/other"},
		Cache:      Cache{Dir: dir + "/c", Memory: dir + "/m"},
		Runtime:    Runtime{Binary: "runc-of-mine"},
		Sandbox:    Sandbox{MemoryMB: 64, TempDirsMB: 2, DeadlineSeconds: 3, CPUSeconds: 4, CPUQuotaMS: 500, OpenFiles: 100, Network: "restricted"},
		Dir:        dir,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
}

func TestAPolicyBesideTheFileCountsEvenIfItCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	config := write(t, filepath.Join(dir, "config.toml"), "")
	if c, err := Load(config); err != nil || c.Verify.Policy != "" || c.Capability.Policy != "" {
		t.Fatalf("without one: %+v, %v", c, err)
	}
	policy, capabilities := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "capabilities.yaml")
	for _, path := range []string{policy, capabilities} {
		if err := os.Symlink("nowhere", path); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := Load(config); err != nil || c.Verify.Policy != policy || c.Capability.Policy != capabilities {
		t.Errorf("a dangling link must not mean that there is none: %+v, %v", c, err)
	}
}

func TestAPolicyThatIsNamedCountsEvenIfItIsMissing(t *testing.T) {
	dir := t.TempDir()
	c, err := Load(write(t, filepath.Join(dir, "config.toml"), "[verify]\npolicy = 'gone.yaml'\n"))
	if err != nil || c.Verify.Policy != filepath.Join(dir, "gone.yaml") {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestOnlyTheDefaultFileMayBeAbsent(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone.toml")
	if c, err := Load(gone); c != nil || fault.ReasonOf(err) != fault.PolicyInvalid || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("by argument: %v, %v", c, err)
	}
	t.Setenv(Env, gone)
	if c, err := Load(""); c != nil || fault.ReasonOf(err) != fault.PolicyInvalid {
		t.Errorf("by environment: %v, %v", c, err)
	}
}

func TestAnArgumentWinsOverTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Env, write(t, filepath.Join(dir, "env.toml"), "[runtime]\nbinary = 'env'"))
	arg := write(t, filepath.Join(dir, "arg.toml"), "[runtime]\nbinary = 'arg'")
	if c, err := Load(arg); err != nil || c.Runtime.Binary != "arg" {
		t.Errorf("argument: %+v, %v", c, err)
	}
	if c, err := Load(""); err != nil || c.Runtime.Binary != "env" {
		t.Errorf("environment: %+v, %v", c, err)
	}
}

func TestMistakesAreRefusedWithTheirLine(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"an unknown key":          {"[verify]\n\npolcy = 'x'", `config.toml:3: unknown key "verify.polcy", allowed are verify.policy, verify.trust`},
		"an unknown table":        {"[verfy]\npolicy = 'x'", `config.toml:1: unknown key "verfy"`},
		"a key in another case":   {"[verify]\nPolicy = 'x'", `unknown key "verify.Policy"`},
		"a table in another case": {"[Verify]\npolicy = 'x'", `unknown table "Verify"`},
		"our own field":           {"Dir = '/x'", "unknown"},
		"a wrong type":            {"[verify]\npolicy = 1", "config.toml:2: "},
		"a key twice":             {"[verify]\npolicy = 'x'\npolicy = 'y'", "malformed"},
		"a table twice":           {"[host]\nbinary = 'x'\n[host]\n", "malformed"},
		"no TOML":                 {"verify {", "config.toml:1: "},
		"bad UTF-8":               {"[host]\nbinary = '\xff'", "malformed"},
		"less than nothing":       {"[sandbox]\nmemory_mb = -1", "sandbox.memory_mb is -1, allowed is 1 to 4096"},
		"more than there is":      {"[sandbox]\nmemory_mb = 4097", "sandbox.memory_mb is 4097"},
		"no temporary directory":  {"[sandbox]\ntemp_dirs_mb = -5", "sandbox.temp_dirs_mb is -5"},
		"a deadline in the past":  {"[sandbox]\ndeadline_seconds = -1", "sandbox.deadline_seconds is -1"},
		"negative processor time": {"[sandbox]\ncpu_seconds = -1", "sandbox.cpu_seconds is -1"},
		"a negative quota":        {"[sandbox]\ncpu_quota_ms = -1", "sandbox.cpu_quota_ms is -1"},
		"too few files":           {"[sandbox]\nopen_files = 8", "sandbox.open_files is 8, allowed is 32 to 256"},
		"an unknown network":      {"[sandbox]\nnetwork = 'host'", "sandbox.network is \"host\", allowed are none"},
		"oversized":               {strings.Repeat("#", limits.PolicyBytes+1), "over the limit of 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := Load(write(t, filepath.Join(t.TempDir(), "config.toml"), c.text))
			if config != nil || fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want %s", config, err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("[verify]\npolicy = 'p'\ntrust = ''\n[cache]\ndir = \"/x/../y\"\n"))
	f.Add([]byte("[verify]\nPolicy = 'p'\npolicy = 'q'"))
	f.Add([]byte("verify = {policy = 'p'}\nhost.binary = 'b'"))
	f.Add([]byte("[[verify]]"))
	f.Add([]byte("[sandbox]\nmemory_mb = 512\nopen_files = 32\nnetwork = 'none'"))
	f.Add([]byte("[sandbox]\ndeadline_seconds = 1e3\ncpu_seconds = -0"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const path = "/no/such/directory/config.toml"
		c, err := Parse(path, data)
		if err != nil {
			if c != nil || fault.ReasonOf(err) != fault.PolicyInvalid || strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("got %v, %q (%s)", c, err, fault.ReasonOf(err))
			}
			return
		}
		for _, p := range []string{c.Verify.Policy, c.Verify.Trust, c.Verify.State, c.Verify.HostsDir, c.Verify.DockerConfig,
			c.Capability.Policy, c.Capability.Media, c.Audit.Spool, c.Audit.Log, c.Audit.Anchor, c.Host.Binary, c.Cache.Dir, c.Cache.Memory} {
			if p != "" && !filepath.IsAbs(p) {
				t.Fatalf("%q is not absolute", p)
			}
		}
		text, err := toml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(path, text); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%s is read again as %+v, %v", text, again, err)
		}
	})
}
