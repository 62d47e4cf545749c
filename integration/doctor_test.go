package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/node/doctor"
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
	for _, gate := range []string{"canary.verifier", "canary.pull", "canary.run"} {
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
	g := newPatient(t, node.Config{Extra: `
[plugins.'io.containerd.cri.v1.images'.registry.configs."registry.example".auth]
username = "ada"
password = "right"
`})
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
	} {
		if d.has(c.check, doctor.Failure, c.words) != 1 {
			t.Errorf("no failure of %s with %q\n%s", c.check, c.words, d.text)
		}
	}
	// The gate before a start does not depend on the one at a pull.
	if d.has("canary.run", doctor.OK, "refused an agent that is") != 2 {
		t.Errorf("the run gate is not shown to hold\n%s", d.text)
	}
	if out := g.ctr("namespaces", "ls", "-q"); strings.Contains(out, "mentat-doctor") {
		t.Errorf("the doctor left its namespace: %s", out)
	}
}

// verifier is the node's entry in containerd's directory.
func (g *guarded) verifier() string { return filepath.Join(g.Root, "verifier", "00-mentatlab") }
