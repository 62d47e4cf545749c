package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

// The command lines that nerdctl and containerd's runc shim send.
func TestCommandLinesOfContainerManagersAreRead(t *testing.T) {
	for _, tc := range []struct {
		args string
		want commandLine
	}{
		{
			"--root /run/containerd/runc/default --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid abc",
			commandLine{log: "/b/log.json", logFormat: "json", command: "create", bundle: "/b", id: "abc"},
		},
		{
			"--root /r --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /p --console-socket /s --no-pivot --no-new-keyring abc",
			commandLine{log: "/b/log.json", logFormat: "json", command: "create", bundle: "/b", id: "abc", terminal: true},
		},
		{"run -b /b -d --keep abc", commandLine{command: "run", bundle: "/b", id: "abc"}},
		{"--root=/r exec --process /p.json --detach --pid-file /x abc", commandLine{command: "exec", id: "abc"}},
		{"exec -e A=B -u 1:1 abc ls -la", commandLine{command: "exec", id: "abc"}},
		{"exec -- abc ls", commandLine{command: "exec", id: "abc"}},
		{"--root /r state abc", commandLine{command: "state"}},
		{"--root /r delete --force abc", commandLine{command: "delete"}},
		{"features", commandLine{command: "features"}},
		{"--version", commandLine{}},
		{"", commandLine{}},
	} {
		args := strings.Fields(tc.args)
		got, err := parse(args)
		if err != nil {
			t.Errorf("%s: %v", tc.args, err)
			continue
		}
		if tc.want.bundle == "" {
			got.bundle = ""
		}
		if i := slices.Index(args, got.command); i >= 0 && !slices.Equal(got.global, args[:i]) {
			t.Errorf("%s: global flags %q", tc.args, got.global)
		}
		// Only what brings a bundle is written anew; asking runc for the state with
		// the same global flags must not change what follows them.
		_ = append(got.global, "state", "id")
		switch got.command {
		case "create", "run":
		default:
			if !slices.Equal(got.args, strings.Fields(tc.args)) {
				t.Errorf("%s: runc gets %q", tc.args, got.args)
			}
		}
		if got.log != tc.want.log || got.logFormat != tc.want.logFormat || got.command != tc.want.command ||
			got.bundle != tc.want.bundle || got.id != tc.want.id || got.terminal != tc.want.terminal {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.args, got, tc.want)
		}
	}
}

// runc takes flags behind the id, too: what it gets must mean the bundle that
// was judged, however it was said.
func TestRuncGetsTheBundleThatWasJudged(t *testing.T) {
	for args, want := range map[string]string{
		"create --bundle /b abc":                                "create --bundle=/b -- abc",
		"create abc --bundle /b":                                "create --bundle=/b -- abc",
		"create -b /a abc --bundle=/b --no-pivot":               "create --b=/a --bundle=/b --no-pivot -- abc",
		"--root /r run -d abc --pid-file /p -b /b":              "--root /r run -d --pid-file=/p --b=/b -- abc",
		"create --bundle /b -- abc":                             "create --bundle=/b -- abc",
		"--debug -- create --bundle /b -- -abc":                 "--debug create --bundle=/b -- -abc",
		"restore abc --image-path /i --bundle /b --help":        "restore --image-path=/i --bundle=/b --help -- abc",
		"create --help=true --help=false --bundle=/b abc":       "create --help=true --help=false --bundle=/b -- abc",
		"create --console-socket /s --preserve-fds 3 -b /b abc": "create --console-socket=/s --preserve-fds=3 --b=/b -- abc",
	} {
		got, err := parse(strings.Fields(args))
		if err != nil || strings.Join(got.args, " ") != want || got.bundle != "/b" || strings.Trim(got.id, "-") != "abc" {
			t.Errorf("%s:\n got %q, bundle %q, id %q, %v\nwant %q", args, got.args, got.bundle, got.id, err, want)
		}
	}
}

func TestHelpIsRuncs(t *testing.T) {
	for _, args := range []string{"create --help", "run -h", "exec --help", "--root /r restore --help", "help create", "--help"} {
		got, err := parse(strings.Fields(args))
		if err != nil || strings.Join(got.args, " ") != args || got.id != "" {
			t.Errorf("%s: got %+v, %v", args, got, err)
		}
	}
}

func TestIncompleteCommandLinesAreRefused(t *testing.T) {
	for _, args := range []string{
		"create --bundle /b", "--log", "run", "exec --cwd", "create",
		"create --bundle /b one two", "create --bundle /b one --bundle /c two", "run --bundle",
		// The command of this one is "create" if the flag takes a value.
		"--cgroup-manager systemd create --bundle /b one", "--new-flag state create --bundle /b one",
	} {
		if _, err := parse(strings.Fields(args)); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: got %v", args, err)
		}
	}
}

func TestWithoutContainerdNothingIsCreated(t *testing.T) {
	dir := t.TempDir()
	runc := filepath.Join(dir, "runc")
	marker := filepath.Join(dir, "ran")
	if err := os.WriteFile(runc, []byte("#!/bin/sh\ntouch "+marker+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("[verify]\nmemory = 'verdicts'\n[runtime]\nbinary = '"+runc+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MENTAT_CONFIG", config)
	t.Setenv("GRPC_ADDRESS", "")
	t.Setenv("NAMESPACE", "")
	log := filepath.Join(dir, "log.json")
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--log", log, "--log-format", "json", "create", "--bundle", dir, "abc"}, os.Stdin, &stderr); code == 0 {
		t.Error("succeeded")
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("runc ran")
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var line struct{ Level, Msg string }
	if err := json.Unmarshal(data, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "GRPC_ADDRESS") {
		t.Errorf("containerd would read %q (%v)", data, err)
	}
}

func TestRuntimeThatIsMentatItselfIsRefused(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := findRunc(self); fault.ReasonOf(err) != fault.Usage {
		t.Errorf("got %v", err)
	}
	if _, err := findRunc(filepath.Join(t.TempDir(), "absent")); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestNullDeviceIsNoStandardInput(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if !isNull(null) || isNull(r) {
		t.Errorf("null %v, pipe %v", isNull(null), isNull(r))
	}
}
