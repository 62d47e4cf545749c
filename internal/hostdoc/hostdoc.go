package hostdoc

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Version is the document's version. A host runs exactly the versions it knows.
const Version = 1

// Where things are inside a container. The directory is mounted read-only but
// for [StateDir].
const (
	Dir        = "/run/mentat"
	Path       = Dir + "/host.json"
	HostPath   = Dir + "/host"
	ModulePath = Dir + "/module.cwasm"
	StateDir   = Dir + "/state"
	ExitPath   = StateDir + "/exit.json"
	InputPath  = Dir + "/input"
)

// Entry kinds (abi.md, Entry).
const (
	EntryProcess = "process"
	EntryCommand = "command"
)

// Input kinds (abi.md, Input).
const (
	InputStdin = "stdin"
	InputFile  = "file"
	InputText  = "text"
)

// Document describes one run.
type Document struct {
	Version int   `json:"version"`
	Agent   Agent `json:"agent"`
	// Instance is the container's id, or a run id of mentatctl.
	Instance string `json:"instance"`
	// Entry is [EntryProcess] or [EntryCommand]; empty leaves it to the module's
	// exports, process before _start.
	Entry string `json:"entry,omitempty"`
	// Module is the path of the compiled module as the host sees it.
	Module string `json:"module"`
	Input  Input  `json:"input"`
	// Args are a WASI command's arguments; Args[0] is the program's name.
	Args []string `json:"args,omitempty"`
	// Env is what the guest may see, as KEY=VALUE.
	Env []string `json:"env,omitempty"`
	// Preopens are the directories the guest may use.
	Preopens []Preopen `json:"preopens,omitempty"`
	// Config is what get_config answers from.
	Config map[string]string `json:"config,omitempty"`
	// Capabilities are the granted capability strings, canonical.
	Capabilities []string `json:"capabilities,omitempty"`
	Limits       Limits   `json:"limits"`
	// ExitFile and Termination, if not empty, are files that receive the run's
	// [Exit] as JSON and its reason as one line.
	ExitFile    string `json:"exitFile,omitempty"`
	Termination string `json:"termination,omitempty"`
	// LogFormat is "text" or "json".
	LogFormat string `json:"logFormat"`
	// Notices are lines to log before the run, e.g. what was withheld.
	Notices []string `json:"notices,omitempty"`
}

// Agent says who runs, as far as it was verified.
type Agent struct {
	ID        string `json:"id"`
	Version   string `json:"version"`
	Reference string `json:"reference,omitempty"`
	// Manifest and Module are digests.
	Manifest string `json:"manifest,omitempty"`
	Module   string `json:"module"`
	Trust    string `json:"trust"`
	Signer   string `json:"signer,omitempty"`
}

// Input says where the run's input comes from.
type Input struct {
	Kind string `json:"kind"`
	// Path is the file of kind "file", as the host sees it.
	Path string `json:"path,omitempty"`
	// Text is the input of kind "text".
	Text string `json:"text,omitempty"`
}

// Preopen is one directory grant.
type Preopen struct {
	// Host is the directory as the host sees it, Guest the guest's name for it.
	Host     string `json:"host"`
	Guest    string `json:"guest"`
	ReadOnly bool   `json:"readOnly"`
}

// Limits bound the run.
type Limits struct {
	// MemoryBytes bounds the guest's linear memories together.
	MemoryBytes int64 `json:"memoryBytes"`
	// DeadlineMillis bounds the run's wall time; 0 is none.
	DeadlineMillis int64 `json:"deadlineMillis,omitempty"`
	// InputBytes and OutputBytes bound what goes in and out.
	InputBytes  int64 `json:"inputBytes"`
	OutputBytes int64 `json:"outputBytes"`
}

// Exit is how a run ended.
type Exit struct {
	Version int `json:"version"`
	// Status is the exit status of the process.
	Status int `json:"status"`
	// Reason is a fault reason, empty when the guest ended by itself.
	Reason string `json:"reason,omitempty"`
	// Message is one line for people: what happened, in which function, why.
	Message string `json:"message,omitempty"`
	// Function is the guest function in which a trap happened.
	Function string `json:"function,omitempty"`
}

// Read reads a document strictly from a file.
func Read(path string) (*Document, error) {
	data, err := limits.ReadFile(path, limits.HostDocumentBytes)
	if errors.Is(err, limits.ErrExceeded) {
		return nil, fault.Wrap(err, fault.ResourceLimit, path, "cannot read the host document")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, path, "cannot read the host document")
	}
	return Parse(path, data)
}

// Parse decodes a document strictly; name is used in errors. It accepts only
// what [Document.Marshal] writes, to the byte: that leaves no room for a key
// that is there twice or in another case, which encoding/json would take.
func Parse(name string, data []byte) (*Document, error) {
	if len(data) > limits.HostDocumentBytes {
		return nil, fault.New(fault.ResourceLimit, name, "the host document is over %d bytes", limits.HostDocumentBytes)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fault.Wrap(err, fault.Internal, name, "the host document is not JSON")
	}
	if head.Version != Version {
		return nil, fault.New(fault.Unsupported, name, "host document version %d, this host knows %d", head.Version, Version).
			WithHint("the shim and mentat-host must be of one installation")
	}
	d := new(Document)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, fault.Wrap(err, fault.Internal, name, "the host document is malformed")
	}
	if err := d.check(name); err != nil {
		return nil, err
	}
	again, err := d.encode()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, name, "cannot encode the host document")
	}
	if !bytes.Equal(again, data) {
		return nil, fault.New(fault.Internal, name, "the host document is not as it is written: a key is there twice, in another case or place, or a text is not UTF-8")
	}
	return d, nil
}

func (d *Document) check(name string) error {
	if d.Entry != "" && d.Entry != EntryProcess && d.Entry != EntryCommand {
		return fault.New(fault.Internal, name, "entry %q, allowed are %q and %q", d.Entry, EntryProcess, EntryCommand)
	}
	switch d.Input.Kind {
	case InputStdin, InputFile, InputText:
	default:
		return fault.New(fault.Internal, name, "input kind %q, allowed are %q, %q and %q", d.Input.Kind, InputStdin, InputFile, InputText)
	}
	if d.Limits.MemoryBytes <= 0 || d.Limits.InputBytes <= 0 || d.Limits.OutputBytes <= 0 || d.Limits.DeadlineMillis < 0 {
		return fault.New(fault.Internal, name, "limits must be set")
	}
	return nil
}

// Marshal encodes the document, and refuses one that [Parse] would refuse: the
// writer knows more about what went wrong than the host in its container.
func (d *Document) Marshal() ([]byte, error) {
	d.Version = Version
	data, err := d.encode()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, d.Instance, "cannot encode the host document")
	}
	if _, err := Parse(d.Instance, data); err != nil {
		return nil, err
	}
	return data, nil
}

func (d *Document) encode() ([]byte, error) { return json.MarshalIndent(d, "", "  ") }
