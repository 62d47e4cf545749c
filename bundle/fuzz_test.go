package bundle

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// FuzzRewrite holds every specification that is accepted to [safe], and every
// document to what the host takes.
func FuzzRewrite(f *testing.F) {
	full := plain()
	full.Mounts = append(full.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: "/", Options: []string{"rbind", "rw", "rrw"}},
		specs.Mount{Destination: "/vols/../vols", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
		specs.Mount{Destination: "run/mentat/host", Type: "none", Source: "/bin/sh", Options: []string{"bind", "remount"}},
		specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/etc/hosts", Options: []string{"rbind"}},
		specs.Mount{Destination: "/proc", Type: "proc", Source: "/", Options: []string{"rbind"}},
		specs.Mount{Destination: terminationLog, Type: "bind", Source: "/tmp/x", Options: []string{"rbind"}},
		specs.Mount{Destination: "/scratch", Type: "bind", Source: "/", Options: []string{"rbind"}},
	)
	full.Annotations = map[string]string{"dev.mentatlab.input": "/data/x", "run.oci.handler": "wasm"}
	full.Process.Env = []string{"GREETING=x", "MENTAT_INPUT=/vols/x", "LD_PRELOAD=x"}
	for _, seed := range []*specs.Spec{plain(), full} {
		f.Add(encode(f, seed))
	}
	for _, seed := range []string{
		`{"process":{},"root":{},"linux":{}}`,
		`{"process":{"args":["a.wasm","b"],"env":["=","A"],"noNewPrivileges":false},"root":{"path":"/"},"linux":{"resources":{"memory":{"limit":12582912},"pids":{"limit":16}}}}`,
		`{"process":{},"root":{},"linux":{},"mounts":[{"destination":"","type":"","options":["bind"]},{"destination":"/run/mentat/../mentat"},{"destination":"/data","options":["rbind","rro"]}]}`,
		`{"process":{"user":{"uid":4294967295,"additionalGids":[0]}},"root":{},"linux":{"uidMappings":[{"containerID":0,"hostID":4294967295,"size":4294967295}]}}`,
		`{"Process":{"Args":["x"]},"process":{"capabilities":{"ambient":["CAP_SYS_ADMIN"]}},"root":{"readonly":false},"linux":{"maskedPaths":["/x"],"devices":[{"path":"/dev/kmsg"}]}}`,
		`{"process":{},"root":{},"linux":{"resources":{"unified":{"pids.max":"max"}}}}`,
		`{"process":{},"root":{},"linux":{},"annotations":{"dev.mentatlab.input":"/../\u0000"},"mounts":[{"destination":"/","type":"bind","source":"/"}]}`,
		`null`, `{}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	const dir = "/run/containerd/io.containerd.runtime.v2.task/default/c1"
	run := planner(f, dir)
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := parseSpec(specName, data)
		if err != nil {
			refusal(t, err)
			return
		}
		p, err := run(spec).plan(spec)
		if err != nil {
			refusal(t, err)
			return
		}
		safe(t, p.spec, dir)
		doc, err := hostdoc.Parse("host.json", p.document)
		if err != nil {
			t.Fatal(err)
		}
		if doc.Limits.MemoryBytes > *rewrittenLimit(t, p.spec) {
			t.Errorf("the guest's memory %d is more than the container's", doc.Limits.MemoryBytes)
		}
		for _, kv := range doc.Env {
			if !strings.HasPrefix(kv, "GREETING=") && !strings.HasPrefix(kv, "APP_PORT=") {
				t.Errorf("the guest sees %q", kv)
			}
		}
		if in := doc.Input; in.Kind == hostdoc.InputFile && in.Path != hostdoc.InputPath && !strings.HasPrefix(in.Path, hostdoc.InputPath+"/") {
			t.Errorf("the input is %q", in.Path)
		}
		// Rewriting what was rewritten is no way around anything either.
		again, err := parseSpec(specName, p.spec)
		if err != nil {
			t.Fatal(err)
		}
		if p, err = run(again).plan(again); err == nil {
			safe(t, p.spec, dir)
		}
	})
}

// FuzzMount: no mount, however it is put, gets past [safe].
func FuzzMount(f *testing.F) {
	for _, destination := range []string{"/data", "/vols/", "/scratch", "data/sub", "/run/mentat/host", "run", "/proc", "/sys", "/sys/fs/cgroup", "/dev/shm", "/etc/hosts", terminationLog, "/", "", "/DATA", "/a/../data"} {
		for _, kind := range []string{"bind", "", "none", "tmpfs", "proc", "sysfs", "cgroup2", "PROC", "overlay"} {
			f.Add(destination, kind, "rbind rw")
			f.Add(destination, kind, "mode=755")
		}
	}
	for _, options := range []string{"", "bind", "ro", "rro", "bind rrw", "rw exec suid dev", "rbind shared remount", "size=1,exec", "mode=777 tmpcopyup", "BIND", "bind,ro"} {
		f.Add("/data", "bind", options)
		f.Add("/run", "tmpfs", options)
		f.Add("/vols", "tmpfs", options)
	}
	const dir = "/run/containerd/io.containerd.runtime.v2.task/default/c1"
	run := planner(f, dir)
	f.Fuzz(func(t *testing.T, destination, kind, options string) {
		spec := plain()
		m := specs.Mount{Destination: destination, Type: kind, Source: "/", Options: strings.Split(options, " ")}
		// As the user's first mount and as the last.
		spec.Mounts = append([]specs.Mount{m}, append(spec.Mounts, m)...)
		spec, err := parseSpec(specName, encode(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		p, err := run(spec).plan(spec)
		if err != nil {
			t.Fatal(err)
		}
		safe(t, p.spec, dir)
	})
}

func rewrittenLimit(t *testing.T, data []byte) *int64 {
	t.Helper()
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return spec.Linux.Resources.Memory.Limit
}

func refusal(t *testing.T, err error) {
	t.Helper()
	switch fault.ReasonOf(err) {
	case fault.Usage, fault.ResourceLimit, fault.Unsupported, fault.NotFound:
	default:
		t.Errorf("refused with the reason %s: %v", fault.ReasonOf(err), err)
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("the error is not a line: %q", err)
	}
}

// FuzzReadSpec: what is read is the specification itself, unless a record names
// exactly these bytes; reading never writes.
func FuzzReadSpec(f *testing.F) {
	dir := f.TempDir()
	config := encode(f, plain())
	kept := &bundleSpec{dir: dir, raw: []byte(`{"hostname":"original"}`)}
	if err := kept.replace(config); err != nil {
		f.Fatal(err)
	}
	record, err := os.ReadFile(filepath.Join(dir, originalName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(config, record)
	f.Add(config, []byte(`{}`))
	f.Add([]byte(`{}`), record)
	f.Add([]byte(`{"process":{"args":["x"]}}`), []byte(`{"rewritten":"","spec":null}`))
	f.Add([]byte(``), []byte(`{"rewritten":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","spec":"e30="}`))
	f.Add([]byte(`null`), []byte(`[`))
	f.Fuzz(func(t *testing.T, config, record []byte) {
		dir := t.TempDir()
		for name, data := range map[string][]byte{specName: config, originalName: record} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := readSpec(dir)
		for name, data := range map[string][]byte{specName: config, originalName: record} {
			if after, readErr := os.ReadFile(filepath.Join(dir, name)); readErr != nil || !bytes.Equal(after, data) {
				t.Errorf("%s became %q, %v", name, after, readErr)
			}
		}
		if err != nil {
			return
		}
		if !got.rewritten && !bytes.Equal(got.raw, config) {
			t.Errorf("read is %q", got.raw)
		}
		if got.rewritten && !bytes.Contains(record, []byte("sha256:")) {
			t.Errorf("a record that names nothing counts: %q", record)
		}
	})
}
