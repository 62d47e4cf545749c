// Package filesystem serves filesystem capabilities: reading, writing, listing
// and describing files below the directories that a run was granted.
//
// Trusted: the directories, which the caller opened. Hostile: the paths and
// bytes of the guest's calls, and what lies in the directories: links, pipes and
// devices that others put there. Promise: nothing outside of the path that a
// capability names is read or changed, whatever links say, for the kernel
// resolves each path beneath it; only regular files are opened; a read-only
// directory is never written to.
package filesystem
