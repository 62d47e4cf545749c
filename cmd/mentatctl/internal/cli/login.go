package cli

import (
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
)

type loginResult struct {
	display.Header
	Registry string `json:"registry"`
	User     string `json:"user,omitempty"`
	done     string
}

func (r *loginResult) Text(w *display.Writer) {
	if r.User != "" {
		w.Line("%s %s as %s", r.done, r.Registry, r.User)
		return
	}
	w.Line("%s %s", r.done, r.Registry)
}

func (a *app) loginCmd() *cobra.Command {
	var f remoteFlags
	var user string
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login REGISTRY",
		Short: "Keep a registry's credentials",
		Long: `Check credentials with a registry and keep them where docker keeps its own: in
the credential helper that docker's configuration names, else in the file.

A password is never an argument: it comes from stdin or from the terminal.`,
		Example: `  mentatctl login registry.example.com --username ci --password-stdin < token`,
		Args:    wantArgs(1, 1, "one registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if user == "" {
				return fault.New(fault.Usage, "", "login needs --username")
			}
			var secret string
			var err error
			if fromStdin {
				secret, err = a.readSecret("password")
			} else if !display.IsTerminal(a.stdin) {
				err = fault.New(fault.Usage, "", "there is no terminal to ask for the password").WithHint("give it on stdin with --password-stdin")
			} else {
				var entered []byte
				entered, err = a.ask(cmd.Context(), "password of "+user+" at "+args[0]+": ")
				secret = string(entered)
			}
			if err != nil {
				return err
			}
			client, err := a.client(&f, &display.Progress{})
			if err != nil {
				return err
			}
			if err := client.Login(cmd.Context(), args[0], user, secret); err != nil {
				return err
			}
			return a.printer().Result(&loginResult{Header: display.Head("login"), Registry: args[0], User: user, done: "logged in to"})
		},
	}
	cmd.Flags().StringVarP(&user, "username", "u", "", "the user's `NAME`")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from stdin")
	f.add(cmd)
	a.outputs(cmd)
	return cmd
}

func (a *app) logoutCmd() *cobra.Command {
	var f remoteFlags
	cmd := &cobra.Command{
		Use:     "logout REGISTRY",
		Short:   "Forget a registry's credentials",
		Example: "  mentatctl logout registry.example.com",
		Args:    wantArgs(1, 1, "one registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(&f, &display.Progress{})
			if err != nil {
				return err
			}
			if err := client.Logout(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.printer().Result(&loginResult{Header: display.Head("logout"), Registry: args[0], done: "logged out of"})
		},
	}
	cmd.Flags().StringVar(&f.dockerConfig, "docker-config", "", "docker's `FILE` with credentials (default: $DOCKER_CONFIG/config.json or ~/.docker/config.json)")
	a.outputs(cmd)
	return cmd
}
