// Command bench measures what MentatLab costs, side by side with what it is
// compared to, on the same machine in the same run, and prints medians and
// ratios; with -json it writes them to a file.
//
// Trusted: the binaries of this source tree and the tools built beside them.
// Hostile: nothing. Promise: pairs are interleaved, both sides use one runc and
// one containerd, the cache is warm and the images are present; what could not
// be measured is said, never left out.
package main
