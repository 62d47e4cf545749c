package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	buildinfo "github.com/mentatlab/mentat/internal/version"
)

type versionResult struct {
	display.Header
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (r *versionResult) Text(w *display.Writer) {
	w.Line("mentatctl %s", r.Version)
	w.Field("revision", "%s", r.Revision)
	w.Field("go", "%s", r.Go)
	w.Field("platform", "%s", r.Platform)
}

func (a *app) versionCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  mentatctl version --output json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printer().Result(version())
		},
	}
	a.outputs(cmd)
	return cmd
}

func version() *versionResult {
	r := &versionResult{Header: display.Head("version"), Version: buildinfo.Version, Revision: buildinfo.Revision, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return r
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && r.Revision == "" {
			r.Revision = s.Value
		}
	}
	return r
}
