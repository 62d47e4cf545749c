package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

const mib = limits.MiB

// servedAs is a bundle of an unsigned agent that is served, with a host for it.
func servedAs(t *testing.T, extra string, change func(*specs.Spec)) *world {
	t.Helper()
	w := developer(t)
	w.config.Host.NetBinary = filepath.Join(w.etc, "the-net-host")
	w.file("the-net-host", nil)
	w.create(ref, w.agent("\nmode: serve\n"+extra))
	spec := plain()
	if change != nil {
		change(spec)
	}
	w.write(spec)
	return w
}

func TestAServedAgentGetsAServersDocumentAndHost(t *testing.T) {
	w := servedAs(t, "serve: {port: 9000, concurrency: 4, queue: 3, body: 1MB, content_type: image/png, drain: 1s}\nwasm: {memory: {maximum: 10}, deadline: 7s}\n", nil)
	w.runs(true)
	doc := w.document()
	want := hostdoc.Serve{Listen: ":9000", Concurrent: 4, Queue: 3, BufferBytes: 16 * mib, ContentType: "image/png", DrainMillis: 1000, NoticeMillis: 250}
	if doc.Serve == nil || *doc.Serve != want {
		t.Errorf("%+v", doc.Serve)
	}
	if doc.Limits.InputBytes != mib || doc.Limits.DeadlineMillis != 7000 || doc.Limits.MemoryBytes != 10*mib || doc.Input.Kind != hostdoc.InputStdin {
		t.Errorf("%+v, input %+v", doc.Limits, doc.Input)
	}
	spec := w.spec()
	if got := ownMount(t, spec, hostdoc.HostPath).Source; got != w.config.Host.NetBinary {
		t.Errorf("the host is %s", got)
	}
	if got := *spec.Linux.Resources.Memory.Limit; got != 4*(10*mib+512*1024)+2*16*mib+24*mib {
		t.Errorf("the container has %d bytes", got)
	}
	if got := *spec.Linux.Resources.Pids.Limit; got != 16+2*4 {
		t.Errorf("%d threads", got)
	}
	if got := spec.Process.Rlimits[0].Hard; got != 256+128+4+3+4*4 {
		t.Errorf("%d files", got)
	}
}

func TestATemporaryDirectoryIsEachRequestsOwn(t *testing.T) {
	const extra = "sandbox: {filesystem: {temp_dirs: {/scratch: 1MB}}}\n"
	for _, served := range []bool{true, false} {
		w := enforcing(t)
		mode := "\n"
		if served {
			mode = "\nmode: serve\n"
		}
		w.create(ref, w.sign(w.agent(mode+extra)))
		w.write(plain())
		w.runs(true)
		if got := w.document().Preopens; len(got) != 1 || got[0] != (hostdoc.Preopen{Host: "/scratch", Guest: "/scratch", Fresh: served}) {
			t.Errorf("served %v: %+v", served, got)
		}
	}
}

func TestAServedRunAlwaysHasADeadline(t *testing.T) {
	w := servedAs(t, "", nil)
	w.runs(true)
	if got := w.document().Limits.DeadlineMillis; got != limits.DefaultServeDeadline.Milliseconds() {
		t.Errorf("%d ms", got)
	}
}

func TestAnAgentThatIsNotServedKeepsTheLeanHost(t *testing.T) {
	for _, mode := range []string{"", "\nmode: run\n"} {
		w := developer(t)
		w.config.Host.NetBinary = filepath.Join(w.etc, "no-such-host")
		w.create(ref, w.agent(mode))
		w.write(plain())
		w.runs(true)
		if doc := w.document(); doc.Serve != nil {
			t.Errorf("%q: %+v", mode, doc.Serve)
		}
		if got := filepath.Base(ownMount(t, w.spec(), hostdoc.HostPath).Source); got == "no-such-host" {
			t.Errorf("%q: it got the other host", mode)
		}
	}
}

func TestWithoutTheOtherHostAServedAgentIsRefused(t *testing.T) {
	w := servedAs(t, "", nil)
	if err := os.Remove(w.config.Host.NetBinary); err != nil {
		t.Fatal(err)
	}
	if text := w.refusal(fault.NotFound); !strings.Contains(text, "host.net_binary") {
		t.Errorf("the error does not say what to do: %s", text)
	}
}

func TestTheOtherHostLiesBesideTheFirst(t *testing.T) {
	w := developer(t)
	w.config.Host.Binary, w.config.Host.NetBinary = "/opt/mentat/mentat-host", ""
	if got := w.preparer().netHost; got != "/opt/mentat/mentat-host-net" {
		t.Errorf("%s", got)
	}
}

func TestAServedAgentTakesNoInputFile(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(*specs.Spec){
		"annotation": func(s *specs.Spec) { s.Annotations = map[string]string{inputAnnotation: "/in/file"} },
		"variable":   func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, inputEnv+"=/in/file") },
	} {
		w := servedAs(t, "", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/in", Type: "bind", Source: dir, Options: []string{"rbind"}})
			change(s)
		})
		if text := w.refusal(fault.Usage); !strings.Contains(text, "its requests") {
			t.Errorf("%s: %s", name, text)
		}
	}
	// Arguments are no input there.
	w := servedAs(t, "", func(s *specs.Spec) { s.Process.Args = []string{"/agent.wasm", "--flag"} })
	w.runs(true)
	if doc := w.document(); doc.Input.Kind != hostdoc.InputStdin || len(doc.Args) != 2 {
		t.Errorf("%+v, %q", doc.Input, doc.Args)
	}
}

func TestInstancesShareTheContainersMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		manifest   string
		limit      int64 // MiB, 0 for none
		concurrent int   // 0 for a refusal
		guest      int64 // bytes
		buffers    int64
	}{
		"nothing said":                         {"", 0, 8, 256 * mib, 16 * mib},
		"a manifest":                           {"serve: {concurrency: 100}\nwasm: {memory: {maximum: 2}}", 0, 100, 2 * mib, 16 * mib},
		"a large limit":                        {"", 4096, 8, 256 * mib, 16 * mib},
		"a limit for fewer":                    {"", 256, 3, 67200 * 1024, 16 * mib},
		"a limit for one":                      {"", 64, 1, 31*mib + 512*1024, 4 * mib},
		"a limit for none":                     {"", 32, 0, 0, 0},
		"a guest's memory that was said":       {"wasm: {memory: {maximum: 50}}", 256, 3, 50 * mib, 16 * mib},
		"a guest's memory that does not fit":   {"wasm: {memory: {maximum: 512}}", 128, 1, 87*mib + 512*1024, 8 * mib},
		"a number that was said":               {"serve: {concurrency: 20}", 256, 20, 9600 * 1024, 16 * mib},
		"a number that does not fit":           {"serve: {concurrency: 200}", 256, 0, 0, 0},
		"both, which fit":                      {"serve: {concurrency: 20}\nwasm: {memory: {maximum: 5}}", 256, 20, 5 * mib, 16 * mib},
		"both, which do not":                   {"serve: {concurrency: 20}\nwasm: {memory: {maximum: 20}}", 256, 0, 0, 0},
		"bodies that take it all":              {"serve: {body: 64MB}", 128, 0, 0, 0},
		"large bodies and enough memory":       {"serve: {body: 64MB}", 512, 5, 67584 * 1024, 64 * mib},
		"a small body frees memory for guests": {"serve: {body: 1KB}", 48, 1, 17920 * 1024, 3 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			w := servedAs(t, tc.manifest+"\n", func(s *specs.Spec) {
				if tc.limit > 0 {
					s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(tc.limit * mib)}}
				}
			})
			if tc.concurrent == 0 {
				if text := w.refusal(fault.ResourceLimit); !strings.Contains(text, "container's memory limit") {
					t.Errorf("%s", text)
				}
				return
			}
			w.runs(true)
			doc := w.document()
			if doc.Serve.Concurrent != tc.concurrent || doc.Limits.MemoryBytes != tc.guest || doc.Serve.BufferBytes != tc.buffers {
				t.Errorf("%d of %d KiB, buffers of %d KiB", doc.Serve.Concurrent, doc.Limits.MemoryBytes/1024, doc.Serve.BufferBytes/1024)
			}
			total := *w.spec().Linux.Resources.Memory.Limit
			if all := int64(doc.Serve.Concurrent)*(doc.Limits.MemoryBytes+limits.ServeShare) + 2*doc.Serve.BufferBytes + limits.MinServeHost; all > total {
				t.Errorf("together they need %d of %d", all, total)
			}
			said := fmt.Sprint(doc.Notices)
			if fewer := tc.concurrent < 8; fewer != strings.Contains(said, "serves "+fmt.Sprint(tc.concurrent)+" requests at once, not 8") {
				t.Errorf("notices %s", said)
			}
		})
	}
}

func TestLimitsThatCannotHoldAServerAreRefused(t *testing.T) {
	w := servedAs(t, "serve: {concurrency: 10}\n", func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(35)}}
	})
	if text := w.refusal(fault.ResourceLimit); !strings.Contains(text, "36 threads") {
		t.Errorf("%s", text)
	}
	w = servedAs(t, "serve: {concurrency: 10}\nsandbox: {resources: {file_descriptors: 100}}\n", nil)
	if text := w.refusal(fault.ResourceLimit); !strings.Contains(text, "file_descriptors of 100") {
		t.Errorf("%s", text)
	}
	w = servedAs(t, "serve: {concurrency: 1, queue: 0}\nsandbox: {resources: {file_descriptors: 200}}\n", nil)
	w.runs(true)
	if got := w.spec().Process.Rlimits[0].Hard; got != 200 {
		t.Errorf("%d files", got)
	}
}
