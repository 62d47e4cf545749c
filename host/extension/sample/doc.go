// Command sample is an extension to start from: it keeps notes by key for as
// long as it runs.
//
// Trusted: the host, which starts it. Hostile: the calls, which are the guest's.
// Promise: the operations of docs/extensions.md, a bounded number of notes.
package main
