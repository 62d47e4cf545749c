// Command probe is a program in mentat-host's place: started by the real shim
// and runtime in a container that was made for an agent, it says what it finds
// there and how far it gets. It knows nothing of the host's own lock, so that
// what holds it are the container's walls alone.
//
//	probe compile
//	probe run --document PATH …
//
// What it is to do stands in the document's arguments; each answer is a line of
// JSON, [{"do": …, "got": …}].
//
// Trusted: whoever runs the test. Hostile: nothing. Promise: what it makes it
// bounds itself, should a wall be missing.
package main
