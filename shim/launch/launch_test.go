package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role makes the test binary play one of the two programs.
const role = "MENTAT_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "launcher":
		os.Exit(Main(os.Args, os.Stdin, os.Stdout))
	case "tell":
		tell()
	case "serve":
		serveUntilKilled()
	}
	os.Exit(m.Run())
}

// told is what the serving program finds.
type told struct {
	Args  []string
	Input []byte
	Dir   string
	Env   []string
	Group bool
}

func tell() {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(told{Args: os.Args, Input: input}); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// serveUntilKilled answers every connection with what it is.
func serveUntilKilled() {
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		panic(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		// Who only looked whether anybody serves is gone already.
		_ = json.NewEncoder(c).Encode(told{Args: os.Args, Dir: dir, Env: os.Environ(), Group: unix.Getpgrp() == os.Getpid()})
		_ = c.Close()
	}
}

// installed is a directory with both programs and a bundle.
type installed struct {
	*testing.T
	launcher, bundle, sockets string
}

// install makes the serving program play a role: a link to the test binary could
// not, as the launcher passes its own environment on.
func install(t *testing.T, serving string) *installed {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The path of a socket must be short.
	dir, err := os.MkdirTemp("", "launch") //nolint:usetesting // as said
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	in := &installed{T: t, launcher: filepath.Join(dir, "containerd-shim-mentat-v1"), bundle: filepath.Join(dir, "c1"), sockets: filepath.Join(dir, "s")}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.launcher, data, 0o700); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/bash\n%s=%s exec -a \"$0\" %s \"$@\"\n", role, serving, self)
	if serving != "" {
		if err := os.WriteFile(filepath.Join(dir, Program), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(in.bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	in.config(`{"annotations": {}}`)
	return in
}

func (in *installed) config(text string) {
	in.Helper()
	if err := os.WriteFile(filepath.Join(in.bundle, "config.json"), []byte(text), 0o600); err != nil {
		in.Fatal(err)
	}
}

func (in *installed) run(input []byte, args ...string) (stdout, stderr string, err error) {
	in.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(in.launcher, args...)
	cmd.Env = append(os.Environ(), role+"=launcher")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = in.bundle, bytes.NewReader(input), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// params are a daemon's bootstrap parameters, encoded by hand.
func (in *installed) params(more ...byte) []byte {
	text := func(field byte, s string) []byte { return append([]byte{field<<3 | bytesKind, byte(len(s))}, s...) }
	data := append(text(fieldInstanceID, "c1"), text(fieldNamespace, "ns")...)
	return append(append(data, text(fieldSocketDir, in.sockets)...), more...)
}

var startArgs = []string{"-namespace", "ns", "-address", "/run/c.sock", "-publish-binary", "/bin/containerd", "-id", "c1", "start"}

// start runs the action and returns what serves.
func (in *installed) start() (address string, serves told, pid int) {
	in.Helper()
	out, errs, err := in.run(in.params(), startArgs...)
	if err != nil || errs != "" {
		in.Fatalf("%v: %s", err, errs)
	}
	var answer struct {
		Version           int
		Address, Protocol string
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Version != 3 || answer.Protocol != "ttrpc" {
		in.Fatalf("answer %q: %v", out, err)
	}
	path, ok := strings.CutPrefix(answer.Address, "unix://")
	if !ok {
		in.Fatalf("address %q", answer.Address)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		in.Fatal(err)
	}
	defer c.Close()
	if err := json.NewDecoder(c).Decode(&serves); err != nil {
		in.Fatal(err)
	}
	return path, serves, in.server()
}

// server is the one process that holds the bundle as its directory.
func (in *installed) server() int {
	in.Helper()
	found := 0
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		in.Fatal(err)
	}
	for _, cwd := range procs {
		var pid int
		if dir, err := os.Readlink(cwd); err == nil && dir == in.bundle {
			if _, err := fmt.Sscanf(cwd, "/proc/%d/cwd", &pid); err != nil || found != 0 {
				in.Fatalf("%s and %d serve: %v", cwd, found, err)
			}
			found = pid
		}
	}
	if found != 0 {
		in.Cleanup(func() { _ = unix.Kill(found, unix.SIGKILL) })
	}
	return found
}

func TestEveryOtherActionIsTheServingPrograms(t *testing.T) {
	in := install(t, "tell")
	for name, c := range map[string]struct {
		args  []string
		input []byte
	}{
		"delete":             {[]string{"-namespace", "ns", "-id", "c1", "-bundle", "/b", "delete"}, nil},
		"information":        {[]string{"-info"}, []byte("options")},
		"version":            {[]string{"-v"}, nil},
		"serving":            {[]string{"-namespace", "ns", "-id", "c1", "-address", "a"}, nil},
		"nothing":            {nil, nil},
		"debugging":          {append([]string{"-debug"}, startArgs...), in.params()},
		"debugging level":    {startArgs, in.params(fieldLogLevel<<3, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01)},
		"a shim's cgroup":    {startArgs, []byte("\x0a\x1acontainerd.runc.v1.Options\x12\x04\x1a\x02/x")},
		"the same, of a pod": {startArgs, []byte("runtimeoptions.v1.Options ShimCgroup = '/x'")},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, err := in.run(c.input, c.args...)
			var got told
			if err != nil || json.Unmarshal([]byte(out), &got) != nil {
				t.Fatalf("%v: %q %q", err, out, errs)
			}
			if fmt.Sprint(got.Args[1:]) != fmt.Sprint(c.args) || !bytes.Equal(got.Input, c.input) {
				t.Errorf("passed on %q with %q", got.Args, got.Input)
			}
		})
	}
}

func TestAStartMakesASocketAndAProcessThatServes(t *testing.T) {
	in := install(t, "serve")
	path, serves, pid := in.start()
	if pid == 0 || filepath.Dir(path) != in.sockets {
		t.Fatalf("process %d, socket %s", pid, path)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v: %v", info, err)
	}
	if got := strings.Join(serves.Args[1:], " "); got != "-namespace ns -id c1 -address /run/c.sock" {
		t.Errorf("arguments %q", got)
	}
	if serves.Dir != in.bundle || !serves.Group {
		t.Errorf("%+v", serves)
	}
	env := strings.Join(serves.Env, "\n") + "\n"
	if !strings.Contains(env, "GOMAXPROCS=") || !strings.Contains(env, "OTEL_SERVICE_NAME=containerd-shim-c1\n") {
		t.Errorf("environment %s", env)
	}
	if link, err := os.Readlink(filepath.Join(in.bundle, socketDirLink)); err != nil || link != in.sockets {
		t.Errorf("link to %q: %v", link, err)
	}
	// A second start of the same group is served by the same process.
	if again, _, same := in.start(); again != path || same != pid {
		t.Errorf("%s of %d", again, same)
	}
	// What a killed shim leaves is replaced.
	kill(t, pid)
	if again, _, other := in.start(); again != path || other == pid || other == 0 {
		t.Errorf("%s of %d after %d", again, other, pid)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not die")
		}
	}
}

func TestContainersOfOneGroupHaveOneSocket(t *testing.T) {
	addresses := map[string]string{}
	in := install(t, "serve")
	for _, c := range []struct{ name, config string }{
		{"alone", `{}`},
		{"pod", `{"annotations": {"io.kubernetes.cri.sandbox-id": "p"}}`},
		{"group", `{"annotations": {"io.containerd.runc.v2.group": "p", "io.kubernetes.cri.sandbox-id": "q"}}`},
		{"other", `{"annotations": {"io.kubernetes.cri.sandbox-id": "q"}}`},
	} {
		in.config(c.config)
		address, _, pid := in.start()
		addresses[c.name] = address
		kill(t, pid)
	}
	if addresses["pod"] != addresses["group"] || addresses["pod"] == addresses["other"] || addresses["pod"] == addresses["alone"] {
		t.Errorf("%v", addresses)
	}
}

func TestAStartThatFailsLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		serving string
		config  string
		says    string
	}{
		"no serving program":     {"", `{}`, "cannot run"},
		"no specification":       {"serve", "", "specification"},
		"a broken specification": {"serve", `{"annotations": 1}`, "specification"},
	} {
		t.Run(name, func(t *testing.T) {
			in := install(t, c.serving)
			in.config(c.config)
			out, errs, err := in.run(in.params(), startArgs...)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
				t.Errorf("%v: %q %q", err, out, errs)
			}
			if left, _ := os.ReadDir(in.sockets); len(left) > 0 || in.server() != 0 {
				t.Errorf("left %v and process %d", left, in.server())
			}
		})
	}
}

func TestAnOldDaemonsStartIsServedInItsDirectory(t *testing.T) {
	// Its input is runtime options, and it names no directory: the default would
	// be the machine's own.
	for _, input := range [][]byte{nil, []byte("\x0a\x1acontainerd.runc.v1.Options\x12\x04\x32\x02/x")} {
		if b := parseBootstrap(input, Call{ID: "c1", Namespace: "ns"}); b.socketDir != "" || b.unusual {
			t.Errorf("%q: %+v", input, b)
		}
	}
}

func TestCommandLineIsReadAsContainerdWritesIt(t *testing.T) {
	c := ParseCall([]string{"-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd", "-id", "a1", "-debug", "start"})
	want := Call{Action: "start", ID: "a1", Namespace: "k8s.io", Address: "/run/c.sock", Debug: true}
	if c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
	if c := ParseCall([]string{"--id=x", "-bundle", "start", "delete"}); c.Action != "delete" || c.ID != "x" {
		t.Errorf("got %+v", c)
	}
	if c := ParseCall([]string{"-info"}); c.Action != "" {
		t.Errorf("got %+v", c)
	}
}
