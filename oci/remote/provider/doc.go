// Package provider asks the kubelet's credential providers for a registry's
// credentials: programs that cloud vendors bring, which speak
// credentialprovider.kubelet.k8s.io/v1 over standard input and output.
//
// Trusted: the configuration file, the directory of programs and that these
// programs give secrets of this node. Hostile: what a program answers, how much
// and how late. Promise: a program is run only for images that its patterns match;
// its answer is bounded in size and time and read strictly or not at all;
// credentials are handed out only for images that the answer's own patterns match,
// never written to disk, and no error holds anything that a program printed.
package provider
