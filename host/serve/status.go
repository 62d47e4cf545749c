package serve

import (
	"net/http"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Status says which HTTP status a run's end has.
type Status struct {
	// Reason is the end's reason; empty is an agent that ended by itself with a
	// status that is not 0.
	Reason  fault.Reason
	Code    int
	Meaning string
}

// Statuses are the reasons that do not end in 500 Internal Server Error.
var Statuses = []Status{
	{"", http.StatusInternalServerError, "the agent ended with a status of its own that is not 0, or said that it failed"},
	{fault.Trap, http.StatusBadGateway, "the agent's code trapped"},
	{fault.Unavailable, http.StatusBadGateway, "what the agent's run needs does not answer"},
	{fault.Canceled, http.StatusServiceUnavailable, "the server ends, and the request did not finish in time"},
	{fault.Deadline, http.StatusGatewayTimeout, "the run's deadline passed"},
	{fault.OutOfMemory, http.StatusInsufficientStorage, "the agent ran out of its memory"},
	{fault.ResourceLimit, http.StatusInsufficientStorage, "the agent met another limit of its run, like that of its output"},
}

// codeOf is the HTTP status of a run's end.
func codeOf(exit hostdoc.Exit) int {
	if succeeded(exit) {
		return http.StatusOK
	}
	for _, s := range Statuses {
		if string(s.Reason) == exit.Reason {
			return s.Code
		}
	}
	return http.StatusInternalServerError
}

func succeeded(exit hostdoc.Exit) bool { return exit.Status == 0 && exit.Reason == "" }
