package main

import (
	"github.com/mentatlab/sdk-go/agent"
	"strings"
)

type WordCounter struct{}

func (w *WordCounter) Process(input agent.Input) (agent.Output, error) {
	text, err := input.GetString("text")
	if err != nil {
		return nil, err
	}

	words := strings.Fields(text)

	return agent.NewOutput().
		SetNumber("count", float64(len(words))).
		SetJSON("frequencies", countFrequencies(words)), nil
}

func main() {
	agent.Register(&WordCounter{})
	agent.Run()
}
