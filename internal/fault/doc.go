// Package fault is the one taxonomy of MentatLab's refusals and failures. Each
// [Reason] has a row in one table that gives the error class a containerd
// client sees, the exit status an agent ends with and the exit code mentatctl
// ends with.
//
// Trusted: callers, who choose the reason. Hostile: the texts they pass on,
// which may come from an artifact; [Error.Error] therefore puts everything on
// one line and escapes control characters. Promise: an error that carries no
// reason counts as [Internal]; there is no reason that maps to success.
package fault
