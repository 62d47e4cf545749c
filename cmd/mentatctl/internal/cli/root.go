package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	buildinfo "github.com/mentatlab/mentat/internal/version"
)

// app is what every command shares.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time

	format   display.Format
	progress display.ProgressMode
}

// agentExit carries an agent's own exit status out of `mentatctl run`.
type agentExit int

func (e agentExit) Error() string { return fmt.Sprintf("the agent ended with status %d", int(e)) }

// Main runs mentatctl and returns its exit code. SIGINT and SIGTERM cancel the
// context, except that `run` forwards them to the agent.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return MainAt(ctx, time.Now, args, stdin, stdout, stderr)
}

// MainAt is [Main] with a clock of its own: certificates and lists are judged,
// and made, at the time that it tells.
func MainAt(ctx context.Context, now func() time.Time, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: now, format: display.Text, progress: display.ProgressAuto}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)

	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second Ctrl-C ends what does not heed the first.
	context.AfterFunc(ctx, stop)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var status agentExit
	if errors.As(err, &status) {
		return int(status)
	}
	if ctx.Err() != nil {
		err = fault.New(fault.Canceled, "", "interrupted")
	}
	var shown reported
	if !errors.As(err, &shown) {
		if f := cmd.Flags().Lookup(outputFlag); f != nil && f.Value == &a.format && display.AsksForJSON(args) {
			a.format = display.JSON
		}
		a.fail(cmd, err)
	}
	if cmd.Name() == runName {
		return fault.ExitCLI
	}
	return fault.CLICode(err)
}

func (a *app) fail(cmd *cobra.Command, err error) {
	p := a.printer()
	if cmd.Name() == runName && a.format == display.JSON {
		p.FailJSON(a.stderr, err) // stdout belongs to the agent
		return
	}
	p.Fail(err)
}

// reported wraps an error that a result has already shown.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }

func (a *app) printer() *display.Printer {
	return &display.Printer{Out: a.stdout, Err: a.stderr, Format: a.format}
}

func (a *app) newProgress() *display.Progress { return display.NewProgress(a.stderr, a.progress) }

const (
	outputFlag = "output"
	runName    = "run"

	groupAgent = "agent"
	groupTrust = "trust"
)

func (a *app) root() *cobra.Command {
	cobra.EnableCommandSorting = false // an agent's way has an order
	root := &cobra.Command{
		Use:   "mentatctl",
		Short: "Build, sign, publish, verify and run MentatLab agents",
		Long: `mentatctl makes agents and takes them where they run.

An agent is an OCI image whose manifest carries a signed attestation; a WASM
agent's code is a blob in it. It is written in a directory with a manifest.yaml:

  mentatctl init hello                 a new agent, ready to build
  mentatctl build hello                compile it and pack the artifact
  mentatctl run hello --input in.json  try it here
  mentatctl sign hello                 attest the artifact
  mentatctl publish hello REFERENCE    push the very bytes that were signed
  mentatctl verify REFERENCE           what a node would say to it

Results go to stdout, as text or, with --output json, as one JSON document with
a versioned media type. Exit codes: mentatctl help exit-codes.`,
		Version:           buildinfo.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		// How many letters a command may be off to be suggested.
		SuggestionsMinimumDistance: 2,
		Args:                       subcommandWanted,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("mentatctl {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(&cobra.Group{ID: groupAgent, Title: "An agent's way:"}, &cobra.Group{ID: groupTrust, Title: "Trust and access:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupAgent, a.initCmd(), a.buildCmd(), a.runCmd(), a.signCmd(), a.countersignCmd(), a.publishCmd(), a.pullCmd(), a.copyCmd(), a.inspectCmd())
	add(groupTrust, a.verifyCmd(), a.reviewCmd(), a.policyCmd(), a.trustCmd(), a.auditCmd(), a.nodeCmd(), a.doctorCmd(), a.pkiCmd(), a.loginCmd(), a.logoutCmd())
	root.AddCommand(a.versionCmd(), exitCodesTopic())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	quietCompletion(root)
	return root
}

// quietCompletion makes the generated completion command answer wrong
// arguments like every other command.
func quietCompletion(root *cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Args = subcommandWanted
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range c.Commands() {
				shell.Args = noArgs
			}
		}
	}
}

// outputs adds --output to a command that prints a result.
func (a *app) outputs(cmd *cobra.Command) {
	cmd.Flags().VarP(&a.format, outputFlag, "o", "print the result as text or json")
	fixedCompletion(cmd, outputFlag, "text", "json")
}

// progresses adds --progress to a command that takes long.
func (a *app) progresses(cmd *cobra.Command) {
	cmd.Flags().Var(&a.progress, "progress", "show progress on stderr: on a terminal (auto), as lines (plain), or not (none)")
	fixedCompletion(cmd, "progress", "auto", "plain", "none")
}

func fixedCompletion(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
}

func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	msg := err.Error()
	var invalid *pflag.InvalidValueError
	var fe *fault.Error
	if errors.As(err, &invalid) && errors.As(invalid.Unwrap(), &fe) && fe.Reason == fault.Usage {
		return fault.New(fault.Usage, "--"+invalid.GetFlag().Name, "%s", fe.Msg)
	}
	return fault.New(fault.Usage, "", "%s", msg).WithHint("see %s --help", cmd.CommandPath())
}

// subcommandWanted is the argument check of commands that only group others.
func subcommandWanted(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fault.New(fault.Usage, "", "%s has no command %q", cmd.CommandPath(), args[0])
	cmd.SuggestionsMinimumDistance = cmd.Root().SuggestionsMinimumDistance
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return err.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return err.WithHint("see %s --help", cmd.CommandPath())
}

func noArgs(cmd *cobra.Command, args []string) error { return argCount(cmd, args, 0, 0, "") }

// argCount refuses too few and too many arguments; what says what they are.
// A max below zero is no bound.
func argCount(cmd *cobra.Command, args []string, least, most int, what string) error {
	switch {
	case len(args) < least:
		return fault.New(fault.Usage, "", "%s needs %s", cmd.CommandPath(), what).WithHint("see %s --help", cmd.CommandPath())
	case most == 0 && len(args) > 0:
		return fault.New(fault.Usage, "", "%s takes no arguments, got %q", cmd.CommandPath(), args[0]).WithHint("see %s --help", cmd.CommandPath())
	case most >= 0 && len(args) > most:
		return fault.New(fault.Usage, "", "%s takes %s, got %d arguments", cmd.CommandPath(), what, len(args)).WithHint("see %s --help", cmd.CommandPath())
	}
	return nil
}

func wantArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return argCount(cmd, args, least, most, what) }
}

// exclusive refuses flags that contradict each other.
func exclusive(cmd *cobra.Command, flags ...string) error {
	var set []string
	for _, f := range flags {
		if cmd.Flags().Changed(f) {
			set = append(set, "--"+f)
		}
	}
	if len(set) > 1 {
		return fault.New(fault.Usage, "", "%s exclude each other", strings.Join(set, " and "))
	}
	return nil
}

// positive refuses a flag that is given and not above zero: such a value would count
// as none, and the flag be forgotten.
func positive[T ~int64](cmd *cobra.Command, flag string, value T) error {
	if cmd.Flags().Changed(flag) && value <= 0 {
		return fault.New(fault.Usage, "--"+flag, "%v is not above zero", value)
	}
	return nil
}

// changed returns the first of the flags that was given, or "".
func changed(cmd *cobra.Command, flags ...string) string {
	for _, f := range flags {
		if cmd.Flags().Changed(f) {
			return f
		}
	}
	return ""
}

// needs refuses a flag without the flags that give it a meaning.
func needs(cmd *cobra.Command, flag string, anyOf ...string) error {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	if changed(cmd, anyOf...) != "" {
		return nil
	}
	return fault.New(fault.Usage, "", "--%s needs --%s", flag, strings.Join(anyOf, " or --"))
}

func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("mentatctl ends with one of these codes. JSON errors carry the reason's name too.\n\n")
	fmt.Fprintf(&b, "  %4d  %-22s %s\n", 0, "", "done; for verify: allowed")
	for _, r := range fault.Table {
		fmt.Fprintf(&b, "  %4d  %-22s %s\n", r.CLI, r.Reason, r.Meaning)
	}
	fmt.Fprintf(&b, `
run passes the agent's own exit status on. Its own failures are %d, and the host
ends an agent with %d (trap), %d (deadline), %d (out of memory), %d (denied by
policy) or %d (host failure). A command over several agents ends with the code
of the first that failed.
`, fault.ExitCLI, fault.ExitTrap, fault.ExitDeadline, fault.ExitOutOfMemory, fault.ExitDenied, fault.ExitHostFailure)
	return &cobra.Command{Use: "exit-codes", Short: "What mentatctl's exit codes mean", Long: b.String()}
}
