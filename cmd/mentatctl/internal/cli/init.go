package cli

import (
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/scaffold"
	"github.com/mentatlab/mentat/internal/fault"
)

type initResult struct {
	display.Header
	Directory string   `json:"directory"`
	ID        string   `json:"id"`
	Files     []string `json:"files"`
	SDK       string   `json:"sdk"`
}

func (r *initResult) Text(w *display.Writer) {
	w.Line("made %s in %s", r.ID, r.Directory)
	w.List("files", r.Files)
	w.Field("sdk", "%s", r.SDK)
	w.Line("next: mentatctl build %s", r.Directory)
}

func (a *app) initCmd() *cobra.Command {
	var o scaffold.Options
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a new agent, ready to build",
		Long: `Make the directory of a new agent in Go: manifest, program, sample input, and
the SDK, which comes inside mentatctl: nothing is fetched.

The directory must not exist, or be empty.`,
		Example: `  mentatctl init hello
  mentatctl init --id com.example.hello --image registry.example.com/agents/hello:0.1.0 hello`,
		Args: wantArgs(1, 1, "one directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			o.Dir = args[0]
			if o.ID == "" {
				abs, err := filepath.Abs(o.Dir)
				if err != nil {
					return fault.Wrap(err, fault.Internal, o.Dir, "cannot resolve the path")
				}
				if o.ID = scaffold.IDFor(abs); o.ID == "" {
					return fault.New(fault.Usage, o.Dir, "no id can be made of the directory's name").WithHint("give one with --id")
				}
			}
			files, err := scaffold.Make(o)
			if err != nil {
				return err
			}
			slices.Sort(files)
			return a.printer().Result(&initResult{Header: display.Head("init"), Directory: o.Dir, ID: o.ID, Files: files, SDK: filepath.Join(o.Dir, "sdk-go")})
		},
	}
	cmd.Flags().StringVar(&o.ID, "id", "", "the agent's `ID`, like com.example.hello (default: made of the directory's name)")
	cmd.Flags().StringVar(&o.Image, "image", "", "the `REFERENCE` it is to be published under")
	a.outputs(cmd)
	return cmd
}
