package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

func (w *world) spools() audit.Spools { return audit.Spools(w.config.Audit.Spool) }

// records are what the node's spool holds, by event.
func (w *world) records() (admissions []audit.Admission, decisions []audit.Decision) {
	w.Helper()
	b, err := audit.NewSource(w.spools().Node()).Next(1<<20, func(string) (int64, bool) { return 0, false })
	if err != nil && !os.IsNotExist(err) { //nolint:forbidigo // wrapped by nobody here
		w.Fatal(err)
	}
	for _, l := range b.Lines {
		var a audit.Admission
		if err := json.Unmarshal(l.Data, &a); err != nil {
			w.Fatal(err)
		}
		switch a.EventType {
		case audit.EventAdmission:
			admissions = append(admissions, a)
		case audit.EventDecision:
			var d audit.Decision
			if err := json.Unmarshal(l.Data, &d); err != nil {
				w.Fatal(err)
			}
			decisions = append(decisions, d)
		default:
			w.Errorf("%s", l.Data)
		}
	}
	return admissions, decisions
}

func (w *world) auditRuns() []string {
	w.Helper()
	keys, err := w.spools().Runs()
	if err != nil {
		w.Fatal(err)
	}
	return keys
}

func TestAnAdmissionAndEachGrantAreRecorded(t *testing.T) {
	w := enforcing(t)
	w.grants(capabilities + "  - name: soon\n    deny: [\"env:GREETING\"]\n    dry_run: true\n  - name: never\n    deny: [\"env:APP_PORT\"]\n")
	w.create(ref, w.sign(w.agent(strings.Replace(asking, `"env:APP_PORT"`, `"env:APP_PORT", "media:read", "env:OTHER"`, 1))))
	w.runs(true)
	admissions, decisions := w.records()
	if len(admissions) != 1 {
		t.Fatalf("%+v", admissions)
	}
	a := admissions[0]
	if a.Result != audit.Allowed || a.Agent.ID != "mentatlab.echo" || a.Agent.Runtime != "wasm" || !a.Agent.Attestation.Verified || a.Agent.Attestation.Signer != "dev@example.com" ||
		a.Agent.Attestation.TrustLevel != "signed" || a.InstanceID != id || a.Image != ref || a.Policy != "agents" || !strings.HasPrefix(a.Digest, "sha256:") || a.SignerOrg == "" || a.Microseconds <= 0 {
		t.Errorf("%+v", a)
	}
	var got []string
	for _, d := range decisions {
		if d.Operation != "grant" || d.InstanceID != id || d.Agent != a.Agent {
			t.Errorf("%+v", d)
		}
		got = append(got, d.Capability+" "+d.Result+" "+d.Policy)
	}
	want := []string{
		"filesystem:read:/data allowed agents", "filesystem:read-write:/vols allowed agents", "env:GREETING allowed agents", "env:GREETING dry_run soon",
		"env:APP_PORT denied never", "media:read allowed default", "env:OTHER denied policy",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("decisions\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestARunHasADirectoryForItsRecords(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(asking)))
	w.runs(true)
	keys := w.auditRuns()
	if len(keys) != 1 {
		t.Fatalf("%v", keys)
	}
	id, err := w.spools().Identity(keys[0])
	if err != nil || id.Container != "c1" || id.Agent.ID != "mentatlab.echo" || id.Agent.Attestation.Signer != "dev@example.com" || id.Reference != ref || id.Over() {
		t.Errorf("%+v, %v", id, err)
	}
	doc := w.document()
	if doc.Audit == nil || doc.Audit.Dir != hostdoc.AuditDir || doc.Audit.Bytes != limits.AuditRunBytes {
		t.Errorf("%+v", doc.Audit)
	}
	mounted := false
	for _, m := range w.spec().Mounts {
		mounted = mounted || m.Destination == hostdoc.AuditDir && m.Source == w.spools().In(keys[0])
	}
	if !mounted {
		t.Errorf("it is not mounted: %+v", w.spec().Mounts)
	}
	// A retry keeps it.
	w.again()
	if again := w.auditRuns(); len(again) != 1 || again[0] != keys[0] {
		t.Errorf("%v", again)
	}
	// The bundle goes, and the run is over.
	if err := os.RemoveAll(filepath.Join(w.dir, privateDir)); err != nil {
		t.Fatal(err)
	}
	if !id.Over() {
		t.Error("a run whose bundle is gone goes on")
	}
}

func TestARefusalIsRecordedAndLeavesNoRun(t *testing.T) {
	for name, c := range map[string]struct {
		make   func(w *world)
		reason fault.Reason
	}{
		"unsigned": {func(w *world) { w.create(ref, w.agent(asking)) }, fault.Unsigned},
		"tampered": {func(w *world) {
			raw := w.sign(w.agent(asking))
			w.create(ref, raw)
			w.tamper(w.read(raw).Module.Digest)
			w.config.Cache.Dir = filepath.Join(w.etc, "cache")
		}, fault.DigestMismatch},
		"no image": {func(w *world) { w.node.container[id] = Container{Image: "registry.example/gone:1"} }, fault.NotFound},
		"a document too large": {func(w *world) {
			w.create(ref, w.sign(w.agent(asking)))
			spec := plain()
			spec.Process.Args = []string{"/agent.wasm", strings.Repeat("x", limits.HostDocumentBytes)}
			w.write(spec)
		}, fault.ResourceLimit},
		"a broken capability policy": {func(w *world) { w.create(ref, w.sign(w.agent(asking))); w.grants("nonsense") }, fault.PolicyInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			c.make(w)
			w.refused(c.reason)
			admissions, _ := w.records()
			if len(admissions) != 1 || admissions[0].Result != audit.Denied || admissions[0].Reason != string(c.reason) || admissions[0].Message == "" || admissions[0].InstanceID != id {
				t.Errorf("%+v", admissions)
			}
			if admissions[0].Agent.Attestation.Verified && name == "unsigned" {
				t.Errorf("%+v", admissions[0].Agent)
			}
			if keys := w.auditRuns(); len(keys) != 0 {
				t.Errorf("a run is left: %v", keys)
			}
		})
	}
}

func TestOnlyWhatAPolicyDecidedIsRecordedOfContainers(t *testing.T) {
	for name, want := range map[string]int{outside: 0, mixed: 1} {
		w := enforcing(t)
		w.create(name, w.image())
		w.runs(false)
		if admissions, _ := w.records(); len(admissions) != want || want > 0 && (admissions[0].Result != audit.Allowed || admissions[0].Policy != "mixed") {
			t.Errorf("%s: %+v", name, admissions)
		}
	}
	w := enforcing(t)
	w.create(ref, w.sign(w.containerAgent()))
	w.write(plain())
	w.runs(false)
	if admissions, _ := w.records(); len(admissions) != 1 || admissions[0].Agent.Runtime != "python3.12" {
		t.Errorf("%+v", admissions)
	}
}

func TestARecordThatCannotBeWrittenStopsOnlyWhereItIsRequired(t *testing.T) {
	for _, required := range []bool{false, true} {
		w := enforcing(t)
		w.config.Audit.Required = required
		// Something else is in the spool's place.
		w.file("spool", nil)
		w.create(ref, w.sign(w.agent(asking)))
		if required {
			if text := w.refusal(fault.Unavailable); !strings.Contains(text, "requires a record") {
				t.Error(text)
			}
			w.create(mixed, w.image())
			w.refused(fault.Unavailable)
			continue
		}
		w.runs(true)
		if doc := w.document(); doc.Audit != nil {
			t.Errorf("%+v", doc.Audit)
		}
		if !strings.Contains(w.log.String(), "not recorded") {
			t.Errorf("nothing tells of it: %s", &w.log)
		}
	}
}

func TestTheOrganisationIsThatOfTheSigner(t *testing.T) {
	for subject, want := range map[string]string{
		"CN=dev@example.com,O=MentatLab,C=US": "MentatLab", "O=First": "First", "CN=a": "", "CN=a\\,O=no": "", "CN=O=no": "", "CN=a,OU=no": "",
	} {
		if got := organisation(subject); got != want {
			t.Errorf("%s: %q", subject, got)
		}
	}
}
