// Package serve answers HTTP requests with an agent: POST /v1/process runs it
// once, with a fresh instance, and answers with its output or, as it arises,
// with a stream of events; /healthz, /readyz and /metrics are for whoever looks
// after it.
//
// Trusted: the program that runs the agent, and whoever may reach the port:
// there is no TLS and no authentication here. Hostile: every request, how
// slowly it is sent and how slowly its answer is read; every byte, id and
// message of the guest.
//
// Promise: instances, waiting requests, bodies, headers and connections are
// bounded, and beyond the bounds a request is refused, not kept; an answer that
// was cut short never looks like a whole one; a guest's bytes stay the value of
// a field; a client that leaves ends its run; a server that is told to end says
// so, lets requests finish for as long as it may, and then ends them. The engine
// is not reached from here.
package serve
