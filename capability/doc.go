// Package capability decides what an agent may do: the intersection of its
// signed manifest, the node's policy at the agent's trust level, and what the
// container was given. [Effective] decides when a run is prepared, [Set] answers
// for it while the run goes on.
//
// Trusted: the policy and the trust level, which come from the verifier, an
// operator's own flags, and the host document. Hostile: the manifest's wishes
// and the container's mounts and variables, which a user chose; they only ever
// narrow. Promise: no grant that any of the three sides lacks; a denial of the
// policy wins over every grant, at once where it covers one and at the request
// where it covers a part; one line for everything that was given and withheld,
// naming the capability that would ask for it; and the rule that decided, in
// every answer.
package capability
