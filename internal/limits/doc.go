// Package limits holds every bound that MentatLab puts on input it did not
// make itself, so that what parses and what uses a value agree.
//
// Trusted: the paths that [ReadFile] is given. Hostile: everything these numbers
// are applied to. Promise: a reader that meets a limit reads limit+1 bytes and
// refuses with an error that names the limit; it never truncates silently.
package limits
