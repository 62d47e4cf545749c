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
	// CertificatePEMBytes bounds one certificate of the chain.
	CertificatePEMBytes = 16 * KiB
	// CRLBytes bounds a certificate revocation list.
	CRLBytes = 32 * MiB
	// PolicyBytes bounds a policy or node configuration file.
	PolicyBytes = 1 * MiB
)

// Run limits.
const (
	// Handles bounds the open handles of one run (abi.md, rule 2).
	Handles = 256
	// InputBytes bounds the input of one run.
	InputBytes = 64 * MiB
	// OutputBytes bounds what one run may write as output.
	OutputBytes = 256 * MiB
	// LogLineBytes bounds one log line of a guest.
	LogLineBytes = 64 * KiB
	// ErrorMessageBytes bounds a guest's set_error message.
	ErrorMessageBytes = 8 * KiB
	// DefaultGuestMemory is the guest's memory when nothing says otherwise.
	DefaultGuestMemory = 256 * MiB
	// MinHostShare is the least that a container's memory limit leaves to the host.
	MinHostShare = 8 * MiB
	// MinContainerMemory is the least container memory limit that can hold the
	// host at all.
	MinContainerMemory = 12 * MiB
	// WorkerBuffers is what the host needs for each further run at the same time.
	WorkerBuffers = 2 * MiB
	// HostThreads is how many threads the host may have beside one for each
	// further run at a time; with fewer the engine and Go's runtime abort.
	HostThreads = 16
	// PluginTasks is how many processes and threads a plugin may have.
	PluginTasks = 32
	// OpenFiles bounds the host's open files, MinOpenFiles is what it needs.
	OpenFiles    = 256
	MinOpenFiles = 32
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

const (
	// VerifierBudget is how long the pull gate may take; containerd kills it
	// after ten seconds.
	VerifierBudget = 9 * time.Second
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
