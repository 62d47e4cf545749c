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

// Bounds on audit records.
const (
	// AuditLineBytes bounds one record.
	AuditLineBytes = 16 * KiB
	// AuditRunBytes bounds what one run's records may take until somebody collects
	// them, AuditNodeBytes what those of all preparations may.
	AuditRunBytes  = 256 * KiB
	AuditNodeBytes = 16 * MiB
	// AuditRuns bounds the runs of which records wait.
	AuditRuns = 2048
	// AuditWait is the longest that anybody waits for a record to be written.
	AuditWait = 100 * time.Millisecond
	// AuditBurst are the decisions of one host that each have a record of their
	// own, AuditRate how many more may in a second. Beyond, equal ones share one
	// that counts them.
	AuditBurst = 1000
	AuditRate  = 100
	// AuditKeys bounds the different decisions that are counted at once.
	AuditKeys = 256
	// AuditText bounds a text in a record that comes from a guest.
	AuditText = 1024
)
