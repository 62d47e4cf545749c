package capability

import (
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// Who decided, where it was no rule of the node's policy. No rule has one of
// these names.
const (
	RuleManifest  = "manifest"  // the manifest does not ask for it, or takes it back
	RulePolicy    = "policy"    // no rule of the node's policy grants it
	RuleTrust     = "trust"     // the trust level alone
	RuleContainer = "container" // the container has something else at that path
	RuleNode      = "node"      // the node has nothing that serves it
	RuleOperator  = "operator"  // the flags of one's own run
	RuleDefault   = "default"   // what every agent of a trust level has unless a rule denies it
)

// Reserved are the names that a rule of a policy cannot have.
var Reserved = []string{RuleManifest, RulePolicy, RuleTrust, RuleContainer, RuleNode, RuleOperator, RuleDefault}

// FullNetwork stands in a decision for sandbox.network.mode: full, which no
// capability string expresses.
const FullNetwork = "network:full"

// Rule is one rule of the node's policy that is about the agent at hand.
type Rule struct {
	// Name is unique in the policy.
	Name string
	// Allow and Deny are what the rule grants and denies. A denial wins over
	// whatever any rule allows.
	Allow, Deny []manifest.Capability
	// DryRun makes a rule's denials count and deny nothing.
	DryRun bool
	// FullNetwork lets an agent that asks for it reach every public host.
	FullNetwork bool
	// Private are address ranges, as CIDR, that are not public and that a granted
	// host may resolve to.
	Private []string
	// Inject are credentials for requests that the rule allows.
	Inject []Injection
}

// Secret says where a secret is read when a container is created. Exactly one
// of the fields is set.
type Secret struct {
	// File is a file of the node.
	File string
	// Mount is a path in a mount of the container, such as a Kubernetes secret
	// volume. That mount is then the host's alone.
	Mount string
}

// Injection is a credential that the host adds to the requests that Capability
// covers.
type Injection struct {
	Capability manifest.Capability
	// Exactly one of Header and Query is set.
	Header, Query string
	Prefix        string
	Secret        Secret
}

// Provider is an endpoint that serves language models.
type Provider struct {
	Name, URL string
	// Models are names, or beginnings of names followed by "*".
	Models []manifest.Capability
	// Secret is the zero value where none is sent.
	Secret Secret
}

// MediaS3 is a bucket that keeps media.
type MediaS3 struct {
	Endpoint, Region, Bucket, Prefix string
	AccessKey, SecretKey             Secret
}

// Serving is what a node has to serve capabilities with. Paths are the node's.
// The zero value serves none but the network; see [Defaults].
type Serving struct {
	BlockedPorts []int
	// CAFile holds certificate authorities; empty leaves it to whoever runs.
	CAFile string
	Limits hostdoc.NetworkLimits

	Providers []Provider
	// Tokens bounds the tokens of one run; 0 is no bound.
	Tokens int64

	// MediaDir or MediaS3 keeps media; without either there are none.
	MediaDir        string
	MediaS3         *MediaS3
	MediaItemBytes  int64
	MediaTotalBytes int64
	// MediaKeepDays is how many days after it was last stored an object stays in
	// MediaDir; 0 is for ever.
	MediaKeepDays int64

	Extensions []hostdoc.Extension

	// MemoryBytes and DeadlineMillis are the most that any agent gets; 0 is no
	// bound of the node's.
	MemoryBytes    int64
	DeadlineMillis int64
}

// Defaults is what a policy that says nothing about serving means.
func Defaults() Serving {
	return Serving{
		BlockedPorts: []int{22, 25, 3389},
		Limits: hostdoc.NetworkLimits{
			Concurrent:    limits.NetworkConcurrent,
			RequestBytes:  limits.NetworkRequestBytes,
			ResponseBytes: limits.NetworkResponseBytes,
			TimeoutMillis: limits.NetworkTimeout.Milliseconds(),
		},
		MediaItemBytes:  limits.MediaItemBytes,
		MediaTotalBytes: limits.MediaTotalBytes,
	}
}

var signedDefaults = Rule{Name: RuleDefault, Allow: []manifest.Capability{
	{Kind: manifest.KindMedia, Access: manifest.AccessRead},
	{Kind: manifest.KindMedia, Access: manifest.AccessWrite},
}}
