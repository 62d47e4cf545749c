package limits

import "time"

// Bounds on Notary Project signatures.
const (
	// EnvelopeBytes bounds one envelope. One with [ChainCertificates] certificates of
	// RSA keys, their root and a time stamp takes less than half of it.
	EnvelopeBytes = 64 * KiB
	// Envelopes bounds how many of one artifact are looked at: whoever may push can
	// attach any number, and each costs some signatures to check.
	Envelopes = 8
	// ReferrerBytes bounds a manifest that refers to another.
	ReferrerBytes = 64 * KiB
	// ReferrerPages bounds the pages of a registry's list of them.
	ReferrerPages = 4
	// ReferrersTime is how long the pull gate asks for them, within [VerifierBudget].
	ReferrersTime = 3 * time.Second
	// KeptArtifacts bounds the artifacts whose signatures a node keeps.
	KeptArtifacts = 4096
)
