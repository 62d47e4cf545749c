package limits

import "time"

// Defaults of what a node's capability policy leaves open.
const (
	// NetworkConcurrent bounds the requests of one host at once.
	NetworkConcurrent = 32
	// NetworkRequestBytes and NetworkResponseBytes bound one request's body and
	// its answer's.
	NetworkRequestBytes  = 16 * MiB
	NetworkResponseBytes = 64 * MiB
	// NetworkTimeout bounds one request from its first byte to its last.
	NetworkTimeout = 60 * time.Second
	// MediaItemBytes bounds one media object, MediaTotalBytes what one run may
	// upload.
	MediaItemBytes  = 64 * MiB
	MediaTotalBytes = 256 * MiB
)

// Bounds on a node's capability policy.
const (
	// PolicyRules bounds the rules, RuleCapabilities the capability strings of one
	// rule.
	PolicyRules      = 256
	RuleCapabilities = 256
	// SecretBytes bounds the file with one secret; a secret has at least
	// ShortestSecret characters.
	SecretBytes    = 8 * KiB
	ShortestSecret = 8
)
