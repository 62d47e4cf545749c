// Package atomicfile writes files that appear whole or not at all.
//
// Trusted: the directory. Hostile: nothing; power cuts and full disks happen.
// Promise: after an error the file is what it was before, and nothing is left
// behind.
package atomicfile
