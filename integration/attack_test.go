package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/testimage"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
)

// boxed is a signed container agent and, in the same layout, an unsigned image
// of the same layers with a program of its own.
func (g *guarded) boxed(name string, program ...string) (l *oci.Layout, signed, twin ocispec.Descriptor) {
	g.t.Helper()
	l = g.layout()
	twin, err := testimage.Busybox(busybox, testimage.Config{Entrypoint: program}, l)
	if err != nil {
		g.t.Fatal(err)
	}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	image, err := oci.LoadImage(g.t.Context(), l, twin, platform)
	if err != nil {
		g.t.Fatal(err)
	}
	m, err := manifest.Parse("manifest.yaml", []byte("id: "+name+"\nversion: 1.0.0\nruntime: python3.12\nimage: "+g.ref(name)+"\n"))
	if err != nil {
		g.t.Fatal(err)
	}
	own := g.layout()
	if _, err := oci.Build(g.t.Context(), oci.BuildInput{Agent: m, Container: image}, own); err != nil {
		g.t.Fatal(err)
	}
	g.sign(own, g.pki, name, g.registry.Host+"/agents/"+name, nil)
	signed, _ = g.raw(own)
	for _, d := range g.blobsOf(own) {
		data, err := os.ReadFile(d)
		if err != nil {
			g.t.Fatal(err)
		}
		if _, err := l.PushBytes(g.t.Context(), "application/octet-stream", data); err != nil {
			g.t.Fatal(err)
		}
	}
	return l, signed, twin
}

func (g *guarded) blobsOf(l *oci.Layout) []string {
	g.t.Helper()
	found, err := filepath.Glob(filepath.Join(l.Dir(), "blobs", "sha256", "*"))
	if err != nil {
		g.t.Fatal(err)
	}
	return found
}

// An index is signed by nobody. One that offers, beside a signed container
// agent, an image with the same layers and a program of its own must not run
// that program under the signature.
func TestAnIndexCannotLendASignature(t *testing.T) {
	g := newGuarded(t)
	l, signed, twin := g.boxed("boxed", "/bin/echo", marker)
	platform := func(d ocispec.Descriptor, arch string) ocispec.Descriptor {
		d.MediaType, d.Annotations = ocispec.MediaTypeImageManifest, nil
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		return d
	}
	for name, entries := range map[string][]ocispec.Descriptor{
		"alone":             {platform(signed, "amd64")},
		"the twin for here": {platform(signed, "arm64"), platform(twin, "amd64")},
		"the twin first":    {platform(twin, "amd64"), platform(signed, "amd64")},
	} {
		t.Run(name, func(t *testing.T) {
			g.t = t
			raw, err := json.Marshal(ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries,
			})
			if err != nil {
				t.Fatal(err)
			}
			outer := g.layout()
			for _, b := range g.blobsOf(l) {
				data, err := os.ReadFile(b)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := outer.PushBytes(t.Context(), "application/octet-stream", data); err != nil {
					t.Fatal(err)
				}
			}
			d, err := outer.PushBytes(t.Context(), ocispec.MediaTypeImageIndex, raw)
			if err == nil {
				err = outer.Add(t.Context(), d)
			}
			if err != nil {
				t.Fatal(err)
			}
			ref := g.ref("boxed")
			g.load(outer, ref)
			got := g.run("", ref, g.id())
			if name == "alone" {
				if got.code != 0 || got.stdout != marker+"\n" {
					t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
				}
				return
			}
			if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "no attestation") {
				t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
		})
	}
}

// guestWriter creates a file in its first directory and says how that went.
const guestWriter = `(module
  (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "\10\00\00\00\15\00\00\00")
  (data (i32.const 16) "` + marker + `\n")
  (data (i32.const 64) "planted")
  (func (export "_start") (local $e i32)
    (local.set $e (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 7) (i32.const 9) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 128)))
    (if (i32.eqz (local.get $e)) (then
      (local.set $e (call $fd_write (i32.load (i32.const 128)) (i32.const 0) (i32.const 1) (i32.const 8)))))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $proc_exit (local.get $e))))`

// writer is a signed agent that asks for /vols and its parts.
func (g *guarded) writer() string {
	g.t.Helper()
	g.grants("  - {name: vols, allow: [\"filesystem:read-write:/vols\"]}\n")
	l, _ := g.build("writer", assemble(g.t, guestWriter), "wasm:\n  capabilities: [\"filesystem:read-write:/vols\"]\n")
	g.sign(l, g.pki, "writer", g.registry.Host+"/agents/writer", nil)
	g.load(l, g.ref("writer"))
	return g.ref("writer")
}

// Of two mounts at one place, in two spellings, the later hides the first and
// keeps its own mode.
func TestAMountGivenForReadingIsNotWritten(t *testing.T) {
	g := newGuarded(t)
	ref := g.writer()
	mounted := func(dir, at, mode string) []string {
		return []string{"--mount", "type=bind,src=" + dir + ",dst=" + at + ",options=rbind:" + mode}
	}
	scratch, theirs := t.TempDir(), t.TempDir()
	if got := g.run("", append(mounted(scratch, "/vols", "rw"), ref, g.id())...); got.code != 0 {
		t.Fatalf("the control cannot write: status %d, stderr %q", got.code, got.stderr)
	}
	got := g.run("", slices.Concat(mounted(scratch, "/vols", "rw"), mounted(theirs, "/vols/", "ro"), []string{ref, g.id()})...)
	if left, err := os.ReadDir(theirs); err != nil || len(left) > 0 {
		t.Errorf("the directory holds %v (%v); status %d, stderr %q", left, err, got.code, got.stderr)
	}
}

// A directory that an earlier run could write to holds a link where the next
// one gets another mount: no guest runs that would see where it leads.
func TestALinkInAnAgentsDirectoryLeadsNowhere(t *testing.T) {
	g := newGuarded(t)
	ref := g.writer()
	for _, target := range []string{"/", "/run/mentat", "/run/mentat/state", "/run", "/proc", "/proc/self", "/dev", "/sys", "/run/mentat/host.json", "../../.."} {
		t.Run(target, func(t *testing.T) {
			g.t = t
			work, sub := t.TempDir(), t.TempDir()
			if err := os.Symlink(target, filepath.Join(work, "sub")); err != nil {
				t.Fatal(err)
			}
			got := g.run("",
				"--mount", "type=bind,src="+sub+",dst=/vols/sub,options=rbind:rw",
				"--mount", "type=bind,src="+work+",dst=/vols,options=rbind:rw",
				ref, g.id())
			if got.code == 0 || strings.Contains(got.stdout, marker) {
				t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
		})
	}
}

// Volumes have links of their own. One that leads out of the volume is no way
// to the host's files.
func TestALinkForTheInputStaysInItsVolume(t *testing.T) {
	g := newGuarded(t)
	l, _ := g.build("echo", assemble(t, guestEcho), "")
	g.sign(l, g.pki, "echo", g.registry.Host+"/agents/echo", nil)
	g.load(l, g.ref("echo"))
	volume := t.TempDir()
	err := errors.Join(
		os.Mkdir(filepath.Join(volume, "..data"), 0o755),
		os.WriteFile(filepath.Join(volume, "..data", "in"), []byte(marker), 0o644),
		os.Symlink("..data/in", filepath.Join(volume, "in")),
		os.Symlink("/proc/self/maps", filepath.Join(volume, "maps")),
		os.Symlink("../host.json", filepath.Join(volume, "document")),
		os.Symlink("/run/mentat", filepath.Join(volume, "mentat")),
		unix.Mkfifo(filepath.Join(volume, "pipe"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	for input, ok := range map[string]bool{"in": true, "maps": false, "document": false, "mentat/host.json": false, "pipe": false, ".": false} {
		got := g.run("", "--mount", "type=bind,src="+volume+",dst=/vol,options=rbind:ro", "--annotation", "dev.mentatlab.input=/vol/"+input, g.ref("echo"), g.id())
		if ok && got.stdout != marker || !ok && (got.code == 0 || got.stdout != "") {
			t.Errorf("%s: status %d, stdout %q, stderr %q", input, got.code, got.stdout, got.stderr)
		}
	}
}

// A checkpoint's memory is nobody's signed code.
func TestACheckpointIsNotRestoredIntoAnAgent(t *testing.T) {
	g := newGuarded(t)
	l, _ := g.build("agent", assemble(t, guestMarker(1)), "")
	g.sign(l, g.pki, "agent", g.registry.Host+"/agents/agent", nil)
	g.load(l, g.ref("agent"))
	b := g.bundle(g.ref("agent"))
	got := g.runtime("mentat", b.args("restore", "--image-path", t.TempDir(), "--bundle", b.dir, b.id)...)
	if got.code == 0 || !strings.Contains(got.stderr, "checkpoint") || strings.Contains(got.stderr, "criu") {
		t.Errorf("status %d, stderr %q", got.code, got.stderr)
	}
}

// Whatever a user gives a container, an agent that asks for nothing sees
// nothing of it, and the one that is refused stays refused.
func TestFlagsOfAUserGiveAnAgentNothing(t *testing.T) {
	g := newGuarded(t)
	l, _ := g.build("unsigned", assemble(t, guestMarker(1)), "")
	g.load(l, g.ref("unsigned"))
	l, _ = g.build("lister", assemble(t, guestWriter), "")
	g.sign(l, g.pki, "lister", g.registry.Host+"/agents/lister", nil)
	g.load(l, g.ref("lister"))
	root, err := l.Root()
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("SECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, flags := range [][]string{
		{"--privileged"}, {"--net-host"}, {"--with-ns", "pid:/proc/1/ns/pid"}, {"--cap-add", "CAP_SYS_ADMIN"}, {"--allow-new-privs"},
		{"--annotation", "io.kubernetes.cri.container-type=sandbox", "--annotation", "io.kubernetes.cri.image-name=docker.io/library/alpine:3"},
		{"--label", "containerd.io/gc.ref.content.mentatlab=" + root.Digest.String()},
		{"--annotation", "dev.mentatlab.run.trust=verified", "--annotation", "module.wasm.image/variant=compat"},
		{"--annotation", "org.systemd.property.ExecStart='x'", "--annotation", "run.oci.handler=wasm"},
		{"--mount", "type=bind,src=/,dst=/,options=rbind:rw"}, {"--mount", "type=bind,src=/,dst=/host,options=rbind:rw"},
		{"--mount", "type=bind,src=" + filepath.Dir(secret) + ",dst=/dev/shm,options=rbind:rw"},
		{"--mount", "type=bind,src=" + filepath.Dir(secret) + ",dst=/run/mentat,options=rbind:rw"},
		{"--mount", "type=bind,src=" + filepath.Dir(secret) + ",dst=/run/mentat/state,options=rbind:rw"},
		{"--mount", "type=bind,src=" + secret + ",dst=/run/mentat/host,options=rbind:rw"},
		{"--mount", "type=bind,src=" + filepath.Dir(secret) + ",dst=/proc/self,options=rbind:rw"},
		{"--env", "LD_PRELOAD=/host/evil.so", "--env", "GODEBUG=x", "--env", "MENTAT_ALLOW_ARM64=1"},
		{"--device", "/dev/null"}, {"--rootfs-propagation", "rshared"}, {"--seccomp"}, {"--user", "0:0"}, {"--cwd", "/proc/self/cwd"},
	} {
		t.Run(fmt.Sprint(i, strings.Join(flags, " ")), func(t *testing.T) {
			g.t = t
			if got := g.run("", append(slices.Clone(flags), g.ref("unsigned"), g.id())...); got.code == 0 || strings.Contains(got.stdout, marker) {
				t.Errorf("the refused one: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
			// 8 is WASI's EBADF: there is no directory.
			got := g.run("", append(slices.Clone(flags), g.ref("lister"), g.id())...)
			if got.code == 0 || strings.Contains(got.stdout, marker) && got.code != 8 {
				t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(secret), "planted")); err == nil {
				t.Error("a file was planted")
			}
		})
	}
}

// CRI hands over the first of an image's names, whatever name the pod used.
func TestAPodsImageIsJudgedByTheNameThePodUsed(t *testing.T) {
	const pause, other, inside = "mentat.test/pause:1.0.0", "0.test/box:1.0.0", "mentat.test/agents/box:1.0.0"
	w := newWorld(t, node.Config{CRI: true, SandboxImage: pause})
	p := testpki.New(t)
	err := errors.Join(w.Trust("agents", "root.pem", testpki.PEM(p.Root)), w.WritePolicy(`version: 1
scopes:
  - {name: agents, match: ["mentat.test/agents/**"], stores: [agents], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
`))
	if err != nil {
		t.Fatal(err)
	}
	w.kubernetes(func() {
		w.container("pause", "/bin/sleep", "2147483647")
		l := w.layout()
		if _, err := testimage.Busybox(busybox, testimage.Config{Entrypoint: []string{"/bin/echo", marker}}, l); err != nil {
			t.Fatal(err)
		}
		w.load(l, inside)
		w.ctr("images", "tag", inside, other)
	})
	pd := w.pod(pause)
	if _, err := pd.add("outside", other, nil); err != nil {
		t.Errorf("an ordinary image by its own name: %v", err)
	}
	// The kubelet names an image by its id and adds what the pod said.
	for i, image := range []string{inside, other} {
		_, err := pd.add(fmt.Sprint("inside", i), image, func(c *runtimeapi.ContainerConfig) { c.Image.UserSpecifiedImage = inside })
		if err == nil || !strings.Contains(err.Error(), "no attestation") {
			t.Errorf("as %s: %v", image, err)
		}
	}
	if strings.Contains(pd.log("inside0")+pd.log("inside1"), marker) {
		t.Error("it ran")
	}
}
