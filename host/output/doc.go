// Package output is where a run's output goes: bytes, streams, log lines and
// metrics, in the order in which the guest produced them.
//
// Trusted: whoever reads the sink. Hostile: the guest's bytes, ids and names,
// which a sink must not let forge anything: a framing separates what the guest
// wrote from what the host says. Promise: a sink that returned without an error
// has passed everything on; it blocks while its reader is slow.
package output
