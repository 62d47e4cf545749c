package shim

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func anyOf(t *testing.T, v any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRuncOptionsTranslatesWhatContainerdSends(t *testing.T) {
	file := filepath.Join(t.TempDir(), "options.toml")
	if err := os.WriteFile(file, []byte("Root = '/from-file'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		in   *anypb.Any
		want *options.Options
	}{
		{"nothing", nil, &options.Options{}},
		{"ctr's options", anyOf(t, &options.Options{BinaryName: "crun", SystemdCgroup: true}), &options.Options{BinaryName: "crun", SystemdCgroup: true}},
		{"CRI without a table", anyOf(t, &runtimeoptions.Options{}), &options.Options{}},
		{
			"CRI with a table",
			anyOf(t, &runtimeoptions.Options{TypeUrl: "x", ConfigBody: []byte("BinaryName='runc'\nSystemdCgroup=true\nIoUid=7\n")}),
			&options.Options{BinaryName: "runc", SystemdCgroup: true, IoUid: 7},
		},
		{"CRI with a file", anyOf(t, &runtimeoptions.Options{ConfigPath: file}), &options.Options{Root: "/from-file"}},
	} {
		got, err := runcOptions(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if !proto.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestRuncOptionsRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for name, in := range map[string]*anypb.Any{
		"unknown key":   anyOf(t, &runtimeoptions.Options{ConfigBody: []byte("Binaryname_typo = 'x'\n")}),
		"wrong type":    anyOf(t, &runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup = 'yes'\n")}),
		"no TOML":       anyOf(t, &runtimeoptions.Options{ConfigBody: []byte("{]")}),
		"missing file":  anyOf(t, &runtimeoptions.Options{ConfigPath: filepath.Join(t.TempDir(), "absent")}),
		"unknown type":  {TypeUrl: "example.com/unknown", Value: []byte{1}},
		"another type":  anyOf(t, &options.CheckpointOptions{Exit: true}),
		"broken encode": {TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff, 0xff}},
	} {
		if got, err := runcOptions(in); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%s: got %v, %v; want a usage error", name, got, err)
		}
	}
}

func TestSystemdCgroupPathIsRecognised(t *testing.T) {
	for path, want := range map[string]bool{
		"system.slice:nerdctl:abc":          true,
		"kubepods-pod1.slice:cri:abc":       true,
		"/default/abc":                      false,
		"/a:b:c":                            false,
		"":                                  false,
		"system.slice:only-two":             false,
		"/kubepods/besteffort/pod1.slice/x": false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"linux":{"cgroupsPath":"`+path+`"}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := systemdPath(dir); got != want {
			t.Errorf("%q: got %v", path, got)
		}
	}
}

// pipeOf is a standard input with the given content.
func pipeOf(t *testing.T, data []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "stdin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestBootstrapParametersOfANewDaemonArePassedOnUntouched(t *testing.T) {
	old := os.Stdin
	t.Cleanup(func() { os.Stdin = old })
	sent, err := proto.Marshal(&bootapi.BootstrapParams{InstanceID: "a1", Namespace: "ns", SocketDir: proto.String("/x")})
	if err != nil {
		t.Fatal(err)
	}
	m := shimManager{Shim: manager.NewShimManager(Runtime)}
	var out bytes.Buffer
	err = m.answerOldDaemon(t.Context(), []string{"-namespace", "ns", "-id", "a1", "start"}, pipeOf(t, sent), &out)
	if !errors.Is(err, errNotLegacy) {
		t.Fatalf("got %v", err)
	}
	got, err := io.ReadAll(os.Stdin)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("passed on %x, %v; want %x", got, err, sent)
	}
	if out.Len() != 0 {
		t.Errorf("answered %q", out.String())
	}
}

func TestOversizedBootstrapParametersAreRefused(t *testing.T) {
	m := shimManager{Shim: manager.NewShimManager(Runtime)}
	err := m.answerOldDaemon(t.Context(), []string{"-namespace", "ns", "-id", "a1", "start"}, pipeOf(t, make([]byte, limits.ShimInputBytes+1)), io.Discard)
	if err == nil || errors.Is(err, errNotLegacy) || !strings.Contains(err.Error(), "over") {
		t.Errorf("got %v", err)
	}
}

func TestInfoReportsTheRuntimeReallyChosen(t *testing.T) {
	dir := t.TempDir()
	// A runtime that answers "features" as runc does, under a name of its own.
	script := "#!/bin/sh\n[ \"$1\" = features ] && echo '{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.3.0\"}'\n"
	binary := filepath.Join(dir, "my-runc")
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("[runtime]\nbinary = '"+binary+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MENTAT_CONFIG", config)
	m := shimManager{Shim: manager.NewShimManager(Runtime)}
	info, err := m.Info(t.Context(), strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != Runtime || info.Annotations["dev.mentatlab.runtime.binary"] != binary {
		t.Errorf("got %v", info)
	}
	if info.Features == nil {
		t.Error("the runtime's features are missing: a RuntimeClass would lose user namespaces")
	}
	value, err := proto.Marshal(anyOf(t, &runtimeoptions.Options{ConfigBody: []byte("BinaryName = 'no-such-runtime'\n")}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Info(t.Context(), bytes.NewReader(value)); err == nil || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Errorf("options were not honoured: %v", err)
	}
}

func TestExitErrorNamesTheSignal(t *testing.T) {
	if got := exitError(137).Error(); got != "killed by SIGKILL" {
		t.Errorf("got %q", got)
	}
	if got := exitError(4); got.Error() != "exit status 4" || got.ExitCode() != 4 {
		t.Errorf("got %q", got)
	}
	var _ interface{ ExitCode() int } = (*exec.ExitError)(nil)
}
