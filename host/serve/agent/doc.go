// Package agent serves an agent over HTTP from its host document: it listens,
// loads the program, answers requests until it is told to end, and reports how.
//
// Trusted: the host document. Hostile: what comes over the socket, which is
// [serve]'s matter, and the guest, which is [host]'s. Promise: the socket is
// open before the host locks itself in, and no request is taken before it has;
// a server that cannot listen or load says why and ends; the exit is reported
// like that of a run.
package agent
