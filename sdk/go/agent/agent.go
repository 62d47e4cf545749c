package agent

import (
	"fmt"

	"github.com/mentatlab/sdk-go/internal/mentat"
)

// Agent turns one input into one output. An error ends the run with a status
// other than 0 and its text as the message; the output is then not written.
type Agent interface {
	Process(input Input) (Output, error)
}

// Exit statuses of a run.
const (
	statusFailed   = 1
	statusPanicked = 2
)

var registered Agent

// Register names the agent that [Run] runs. Call it once, in main.
func Register(a Agent) {
	if a == nil {
		panic("agent: Register(nil)")
	}
	if registered != nil {
		panic("agent: Register called twice")
	}
	registered = a
}

// Run runs the registered agent: at once and once where the program is an
// ordinary one or a WASI command; in a MentatLab module it returns at once, and
// the host calls the agent for each input.
func Run() {
	if registered == nil {
		panic("agent: Run without Register")
	}
	run()
}

// process runs a on the current host's input and returns the exit status.
func process(a Agent) int32 {
	host := mentat.Current()
	// The panic goes on, so that its stack still reaches stderr; but the caller
	// of the agent sees stderr only if it looks there.
	panicked := true
	defer func() {
		if panicked {
			reason := recover()
			host.SetError(statusPanicked, fmt.Sprintf("panic: %v", reason))
			panic(reason)
		}
	}()
	err := processOnce(a, host)
	panicked = false
	if err != nil {
		host.SetError(statusFailed, err.Error())
		return statusFailed
	}
	return 0
}

func processOnce(a Agent, host mentat.Host) error {
	raw, err := host.ReadInput()
	if err != nil {
		return fmt.Errorf("cannot read the input: %w", hostError(err))
	}
	out, err := a.Process(NewInput(raw))
	if err != nil || out == nil {
		return err
	}
	data, err := out.Encode()
	if err != nil {
		return err
	}
	if err := host.WriteOutput(data); err != nil {
		return fmt.Errorf("cannot write the output: %w", hostError(err))
	}
	return nil
}
