package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/capability/audit/chain"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/node"
)

func (a *app) auditCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show a node's audit records and verify their log",
		Long: `Show what was decided on a node and how its agents ran, and verify that nobody
changed the log. Audit records are root's.`,
		Example: `  mentatctl audit show --since 1h --kind execution
  mentatctl audit verify`,
		Args: subcommandWanted,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.auditShowCmd(), a.auditVerifyCmd())
	return cmd
}

// auditFlags say where records are.
type auditFlags struct{ config, log, spool string }

func (f *auditFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "the node's configuration `FILE` (default: $"+nodeconfig.Env+" or "+nodeconfig.DefaultPath+")")
	cmd.Flags().StringVar(&f.log, "log", "", "the `DIR` of the log (default: the configuration's audit.log)")
}

func (f *auditFlags) load() (*nodeconfig.Config, error) {
	cfg, err := nodeconfig.Load(f.config)
	if err != nil {
		return nil, err
	}
	if f.log != "" {
		cfg.Audit.Log = f.log
	}
	if f.spool != "" {
		cfg.Audit.Spool = f.spool
	}
	return cfg, nil
}

type auditVerifyResult struct {
	display.Header
	Log string `json:"log"`
	*chain.Report
}

func (r *auditVerifyResult) Text(w *display.Writer) {
	if len(r.Problems) == 0 {
		w.Line("intact: %s", r.Log)
	} else {
		w.Line("changed: %s", r.Log)
	}
	w.Field("entries", "%d to %d, %s", r.First, r.Last, display.Count(r.Segments, "segment", "segments"))
	w.Field("hash", "%s", r.Hash)
	if r.Anchors > 0 {
		w.Field("anchors", "%d", r.Anchors)
	}
	if r.Unfinished {
		w.Field("note", "the last line is being written, or its writer was killed")
	}
	for i, p := range r.Problems {
		where := ""
		if p.Segment != "" {
			where = p.Segment
			if p.Line > 0 {
				where += ":" + strconv.Itoa(p.Line)
			}
			where += ": "
		}
		w.Field(first(i, "problems"), "%s%s (%s)", where, p.Message, p.Kind)
	}
}

func (a *app) auditVerifyCmd() *cobra.Command {
	var f auditFlags
	var anchor string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify that nobody changed the audit log",
		Long: `Go through a node's audit log and report every entry that was changed, removed,
put elsewhere or cut off. A log that was changed ends with 12.

Who can write the whole log anew, its head included, is found by an anchor file
that is kept elsewhere (audit.anchor): the log is held against it, too.`,
		Example: `  mentatctl audit verify
  mentatctl audit verify --log ./log --anchor /mnt/elsewhere/anchors --output json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			if anchor == "" {
				anchor = cfg.Audit.Anchor
			}
			report, err := chain.Verify(cfg.Audit.Log, anchor)
			if err != nil {
				return err
			}
			if err := a.printer().Result(&auditVerifyResult{display.Head("audit-verify"), cfg.Audit.Log, report}); err != nil {
				return err
			}
			if len(report.Problems) == 0 {
				return nil
			}
			err = fault.New(fault.DigestMismatch, cfg.Audit.Log, "the audit log is not as it was written: %s", report.Problems[0].Message)
			if a.format == display.JSON {
				return reported{err}
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&anchor, "anchor", "", "hold the log against the anchors in this `FILE` (default: the configuration's audit.anchor)")
	a.outputs(cmd)
	return cmd
}

// eventNames are what --kind takes, and the events that they stand for.
var eventNames = map[string][]string{
	"execution": {audit.EventExecution},
	"decision":  {audit.EventDecision},
	"admission": {audit.EventAdmission},
	"loss":      {audit.EventLoss},
	"service":   {audit.EventService, audit.EventRemoved, audit.EventBroken, audit.EventAnomaly},
}

func eventKinds() []string {
	var names []string
	for name := range eventNames {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

type showOptions struct {
	auditFlags
	filter    node.Filter
	since     string
	kinds     []string
	follow    bool
	summarize bool
}

type auditShowResult struct {
	display.Header
	Records []node.Item `json:"records"`
}

func (r *auditShowResult) Text(w *display.Writer) {
	if len(r.Records) == 0 {
		w.Line("no records")
		return
	}
	rows := make([][]string, 0, len(r.Records))
	for i := range r.Records {
		rows = append(rows, itemRow(&r.Records[i]))
	}
	w.Table([]string{"TIME", "SEQ", "EVENT", "AGENT", "CONTAINER", "WHAT", "RESULT", "BY"}, rows)
}

func itemRow(i *node.Item) []string {
	seq := "waits"
	if i.Seq > 0 {
		seq = strconv.FormatInt(i.Seq, 10)
	}
	what := i.Subject
	if i.Reason != "" && i.Result != audit.Allowed {
		what = strings.TrimSpace(what + " " + i.Reason)
	}
	if i.Count > 1 {
		what += fmt.Sprintf(" (%d)", i.Count)
	}
	return []string{i.Time.Format("2006-01-02 15:04:05"), seq, i.Event, orDash(i.Agent), orDash(i.Container), orDash(what), orDash(i.Result), orDash(i.Policy)}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type auditSummaryResult struct {
	display.Header
	*node.Summary
}

func (r *auditSummaryResult) Text(w *display.Writer) {
	w.Line("executions  %s", countsText(r.Executions))
	w.Line("admissions  %s", countsText(r.Admissions))
	if r.Lost > 0 {
		w.Line("lost        %s", display.Count(int(r.Lost), "record", "records"))
	}
	if r.Anomalies > 0 {
		w.Line("anomalies   %d", r.Anomalies)
	}
	if len(r.Decisions) == 0 {
		return
	}
	var rows [][]string
	for _, t := range r.Decisions {
		rows = append(rows, []string{orDash(t.Agent), orDash(t.Policy), t.Result, strconv.FormatInt(t.Count, 10)})
	}
	w.Table([]string{"AGENT", "RULE", "RESULT", "DECISIONS"}, rows)
}

func countsText(counts map[string]int64) string {
	var parts []string
	for result, n := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, result))
	}
	if len(parts) == 0 {
		return "none"
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func (a *app) auditShowCmd() *cobra.Command {
	var o showOptions
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show audit records",
		Long: `Show a node's audit records: those in the log, with their number, and those that
wait for the node service to take them. With --summary count decisions by agent,
rule and result; those of rules in dry run are called dry_run.

With --follow go on as records come, as lines of JSON with --output json.`,
		Example: `  mentatctl audit show --agent 'example.*' --kind decision --result denied
  mentatctl audit show --container hello-1 --output json
  mentatctl audit show --since 24h --summary
  mentatctl audit show --follow`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := exclusive(cmd, "follow", "summary"); err != nil {
				return err
			}
			return a.auditShow(cmd.Context(), &o)
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&o.spool, "spool", "", "the `DIR` where records wait (default: the configuration's audit.spool)")
	cmd.Flags().StringVar(&o.filter.Agent, "agent", "", "of this agent `ID`, in which * stands for any text")
	cmd.Flags().StringVar(&o.filter.Container, "container", "", "of this container `ID`")
	cmd.Flags().StringVar(&o.since, "since", "", "not older than this `TIME`, a duration like 24h or a date like 2026-01-15T10:30:00Z")
	cmd.Flags().StringArrayVar(&o.kinds, "kind", nil, "of this `KIND`: "+strings.Join(eventKinds(), ", ")+"; may be repeated")
	cmd.Flags().StringArrayVar(&o.filter.Results, "result", nil, "with this `RESULT`, such as denied, dry_run or killed; may be repeated")
	cmd.Flags().BoolVar(&o.summarize, "summary", false, "count instead of listing")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on as records come")
	fixedCompletion(cmd, "kind", eventKinds()...)
	a.outputs(cmd)
	return cmd
}

// followPause is how often new records are looked for.
const followPause = 500 * time.Millisecond

func (a *app) auditShow(ctx context.Context, o *showOptions) error {
	if err := o.parse(a.now()); err != nil {
		return err
	}
	cfg, err := o.load()
	if err != nil {
		return err
	}
	trail := node.NewTrail(cfg.Audit.Spool, cfg.Audit.Log, a.now)
	switch {
	case o.follow:
		return a.follow(ctx, trail, o)
	case o.summarize:
		s := node.NewSummary()
		if err := trail.Next(o.filter, func(i node.Item) error { s.Add(i); return nil }); err != nil {
			return err
		}
		s.Sort()
		return a.printer().Result(&auditSummaryResult{display.Head("audit-summary"), s})
	}
	r := &auditShowResult{Header: display.Head("audit-show"), Records: []node.Item{}}
	if err := trail.Next(o.filter, func(i node.Item) error { r.Records = append(r.Records, i); return nil }); err != nil {
		return err
	}
	return a.printer().Result(r)
}

// follow prints records as they come, until it is interrupted, which is how it is
// ended.
func (a *app) follow(ctx context.Context, trail *node.Trail, o *showOptions) error {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	give := func(i node.Item) error {
		if a.format == display.JSON {
			return encoder.Encode(&i)
		}
		_, err := fmt.Fprintln(a.stdout, fault.OneLine(strings.Join(itemRow(&i), "  ")))
		return err
	}
	for {
		if err := trail.Next(o.filter, give); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

func (o *showOptions) parse(now time.Time) error {
	for _, name := range o.kinds {
		events, ok := eventNames[name]
		if !ok {
			return fault.New(fault.Usage, "--kind", "%q is no kind, allowed are %s", name, strings.Join(eventKinds(), ", "))
		}
		o.filter.Events = append(o.filter.Events, events...)
	}
	if o.since == "" {
		return nil
	}
	if d, err := time.ParseDuration(o.since); err == nil && d >= 0 {
		o.filter.Since = now.Add(-d)
		return nil
	}
	at, err := time.Parse(time.RFC3339, o.since)
	if err != nil {
		return fault.New(fault.Usage, "--since", "%q is neither a duration like 24h nor a date like 2026-01-15T10:30:00Z", o.since)
	}
	o.filter.Since = at
	return nil
}
