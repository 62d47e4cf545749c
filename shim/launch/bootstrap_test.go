package launch

import (
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

func params(t testing.TB, change func(*bootapi.BootstrapParams), extension any) []byte {
	t.Helper()
	p := &bootapi.BootstrapParams{InstanceID: "c1", Namespace: "ns", ContainerdVersion: "2.4.2", ContainerdGrpcAddress: "/run/c.sock", SocketDir: proto.String("/s")}
	if change != nil {
		change(p)
	}
	if extension != nil {
		value, err := typeurl.MarshalAnyToProto(extension)
		if err != nil {
			t.Fatal(err)
		}
		p.Extensions = append(p.Extensions, &bootapi.Extension{Value: value})
	}
	data, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var vectors = map[string]struct {
	change    func(*bootapi.BootstrapParams)
	extension any
	unusual   bool
}{
	"plain":                {},
	"runc's options":       {extension: &options.Options{BinaryName: "/usr/bin/runc", Root: "/r", SystemdCgroup: true, IoUid: 3, NoPivotRoot: true}},
	"CRI's options":        {extension: &runtimeoptions.Options{TypeUrl: "t", ConfigBody: []byte("SystemdCgroup = true\n")}},
	"warnings only":        {change: func(p *bootapi.BootstrapParams) { p.LogLevel = bootapi.LogLevel_LOG_LEVEL_WARN }},
	"debugging":            {change: func(p *bootapi.BootstrapParams) { p.LogLevel = bootapi.LogLevel_LOG_LEVEL_DEBUG }, unusual: true},
	"tracing":              {change: func(p *bootapi.BootstrapParams) { p.LogLevel = bootapi.LogLevel_LOG_LEVEL_TRACE }, unusual: true},
	"runc's shim's cgroup": {extension: &options.Options{BinaryName: "/usr/bin/runc", ShimCgroup: "/x"}, unusual: true},
	"CRI's shim's cgroup":  {extension: &runtimeoptions.Options{ConfigBody: []byte("ShimCgroup = '/x'\n")}, unusual: true},
}

func TestBootstrapParametersAreReadAsTheyAreWritten(t *testing.T) {
	for name, c := range vectors {
		got := parseBootstrap(params(t, c.change, c.extension), Call{ID: "c1", Namespace: "ns"})
		if got.unusual != c.unusual || got.socketDir != "/s" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzWhatTheLibraryReadsIsReadAlike(f *testing.F) {
	for _, c := range vectors {
		f.Add(params(f, c.change, c.extension))
	}
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0x02, 'c', '1', 0x12, 0x02, 'n', 's', 0x4a, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := parseBootstrap(data, Call{ID: "c1", Namespace: "ns"})
		var p bootapi.BootstrapParams
		if proto.Unmarshal(data, &p) != nil || p.InstanceID != "c1" || p.Namespace != "ns" {
			return
		}
		if b.socketDir != p.GetSocketDir() {
			t.Errorf("directory %q, the library says %q", b.socketDir, p.GetSocketDir())
		}
		if p.LogLevel < 0 && !b.unusual {
			t.Errorf("level %d is not seen", p.LogLevel)
		}
		for _, e := range p.Extensions {
			var o options.Options
			if typeurl.Is(e.GetValue(), &o) && typeurl.UnmarshalTo(e.GetValue(), &o) == nil && o.ShimCgroup != "" && !b.unusual {
				t.Errorf("the shim's cgroup %q is not seen", o.ShimCgroup)
			}
		}
	})
}
