package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf/proto"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	containerdversion "github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/internal/version"
	"github.com/mentatlab/mentat/shim/launch"
)

// Runtime is the runtime's type in containerd's configuration and flags.
const Runtime = "io.containerd.mentat.v1"

// Main runs the shim binary and returns its exit code; containerd's shim package
// ends the process itself on an error.
func Main(ctx context.Context) int {
	// What -v prints is the shim's, not that of the library that prints it.
	containerdversion.Version, containerdversion.Revision = version.Version, version.Revision
	m := shimManager{Shim: manager.NewShimManager(Runtime)}
	if err := m.answerOldDaemon(ctx, os.Args[1:], os.Stdin, os.Stdout); !errors.Is(err, errNotLegacy) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s\n", Runtime, err)
			return 1
		}
		return 0
	}
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			debug.SetGCPercent(gcPercent)
			early := ahead(ic.Context, launch.ParseCall(os.Args[1:]))
			pub, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			if path := ownSocket(); path != "" {
				sd.(shutdown.Service).RegisterCallback(func(context.Context) error { return removeSocket(path) })
			}
			s, err := newService(ic.Context, ic.Properties[plugins.PropertyGRPCAddress], pub.(shim.Publisher), sd.(shutdown.Service))
			if err != nil {
				return nil, err
			}
			s.early.Store(early)
			return s, nil
		},
	})
	shim.RunShim(ctx, m)
	return 0
}

// ownSocket is the path of the socket that this shim inherited to serve on.
// containerd's shim package works it out from the container's id when it
// cleans up, which is wrong for a shim of a group.
func ownSocket() string {
	const listener = 3
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return ""
	}
	if u, ok := addr.(*unix.SockaddrUnix); ok && filepath.IsAbs(u.Name) {
		return u.Name
	}
	return ""
}

func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// shimManager is the runc shim's manager with our name, options and version.
type shimManager struct {
	shim.Shim
}

// Info reports the OCI runtime that is really chosen: containerd asks it for
// the features of that runtime, user namespaces among them.
func (m shimManager) Info(ctx context.Context, in io.Reader) (*types.RuntimeInfo, error) {
	data, err := limits.Read(in, limits.ShimInputBytes)
	if err != nil {
		return nil, err
	}
	var value anypb.Any
	if len(data) > 0 {
		if err := proto.Unmarshal(data, &value); err != nil {
			return nil, fmt.Errorf("cannot decode the runtime options: %w", err)
		}
	}
	opts, err := runcOptions(&value)
	if err != nil {
		return nil, err
	}
	if opts.BinaryName == "" {
		config, err := nodeconfig.Load("")
		if err != nil {
			return nil, err
		}
		opts.BinaryName = config.Runtime.Binary
	}
	translated, err := typeurl.MarshalAnyToProto(opts)
	if err != nil {
		return nil, err
	}
	if data, err = proto.Marshal(translated); err != nil {
		return nil, err
	}
	info, err := m.Shim.Info(ctx, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	info.Version = &types.RuntimeVersion{Version: version.Version, Revision: version.Revision}
	info.Annotations = map[string]string{"dev.mentatlab.runtime.binary": opts.BinaryName}
	return info, nil
}

// Start starts the serving process where package launch left it to this program.
// The runc shim's manager understands runc's options only.
func (m shimManager) Start(ctx context.Context, params *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	for _, e := range params.Extensions {
		if err := translate(e); err != nil {
			return nil, err
		}
	}
	return m.Shim.Start(ctx, params)
}

// translate turns CRI's options into runc's and leaves everything else alone.
func translate(e *bootapi.Extension) error {
	if !typeurl.Is(e.GetValue(), (*runtimeoptions.Options)(nil)) {
		return nil
	}
	opts, err := runcOptions(e.GetValue())
	if err != nil {
		return err
	}
	value, err := typeurl.MarshalAnyToProto(opts)
	if err != nil {
		return err
	}
	e.Value = value
	return nil
}

// Stop cleans up after a shim that is gone. Beside what the runc shim does it
// removes the shim's socket and what it was compiling: a shim that was killed
// could not.
func (m shimManager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	address := bootstrapAddress(id)
	status, err := m.Shim.Stop(ctx, id)
	if address != "" && !shim.CanConnect(address) {
		if rmErr := shim.RemoveSocket(address); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			log.G(ctx).WithError(rmErr).Warn("cannot remove the shim's socket")
		}
	}
	config, loadErr := nodeconfig.Load("")
	if loadErr == nil {
		loadErr = bundle.Sweep(config)
	}
	if loadErr != nil {
		log.G(ctx).WithError(loadErr).Warn("cannot remove what the shim left of a compilation")
	}
	return status, err
}

// bootstrapAddress is the socket that containerd recorded for a bundle, a
// sibling of the working directory; "" if it recorded none.
func bootstrapAddress(id string) string {
	cwd, err := os.Getwd()
	if err != nil {
		return ""
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(cwd), id, "bootstrap.json"))
	if err != nil {
		return ""
	}
	var params struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal(data, &params); err != nil {
		return ""
	}
	return params.Address
}

// errNotLegacy means that containerd's shim package should handle the call.
var errNotLegacy = errors.New("not a start by an old daemon")

// answerOldDaemon serves "start" for containerd 2.0 to 2.2. Those send runtime
// options, not bootstrap parameters, on standard input and read JSON; the shim
// package of 2.3 and later refuses them.
func (m shimManager) answerOldDaemon(ctx context.Context, args []string, stdin *os.File, stdout io.Writer) error {
	call := launch.ParseCall(args)
	if call.Action != "start" {
		return errNotLegacy
	}
	input, err := limits.Read(stdin, limits.ShimInputBytes)
	if err != nil {
		return fmt.Errorf("cannot read the bootstrap parameters: %w", err)
	}
	var params bootapi.BootstrapParams
	if len(input) > 0 && proto.Unmarshal(input, &params) == nil && params.InstanceID == call.ID && params.Namespace == call.Namespace {
		return rewind(input)
	}
	var options anypb.Any
	if err := proto.Unmarshal(input, &options); err != nil {
		return fmt.Errorf("cannot decode the runtime options: %w", err)
	}
	var extensions []*bootapi.Extension
	if options.TypeUrl != "" {
		extensions = append(extensions, &bootapi.Extension{Value: &options})
	}
	level := bootapi.LogLevel_LOG_LEVEL_INFO
	if call.Debug {
		level = bootapi.LogLevel_LOG_LEVEL_DEBUG
	}
	result, err := m.Start(namespaces.WithNamespace(ctx, call.Namespace), &bootapi.BootstrapParams{
		InstanceID:             call.ID,
		Namespace:              call.Namespace,
		ContainerdGrpcAddress:  call.Address,
		ContainerdTtrpcAddress: os.Getenv("TTRPC_ADDRESS"),
		LogLevel:               level,
		Extensions:             extensions,
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(map[string]any{
		"version": result.Version, "address": result.Address, "protocol": result.Protocol,
	})
}

// rewind gives what was read back to the shim package, as standard input.
func rewind(input []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot pass the bootstrap parameters on: %w", err)
	}
	go func() {
		_, err := w.Write(input)
		if err := errors.Join(err, w.Close()); err != nil {
			log.L.WithError(err).Error("cannot pass the bootstrap parameters on")
		}
	}()
	os.Stdin = r
	return errNotLegacy
}

// logger bridges structured log lines to the shim's log FIFO.
func logger(ctx context.Context) *slog.Logger {
	return slog.New(bridge{entry: log.G(ctx)})
}

type bridge struct {
	entry *log.Entry
}

func (bridge) Enabled(context.Context, slog.Level) bool { return true }

func (b bridge) Handle(_ context.Context, r slog.Record) error {
	fields := log.Fields{}
	r.Attrs(func(a slog.Attr) bool {
		fields[a.Key] = a.Value.Any()
		return true
	})
	entry := b.entry.WithFields(fields)
	switch {
	case r.Level >= slog.LevelError:
		entry.Error(r.Message)
	case r.Level >= slog.LevelWarn:
		entry.Warn(r.Message)
	case r.Level >= slog.LevelInfo:
		entry.Info(r.Message)
	default:
		entry.Debug(r.Message)
	}
	return nil
}

func (b bridge) WithAttrs(attrs []slog.Attr) slog.Handler {
	fields := log.Fields{}
	for _, a := range attrs {
		fields[a.Key] = a.Value.Any()
	}
	return bridge{entry: b.entry.WithFields(fields)}
}

func (b bridge) WithGroup(string) slog.Handler { return b }
