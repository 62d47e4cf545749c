package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/node/doctor"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// diagnosis is what `mentatctl doctor` says of a node.
type diagnosis struct {
	doctor.Report
	Sound bool `json:"sound"`
	exit  int
	text  string
}

func diagnose(t *testing.T, n *node.Node) diagnosis {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := n.Command(t.Context(), "mentatctl", "doctor", "--address", n.Socket, "--output", "json")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("mentatctl doctor: %v\n%s", err, stderr.String())
	}
	d := diagnosis{exit: cmd.ProcessState.ExitCode(), text: stdout.String()}
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	return d
}

// has counts the findings of a check and severity whose text holds the words.
func (d diagnosis) has(check string, s doctor.Severity, words string) int {
	count := 0
	for _, f := range d.Findings {
		if f.Check == check && f.Severity == s && strings.Contains(f.On+" "+f.What, words) {
			count++
		}
	}
	return count
}

// withCredentials is a setting of CRI's that has it pull by itself.
const withCredentials = `
[plugins.'io.containerd.cri.v1.images'.registry.configs."registry.example".auth]
username = "ada"
password = "right"
`

func newPatient(t *testing.T, cfg node.Config) *guarded {
	t.Helper()
	testpki.Now = time.Now().UTC()
	cfg.Verifier, cfg.CRI, cfg.SandboxImage = true, true, "localhost/pause:1"
	w := newWorld(t, cfg)
	g := &guarded{world: w, registry: &node.Registry{Host: "registry.example"}, pki: testpki.New(t)}
	g.trust(g.pki)
	g.policy("")
	return g
}

func TestTheDoctorFindsASoundNodeSound(t *testing.T) {
	g := newPatient(t, node.Config{})
	d := diagnose(t, g.Node)
	if d.exit != 0 || !d.Sound || d.Count(doctor.Failure) > 0 {
		t.Fatalf("exit %d\n%s", d.exit, d.text)
	}
	// Both canaries were refused by every gate, and for the policy's reason.
	for _, gate := range []string{"canary.verifier", "canary.pull", "canary.cri", "canary.run"} {
		if got := d.has(gate, doctor.OK, "refused an agent that is"); got != 2 {
			t.Errorf("%s refused %d canaries\n%s", gate, got, d.text)
		}
	}
	for _, check := range []string{"containerd.running", "containerd.version", "containerd.config", "containerd.restarted", "verifier.plugin",
		"verifier.entry", "verifier.timeout", "cri.verification", "cri.runtime", "runc.version", "programs", "programs.build", "policy", "policy.lint", "certificates", "revocation.list"} {
		if d.has(check, doctor.OK, "") == 0 {
			t.Errorf("%s was not checked\n%s", check, d.text)
		}
	}
	if out := g.ctr("namespaces", "ls", "-q"); strings.Contains(out, "mentat-doctor") {
		t.Errorf("the doctor left its namespace: %s", out)
	}
}

func TestTheDoctorFindsWhatSwitchesTheGatesOff(t *testing.T) {
	g := newPatient(t, node.Config{Extra: withCredentials})
	if err := os.Rename(g.verifier(), filepath.Join(g.Root, "gone")); err != nil {
		t.Fatal(err)
	}
	d := diagnose(t, g.Node)
	if d.exit != 23 || d.Sound {
		t.Errorf("exit %d\n%s", d.exit, d.text)
	}
	for _, c := range []struct{ check, words string }{
		{"verifier.directory", "is empty"},
		{"cri.verification", "registry.configs"},
		{"canary.verifier", "was not asked"},
		{"canary.pull", "let an agent pass that is unsigned"},
		{"canary.pull", "let an agent pass that is wrongly signed"},
		{"canary.cri", "let an agent pass that is unsigned"},
		{"canary.cri", "let an agent pass that is wrongly signed"},
	} {
		if d.has(c.check, doctor.Failure, c.words) != 1 {
			t.Errorf("no failure of %s with %q\n%s", c.check, c.words, d.text)
		}
	}
	for _, f := range d.Findings {
		if strings.HasPrefix(f.What, "let an agent pass") && f.What != "let an agent pass that is unsigned" && f.What != "let an agent pass that is wrongly signed" {
			t.Errorf("noise: %q", f.What)
		}
	}
	// The gate before a start does not depend on the one at a pull.
	if d.has("canary.run", doctor.OK, "refused an agent that is") != 2 {
		t.Errorf("the run gate is not shown to hold\n%s", d.text)
	}
	if out := g.ctr("namespaces", "ls", "-q"); strings.Contains(out, "mentat-doctor") {
		t.Errorf("the doctor left its namespace: %s", out)
	}
	if out, err := g.Command(t.Context(), "ctr", "--address", g.Socket, "--namespace", "k8s.io", "images", "ls", "-q").Output(); err != nil || strings.Contains(string(out), "canary") {
		t.Errorf("CRI has kept the canary, or cannot tell: %v\n%s", err, out)
	}
}

// What keeps CRI from the verifier leaves the pull by containerd's own client as it
// was: of the canaries only the one that CRI pulls shows it.
func TestAPullByCRIIsTried(t *testing.T) {
	g := newPatient(t, node.Config{Extra: withCredentials})
	d := diagnose(t, g.Node)
	if d.has("canary.pull", doctor.OK, "refused an agent that is") != 2 || d.has("canary.cri", doctor.Failure, "let an agent pass that is") != 2 {
		t.Errorf("exit %d\n%s", d.exit, d.text)
	}
}

func TestTheDoctorJudgesWhatTheNodeHasAlready(t *testing.T) {
	g := newPatient(t, node.Config{})
	have := func(name string, sign func(*oci.Layout)) {
		l, _ := g.build(name, assemble(t, guestMarker(1)), "")
		sign(l)
		g.load(l, g.ref(name))
	}
	by := func(p *testpki.PKI, name string) func(*oci.Layout) {
		return func(l *oci.Layout) { g.sign(l, p, name, g.registry.Host+"/agents/"+name, nil) }
	}
	ending := testpki.New(t, func(r *testpki.Recipe) {
		r.Leaf.SerialNumber = big.NewInt(0x777)
		r.Leaf.NotAfter = testpki.Now.AddDate(0, 0, 10)
	})
	have("good", by(g.pki, "good"))
	have("ending", by(ending, "ending"))
	have("revoked", by(testpki.New(t, testpki.LeafSerial(revokedLeaf)), "revoked"))
	have("unsigned", func(*oci.Layout) {})
	g.trust(g.pki, revoking(revokedLeaf))
	d := diagnose(t, g.Node)
	for _, c := range []struct{ check, words string }{
		{"images", "/agents/revoked:1.0.0 would be refused now: revoked"},
		{"images", "/agents/unsigned:1.0.0 would be refused now: unsigned"},
		{"certificates", "/agents/ending:1.0.0 was signed by"},
	} {
		if d.has(c.check, doctor.Warning, c.words) != 1 {
			t.Errorf("no warning of %s with %q\n%s", c.check, c.words, d.text)
		}
	}
	if d.has("images", doctor.OK, "4 images, 4 of them agents or signed, of which 2 would be refused") != 1 || d.has("images", doctor.Warning, "") != 2 || strings.Contains(d.text, "/agents/good:") {
		t.Errorf("%s", d.text)
	}
	if d.exit != 0 {
		t.Errorf("exit %d: what the gate would refuse is no failure of the gate", d.exit)
	}
}

// A countersigner's certificate ends an agent as the first signer's does.
func TestTheDoctorNamesACountersignerWhoseCertificateEnds(t *testing.T) {
	g := newPatient(t, node.Config{})
	const bob = "bob@example.com"
	p := testpki.New(t, testpki.LeafEmails(bob), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)), func(r *testpki.Recipe) {
		r.Leaf.NotAfter = testpki.Now.AddDate(0, 0, 3)
	})
	text, err := os.ReadFile(filepath.Join(g.Etc, "policy.yaml"))
	if err == nil {
		err = g.WritePolicy(strings.Replace(string(text), "    unsigned_containers", `    required_signers: [{at_least: 2, of: ["email:`+testpki.Email+`", "email:`+bob+"\"]}]\n    unsigned_containers", 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	l, _ := g.build("both", assemble(t, guestMarker(1)), "")
	g.sign(l, g.pki, "both", g.registry.Host+"/agents/both", nil)
	root, raw := g.raw(l)
	signed, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: raw, Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now})
	if err != nil {
		t.Fatal(err)
	}
	g.replace(l, root, signed)
	g.load(l, g.ref("both"))
	d := diagnose(t, g.Node)
	if d.has("certificates", doctor.Warning, "/agents/both:1.0.0 was countersigned by "+bob+", whose certificate") != 1 || d.has("images", doctor.OK, "of which 0 would be refused") != 1 || d.exit != 0 {
		t.Errorf("exit %d\n%s", d.exit, d.text)
	}
}

// A new node has no lists until somebody needs one: they are fetched for the report as
// the gates fetch them, and what the report says is the same for people and programs.
func TestTheDoctorFindsANewNodeSoundWhoseListsCanBeFetched(t *testing.T) {
	g := newPatient(t, node.Config{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		list := g.pki.RootCRL()
		if q.URL.Path == "/agent.crl" {
			list = g.pki.AgentCRL()
		}
		_, _ = w.Write(list)
	}))
	defer server.Close()
	text, err := os.ReadFile(filepath.Join(g.Etc, "policy.yaml"))
	if err == nil {
		fetched := strings.NewReplacer("file: root.crl", "url: "+server.URL+"/root.crl", "file: agent.crl", "url: "+server.URL+"/agent.crl, certificate: agent.pem").Replace(string(text))
		err = errors.Join(g.WritePolicy(fetched), os.WriteFile(filepath.Join(g.Etc, "agent.pem"), testpki.PEM(g.pki.Agent), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := diagnose(t, g.Node); d.exit != 0 || d.has("revocation.list", doctor.OK, "") != 2 {
		t.Errorf("exit %d\n%s", d.exit, d.text)
	}
	server.Close()
	if err := os.RemoveAll(filepath.Join(g.Root, "revocation")); err != nil {
		t.Fatal(err)
	}
	d := diagnose(t, g.Node)
	if d.exit != 23 || d.Count(doctor.Failure) != 2 || d.has("revocation.list", doctor.Failure, "none can be fetched now: "+server.URL) != 2 {
		t.Errorf("exit %d\n%s", d.exit, d.text)
	}
	said, err := g.Command(t.Context(), "mentatctl", "doctor", "--address", g.Socket).Output()
	if err == nil {
		t.Error("it ends otherwise for people")
	}
	for _, f := range d.Findings {
		for _, words := range []string{f.Check, f.On, f.What, f.Why, f.Do} {
			if f.Check != "clock" && !strings.HasPrefix(f.What, "made ") && !strings.Contains(string(said), words) {
				t.Errorf("%q is not told to people:\n%s", words, said)
			}
		}
	}
}

// verifier is the node's entry in containerd's directory.
func (g *guarded) verifier() string { return filepath.Join(g.Root, "verifier", "00-mentatlab") }

// Every way of writing a setting that a real containerd reads is found, old forms of
// its configuration among them: containerd itself says what they mean.
func TestTheDoctorReadsSettingsAsContainerdDoes(t *testing.T) {
	node.Privileged(t)
	_, tools := node.Binaries()
	const images, old = "version = 3\n[plugins.'io.containerd.cri.v1.images']\n", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n"
	for _, c := range []struct{ name, config, words string }{
		{"as it comes", "version = 3\n", ""},
		{"a hosts directory", images + "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n", ""},
		{"use_local_image_pull", images + "use_local_image_pull = true\n", "use_local_image_pull is true"},
		{"disable_snapshot_annotations", images + "disable_snapshot_annotations = false\n", "disable_snapshot_annotations is false"},
		{"discard_unpacked_layers", images + "discard_unpacked_layers = true\n", "discard_unpacked_layers is true"},
		{"image_pull_with_sync_fs", images + "image_pull_with_sync_fs = true\n", "image_pull_with_sync_fs is true"},
		{"max_concurrent_downloads", images + "max_concurrent_downloads = 4\n", "max_concurrent_downloads is 4"},
		{"mirrors", images + "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m.example']\n", "registry.mirrors is set, for docker.io"},
		{"configs", images + "[plugins.'io.containerd.cri.v1.images'.registry.configs.'r.example'.auth]\nusername = 'ada'\n", "registry.configs is set, for r.example"},
		{"auths", images + "[plugins.'io.containerd.cri.v1.images'.registry.auths.'https://r.example']\nusername = 'ada'\n", "registry.auths is set"},
		{"version 2, as it comes", "version = 2\n", ""},
		{"version 2, mirrors", old + "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m.example\"]\n", "registry.mirrors is set, for docker.io"},
		{"version 2, downloads", old + "max_concurrent_downloads = 10\n", "max_concurrent_downloads is 10"},
		// This containerd takes the setting over from the old form only beside a runtime.
		{"version 2, discarded layers", old + "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n", ""},
		{"version 2, discarded layers and a runtime", old + "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.x]\nruntime_type = \"io.containerd.runc.v2\"\n", "discard_unpacked_layers is true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(config, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			report, err := doctor.Run(t.Context(), doctor.Options{
				Address: filepath.Join(t.TempDir(), "nobody"), Containerd: filepath.Join(tools, "containerd"), ContainerdConfig: config, Clock: time.Now, NoCanary: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			d := diagnosis{Report: *report}
			if c.words == "" {
				if d.has("cri.verification", doctor.OK, "") != 1 || d.has("cri.verification", doctor.Failure, "") != 0 {
					t.Errorf("found %+v", d.Findings)
				}
				return
			}
			if d.has("cri.verification", doctor.Failure, c.words) != 1 || d.has("cri.verification", doctor.OK, "") != 0 {
				t.Errorf("%q is not found in %+v", c.words, d.Findings)
			}
		})
	}
}
