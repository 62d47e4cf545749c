package cli

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/capability/review"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
)

type reviewResult struct {
	display.Header
	Agents []reviewed `json:"agents"`
}

type reviewed struct {
	Manifest string   `json:"manifest"`
	ID       string   `json:"id"`
	Version  string   `json:"version"`
	Preopens []string `json:"preopens"`
	Env      []string `json:"env"`
	// Imports is null when there is no module to look at.
	Imports []string `json:"imports"`
	*review.Report
	Problems []display.Problem `json:"problems,omitempty"`
}

func (r *reviewResult) Text(w *display.Writer) {
	for i := range r.Agents {
		r.Agents[i].text(w)
	}
}

func (ag *reviewed) text(w *display.Writer) {
	w.Line("%s %s, risk %s", ag.ID, ag.Version, ag.Risk)
	w.Field("manifest", "%s", ag.Manifest)
	if ag.Engine != "" {
		w.Field("carries", "%s: its imports say nothing about what a script does", ag.Engine)
	}
	if len(ag.Asks) == 0 {
		w.Field("asks for", "nothing")
	}
	if ag.Imports == nil {
		w.Field("imports", "unknown: there is no module")
	} else {
		w.Field("imports", "%s", importsText(ag.Imports))
	}
	w.List("preopens", ag.Preopens)
	w.List("env", ag.Env)
	if rows := ag.rows(); len(rows) > 0 {
		w.Table([]string{"  ASKED", "IMPORTED", "RISK", "WHY"}, rows)
	}
	for _, f := range ag.Findings {
		hint := ""
		if f.Hint != "" {
			hint = " (" + f.Hint + ")"
		}
		w.Field(f.Kind, "%s: %s%s", f.On, f.Message, hint)
	}
}

// rows put asks and imports side by side.
func (ag *reviewed) rows() [][]string {
	var rows [][]string
	for _, a := range ag.Asks {
		by := strings.Join(a.By, " ")
		switch {
		case a.Use == review.Unused:
			by = "nothing that can use it"
		case by == "":
			by = a.Use
		}
		rows = append(rows, []string{"  " + a.Capability, by, a.Risk.String(), a.Why})
	}
	for _, n := range ag.Needs {
		if len(n.Asked) == 0 {
			rows = append(rows, []string{"  nothing", n.Import, "", "needs " + n.Needs})
		}
	}
	return rows
}

type reviewOptions struct {
	strict  bool
	maxRisk string
}

func (a *app) reviewCmd() *cobra.Command {
	var o reviewOptions
	cmd := &cobra.Command{
		Use:   "audit-capabilities DIR|MANIFEST...",
		Short: "Show what agents ask for beside what their modules import",
		Long: `Show, for each agent, the capabilities that its manifest asks for beside the
imports of its module that can use them, how much each gives away, and what does
not fit: an import that needs what nobody asks for (missing), a capability that
nothing imported can use (unused).

Directories, hosts and variables without their capability are problems and end
with 3; with --strict so do missing and unused ones. A rating over --max-risk ends
with 19. What an agent does with a capability cannot be told from its imports, and
of a module with an interpreter in it they say nothing at all.`,
		Example: `  mentatctl audit-capabilities agents/*/manifest.yaml
  mentatctl audit-capabilities --strict --max-risk medium agents/*/manifest.yaml`,
		Args: wantArgs(1, -1, "a directory or a manifest"),
		RunE: func(_ *cobra.Command, args []string) error {
			most, err := review.ParseRisk(o.maxRisk)
			if err != nil {
				return fault.Wrap(err, fault.Usage, "--max-risk", "")
			}
			r := &reviewResult{Header: display.Head("audit-capabilities"), Agents: []reviewed{}}
			err = each(args, func(path string) error {
				ag, err := reviewAgent(path, o.strict, most)
				if ag != nil {
					r.Agents = append(r.Agents, *ag)
				}
				return err
			})
			if len(r.Agents) == 0 {
				return err
			}
			if printErr := a.printer().Result(r); printErr != nil {
				return printErr
			}
			if err != nil && a.format == display.JSON {
				return reported{err}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&o.strict, "strict", false, "fail for what is missing and for what is unused")
	cmd.Flags().StringVar(&o.maxRisk, "max-risk", review.Critical.String(), "fail for what is rated over this `LEVEL`: none, low, medium, high or critical")
	fixedCompletion(cmd, "max-risk", "none", "low", "medium", "high", "critical")
	a.outputs(cmd)
	return cmd
}

func reviewAgent(path string, strict bool, most review.Risk) (*reviewed, error) {
	d, err := agentdir.Open(path)
	if err != nil {
		return nil, err
	}
	ag := &reviewed{Manifest: d.ManifestPath(), ID: d.Manifest.ID, Version: d.Manifest.Version, Preopens: []string{}, Env: []string{}}
	if w := d.Manifest.WASM; w != nil && w.WASI != nil {
		for dir, mode := range w.WASI.Preopens {
			ag.Preopens = append(ag.Preopens, dir+": "+mode)
		}
		slices.Sort(ag.Preopens)
		ag.Env = append(ag.Env, w.WASI.Env...)
	}
	data, info, err := d.ReadModule()
	switch {
	case fault.ReasonOf(err) == fault.NotFound:
		data, info = nil, nil
	case err != nil:
		return nil, err
	case info != nil:
		ag.Imports = importNames(info)
	}
	ag.Report = review.Review(d.Manifest, info, data)
	errs := d.Manifest.Lint()
	if strict {
		for _, f := range append(ag.Of(review.Missing), ag.Of(review.NotUsed)...) {
			errs = append(errs, fault.New(fault.ManifestInvalid, ag.Manifest, "%s: %s", f.On, f.Message).WithHint("%s", f.Hint))
		}
	}
	for _, ask := range ag.Asks {
		if ask.Risk > most {
			errs = append(errs, fault.New(fault.PolicyDenied, ag.Manifest, "%s is rated %s, over %s: %s", ask.Capability, ask.Risk, most, ask.Why))
		}
	}
	err = errors.Join(errs...)
	ag.Problems = display.Problems(err)
	return ag, err
}

// buildWarnings are what a build says of grants that the module's imports need
// and the manifest lacks.
func buildWarnings(d *agentdir.Dir) []string {
	data, info, err := d.ReadModule()
	if err != nil || info == nil {
		return nil // the build itself says what is wrong
	}
	var lines []string
	for _, f := range review.Review(d.Manifest, info, data).Of(review.Missing) {
		lines = append(lines, fmt.Sprintf("%s: the module imports %s: %s (%s)", d.ManifestPath(), f.On, f.Message, f.Hint))
	}
	return lines
}

// dynamic tells a program that needs a loader.
func dynamic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false // a script, or of another system: not for us to say
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
