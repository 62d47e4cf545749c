// Command mentat-host-net is mentat-host for agents that reach a network: the
// same host with network and llm capabilities, media in S3, and a server. It is a
// program of its own so that the others carry none of it.
//
// Trusted: its command line and the host document. Hostile: the guest it runs,
// and the hosts that it reaches for it. Promise: that of mentat-host's `run`; a
// connection is opened only as the document allows.
//
//	mentat-host-net run [--document FILE]   run what the document describes
//	mentat-host-net version
package main
