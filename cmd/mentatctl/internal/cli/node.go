package cli

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/node"
)

func (a *app) nodeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run what a node runs beside its agents",
		Long: `Run the node service: it collects audit records, chains and keeps them, refreshes
revocation lists, and serves metrics. Agents start and run without it.`,
		Example: `  mentatctl node serve
  mentatctl node accept --as registry.example.com/vendor/tool:1.0 layout`,
		Args: subcommandWanted,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.nodeServeCmd(), a.nodeAcceptCmd())
	return cmd
}

func (a *app) nodeServeCmd() *cobra.Command {
	var config, listen string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the node service",
		Long: `Run the node service until SIGTERM or Ctrl-C, which leave nothing half done. One
runs on a node; a second one ends with 8. It needs root.

It serves /metrics and /healthz on a socket that root reaches, or on a loopback
address: what is listened to is service.listen of the configuration.`,
		Example: `  mentatctl node serve
  mentatctl node serve --config /etc/mentat/config.toml --listen 127.0.0.1:9464`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := nodeconfig.Load(config)
			if err != nil {
				return err
			}
			if listen != "" {
				cfg.Service.Listen = listen
			}
			return a.nodeServe(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "the node's configuration `FILE` (default: $"+nodeconfig.Env+" or "+nodeconfig.DefaultPath+")")
	cmd.Flags().StringVar(&listen, "listen", "", "serve metrics at this `ADDRESS`, unix:PATH or 127.0.0.1:PORT")
	return cmd
}

// nodeServe runs the service. Being asked to end is how it ends.
func (a *app) nodeServe(ctx context.Context, cfg *nodeconfig.Config) error {
	var handler slog.Handler = slog.NewJSONHandler(a.stderr, nil)
	if display.IsTerminal(a.stderr) {
		handler = slog.NewTextHandler(a.stderr, nil)
	}
	log := slog.New(handler)
	return node.Run(ctx, node.Options{Config: cfg, Clock: a.now, Log: log, Ready: func(address string) {
		log.Info("the node service runs", "metrics", address, "log", cfg.Audit.Log)
	}})
}
