package integration

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// escape is one guest that tries to get out, and how that ends. It stands in a
// comment at the head of its source, a line a key:
//
//	title: what it tries
//	of: the kind of escape, one of escapeKinds
//	manifest: more of its manifest, YAML in one line
//	flags: what ctr is given for its container
//	args: what the guest is given
//	refused: what the refusal says, for a module that must not even run
//	status: the exit status
//	reason: the reason in the shim's log, "none" for a guest that ends by itself
//	says: a part of the output, on either stream
type escape struct {
	name string
	keys map[string][]string
}

// escapeKinds are the kinds of which there must be one. The list is the
// specification's (10.1) and what the engine's known flaws add.
var escapeKinds = []string{
	"files of the machine", "other agents' files", "symbolic links", "hard links", "renaming", "trailing slashes", "truncation", "metadata address", "rebinding",
	"environment", "processes", "memory", "busy loop", "recursion", "tables", "log flood", "output flood", "handles", "descriptors", "host memory",
}

// mostLogged is more than a guest may log in the time that it has here.
const mostLogged = 64 << 20

// canary is what no guest may ever see.
const canary = "CANARY-7f3a"

var escapeKey = regexp.MustCompile(`^(?:;;|//) ([a-z]+): (.*)$`)

// escapes reads the corpus: a text module, or a directory with a Go program.
func escapes(t *testing.T) []escape {
	t.Helper()
	var found []escape
	for _, pattern := range []string{"testdata/escapes/*.wat", "testdata/escapes/*/main.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			e := escape{name: name, keys: map[string][]string{}}
			for line := range strings.Lines(string(data)) {
				if m := escapeKey.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
					e.keys[m[1]] = append(e.keys[m[1]], m[2])
				} else if !strings.HasPrefix(line, ";;") && !strings.HasPrefix(line, "//") {
					break
				}
			}
			found = append(found, e)
		}
	}
	return found
}

func (e escape) one(t *testing.T, key string) string {
	t.Helper()
	if len(e.keys[key]) != 1 {
		t.Fatalf("%s says %s %d times", e.name, key, len(e.keys[key]))
	}
	return e.keys[key][0]
}

// module assembles or compiles the guest.
func (e escape) module(t *testing.T) []byte {
	t.Helper()
	if filepath.Ext(e.name) == ".wat" {
		data, err := os.ReadFile(e.name)
		if err != nil {
			t.Fatal(err)
		}
		return assemble(t, string(data))
	}
	path := filepath.Join(t.TempDir(), "guest.wasm")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./"+filepath.Dir(e.name))
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTheCorpusHasEveryKindOfEscape(t *testing.T) {
	all := escapes(t)
	if len(all) == 0 {
		t.Fatal("there are no escapes")
	}
	var kinds []string
	for _, e := range all {
		kinds = append(kinds, e.keys["of"]...)
		for key := range e.keys {
			if !slices.Contains([]string{"title", "of", "manifest", "flags", "args", "refused", "status", "reason", "says"}, key) {
				t.Errorf("%s: unknown key %s", e.name, key)
			}
		}
		if len(e.keys["of"]) == 0 {
			t.Errorf("%s is of no kind", e.name)
		}
	}
	for _, kind := range escapeKinds {
		if !slices.Contains(kinds, kind) {
			t.Errorf("there is no escape of the kind %q", kind)
		}
	}
	for _, kind := range kinds {
		if !slices.Contains(escapeKinds, kind) {
			t.Errorf("%q is no kind of escape", kind)
		}
	}
}

// prison is a node with what its agents may have, and what they are after.
type prison struct {
	*guarded
	// data may be read, vols be written; beside them in the same directory lie a
	// secret, and the same in another agent's volume.
	data, vols, secret, others string
	web                        *decoy
}

func newPrison(t *testing.T) *prison {
	t.Helper()
	p := &prison{guarded: newGuarded(t), web: newDecoy(t)}
	p.grants(`  - {name: files, allow: ["filesystem:read:/data", "filesystem:read-write:/vols", "env:GREETING", "media:read", "media:write"]}
  - {name: web, allow: ["network:http:*.escape.test:` + p.web.port() + `", "network:http:*.escape.test"], private: ["` + rebound + `/32"]}
`)
	root := t.TempDir()
	p.data, p.vols, p.secret, p.others = filepath.Join(root, "data"), filepath.Join(root, "vols"), filepath.Join(root, "secret"), filepath.Join(root, "others")
	for _, dir := range []string{p.data, p.vols, p.secret, p.others, filepath.Join(p.data, "sub")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(p.secret, "key"), filepath.Join(p.others, "key"), filepath.Join(root, "key")} {
		if err := os.WriteFile(file, []byte(canary), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.data, "file"), []byte("content"), 0o666); err != nil {
		t.Fatal(err)
	}
	// What a volume may well hold, made by somebody else.
	for _, dir := range []string{p.data, p.vols} {
		for link, to := range map[string]string{
			"abs": p.secret, "abskey": filepath.Join(p.secret, "key"), "rel": "../secret", "relkey": "../secret/key", "passwd": "/etc/passwd", "root": "/",
			"procroot": "/proc/self/root", "mem": "/proc/self/mem", "fd": "/proc/self/fd", "document": "/run/mentat/host.json", "host": "/run/mentat", "loop": "loop",
		} {
			if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return p
}

// tree is everything below a directory, with its size and time.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		list = append(list, fmt.Sprint(strings.TrimPrefix(path, dir), info.Mode(), info.Size(), info.ModTime().UnixNano()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestNoGuestEscapes runs every guest of the corpus through the real shim, with
// everything granted that an agent can be given.
func TestNoGuestEscapes(t *testing.T) {
	all := escapes(t)
	if len(all) == 0 {
		t.Fatal("there are no escapes")
	}
	p := newPrison(t)
	// A neighbour runs beside them, with what is not theirs.
	neighbour := p.start(p.signedAgentOf("neighbour", assemble(t, guestSleep), `wasm: {capabilities: ["filesystem:read:/data"]}`+"\n"),
		"--mount", "type=bind,src="+p.others+",dst=/data,options=rbind:ro")
	eventually(t, "the neighbour's first output", func() bool { return strings.Contains(neighbour.output(), marker) })
	for i, e := range all {
		name := strings.TrimSuffix(strings.TrimPrefix(e.name, "testdata/escapes/"), "/main.go")
		t.Run(strings.TrimSuffix(name, ".wat"), func(t *testing.T) {
			p.t = t
			p.try(fmt.Sprintf("escape%d", i), e, neighbour)
		})
	}
	if neighbour.state() != "RUNNING" {
		t.Errorf("the neighbour is %s", neighbour.state())
	}
}

// signedAgentOf is an agent of a module.
func (g *guarded) signedAgentOf(name string, module []byte, more string) string {
	g.t.Helper()
	l, _ := g.build(name, module, more)
	g.sign(l, g.pki, name, g.registry.Host+"/agents/"+name, nil)
	g.load(l, g.ref(name))
	return g.ref(name)
}

// everything is the manifest of an agent that asks for all there is.
const everything = `wasm:
  deadline: %s
  memory: {maximum: 32}
  capabilities: ["filesystem:read:/data", "filesystem:read-write:/vols", "env:GREETING", "media:read", "media:write", "network:http:*.escape.test:%s", "network:http:*.escape.test"]
sandbox:
  filesystem: {temp_dirs: [{/tmp: 4MB}]}
`

func (p *prison) try(name string, e escape, neighbour *task) {
	t := p.t
	more := fmt.Sprintf(everything, "60s", p.web.port())
	for _, line := range e.keys["manifest"] {
		if deadline, ok := strings.CutPrefix(line, "deadline: "); ok {
			more = fmt.Sprintf(everything, deadline, p.web.port())
			continue
		}
		more += line + "\n"
	}
	expand := strings.NewReplacer("SECRET", p.secret, "OTHERS", p.others, "BUNDLE", filepath.Join(p.Root, "run", "io.containerd.runtime.v2.task", p.Namespace, neighbour.id), "PORT", p.web.port()).Replace
	flags := []string{
		"--mount", "type=bind,src=" + p.data + ",dst=/data,options=rbind:rw", "--mount", "type=bind,src=" + p.vols + ",dst=/vols,options=rbind:rw",
		"--mount", "type=bind,src=" + p.web.resolvConf(t) + ",dst=/etc/resolv.conf,options=rbind:ro",
		// The node's network, without the files that --net-host brings.
		"--with-ns", fmt.Sprintf("network:/proc/%d/ns/net", os.Getpid()), "--env", "GREETING=hello", "--env", "TOKEN=" + canary, "--env", "AWS_SECRET_ACCESS_KEY=" + canary,
	}
	for _, flag := range e.keys["flags"] {
		flags = append(flags, expand(flag))
	}
	before := tree(t, p.data)
	ref := p.signedAgentOf(name, e.module(t), more)
	id := p.id()
	args := append(flags, ref, id, "/agent.wasm")
	for _, arg := range e.keys["args"] {
		args = append(args, expand(arg))
	}
	got := p.run("", args...)
	short := func(s string) string {
		if len(s) > 2000 {
			return s[:2000] + fmt.Sprintf("… (%d bytes)", len(s))
		}
		return s
	}
	said := got.stdout + got.stderr
	if strings.Contains(said, canary) || strings.Contains(got.stdout, "ESCAPE") {
		t.Errorf("%s: it got out: stdout %q, stderr %q", e.one(t, "title"), short(got.stdout), short(got.stderr))
	}
	if after := tree(t, p.data); !slices.Equal(before, after) {
		t.Errorf("what may only be read has changed:\n%s\nwas\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	if p.web.asked() > 0 {
		t.Errorf("what no guest may reach was asked %d times", p.web.asked())
	}
	if len(got.stderr) > mostLogged {
		t.Errorf("%d bytes of log", len(got.stderr))
	}
	for _, part := range e.keys["says"] {
		if !strings.Contains(said, part) {
			t.Errorf("it does not say %q: stdout %q, stderr %q", part, short(got.stdout), short(got.stderr))
		}
	}
	if refused := e.keys["refused"]; len(refused) == 1 {
		if got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, refused[0]) {
			t.Errorf("status %d, stdout %q, stderr %q, want it refused: %s", got.code, short(got.stdout), short(got.stderr), refused[0])
		}
		return
	}
	want, err := strconv.Atoi(e.one(t, "status"))
	if err != nil {
		t.Fatal(err)
	}
	if got.code != want {
		t.Errorf("status %d, want %d: stdout %q, stderr %q", got.code, want, short(got.stdout), short(got.stderr))
	}
	reason := e.one(t, "reason")
	if reason == "none" {
		reason = ""
	}
	eventually(t, "how the shim says that it ended", func() bool {
		found, ok := endOf(p.Logs(), id)
		if ok && found != reason {
			t.Fatalf("the reason is %q, want %q", found, reason)
		}
		return ok
	})
}

var loggedReason = regexp.MustCompile(` reason=("[^"]*"|\S*)`)

// endOf finds in the shim's log for which reason an agent ended.
func endOf(log, id string) (reason string, ok bool) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "agent ended") && strings.Contains(line, " id="+id+" ") {
			m := loggedReason.FindStringSubmatch(line)
			if m == nil {
				return "no record", true
			}
			return strings.Trim(m[1], `"`), true
		}
	}
	return "", false
}
