package agenttest

import (
	"errors"
	"testing"

	"github.com/mentatlab/sdk-go/agent"
)

type greeter struct{}

func (greeter) Process(in agent.Input) (agent.Output, error) {
	name, err := in.GetString("name")
	if err != nil {
		return nil, err
	}
	word, err := agent.GetConfig("greeting")
	if errors.Is(err, agent.NotFound) {
		agent.Log(agent.LevelWarn, "no greeting configured")
		word = "Hello"
	}
	return agent.NewOutput().SetString("text", word+", "+name).SetNumber("length", float64(len(name))), nil
}

func TestRunGivesOutputLogsAndErrors(t *testing.T) {
	got := Run(t, greeter{}, `{"name":"Ada"}`)
	if got.String("text") != "Hello, Ada" || got.Number("length") != 3 {
		t.Errorf("output %s", got.Raw)
	}
	if len(got.Logs) != 1 || got.Logs[0] != (Line{agent.LevelWarn, "no greeting configured"}) {
		t.Errorf("logs %v", got.Logs)
	}
	if got := Run(t, greeter{}, `{}`); got.Err == nil || got.Raw != nil {
		t.Errorf("a failed run: %+v", got)
	}
}

func TestSettingsLastForOneRun(t *testing.T) {
	if got := Run(t, greeter{}, `{"name":"Ada"}`, WithConfig("greeting", "Good day")); got.String("text") != "Good day, Ada" {
		t.Errorf("output %s", got.Raw)
	}
	if got := Run(t, greeter{}, `{"name":"Ada"}`); got.String("text") != "Hello, Ada" {
		t.Errorf("output %s", got.Raw)
	}
}
