package bundle

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
)

// again prepares a bundle that was prepared before.
func (w *world) again() *Result {
	w.Helper()
	got, err := w.prepare()
	if err != nil {
		w.Fatalf("refused: %v", err)
	}
	if got.WASM != Prepared(w.dir) {
		w.Fatalf("WASM is %v, prepared %v", got.WASM, Prepared(w.dir))
	}
	return got
}

// hello is a specification with something that a second rewriting would lose.
func hello(w *world) *specs.Spec {
	spec := plain()
	spec.Process.Args = []string{"/agent.wasm", "one", "two"}
	spec.Process.Env = append(spec.Process.Env, "GREETING=hello")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: w.etc, Options: []string{"rbind"}})
	return spec
}

func TestARetryStartsFromTheOriginalSpecification(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(asking)))
	w.write(hello(w))
	w.runs(true)
	first, document := w.bytes(specName), w.document()
	if document.Input.Text != "one two" || !slices.Equal(document.Env, []string{"GREETING=hello"}) || len(document.Preopens) != 1 {
		t.Fatalf("the first document is %+v", document)
	}
	// What a run that never was has left behind.
	leftover := filepath.Join(w.dir, privateDir, stateDir, "exit.json")
	if err := os.WriteFile(leftover, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.tree()
	for range 3 {
		w.again()
		if !bytes.Equal(w.bytes(specName), first) {
			t.Fatalf("config.json became\n%s\nfrom\n%s", w.bytes(specName), first)
		}
		if got := string(encode(t, w.document())); got != string(encode(t, document)) {
			t.Fatalf("the document became %s", got)
		}
	}
	if _, err := os.Stat(leftover); err == nil {
		t.Error("the record of another run is still there")
	}
	if err := os.WriteFile(leftover, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if after := w.tree(); after != before {
		t.Errorf("the bundle became\n%s\nfrom\n%s", after, before)
	}
}

func TestARefusedRetryLeavesTheBundleAsItWas(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(asking)))
	w.write(hello(w))
	w.runs(true)
	w.tag(ref, w.agent(asking))
	w.refused(fault.Unsigned)
	w.tag(ref, w.sign(w.agent(asking)))
	w.config.Verify.Policy += ".gone"
	w.refused(fault.PolicyInvalid)
}

func TestARetryThatIsNoAgentGetsItsOwnSpecificationBack(t *testing.T) {
	for name, other := range map[string]func(*world){
		"another image": func(w *world) { w.create(outside, w.image()) },
		"no image":      func(w *world) { w.node.container[id] = Container{} },
	} {
		t.Run(name, func(t *testing.T) {
			w := enforcing(t)
			w.create(ref, w.sign(w.agent(asking)))
			w.write(hello(w))
			original := w.bytes(specName)
			w.runs(true)
			other(w)
			if got := w.again(); got.WASM {
				t.Error("it runs as WASM")
			}
			if !bytes.Equal(w.bytes(specName), original) {
				t.Errorf("config.json is %s", w.bytes(specName))
			}
			// And there and back.
			w.create(ref, w.sign(w.agent(asking)))
			if got := w.again(); !got.WASM || w.document().Input.Text != "one two" {
				t.Errorf("WASM is %v", got.WASM)
			}
		})
	}
}

func TestASpecificationThatWasWrittenAnewIsTheOriginal(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(asking)))
	w.write(hello(w))
	w.runs(true)
	spec := plain()
	spec.Process.Args = []string{"/agent.wasm", "three"}
	w.write(spec)
	w.again()
	if got := w.document(); got.Input.Text != "three" || len(got.Env) != 0 || len(got.Preopens) != 0 {
		t.Errorf("the document is %+v", got)
	}
	// A single byte makes it another one: nothing is guessed.
	if err := os.WriteFile(filepath.Join(w.dir, specName), append(w.bytes(specName), ' '), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := strings.Join(w.spec().Process.Args, " ")
	w.again()
	if got := w.document(); got.Input.Text != taken || !strings.HasPrefix(taken, strings.Join(hostArgs, " ")) {
		t.Errorf("the document is %+v", got)
	}
}

func TestADamagedRecordOfTheOriginalIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(string) error{
		"cut off":     func(name string) error { return os.Truncate(name, 20) },
		"a directory": func(name string) error { return os.Remove(name) },
	} {
		w := developer(t)
		w.create(ref, w.agent(""))
		w.runs(true)
		record := filepath.Join(w.dir, originalName)
		if err := spoil(record); err != nil {
			t.Fatal(err)
		}
		if name == "a directory" {
			if err := os.Mkdir(record, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		w.refused(fault.Internal)
	}
}

// The original holds the environment of a container that may have secrets in
// it: none of it is where the container can read.
func TestTheOriginalSpecificationStaysOutOfTheContainer(t *testing.T) {
	w := enforcing(t)
	w.create(ref, w.sign(w.agent(asking)))
	spec := plain()
	spec.Process.Env = append(spec.Process.Env, "DB_PASSWORD=hunter2")
	w.write(spec)
	w.runs(true)
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{originalName, specName, privateDir}; !slices.Equal(names, slices.Sorted(slices.Values(want))) {
		t.Errorf("the bundle has %q", names)
	}
	for _, name := range []string{specName, "mentat/host.json"} {
		if strings.Contains(string(w.bytes(name)), "hunter2") {
			t.Errorf("%s has the secret", name)
		}
	}
	for _, m := range w.spec().Mounts {
		if m.Source == w.dir || strings.HasPrefix(m.Source, filepath.Join(w.dir, originalName)) {
			t.Errorf("the container sees %s", m.Source)
		}
	}
}

// A directory that cannot be made leaves nothing half made.
func TestAPrivateDirectoryThatCannotBeMadeIsTakenAway(t *testing.T) {
	w := developer(t)
	w.create(ref, w.agent(""))
	run := planner(t, w.dir)
	r := run(plain())
	p, err := r.plan(plain())
	if err != nil {
		t.Fatal(err)
	}
	r.inputMount = &specs.Mount{Source: filepath.Join(w.dir, "gone")}
	before := w.tree()
	w.isRefusal(r.writePrivate(p), fault.Internal)
	if w.tree() != before {
		t.Errorf("left is %s", w.tree())
	}
	// Nor does what cannot be put into place change config.json.
	if err := os.Mkdir(filepath.Join(w.dir, originalName), 0o700); err != nil {
		t.Fatal(err)
	}
	config := w.bytes(specName)
	err = (&bundleSpec{Spec: plain(), dir: w.dir, raw: config}).replace([]byte("{}"))
	w.isRefusal(err, fault.Internal)
	if !bytes.Equal(w.bytes(specName), config) {
		t.Error("config.json changed")
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}
