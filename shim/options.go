package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// tomlOptions are the keys that a runtime's options table may have in
// containerd's configuration: runc's own, under runc's names.
type tomlOptions struct {
	BinaryName    string `toml:"BinaryName"`
	Root          string `toml:"Root"`
	SystemdCgroup bool   `toml:"SystemdCgroup"`
	NoPivotRoot   bool   `toml:"NoPivotRoot"`
	NoNewKeyring  bool   `toml:"NoNewKeyring"`
	ShimCgroup    string `toml:"ShimCgroup"`
	IoUID         uint32 `toml:"IoUid"`
	IoGID         uint32 `toml:"IoGid"`
	CriuImagePath string `toml:"CriuImagePath"`
	CriuWorkPath  string `toml:"CriuWorkPath"`
}

// runcOptions translates what containerd sends as runtime options. ctr and
// nerdctl send none or runc's; CRI sends runtimeoptions.v1 with the options
// table of its configuration as TOML to every runtime that is not runc's.
func runcOptions(value *anypb.Any) (*options.Options, error) {
	if len(value.GetValue()) == 0 {
		return &options.Options{}, nil
	}
	v, err := typeurl.UnmarshalAny(value)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, "runtime options", "cannot decode %q", value.GetTypeUrl())
	}
	switch o := v.(type) {
	case *options.Options:
		return o, nil
	case *runtimeoptions.Options:
		return fromTOML(o)
	}
	return nil, fault.New(fault.Usage, "runtime options", "options of type %q are not understood", value.GetTypeUrl()).
		WithHint("allowed are runc's options and runtimeoptions.v1 with TOML")
}

func fromTOML(o *runtimeoptions.Options) (*options.Options, error) {
	body := o.GetConfigBody()
	on := "runtime options"
	if len(body) == 0 && o.GetConfigPath() != "" {
		on = o.GetConfigPath()
		data, err := limits.ReadFile(on, limits.ShimInputBytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.Usage, on, "cannot read the runtime options")
		}
		body = data
	}
	var t tomlOptions
	dec := toml.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fault.New(fault.Usage, on, "unknown key: %s", strings.TrimSpace(strict.String()))
		}
		return nil, fault.Wrap(err, fault.Usage, on, "malformed")
	}
	return &options.Options{
		BinaryName: t.BinaryName, Root: t.Root, SystemdCgroup: t.SystemdCgroup,
		NoPivotRoot: t.NoPivotRoot, NoNewKeyring: t.NoNewKeyring, ShimCgroup: t.ShimCgroup,
		IoUid: t.IoUID, IoGid: t.IoGID, CriuImagePath: t.CriuImagePath, CriuWorkPath: t.CriuWorkPath,
	}, nil
}

// systemdPath tells whether a bundle's cgroup path has the form that only
// runc's systemd driver understands (slice:prefix:name). nerdctl sends it
// without saying so in the options.
func systemdPath(bundle string) bool {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return false
	}
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return false
	}
	parts := strings.Split(spec.Linux.CgroupsPath, ":")
	return len(parts) == 3 && strings.HasSuffix(parts[0], ".slice")
}
