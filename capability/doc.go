// Package capability decides what an agent may do: the intersection of its
// signed manifest, the node's policy at the agent's trust level, and what the
// container was given.
//
// Trusted: the policy and the trust level, which come from the verifier, and
// an operator's own flags. Hostile: the manifest's wishes and the container's
// mounts and variables, which a user chose; they only ever narrow. Promise: no
// grant that any of the three sides lacks, and one line for everything that
// was given and withheld, naming the capability that would ask for it.
package capability
