// Package audit writes and reads audit records where they wait to be collected:
// what was decided when an agent was prepared, each decision of its host while
// it ran, and how the run went.
//
// Trusted: the directory's maker, and what root writes into it. Hostile: a host
// that its guest took over: it can write what it likes into its own directory,
// so whoever reads that takes no name and no id from it. Promise: a record is
// written when the call that adds it returns, and then survives the writer's
// death by any signal; nobody waits longer than [limits.AuditWait]; what did not
// fit is counted and the count is written. A torn line is none.
package audit
