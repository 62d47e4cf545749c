package doctor

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// built builds one of our programs, once for all tests.
var built = map[string]func() (string, error){
	"mentat-verifier":           sync.OnceValues(func() (string, error) { return compile("mentat-verifier") }),
	"containerd-shim-mentat-v1": sync.OnceValues(func() (string, error) { return compile("containerd-shim-mentat-v1") }),
}

var binDir string

func compile(name string) (string, error) {
	path := filepath.Join(binDir, name)
	out, err := exec.Command("go", "build", "-o", path, module+"/cmd/"+name).CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
}

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "doctor-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

func compiled(t *testing.T, name string) string {
	t.Helper()
	path, err := built[name]()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// dumped is what a real containerd says of its configuration, to be broken.
func dumped(t *testing.T, release string) *settings {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "containerd-"+release+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSettings(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// want is a finding: its check, its severity and words of it.
type want struct {
	check string
	s     Severity
	words string
}

// holds tells whether the report has every finding, and no failure beside them.
func holds(t *testing.T, r *Report, wants ...want) {
	t.Helper()
	failures := 0
	for _, w := range wants {
		if w.s == Failure {
			failures++
		}
		found := false
		for _, f := range r.Findings {
			if f.Check == w.check && f.Severity == w.s && strings.Contains(f.On+" "+f.What, w.words) {
				found = true
			}
		}
		if !found {
			t.Errorf("no %s of %s with %q in %+v", w.s, w.check, w.words, r.Findings)
		}
	}
	if got := r.Count(Failure); got != failures {
		t.Errorf("%d failures, want %d: %+v", got, failures, r.Findings)
	}
	for _, f := range r.Findings {
		if (f.Severity == Failure || f.Severity == Warning) && (f.What == "" || f.Why == "" || f.Do == "") {
			t.Errorf("a finding without what, why or what to do: %+v", f)
		}
	}
	if err := r.Err(false); (err == nil) != (failures == 0) || err != nil && fault.ReasonOf(err) != fault.NodeUnsound {
		t.Errorf("%d failures give %v", failures, err)
	}
}

func put(t *testing.T, path string, mode os.FileMode, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

const script = "#!/bin/sh\nexit 0\n"

func TestTheDirectoryOfVerifiersIsSeenWithContainerdsEyes(t *testing.T) {
	ours := compiled(t, "mentat-verifier")
	for _, c := range []struct {
		name   string
		lay    func(dir string)
		change func(s *settings, table map[string]any)
		asked  string
		wants  []want
	}{
		{"good", func(dir string) { link(t, ours, dir+"/00-mentat") }, nil, "00-mentat", []want{{checkEntry, OK, "asked first"}, {checkTimeout, OK, "10s"}}},
		{"missing", func(dir string) { _ = os.Remove(dir) }, nil, "", []want{{checkDirectory, Failure, "no such file"}}},
		{"empty", func(string) {}, nil, "", []want{{checkDirectory, Failure, "is empty"}}},
		{"another's only", func(dir string) { put(t, dir+"/other", 0o755, script) }, nil, "", []want{{checkEntry, Failure, "none of its 1 entries"}}},
		{"not executable", func(dir string) { put(t, dir+"/00-mentat", 0o644, script) }, nil, "", []want{{checkEntry, Failure, "0644"}, {checkEntry, Failure, "none of its 1"}}},
		{"a README beside it", func(dir string) { link(t, ours, dir+"/00-mentat"); put(t, dir+"/README", 0o644, "hello") }, nil, "00-mentat", []want{{checkEntry, Failure, "README"}, {checkEntry, OK, "first"}}},
		{"a directory in it", func(dir string) { link(t, ours, dir+"/00-mentat"); put(t, dir+"/old/x", 0o755, script) }, nil, "00-mentat", []want{{checkEntry, Failure, "/old is not a program"}}},
		{"a link to nowhere", func(dir string) { link(t, dir+"/gone", dir+"/00-mentat") }, nil, "", []want{{checkEntry, Failure, "no such file"}, {checkEntry, Failure, "none of its"}}},
		{"shadowed", func(dir string) { link(t, ours, dir+"/mentat"); put(t, dir+"/aaa", 0o755, script) }, nil, "mentat", []want{{checkShadowed, Warning, "the first is aaa"}}},
		{"beyond the maximum", func(dir string) { link(t, ours, dir+"/mentat"); put(t, dir+"/aaa", 0o755, script) },
			func(_ *settings, table map[string]any) { table["max_verifiers"] = int64(1) }, "", []want{{checkMax, Failure, "is entry 2 by name, max_verifiers is 1"}}},
		{"no verifier at all", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(_ *settings, table map[string]any) { table["max_verifiers"] = int64(0) }, "", []want{{checkMax, Failure, "max_verifiers is 0"}}},
		{"without a maximum", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(_ *settings, table map[string]any) { table["max_verifiers"] = int64(-1) }, "00-mentat", []want{{checkEntry, OK, "first"}}},
		{"a maximum that is no number", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(_ *settings, table map[string]any) { delete(table, "max_verifiers") }, "", []want{{checkMax, Failure, "not known"}}},
		{"disabled", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(s *settings, _ map[string]any) { s.Disabled = []string{pluginVerifier} }, "", []want{{checkPlugin, Failure, "disabled"}}},
		{"killed too early", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(_ *settings, table map[string]any) { table["per_verifier_timeout"] = "2s" }, "00-mentat", []want{{checkTimeout, Warning, "2s"}}},
		{"a time that is none", func(dir string) { link(t, ours, dir+"/00-mentat") },
			func(_ *settings, table map[string]any) { table["per_verifier_timeout"] = "soon" }, "00-mentat", []want{{checkTimeout, Warning, "soon"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			bin := filepath.Join(dir, "bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			c.lay(bin)
			s := dumped(t, "2.4")
			s.Plugins[pluginVerifier]["bin_dir"] = bin
			if c.change != nil {
				c.change(s, s.Plugins[pluginVerifier])
			}
			r := &Report{}
			got := checkVerifiers(r, s)
			if want := c.asked; want == "" && got != "" || want != "" && got != filepath.Join(bin, want) {
				t.Errorf("containerd asks %q, want %q", got, want)
			}
			holds(t, r, c.wants...)
		})
	}
}

func TestEachSettingThatLeavesVerifiersOutIsFound(t *testing.T) {
	set := func(key string, v any) func(*settings) {
		return func(s *settings) { s.Plugins[pluginImages][key] = v }
	}
	registry := func(key string) func(*settings) {
		return func(s *settings) {
			s.Plugins[pluginImages]["registry"].(map[string]any)[key] = map[string]any{"docker.io": map[string]any{}}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*settings)
		wants  []want
	}{
		{"as it comes", func(*settings) {}, nil},
		{"use_local_image_pull", set("use_local_image_pull", true), []want{{checkCRI, Failure, ".use_local_image_pull is true"}}},
		{"disable_snapshot_annotations", set("disable_snapshot_annotations", false), []want{{checkCRI, Failure, ".disable_snapshot_annotations is false"}}},
		{"disable_snapshot_annotations unknown", set("disable_snapshot_annotations", nil), []want{{checkCRI, Failure, ".disable_snapshot_annotations is not known"}}},
		{"discard_unpacked_layers", set("discard_unpacked_layers", true), []want{{checkCRI, Failure, ".discard_unpacked_layers is true"}}},
		{"image_pull_with_sync_fs", set("image_pull_with_sync_fs", true), []want{{checkCRI, Failure, ".image_pull_with_sync_fs is true"}}},
		{"max_concurrent_downloads", set("max_concurrent_downloads", int64(10)), []want{{checkCRI, Failure, ".max_concurrent_downloads is 10"}}},
		{"mirrors", registry("mirrors"), []want{{checkCRI, Failure, ".registry.mirrors is set, for docker.io"}}},
		{"configs", registry("configs"), []want{{checkCRI, Failure, ".registry.configs is set"}}},
		{"auths", registry("auths"), []want{{checkCRI, Failure, ".registry.auths is set"}}},
		{"two of them", func(s *settings) { registry("auths")(s); set("discard_unpacked_layers", true)(s) }, []want{{checkCRI, Failure, "auths"}, {checkCRI, Failure, "discard"}}},
		{"transfer service disabled", func(s *settings) { s.Disabled = []string{pluginTransfer} }, []want{{checkCRI, Failure, pluginTransfer}}},
		{"no transfer service", func(s *settings) { delete(s.Plugins, pluginTransfer) }, []want{{checkCRI, Failure, pluginTransfer}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := dumped(t, "2.4")
			c.change(s)
			r := &Report{}
			checkCRISettings(r, s)
			wants := append(c.wants, want{checkHandler, Warning, "no runtime"})
			if c.wants == nil {
				wants = append(wants, want{checkCRI, OK, "transfer service"})
			}
			holds(t, r, wants...)
		})
	}
}

func TestAnOldCRIAndNoCRIAreTold(t *testing.T) {
	r := &Report{}
	checkCRISettings(r, dumped(t, "2.0"))
	holds(t, r, want{checkCRI, Failure, "does not know the transfer service"})
	s := dumped(t, "2.4")
	s.Disabled = []string{pluginImages}
	r = &Report{}
	checkCRISettings(r, s)
	holds(t, r, want{checkCRI, Note, "not served"})
}

func TestThePodsRuntimeIsFound(t *testing.T) {
	s := dumped(t, "2.4")
	runtimes := value(s.Plugins[pluginRuntime], "containerd.runtimes").(map[string]any)
	runtimes["agents"] = map[string]any{"runtime_type": mentatRuntime}
	r := &Report{}
	checkCRISettings(r, s)
	holds(t, r, want{checkHandler, OK, "agents"}, want{checkHandler, Note, `"runc"`})
	value(s.Plugins[pluginRuntime], "containerd").(map[string]any)["default_runtime_name"] = "agents"
	r = &Report{}
	checkCRISettings(r, s)
	holds(t, r, want{checkHandler, OK, "agents"})
	if r.Count(Note) != 0 {
		t.Errorf("a note where all pods are judged: %+v", r.Findings)
	}
}

func TestVersionsThatAreTooOldOrKnownBadAreTold(t *testing.T) {
	for _, c := range []struct {
		check func(*Report, string, string)
		text  string
		wants []want
	}{
		{checkContainerdVersion, "containerd github.com/containerd/containerd/v2 2.4.2+unknown ", []want{{checkVersion, OK, "2.4.2"}}},
		{checkContainerdVersion, "containerd github.com/containerd/containerd/v2 v2.2.5 abc", []want{{checkVersion, OK, "2.2.5"}}},
		{checkContainerdVersion, "containerd github.com/containerd/containerd/v2 v2.2.4 abc", []want{{checkVersion, Warning, "CVE-2026-50195"}, {checkVersion, Warning, "CVE-2026-53488"}}},
		{checkContainerdVersion, "containerd github.com/containerd/containerd 1.7.33 abc", []want{{checkVersion, Failure, "1.7.33"}}},
		{checkContainerdVersion, "containerd github.com/containerd/containerd/v2 v2.0.10 abc", []want{{checkVersion, Failure, "2.0.10"}}},
		{checkContainerdVersion, "exec: not found", []want{{checkVersion, Failure, "does not say"}}},
		{checkRuncVersion, "runc version 1.5.2\nspec: 1.3.0", []want{{checkRunc, OK, "1.5.2"}}},
		{checkRuncVersion, "runc version 1.2.8", []want{{checkRunc, OK, "1.2.8"}}},
		{checkRuncVersion, "runc version 1.3.2", []want{{checkRunc, Warning, "CVE-2025-31133"}}},
		{checkRuncVersion, "runc version 1.1.11", []want{{checkRunc, Warning, "CVE-2024-21626"}, {checkRunc, Warning, "CVE-2025-31133"}}},
		{checkRuncVersion, "crun 1", []want{{checkRunc, Failure, "does not say"}}},
	} {
		t.Run(c.text, func(t *testing.T) {
			r := &Report{}
			c.check(r, "program", c.text)
			holds(t, r, c.wants...)
			warnings := 0
			for _, w := range c.wants {
				if w.s == Warning {
					warnings++
				}
			}
			if r.Count(Warning) != warnings || warnings > 0 && r.Err(true) == nil {
				t.Errorf("%d warnings, want %d: %+v", r.Count(Warning), warnings, r.Findings)
			}
		})
	}
}

func TestPluginsThatDidNotStartAreTold(t *testing.T) {
	const head = "TYPE ID PLATFORMS STATUS\n"
	line := func(kind, id, state string) string { return kind + "   " + id + "   -   " + state + "\n" }
	good := line("io.containerd.image-verifier.v1", "bindir", "ok") + line("io.containerd.transfer.v1", "local", "ok")
	for _, c := range []struct {
		name, list string
		wants      []want
	}{
		{"all", good + line("io.containerd.cri.v1", "images", "ok"), []want{{checkLoaded, OK, ""}}},
		{"without CRI", good, []want{{checkLoaded, OK, ""}}},
		{"CRI broken", good + line("io.containerd.cri.v1", "images", "error"), []want{{checkLoaded, Failure, "images did not start: error"}}},
		{"no verifiers", line("io.containerd.transfer.v1", "local", "ok"), []want{{checkLoaded, Failure, "bindir is not there"}}},
		{"nothing", "", []want{{checkLoaded, Failure, "bindir is not there"}, {checkLoaded, Failure, "local is not there"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			checkPluginList(r, head+c.list)
			holds(t, r, c.wants...)
		})
	}
}

func TestPrograms(t *testing.T) {
	shim, verifier := compiled(t, "containerd-shim-mentat-v1"), compiled(t, "mentat-verifier")
	dir := t.TempDir()
	put(t, filepath.Join(dir, "script"), 0o755, script)
	put(t, filepath.Join(dir, "text"), 0o644, script)
	for _, c := range []struct {
		name  string
		found []program
		wants []want
	}{
		{"good", []program{{"containerd-shim-mentat-v1", shim}, {"mentat-verifier", verifier}}, []want{{checkPrograms, OK, "mentat-verifier"}, {checkBuild, OK, "2 programs"}}},
		{"one for the other", []program{{"containerd-shim-mentat-v1", verifier}}, []want{{checkPrograms, Failure, "is not containerd-shim-mentat-v1"}}},
		{"a script in its place", []program{{"mentat-host", dir + "/script"}}, []want{{checkPrograms, Failure, "is not mentat-host"}}},
		{"missing", []program{{"mentat-host", dir + "/gone"}}, []want{{checkPrograms, Failure, "no such file"}}},
		{"not executable", []program{{"mentat-host", dir + "/text"}}, []want{{checkPrograms, Failure, "0644"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			checkOurs(r, c.found)
			holds(t, r, c.wants...)
		})
	}
	a, b := map[string]string{"go": "1", "x": "v1", "only": "v1"}, map[string]string{"go": "1", "x": "v2", "other": "v1"}
	if d := differ(a, b); len(d) != 1 || d[0] != "x" {
		t.Errorf("two builds differ in %v", d)
	}
}

func TestWhatOthersCanChangeIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "program")
	put(t, path, 0o755, script)
	r := &Report{}
	checkPath(r, path)
	holds(t, r, want{checkOwner, OK, path})
	link(t, path, filepath.Join(dir, "link"))
	for _, c := range []struct {
		name, at string
		mode     os.FileMode
	}{
		{"the file", path, 0o757}, {"its directory", filepath.Dir(path), 0o775}, {"one above", filepath.Join(dir, "a"), 0o777},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := os.Stat(c.at)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(c.at, c.mode); err != nil {
				t.Fatal(err)
			}
			for _, asked := range []string{path, filepath.Join(dir, "link")} {
				r := &Report{}
				checkPath(r, asked)
				holds(t, r, want{checkOwner, Failure, c.at})
			}
			if err := os.Chmod(c.at, info.Mode()); err != nil {
				t.Fatal(err)
			}
		})
	}
	r = &Report{}
	checkPath(r, filepath.Join(dir, "nowhere"))
	holds(t, r, want{checkOwner, Failure, "cannot be followed"})
}

func TestCachesAreTheNodesOwnAndExecutable(t *testing.T) {
	for _, c := range []struct {
		name  string
		lay   func(t *testing.T, dir string)
		wants []want
	}{
		{"good", func(t *testing.T, dir string) { mkdir(t, dir, 0o700) }, []want{{checkCache, OK, "own"}}},
		{"not there yet", func(*testing.T, string) {}, []want{{checkCache, OK, "when it is needed"}}},
		{"open to others", func(t *testing.T, dir string) { mkdir(t, dir, 0o755) }, []want{{checkCache, Failure, "0755"}}},
		{"a link", func(t *testing.T, dir string) { link(t, t.TempDir(), dir) }, []want{{checkCache, Failure, "no directory"}}},
		{"a file", func(t *testing.T, dir string) { put(t, dir, 0o600, "") }, []want{{checkCache, Failure, "no directory"}}},
		{"another's", func(t *testing.T, dir string) {
			mkdir(t, dir, 0o700)
			if err := os.Chown(dir, 12345, 12345); err != nil {
				t.Skipf("needs root to give a directory away: %v", err)
			}
		}, []want{{checkCache, Failure, "another user"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			c.lay(t, dir)
			r := &Report{}
			checkCaches(r, &nodeconfig.Config{Cache: nodeconfig.Cache{Dir: dir}, Verify: nodeconfig.Verify{State: t.TempDir()}})
			holds(t, r, c.wants...)
		})
	}
}

func TestACacheOnNoexecIsFound(t *testing.T) {
	dir, asked := t.TempDir(), ""
	before := mountFlags
	t.Cleanup(func() { mountFlags = before })
	mountFlags = func(path string) (int64, error) { asked = path; return unix.ST_NOSUID | unix.ST_NOEXEC, nil }
	r := &Report{}
	checkCaches(r, &nodeconfig.Config{Cache: nodeconfig.Cache{Dir: filepath.Join(dir, "not", "yet")}, Verify: nodeconfig.Verify{State: dir}})
	holds(t, r, want{checkCache, Failure, "noexec"})
	if asked != dir {
		t.Errorf("asked about the file system of %q, want that of %q", asked, dir)
	}
}

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.Mkdir(dir, mode), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
}

func TestAClockThatIsBehindIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	put(t, path, 0o644, "")
	cfg := &nodeconfig.Config{Verify: nodeconfig.Verify{Policy: path, State: dir}, Dir: dir}
	r := &Report{}
	checkTime(r, time.Now(), cfg)
	holds(t, r)
	r = &Report{}
	checkTime(r, time.Now().Add(-time.Hour), cfg)
	// State and configuration lie in one directory, which is told once.
	holds(t, r, want{checkClock, Failure, "policy.yaml"}, want{checkClock, Failure, dir + " was changed"})
}

func TestListsAreHeldToTheirTime(t *testing.T) {
	now := testpki.Now
	for _, c := range []struct {
		name       string
		made, next time.Duration
		want       want
	}{
		{"current", -time.Hour, time.Hour, want{checkCRL, OK, "made 1h"}},
		{"in the grace", -48 * time.Hour, -time.Hour, want{checkCRL, Warning, "the grace holds until"}},
		{"past the grace", -48 * time.Hour, -25 * time.Hour, want{checkCRL, Failure, "out of date"}},
		{"from the future", time.Hour, 2 * time.Hour, want{checkClock, Failure, "the clock says"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			checkAge(r, verifier.CRLSource{Issuer: "CN=ca", File: "ca.crl"}, now.Add(c.made), now.Add(c.next), 24*time.Hour, now)
			holds(t, r, c.want)
		})
	}
}

func TestCertificatesThatEndSoonAreTold(t *testing.T) {
	now := testpki.Now
	for _, c := range []struct {
		name     string
		from, to time.Duration
		want     want
	}{
		{"good", -time.Hour, 31 * 24 * time.Hour, want{checkCert, OK, "until"}},
		{"within 30 days", -time.Hour, 29 * 24 * time.Hour, want{checkCert, Warning, "in 29 days"}},
		{"over", -2 * time.Hour, -time.Hour, want{checkCert, Failure, "ended at"}},
		{"not yet", time.Hour, 365 * 24 * time.Hour, want{checkCert, Failure, "not valid before"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			checkCertificate(r, "store", &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(c.from), NotAfter: now.Add(c.to)}, now)
			holds(t, r, c.want)
		})
	}
}

// trusting is a node's trust on disk.
func trusting(t *testing.T) (*nodeconfig.Config, *testpki.PKI) {
	t.Helper()
	dir := t.TempDir()
	p := testpki.New(t)
	put(t, filepath.Join(dir, "trust", "agents", "root.pem"), 0o644, string(testpki.PEM(p.Root)))
	put(t, filepath.Join(dir, "agent.crl"), 0o644, string(p.AgentCRL()))
	put(t, filepath.Join(dir, "root.crl"), 0o644, string(p.RootCRL()))
	put(t, filepath.Join(dir, "policy.yaml"), 0o644, `version: 1
scopes:
  - {name: agents, match: ["registry.example/agents/**"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
on_unfetchable: deny
revocation:
  grace: 24h
  crls:
    - {issuer: "`+p.Root.Subject.String()+`", file: root.crl}
    - {issuer: "`+p.Agent.Subject.String()+`", file: agent.crl}
`)
	return &nodeconfig.Config{Dir: dir, Verify: nodeconfig.Verify{Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "state")}}, p
}

func TestTrustIsReadAsAGateReadsIt(t *testing.T) {
	quiet := func(string) ([]string, error) { return nil, nil }
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, cfg *nodeconfig.Config)
		lint  func(string) ([]string, error)
		wants []want
	}{
		{"good", func(*testing.T, *nodeconfig.Config) {}, quiet, []want{{checkPolicy, OK, "well formed"}, {checkLint, OK, "no effect"}, {checkCert, OK, "trust store agents"}, {checkCRL, OK, "Root"}, {checkCRL, OK, "Agent"}}},
		{"developer mode", func(_ *testing.T, cfg *nodeconfig.Config) { cfg.Verify.Policy = "" }, quiet, []want{{checkPolicy, Failure, "developer mode"}}},
		{"a policy that is gone", func(t *testing.T, cfg *nodeconfig.Config) { remove(t, cfg.Verify.Policy) }, quiet, []want{{checkPolicy, Failure, "cannot be used"}}},
		{"an unknown key", func(t *testing.T, cfg *nodeconfig.Config) {
			put(t, cfg.Verify.Policy, 0o644, "version: 1\nlevel: audit\n")
		}, quiet, []want{{checkPolicy, Failure, "level"}}},
		{"no store", func(t *testing.T, cfg *nodeconfig.Config) { remove(t, filepath.Join(cfg.Verify.Trust, "agents")) }, quiet, []want{{checkPolicy, Failure, "trust store"}}},
		{"a list that is gone", func(t *testing.T, cfg *nodeconfig.Config) { remove(t, filepath.Join(cfg.Dir, "agent.crl")) }, quiet, []want{{checkCRL, Failure, "agent.crl"}}},
		{"a root's list of rubbish", func(t *testing.T, cfg *nodeconfig.Config) { put(t, filepath.Join(cfg.Dir, "root.crl"), 0o644, "x") }, quiet, []want{{checkCRL, Failure, "root.crl"}}},
		{"a policy that others write", func(t *testing.T, cfg *nodeconfig.Config) {
			put(t, cfg.Verify.Policy, 0o666, read(t, cfg.Verify.Policy))
		}, quiet, []want{{checkOwner, Failure, "0666"}}},
		{"enforced", func(*testing.T, *nodeconfig.Config) {}, quiet, []want{{checkEnforcement, OK, "enforced"}}},
		{"not enforced yet", stage("{enabled: true, enforcement_date: \"2026-01-10\", grace_period_days: 30}"), quiet, []want{{checkEnforcement, Warning, "is grace, and enforced from 2026-02-09"}}},
		{"enforced since its date", stage("{enabled: true, enforcement_date: \"2026-01-10\"}"), quiet, []want{{checkEnforcement, OK, "enforced"}}},
		{"never enforced", stage("{enabled: false, enforcement_date: \"2026-01-10\"}"), quiet, []want{{checkEnforcement, Failure, "is not enabled"}}},
		{"a clock behind what was seen", func(t *testing.T, cfg *nodeconfig.Config) {
			put(t, filepath.Join(cfg.Verify.State, "latest-time"), 0o644, "2026-01-16T00:00:00Z\n")
		}, quiet, []want{{checkClock, Failure, "the gates saw 2026-01-16"}}},
		{"a root that others write", func(t *testing.T, cfg *nodeconfig.Config) {
			root := filepath.Join(cfg.Verify.Trust, "agents", "root.pem")
			put(t, root, 0o622, read(t, root))
		}, quiet, []want{{checkOwner, Failure, "root.pem"}}},
		{"lint warns", func(*testing.T, *nodeconfig.Config) {}, func(string) ([]string, error) { return []string{"rule x has no effect"}, nil }, []want{{checkLint, Warning, "rule x"}}},
		{"lint refuses", func(*testing.T, *nodeconfig.Config) {}, func(string) ([]string, error) { return nil, errors.New("line 3") }, []want{{checkLint, Failure, "line 3"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, _ := trusting(t)
			c.spoil(t, cfg)
			r := &Report{}
			v := checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock, Lint: c.lint}, nil)
			holds(t, r, c.wants...)
			for _, w := range c.wants {
				if w.check == checkPolicy && w.s == Failure && v != nil {
					t.Error("there is a verifier, of what?")
				}
			}
		})
	}
}

func TestReleaseListsAreHeldToTheirTime(t *testing.T) {
	for _, c := range []struct {
		name string
		next time.Duration // after the doctor's time
		want want
	}{
		{"current", 48 * time.Hour, want{checkReleases, OK, "number 7, until 2026-01-17"}},
		{"within the grace", -time.Hour, want{checkReleases, Warning, "out of date"}},
		{"past the grace", -25 * time.Hour, want{checkReleases, Failure, "out of date"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, p := trusting(t)
			data, err := verifier.SignReleases(verifier.Releases{Number: 7, NextUpdate: testpki.Now.Add(c.next).Format("2006-01-02T15:04:05Z")}, p.LeafKey, p.Chain(), testpki.Now.Add(-72*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Join(cfg.Dir, "releases.json"), 0o644, string(data))
			put(t, cfg.Verify.Policy, 0o644, read(t, cfg.Verify.Policy)+"releases: [{name: agents, file: releases.json, stores: [agents], identities: [\"email:"+testpki.Email+"\"]}]\n")
			r := &Report{}
			checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock}, nil)
			holds(t, r, c.want)
			if _, err := os.Stat(filepath.Join(cfg.Verify.State, "releases-agents.json")); err == nil {
				t.Error("the doctor has the node remember a list")
			}
			remove(t, filepath.Join(cfg.Dir, "releases.json"))
			r = &Report{}
			checkTrust(t.Context(), r, cfg, Options{Clock: testpki.Clock}, nil)
			holds(t, r, want{checkReleases, Failure, "cannot be used"})
		})
	}
}

// stage gives the policy an attestation_required.
func stage(text string) func(*testing.T, *nodeconfig.Config) {
	return func(t *testing.T, cfg *nodeconfig.Config) {
		t.Helper()
		put(t, cfg.Verify.Policy, 0o644, read(t, cfg.Verify.Policy)+"attestation_required: "+text+"\n")
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTheDaemonIsFoundByItsSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if _, err := findDaemon(t.Context(), socket); err == nil {
		t.Error("found one where nobody listens")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := findDaemon(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if d.PID != os.Getpid() || d.Program != self || d.Config != defaultContainerdConfig || lookup(d.env, "PATH") == "" {
		t.Errorf("found %+v, this is process %d, %s", d, os.Getpid(), self)
	}
	if age := time.Since(d.Started); age < -time.Minute || age > time.Hour {
		t.Errorf("started at %s", d.Started)
	}
}

func TestConfigurationFilesAreFoundInArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"containerd"}, defaultContainerdConfig},
		{[]string{"containerd", "--config", "/x"}, "/x"},
		{[]string{"containerd", "--config=/x"}, "/x"},
		{[]string{"containerd", "-c", "/x"}, "/x"},
		{[]string{"containerd", "-c=/x", "--log-level", "debug"}, "/x"},
		{[]string{"containerd", "--config"}, defaultContainerdConfig},
		{[]string{"--config=/argv0"}, defaultContainerdConfig},
	} {
		if got := configOf(c.args); got != c.want {
			t.Errorf("%q: %s, want %s", c.args, got, c.want)
		}
	}
}

func TestAConfigurationThatTheDaemonHasNotReadIsFound(t *testing.T) {
	dir := t.TempDir()
	config, part := filepath.Join(dir, "config.toml"), filepath.Join(dir, "conf.d", "a.toml")
	put(t, config, 0o644, "")
	put(t, part, 0o644, "")
	s := &settings{Imports: []string{"conf.d/*.toml"}}
	r := &Report{}
	checkRestarted(r, &Daemon{Config: config, Started: time.Now().Add(time.Minute)}, s)
	holds(t, r, want{checkRestart, OK, config})
	r = &Report{}
	checkRestarted(r, &Daemon{Config: config, Started: time.Now().Add(-time.Hour)}, s)
	holds(t, r, want{checkRestart, Failure, config}, want{checkRestart, Failure, part})
	r = &Report{}
	checkRestarted(r, &Daemon{Config: config, Program: "/x (deleted)", Started: time.Now().Add(time.Minute)}, s)
	holds(t, r, want{checkRestart, Warning, "replaced"})
}

func TestTheGatesReadWhatTheReportIsAbout(t *testing.T) {
	dir := t.TempDir()
	one, other := filepath.Join(dir, "one", "config.toml"), filepath.Join(dir, "other", "config.toml")
	put(t, one, 0o644, "")
	put(t, other, 0o644, "")
	put(t, filepath.Join(dir, "bad.toml"), 0o644, "[verify]\nlevel = 'audit'\n")
	env := func(path string) *Daemon { return &Daemon{PID: 1, env: []string{nodeconfig.Env + "=" + path}} }
	for _, c := range []struct {
		name   string
		daemon *Daemon
		config string
		dir    string
		wants  []want
	}{
		{"as containerd says", env(one), "", filepath.Dir(one), []want{{checkConfig, OK, ""}}},
		{"another than containerd says", env(one), other, filepath.Dir(other), []want{{checkConfig, Warning, one}}},
		{"malformed", env(filepath.Join(dir, "bad.toml")), "", "", []want{{checkConfig, Failure, "level"}}},
		{"named and gone", env(filepath.Join(dir, "gone.toml")), "", "", []want{{checkConfig, Failure, "gone.toml"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Report{}
			cfg := r.config(c.daemon, Options{Config: c.config})
			holds(t, r, c.wants...)
			if (cfg == nil) != (c.dir == "") || cfg != nil && cfg.Dir != c.dir {
				t.Errorf("read %+v, want the one in %q", cfg, c.dir)
			}
		})
	}
}

func TestCanariesAreWhatTheirNamesSay(t *testing.T) {
	all, err := canaries(t.Context(), t.TempDir(), testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := trusting(t)
	v, err := verifier.Open(cfg.Verify, testpki.Clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	developer, err := verifier.New(verifier.Config{Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]fault.Reason{"unsigned": fault.Unsigned, "wrongly signed": fault.SignatureInvalid}
	for _, c := range all {
		if vd := v.Verify(t.Context(), verifier.Input{Reference: scopeReference(v), Artifact: c.artifact}); vd.Reason != reasons[c.name] || vd.Scope != "agents" && c.name == "unsigned" {
			t.Errorf("%s: %s", c.name, vd.Line())
		}
		if vd := developer.Verify(t.Context(), verifier.Input{Reference: "x.example/y", Artifact: c.artifact}); vd.Allowed != (c.name == "unsigned") {
			t.Errorf("%s, in developer mode: %s", c.name, vd.Line())
		}
		if c.artifact.Form != oci.FormWASM {
			t.Errorf("%s has the form %s", c.name, c.artifact.Form)
		}
	}
}

func TestAGateMustRefuseForThePolicysReason(t *testing.T) {
	all, err := canaries(t.Context(), t.TempDir(), testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name, script string
		want         want
	}{
		{"refuses", "cat >/dev/null; echo refused: carries no attestation; exit 1", want{checkCanaryGate, OK, "refused"}},
		{"lets all pass", "cat >/dev/null; exit 0", want{checkCanaryGate, Failure, "let an agent pass"}},
		{"defers", "cat >/dev/null; echo deferred: carries no attestation; exit 0", want{checkCanaryGate, Failure, "let an agent pass"}},
		{"is broken", "cat >/dev/null; echo no such policy; exit 1", want{checkCanaryGate, Failure, "not because of that"}},
		{"is silent", "cat >/dev/null; exit 1", want{checkCanaryGate, Failure, "not because of that: it said nothing: exit status 1 instead of"}},
		{"talks while it lets all pass", "cat >/dev/null; echo 'time=\"2026-01-15T10:30:00Z\" level=warning msg=\"DEPRECATION: cgroup v1\"' >&2; exit 0", want{checkCanaryGate, Failure, "let an agent pass that is unsigned"}},
		{"talks after its reason", "cat >/dev/null; echo no such policy; echo 'time=\"2026-01-15T10:30:00Z\" level=warning msg=\"DEPRECATION: cgroup v1\"'; exit 1", want{checkCanaryGate, Failure, "not because of that: \"no such policy\" instead"}},
		{"says it in its log", "cat >/dev/null; echo 'time=\"2026-01-15T10:30:00Z\" level=fatal msg=\"no such policy\"'; exit 1", want{checkCanaryGate, Failure, "no such policy"}},
		{"was asked as containerd asks", `read d; test "$1" = -name && test "$3" = -digest && test "$5" = -stdin-media-type && echo "$d" | grep -q "\"digest\":\"$4\"" && echo carries no attestation; exit 1`, want{checkCanaryGate, OK, "refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "verifier")
			put(t, path, 0o755, "#!/bin/sh\n"+c.script+"\n")
			r := &Report{}
			g := gates{daemon: &Daemon{env: os.Environ()}, verifier: path}
			g.askVerifier(t.Context(), r, all[0], "x.example/y:1", "carries no attestation")
			holds(t, r, c.want)
			if what := r.Findings[0].What; strings.Contains(what, "DEPRECATION") || strings.Contains(what, "let an agent pass") && what != "let an agent pass that is unsigned" {
				t.Errorf("noise: %q", what)
			}
		})
	}
}

func TestACanaryThatMayRunIsNotOffered(t *testing.T) {
	all, err := canaries(t.Context(), t.TempDir(), testpki.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, from, to, why string }{
		{"for good", "unsigned_containers: deny", "unsigned_containers: deny, unsigned_agents: allow", "asks nobody to have signed it"},
		{"not enforced yet", "on_unfetchable: deny", "attestation_required: {enabled: true, enforcement_date: \"2026-06-01\"}\non_unfetchable: deny", "not enforced yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, _ := trusting(t)
			put(t, cfg.Verify.Policy, 0o644, strings.Replace(read(t, cfg.Verify.Policy), c.from, c.to, 1))
			v, err := verifier.Open(cfg.Verify, testpki.Clock, nil)
			if err != nil {
				t.Fatal(err)
			}
			r := &Report{}
			if got := (gates{judge: v}).wanted(t.Context(), r, all[0], scopeReference(v)); got != "" {
				t.Errorf("wanted is %q", got)
			}
			holds(t, r, want{checkPolicy, Warning, "an unsigned agent of this name may run"})
			if !strings.Contains(r.Findings[0].Why, c.why) {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
}

func TestWhatWasNotAskedIsNoSuccess(t *testing.T) {
	v, err := verifier.New(verifier.Config{Clock: testpki.Clock})
	if err != nil {
		t.Fatal(err)
	}
	r := &Report{}
	askGates(t.Context(), r, gates{daemon: &Daemon{env: os.Environ()}, judge: v, dir: t.TempDir()}, testpki.Now)
	// Without a policy only the wrongly signed one must be refused.
	holds(t, r, want{checkCanaryGate, Failure, "was not asked"}, want{checkCanaryPull, Failure, "was not asked"}, want{checkCanaryRun, Failure, "was not asked"},
		want{checkCanaryGate, Note, "unsigned one is not offered"})
	if err := (&Report{}).Err(false); err == nil {
		t.Error("a report of nothing is sound")
	}
}
