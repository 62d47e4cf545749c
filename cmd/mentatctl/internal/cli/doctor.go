package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/node/doctor"
)

type doctorResult struct {
	display.Header
	// Sound is whether the node passes; with --strict also warnings count.
	Sound    bool `json:"sound"`
	Failures int  `json:"failures"`
	Warnings int  `json:"warnings"`
	doctor.Report
}

func (r *doctorResult) Text(w *display.Writer) {
	rows := make([][]string, 0, len(r.Findings))
	for _, f := range r.Findings {
		mark := string(f.Severity)
		if f.Severity == doctor.Failure {
			mark = "FAILURE"
		}
		rows = append(rows, []string{mark, f.Check, f.On, f.What})
	}
	w.Table([]string{"", "CHECK", "ON", "FOUND"}, rows)
	for _, f := range r.Findings {
		if f.Why == "" {
			continue // as it should be
		}
		w.Line("")
		w.Line("%s: %s: %s", f.Severity, f.Check, f.On)
		w.Field("what", "%s", f.What)
		w.Field("why", "%s", f.Why)
		w.Field("to do", "%s", f.Do)
	}
	w.Line("")
	w.Line("%d failures, %d warnings, %d checks", r.Failures, r.Warnings, len(r.Findings))
}

func (a *app) doctorCmd() *cobra.Command {
	var o doctor.Options
	var strict bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out whether this node really verifies what it pulls and runs",
		Long: `Find out whether this node really verifies what it pulls and runs. The doctor
asks the kernel which containerd listens at the socket, has that very program say
what its configuration means, and looks at everything that decides: the directory of
verifiers, CRI's settings that leave verifiers out without a word, the programs and
who can replace them, caches, clock, policy, revocation lists and certificates. Lists
that are due it fetches first, as every gate does. It judges the agents that are on the
node already, and names those that would not start any more or whose signers' or
countersigners' certificates end soon.

Then it offers the node's own gates two agents that they must refuse, an unsigned
one and one whose signature does not fit: the verifier by itself, a pull through
containerd, one by CRI, and a start under the runtime. They cannot do anything even if they ran,
and leave nothing but lines in the audit log. --no-canary leaves that out.

It needs root. A failure ends with 23, with --strict also a warning.`,
		Example: `  mentatctl doctor
  mentatctl doctor --strict --output json
  mentatctl doctor --address /run/k3s/containerd/containerd.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Clock, o.Lint = a.now, lintPolicy
			return a.doctor(cmd.Context(), o, strict)
		},
	}
	cmd.Flags().StringVar(&o.Address, "address", "/run/containerd/containerd.sock", "the `SOCKET` of the node's containerd")
	cmd.Flags().StringVar(&o.Config, "config", "", "the node's configuration `FILE` (default: what $"+nodeconfig.Env+" of containerd's environment names, or "+nodeconfig.DefaultPath+")")
	cmd.Flags().StringVar(&o.Containerd, "containerd", "", "the `PROGRAM` to look at where no containerd runs (default: the one on PATH)")
	cmd.Flags().StringVar(&o.ContainerdConfig, "containerd-config", "", "the configuration `FILE` of a containerd that does not run (default: /etc/containerd/config.toml)")
	cmd.Flags().BoolVar(&o.NoCanary, "no-canary", false, "do not offer the gates what they must refuse")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail for warnings, too")
	a.outputs(cmd)
	return cmd
}

func (a *app) doctor(ctx context.Context, o doctor.Options, strict bool) error {
	report, err := doctor.Run(ctx, o)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = report.Err(strict)
	r := &doctorResult{
		Header: display.Head("doctor"), Report: *report, Sound: err == nil,
		Failures: report.Count(doctor.Failure), Warnings: report.Count(doctor.Warning),
	}
	if printErr := a.printer().Result(r); printErr != nil {
		return printErr
	}
	if err != nil {
		return reported{err}
	}
	return nil
}

// lintPolicy is what `policy check` says to a file.
func lintPolicy(path string) ([]string, error) {
	checked, err := checkPolicy(path, false)
	var warnings []string
	for _, f := range checked.Findings {
		warnings = append(warnings, findingText(path, f))
	}
	return warnings, err
}
