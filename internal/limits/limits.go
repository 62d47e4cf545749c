package limits

import "time"

const (
	// KiB is 1024 bytes.
	KiB = 1 << 10
	// MiB is 1024 KiB; the manifest's "MB" is the same.
	MiB = 1 << 20
)

// Artifact limits.
const (
	// ManifestYAMLBytes bounds a manifest.yaml, its attestation included.
	ManifestYAMLBytes = 1 * MiB
	// AgentManifestBytes bounds the agent manifest blob in an artifact.
	AgentManifestBytes = 256 * KiB
	// OCIManifestBytes bounds an OCI manifest or index, as containerd bounds it.
	OCIManifestBytes = 4 * MiB
	// ImageConfigBytes bounds an OCI image config.
	ImageConfigBytes = 4 * MiB
	// CAFileBytes bounds a PEM file of certificate authorities.
	CAFileBytes = 1 * MiB
	// CredentialProviderBytes bounds what a credential provider answers.
	CredentialProviderBytes = 256 * KiB
	// HostsFileBytes bounds a registry's hosts.toml.
	HostsFileBytes = 1 * MiB
	// ArchiveMembers bounds the members of an image archive.
	ArchiveMembers = 100_000
	// IndexManifests bounds how many manifests of one index are judged.
	IndexManifests = 32
	// IndexDepth bounds indexes within indexes: an image of several platforms
	// needs one, a layout's entry for it another.
	IndexDepth = 3
	// JSONDepth bounds nesting in signed JSON.
	JSONDepth = 32
	// ModuleBytes bounds a WASM module.
	ModuleBytes = 64 * MiB
	// ModuleFunctions bounds the functions a module may define.
	ModuleFunctions = 200_000
	// FunctionBodyBytes bounds one function body: larger ones reach code
	// generator flaws of the engine (GHSA-897f).
	FunctionBodyBytes = 1 * MiB
	// Capabilities bounds the capability strings of one manifest.
	Capabilities = 256
)

// Attestation limits.
const (
	// AttestationBytes bounds the attestation annotation.
	AttestationBytes = 64 * KiB
	// ChainCertificates bounds the certificates that a block may carry.
	ChainCertificates = 5
	// Countersignatures bounds the countersignatures that a block may carry.
	Countersignatures = 8
	// CertificatePEMBytes bounds one certificate of the chain.
	CertificatePEMBytes = 16 * KiB
	// TimeStampBytes bounds an RFC 3161 time stamp token.
	TimeStampBytes = 24 * KiB
	// OCSPBytes bounds an OCSP responder's answer.
	OCSPBytes = 20 * KiB
	// OCSPKept bounds the answers that a node keeps new before they are needed.
	OCSPKept = 4096
	// CRLBytes bounds a certificate revocation list.
	CRLBytes = 32 * MiB
	// StartRefreshTime bounds how long a start waits for servers of revocation and
	// release lists; what could not be refreshed is judged by its age.
	StartRefreshTime = 2 * time.Second
	// ReleasesBytes bounds a signed release list.
	ReleasesBytes = 4 * MiB
	// TrustFileBytes bounds a signed file of trust.
	TrustFileBytes = 64 * MiB
	// Verdicts bounds the verdicts that a node remembers.
	Verdicts = 4096
	// PolicyBytes bounds a policy or node configuration file.
	PolicyBytes = 1 * MiB
)

// Run limits.
const (
	// Handles bounds the open handles of one run (abi.md, rule 2).
	Handles = 256
	// GuestFiles bounds the descriptors that one run may have open.
	GuestFiles = 512
	// PathBytes bounds a path that a guest names, as the system bounds it.
	PathBytes = 4096
	// InputBytes bounds the input of one run.
	InputBytes = 64 * MiB
	// OutputBytes bounds what one run may write as output.
	OutputBytes = 256 * MiB
	// ChunkBytes bounds the guest's bytes in one event of the output; more
	// become several events.
	ChunkBytes = 64 * KiB
	// LogLineBytes bounds one log line of a guest.
	LogLineBytes = 64 * KiB
	// LogBurstBytes and LogBytesPerSecond bound what guests may log at once and in
	// the long run.
	LogBurstBytes     = 16 * MiB
	LogBytesPerSecond = 1 * MiB
	// ErrorMessageBytes bounds a guest's set_error message.
	ErrorMessageBytes = 8 * KiB
	// StreamIDBytes bounds the id of an output stream.
	StreamIDBytes = 256
	// CapabilityArgsBytes bounds the arguments of request_capability.
	CapabilityArgsBytes = 4 * KiB
	// OperationBytes bounds an operation's name, RequestHeadBytes the head of its
	// request.
	OperationBytes   = 64
	RequestHeadBytes = 64 * KiB
	// ResponseHeadBytes bounds the head of an answer.
	ResponseHeadBytes = 256 * KiB
	// Calls bounds the calls of capabilities that one run has going on at once.
	Calls = 32
	// RequestBytes bounds the bodies of those calls' requests together, which
	// the host keeps until they are sent.
	RequestBytes = 16 * MiB
	// ListEntries bounds the entries of a directory that is listed.
	ListEntries = 10_000
	// MediaTypeBytes bounds the type of an uploaded object.
	MediaTypeBytes = 128
	// MetricNames bounds the names of an agent's metrics, MetricSeries the
	// combinations of name and attributes.
	MetricNames  = 64
	MetricSeries = 1000
	// MetricNameBytes bounds the name of a metric or attribute, MetricValueBytes
	// an attribute's value, MetricAttributes their number and
	// MetricAttributesBytes their JSON.
	MetricNameBytes       = 64
	MetricValueBytes      = 128
	MetricAttributes      = 8
	MetricAttributesBytes = 1 * KiB
	// DefaultGuestMemory is the guest's memory when nothing says otherwise.
	DefaultGuestMemory = 256 * MiB
	// MinHostShare is the least that a container's memory limit leaves to the host.
	MinHostShare = 8 * MiB
	// MinContainerMemory is the least container memory limit that can hold the
	// host at all.
	MinContainerMemory = 12 * MiB
	// HostThreads is how many threads the host may have beside one for each
	// further run at a time; with fewer the engine and Go's runtime abort.
	HostThreads = 16
	// PluginTasks is how many processes and threads a plugin may have.
	PluginTasks = 32
	// OpenFiles bounds the host's open files, MinOpenFiles is what it needs.
	OpenFiles    = 256
	MinOpenFiles = 32
	// KeptMemories is how many memories of runs that ended a serving host keeps
	// for others, KeptMemoryBytes how many bytes of them.
	KeptMemories    = 64
	KeptMemoryBytes = 16 * MiB
	// GuestStackBytes bounds the guest's call stack.
	GuestStackBytes = 1 * MiB
	// TableElements bounds the elements of one table.
	TableElements = 1_000_000
	// ShimInputBytes bounds what containerd sends to a shim that starts, and
	// its runtime options.
	ShimInputBytes = 10 * MiB
	// HostDocumentBytes bounds the document the host is started with.
	HostDocumentBytes = 4 * MiB
)

// Serving limits: of requests, and of what a manifest may ask for.
const (
	// ServeConcurrent and ServeQueue are the most instances at once and the most
	// requests that wait.
	ServeConcurrent = 256
	ServeQueue      = 4096
	// DefaultServeConcurrent and DefaultServeQueue hold when nothing is said.
	DefaultServeConcurrent = 8
	DefaultServeQueue      = 32
	// DefaultServeBody bounds a request's body when nothing is said.
	DefaultServeBody = 4 * MiB
	// ServeBuffers is the least that all bodies together may take.
	ServeBuffers = 16 * MiB
	// ServeHeld is how much of an output is held back for the sake of a status
	// that fits how the run ends.
	ServeHeld = 256 * KiB
	// ServeShare is what a running request takes in the host, its guest's memory
	// and its body aside: what is held back, a connection, a thread.
	ServeShare = 512 * KiB
	// ServeHeader bounds a request's line and header.
	ServeHeader = 16 * KiB
	// ServeConnections are the connections beyond those whose requests run or
	// wait: probes, keep-alive, requests that arrive.
	ServeConnections = 128
	// MinServeMemory is the least guest memory that a container's limit may leave
	// to each of the instances at once.
	MinServeMemory = 1 * MiB
	// GoodServeMemory is what each is given before there is another, when the
	// manifest says nothing.
	GoodServeMemory = 64 * MiB
	// MinServeHost is the least that is left to a host that serves.
	MinServeHost = 24 * MiB
)

// Times of serving.
const (
	// DefaultServeDeadline bounds a request's run when the manifest does not.
	DefaultServeDeadline = 5 * time.Minute
	// ServeHeaderTime and ServeBodyTime bound how long a client may take to send.
	ServeHeaderTime = 5 * time.Second
	ServeBodyTime   = 30 * time.Second
	// ServeQueueTime bounds how long a request waits for an instance.
	ServeQueueTime = 30 * time.Second
	// ServeStall bounds how long a client may take nothing of an answer.
	ServeStall = 30 * time.Second
	// ServeIdle is how long a connection may rest between requests.
	ServeIdle = 75 * time.Second
	// ServeHeartbeat is how often a silent event stream shows that it lives.
	ServeHeartbeat = 15 * time.Second
	// DefaultServeDrain and ServeNotice are how SIGTERM ends a server when
	// nothing is said; with [DrainGrace] they fit into Kubernetes' thirty seconds.
	DefaultServeDrain = 25 * time.Second
	ServeNotice       = 2 * time.Second
)

// Limits of what the host does on a guest's behalf.
const (
	// URLBytes bounds a URL.
	URLBytes = 8 * KiB
	// HTTPHeaders bounds the header lines of a request, HTTPHeaderBytes the
	// headers of a request or an answer together.
	HTTPHeaders     = 128
	HTTPHeaderBytes = 64 * KiB
	// Redirects bounds the redirects of one request.
	Redirects = 5
	// QueuedCalls bounds the calls of one kind that run or wait in a process.
	QueuedCalls = 256
	// DialTime bounds making one connection, TLSHandshakeTime its handshake.
	DialTime         = 10 * time.Second
	TLSHandshakeTime = 10 * time.Second
	// IdleConnectionTime is how long an unused connection is kept.
	IdleConnectionTime = 60 * time.Second
	// LLMConcurrent bounds the chats of one process at once.
	LLMConcurrent = 16
	// LLMRequestBytes bounds a chat's request, LLMEventBytes one event of its
	// answer, LLMAnswerBytes the answer.
	LLMRequestBytes = 16 * MiB
	LLMEventBytes   = 1 * MiB
	LLMAnswerBytes  = 64 * MiB
	// LLMIdleTime is how long a model may say nothing.
	LLMIdleTime = 5 * time.Minute
	// MediaConnections bounds the connections to a media storage,
	// MediaResponseTime how long it may take to begin an answer.
	MediaConnections  = 16
	MediaResponseTime = 30 * time.Second
	// ExtensionConcurrent bounds the calls of one extension at once.
	ExtensionConcurrent = 16
	// ExtensionRequestBytes bounds the body of a call, ExtensionLineBytes a message
	// of the extension, ExtensionUnreadBytes what of one answer may wait to be read.
	ExtensionRequestBytes = 4 * MiB
	ExtensionLineBytes    = 1 * MiB
	ExtensionUnreadBytes  = 4 * MiB
	// ExtensionStartTime is how long an extension may take to say hello,
	// ExtensionIdleTime how long a call may wait for a message of it, and
	// ExtensionStopTime how long it may take to end.
	ExtensionStartTime = 10 * time.Second
	ExtensionIdleTime  = 60 * time.Second
	ExtensionStopTime  = 2 * time.Second
	// SecretsBytes bounds the host's file of secrets.
	SecretsBytes = 1 * MiB
)

const (
	// VerifierBudget is how long the pull gate may take; containerd kills it
	// after ten seconds.
	VerifierBudget = 9 * time.Second
	// CredentialProviderTime is how long a credential provider may take, within
	// that.
	CredentialProviderTime = 4 * time.Second
	// CredentialProviderWait is how long its children may hold its output then.
	CredentialProviderWait = 500 * time.Millisecond
	// CompileWall bounds the wall time of one compilation.
	CompileWall = 120 * time.Second
	// CompileCPU bounds its processor time.
	CompileCPU = 120 * time.Second
	// CompileMemory bounds the compiler child's memory.
	CompileMemory = 2048 * MiB
	// DrainGrace is how long a guest that was asked to end (SIGTERM) may go on
	// before it is interrupted.
	DrainGrace = 2 * time.Second
	// StopGrace is how long an interrupted guest may take to get back to the host
	// before it is left behind.
	StopGrace = 250 * time.Millisecond
)

// HostHeadroom is the memory the host needs beside a guest of guestBytes:
// 16 MiB or a tenth, whichever is more.
func HostHeadroom(guestBytes int64) int64 {
	return max(16*MiB, guestBytes/10)
}
