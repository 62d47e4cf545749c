// Package node is the node service: it collects audit records into a log whose
// entries are chained by hash, keeps revocation lists fresh, and serves metrics.
// Agents start and run without it; their records wait until it takes them.
//
// Trusted: the node's configuration and policy, what root wrote into the spool,
// and whoever reaches the socket. Hostile: what a run's host wrote into its own
// directory: agent, container and time of such a record are those that root knows,
// whatever it says itself. Promise: a record is in the log, on disk, before it is
// removed from where it waited, once and never twice, whenever the service is
// killed; what was lost before shows in the log as a number; nothing that one run
// writes keeps the records of another from being taken.
package node
