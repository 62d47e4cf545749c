// Package agent is the SDK for agents written in Go. An agent implements
// [Agent], registers itself in main and calls [Run]:
//
//	type Greeter struct{}
//
//	func (Greeter) Process(input agent.Input) (agent.Output, error) {
//		name, err := input.GetString("name")
//		if err != nil {
//			return nil, err
//		}
//		return agent.NewOutput().SetString("greeting", "Hello, "+name), nil
//	}
//
//	func main() {
//		agent.Register(Greeter{})
//		agent.Run()
//	}
//
// Built for WebAssembly it becomes a module that MentatLab runs:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o agent.wasm .
//
// The same program built for the machine at hand reads its input from stdin (or
// its arguments) and writes its output to stdout, so `go run . <input.json`
// tries an agent without a runtime. Package agenttest runs it in unit tests.
//
// Hostile: the input, whose every access is checked and answers with an error
// that names the field. Trusted: the host. Promise: Process is never called
// twice at the same time; an error it returns reaches the caller as the run's
// message and its exit status is not 0.
package agent
