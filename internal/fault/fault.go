package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

// Reason names why something was refused or failed. It is stable and meant for
// scripts: it is what JSON output and audit lines carry.
type Reason string

// The reasons. The table below gives each its meaning to the outside.
const (
	Internal          Reason = "internal"
	Usage             Reason = "usage"
	ManifestInvalid   Reason = "manifest-invalid"
	ModuleInvalid     Reason = "module-invalid"
	BuildFailed       Reason = "build-failed"
	AccessDenied      Reason = "access-denied"
	Unavailable       Reason = "unavailable"
	Exists            Reason = "already-exists"
	Unsigned          Reason = "unsigned"
	NotFound          Reason = "not-found"
	ArtifactInvalid   Reason = "artifact-invalid"
	AttestationFormat Reason = "attestation-invalid"
	SignatureInvalid  Reason = "signature-invalid"
	DigestMismatch    Reason = "digest-mismatch"
	ChainUntrusted    Reason = "chain-untrusted"
	IdentityUntrusted Reason = "identity-untrusted"
	SignersMissing    Reason = "signers-missing"
	Revoked           Reason = "revoked"
	OutsideValidity   Reason = "outside-validity"
	BindingMismatch   Reason = "binding-mismatch"
	VersionTooLow     Reason = "version-too-low"
	Withdrawn         Reason = "withdrawn"
	RevocationUnknown Reason = "revocation-unknown"
	PolicyInvalid     Reason = "policy-invalid"
	PolicyDenied      Reason = "policy-denied"
	SnapshotMismatch  Reason = "snapshot-mismatch"
	ResourceLimit     Reason = "resource-limit"
	Unsupported       Reason = "unsupported"
	NodeUnsound       Reason = "node-unsound"
	CompileFailed     Reason = "compile-failed"
	Trap              Reason = "trap"
	Deadline          Reason = "deadline"
	CPUTime           Reason = "cpu-time"
	OutOfMemory       Reason = "out-of-memory"
	Canceled          Reason = "canceled"
)

// Agent exit statuses of MentatLab's own (the guest's own status passes
// through otherwise).
const (
	ExitTrap        = 120
	ExitDeadline    = 121
	ExitOutOfMemory = 122
	ExitDenied      = 123
	ExitHostFailure = 124
	// ExitCLI is what `mentatctl run` ends with when it fails itself.
	ExitCLI = 125
)

// Row is one line of the error table.
type Row struct {
	Reason Reason
	// Class is the containerd error class of a refused task call.
	Class error
	// Exit is the exit status of the agent's process.
	Exit int
	// CLI is mentatctl's exit code.
	CLI int
	// Meaning is the sentence that the documentation prints.
	Meaning string
}

// Table maps every reason; a test walks it.
var Table = []Row{
	{Internal, errdefs.ErrUnknown, ExitHostFailure, 1, "a failure of MentatLab itself"},
	{Usage, errdefs.ErrInvalidArgument, ExitHostFailure, 2, "wrong flags or arguments"},
	{ManifestInvalid, errdefs.ErrInvalidArgument, ExitDenied, 3, "the agent manifest breaks a rule"},
	{ModuleInvalid, errdefs.ErrInvalidArgument, ExitDenied, 4, "the module is not a WASM agent"},
	{BuildFailed, errdefs.ErrUnknown, ExitHostFailure, 5, "the agent's own toolchain failed"},
	{AccessDenied, errdefs.ErrPermissionDenied, ExitHostFailure, 6, "the registry wants other credentials"},
	{Unavailable, errdefs.ErrUnavailable, ExitHostFailure, 7, "a registry or server does not answer properly"},
	{Exists, errdefs.ErrAlreadyExists, ExitHostFailure, 8, "something is there already and is not overwritten"},
	{Unsigned, errdefs.ErrPermissionDenied, ExitDenied, 10, "no attestation where one is required"},
	{NotFound, errdefs.ErrNotFound, ExitHostFailure, 11, "no such file, image or object"},
	{ArtifactInvalid, errdefs.ErrInvalidArgument, ExitDenied, 12, "the artifact breaks a rule"},
	{AttestationFormat, errdefs.ErrPermissionDenied, ExitDenied, 12, "the attestation cannot be read"},
	{SignatureInvalid, errdefs.ErrPermissionDenied, ExitDenied, 12, "the signature does not fit what it signs"},
	{DigestMismatch, errdefs.ErrPermissionDenied, ExitDenied, 12, "content is not what its digest says"},
	{ChainUntrusted, errdefs.ErrPermissionDenied, ExitDenied, 13, "the certificate chain leads to no trusted root"},
	{IdentityUntrusted, errdefs.ErrPermissionDenied, ExitDenied, 13, "the signer is not one the policy names"},
	{SignersMissing, errdefs.ErrPermissionDenied, ExitDenied, 13, "fewer people signed than the policy requires"},
	{Revoked, errdefs.ErrPermissionDenied, ExitDenied, 14, "a certificate was revoked"},
	{OutsideValidity, errdefs.ErrPermissionDenied, ExitDenied, 15, "a certificate or attestation is expired or not yet valid"},
	{BindingMismatch, errdefs.ErrPermissionDenied, ExitDenied, 16, "the attestation is for another agent, version or repository"},
	{VersionTooLow, errdefs.ErrPermissionDenied, ExitDenied, 16, "the agent is below the minimum version"},
	{Withdrawn, errdefs.ErrPermissionDenied, ExitDenied, 16, "a signed release list denies the release"},
	{RevocationUnknown, errdefs.ErrPermissionDenied, ExitDenied, 17, "revocation could not be checked"},
	{PolicyInvalid, errdefs.ErrPermissionDenied, ExitDenied, 18, "the policy is missing or cannot be read"},
	{PolicyDenied, errdefs.ErrPermissionDenied, ExitDenied, 19, "the policy does not allow it"},
	{SnapshotMismatch, errdefs.ErrPermissionDenied, ExitDenied, 12, "the container's layers are not those of the verified image"},
	{ResourceLimit, errdefs.ErrResourceExhausted, ExitHostFailure, 20, "a limit is too small to run, or was exceeded"},
	// Never ErrNotImplemented: containerd takes that from a task call as a shim of
	// an older API, calls again by that, and in the end leaves the shim running.
	{Unsupported, errdefs.ErrFailedPrecondition, ExitHostFailure, 21, "not possible for a WASM agent or on this machine"},
	{NodeUnsound, errdefs.ErrFailedPrecondition, ExitHostFailure, 23, "the doctor found that a node does not verify what it should"},
	{CompileFailed, errdefs.ErrUnknown, ExitHostFailure, 22, "the module could not be compiled"},
	{Trap, errdefs.ErrAborted, ExitTrap, 120, "the guest trapped"},
	{Deadline, context.DeadlineExceeded, ExitDeadline, 121, "the run's deadline passed"},
	{CPUTime, context.DeadlineExceeded, ExitDeadline, 121, "the run's processor time is used up"},
	{OutOfMemory, errdefs.ErrResourceExhausted, ExitOutOfMemory, 122, "the guest ran out of memory"},
	{Canceled, context.Canceled, ExitHostFailure, 130, "the caller gave up"},
}

var rows = func() map[Reason]Row {
	m := make(map[Reason]Row, len(Table))
	for _, r := range Table {
		m[r.Reason] = r
	}
	return m
}()

// Error is a refusal or failure: what failed, on what, why and what to do.
type Error struct {
	Reason Reason
	// On is the subject: a file:line, a reference, a digest, a certificate.
	On string
	// Msg says what failed and why, without the subject.
	Msg string
	// Hint says what to do; it never suggests to weaken a policy.
	Hint string
	// Err is the cause, if there is one.
	Err error
}

// New returns an error with a reason, the subject it is about and a message.
func New(r Reason, on, format string, args ...any) *Error {
	return &Error{Reason: r, On: on, Msg: fmt.Sprintf(format, args...)}
}

// Wrap is [New] with a cause, whose text follows the message. A cause that was
// cancelled or ran into a deadline keeps the reason it is wrapped with.
func Wrap(err error, r Reason, on, format string, args ...any) *Error {
	return &Error{Reason: r, On: on, Msg: fmt.Sprintf(format, args...), Err: err}
}

// WithHint adds what the reader can do about it.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error gives one line: subject, message, cause, hint.
func (e *Error) Error() string {
	var b strings.Builder
	if e.On != "" {
		b.WriteString(e.On)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	if e.Err != nil {
		if e.Msg != "" {
			b.WriteString(": ")
		}
		b.WriteString(Text(e.Err))
	}
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteString(")")
	}
	return OneLine(b.String())
}

// Unwrap exposes the cause and the containerd error class, so that
// errdefs.IsPermissionDenied and errgrpc.ToGRPC see what they need.
func (e *Error) Unwrap() []error {
	class := RowOf(e.Reason).Class
	if e.Err == nil {
		return []error{class}
	}
	return []error{class, e.Err}
}

// RowOf returns the table's row; an unknown reason is an internal failure.
func RowOf(r Reason) Row {
	if row, ok := rows[r]; ok {
		return row
	}
	return rows[Internal]
}

// ReasonOf returns the reason of the outermost [Error] in err's tree, or what a
// bare context error means, or [Internal]. It returns "" for nil.
func ReasonOf(err error) Reason {
	var fe *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &fe):
		return fe.Reason
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	}
	return Internal
}

// ExitStatus is the agent exit status of err, 0 for nil.
func ExitStatus(err error) int {
	if err == nil {
		return 0
	}
	return RowOf(ReasonOf(err)).Exit
}

// CLICode is mentatctl's exit code for err, 0 for nil.
func CLICode(err error) int {
	if err == nil {
		return 0
	}
	return RowOf(ReasonOf(err)).CLI
}

// Text is err's text in one line; those of joined errors are parted by semicolons.
func Text(err error) string {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return OneLine(err.Error())
	}
	var plain, parts []string
	for _, part := range joined.Unwrap() {
		plain, parts = append(plain, part.Error()), append(parts, Text(part))
	}
	if strings.Join(plain, "\n") != err.Error() {
		return OneLine(err.Error()) // it has words of its own
	}
	return strings.Join(parts, "; ")
}

// OneLine folds line breaks and replaces control characters, those that turn
// the direction of text among them, so that text from outside cannot forge a
// second log line, drive a terminal or read as something else than it is.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\u2028' || r == '\u2029', unicode.Is(unicode.Bidi_Control, r):
			return '\uFFFD'
		}
		return r
	}, strings.TrimRight(s, "\r\n"))
}
