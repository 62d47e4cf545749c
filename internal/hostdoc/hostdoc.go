package hostdoc

import (
	"bytes"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Version is the document's version. A host runs exactly the versions it knows.
const Version = 2

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
	// SecretsPath holds what only the host may read ([Secrets]).
	SecretsPath = Dir + "/secrets.json"
	// CAPath is the node's own bundle of certificate authorities.
	CAPath = Dir + "/ca.pem"
	// MediaDir is the node's media store, AuditDir takes this run's records.
	MediaDir = Dir + "/media"
	AuditDir = Dir + "/audit"
	// ExtensionDir holds the programs of extensions, each under its name.
	ExtensionDir = Dir + "/extension"
)

// Network modes.
const (
	NetworkNone       = "none"
	NetworkRestricted = "restricted"
	NetworkFull       = "full"
)

// Framings of the output.
const (
	FramingRaw    = "raw"
	FramingNDJSON = "ndjson"
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
	// Grants are what the agent may do, Denials what its manifest asks for and
	// it may not; both name the rule that decided.
	Grants  []Grant  `json:"grants,omitempty"`
	Denials []Denial `json:"denials,omitempty"`
	// Holes are what denials cut out of the grants: a request that one of them
	// covers is refused although a grant covers it, too.
	Holes []Hole `json:"holes,omitempty"`
	// Network, LLM, Media and Extensions say how the granted capabilities of
	// their kinds are served; nil where there is none.
	Network    *Network    `json:"network,omitempty"`
	LLM        *LLM        `json:"llm,omitempty"`
	Media      *Media      `json:"media,omitempty"`
	Extensions []Extension `json:"extensions,omitempty"`
	// SecretsFile, if not empty, is a file with [Secrets].
	SecretsFile string `json:"secretsFile,omitempty"`
	// Framing is how the output is written; empty is [FramingRaw].
	Framing string `json:"framing,omitempty"`
	// Serve makes the host a server instead of running the agent once.
	Serve *Serve `json:"serve,omitempty"`
	// Audit says where decisions and runs are recorded; nil records nothing.
	Audit *Audit `json:"audit,omitempty"`
	// Lock says what the host takes from itself before the guest's first
	// instruction; nil takes nothing, for a run without walls of its own.
	Lock   *Lock  `json:"lock,omitempty"`
	Limits Limits `json:"limits"`
	// ExitFile and Termination, if not empty, are files that receive the run's
	// [Exit] as JSON and its reason as one line.
	ExitFile    string `json:"exitFile,omitempty"`
	Termination string `json:"termination,omitempty"`
	// LogFormat is "text" or "json".
	LogFormat string `json:"logFormat"`
	// Notices are lines to log before the run, e.g. what was withheld.
	Notices []string `json:"notices,omitempty"`
}

// Connects tells whether the run needs the host that has a network: the lean one
// neither opens nor takes a connection.
func (d *Document) Connects() bool {
	return d.Serve != nil || d.Network != nil || d.LLM != nil || d.Media != nil && d.Media.S3 != nil
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
	// Fresh gives each run a new directory below Host, which goes with it.
	Fresh bool `json:"fresh,omitempty"`
}

// Grant is one capability that the agent may use.
type Grant struct {
	// Capability is the canonical string.
	Capability string `json:"capability"`
	// Rule names what allowed it: a rule of the node's policy, or the operator.
	Rule string `json:"rule,omitempty"`
}

// Denial is one capability that the manifest asks for and of which the agent may
// use nothing, or no more than the grants say.
type Denial struct {
	Capability string `json:"capability"`
	// Rule names what denied it, Reason says why in a sentence.
	Rule   string `json:"rule"`
	Reason string `json:"reason"`
}

// Hole is a denial that lies within a grant.
type Hole struct {
	// Capability is the canonical string of what is denied. One of a network
	// without a port denies every port, and one of an address range denies every
	// name that resolves into it.
	Capability string `json:"capability"`
	// Rule names the denial.
	Rule string `json:"rule"`
	// DryRun lets the request pass: it is only counted.
	DryRun bool `json:"dryRun,omitempty"`
}

// Network says how network capabilities are served.
type Network struct {
	// Mode is [NetworkRestricted], which follows the grants, or [NetworkFull],
	// which reaches every public host. There is no [NetworkNone]: it is a nil
	// Network.
	Mode string `json:"mode"`
	// FullRule names the rule that allowed [NetworkFull].
	FullRule string `json:"fullRule,omitempty"`
	// AllowPrivate are address ranges that are reachable although they are not
	// public, as CIDR.
	AllowPrivate []string `json:"allowPrivate,omitempty"`
	BlockedPorts []int    `json:"blockedPorts,omitempty"`
	// CAFile holds the trusted certificate authorities; empty is the system's.
	CAFile string `json:"caFile,omitempty"`
	// Inject are credentials that the host adds to requests.
	Inject []Injection   `json:"inject,omitempty"`
	Limits NetworkLimits `json:"limits"`
}

// NetworkLimits bound the requests of one host process together.
type NetworkLimits struct {
	Concurrent    int   `json:"concurrent"`
	RequestBytes  int64 `json:"requestBytes"`
	ResponseBytes int64 `json:"responseBytes"`
	TimeoutMillis int64 `json:"timeoutMillis"`
}

// Injection adds a secret to every request that Capability covers. The guest
// never sees it.
type Injection struct {
	// Capability is a network capability string.
	Capability string `json:"capability"`
	// Exactly one of Header and Query names where the value goes.
	Header string `json:"header,omitempty"`
	Query  string `json:"query,omitempty"`
	// Prefix stands before the secret in a header, like "Bearer ".
	Prefix string `json:"prefix,omitempty"`
	// Secret is a key of [Secrets].
	Secret string `json:"secret"`
}

// LLM says how llm capabilities are served.
type LLM struct {
	Providers []LLMProvider `json:"providers"`
	// Tokens bounds the tokens of one run, prompt and completion together; 0 is
	// no bound.
	Tokens int64 `json:"tokens,omitempty"`
	// CAFile is as that of [Network].
	CAFile string `json:"caFile,omitempty"`
}

// LLMProvider is an endpoint of the OpenAI-compatible protocol.
type LLMProvider struct {
	Name string `json:"name"`
	// URL is the base, like https://api.example.com/v1.
	URL string `json:"url"`
	// Models are names, or beginnings of names followed by "*".
	Models []string `json:"models"`
	// Secret is a key of [Secrets], sent as a bearer token; empty sends none.
	Secret string `json:"secret,omitempty"`
}

// Media says where media are kept. Exactly one of Dir and S3 is set.
type Media struct {
	Dir string   `json:"dir,omitempty"`
	S3  *MediaS3 `json:"s3,omitempty"`
	// Given are references that this run may read besides those it wrote.
	Given []string `json:"given,omitempty"`
	// ItemBytes bounds one object, TotalBytes what one run may upload.
	ItemBytes  int64 `json:"itemBytes"`
	TotalBytes int64 `json:"totalBytes"`
}

// MediaS3 is a bucket of S3-compatible storage.
type MediaS3 struct {
	// Endpoint is a URL, like https://s3.example.com.
	Endpoint string `json:"endpoint"`
	Region   string `json:"region,omitempty"`
	Bucket   string `json:"bucket"`
	Prefix   string `json:"prefix,omitempty"`
	// AccessKey and SecretKey are keys of [Secrets].
	AccessKey string `json:"accessKey"`
	SecretKey string `json:"secretKey"`
	// CAFile is as that of [Network].
	CAFile string `json:"caFile,omitempty"`
}

// Extension is an out-of-process plugin that serves extension:NAME.
type Extension struct {
	Name string `json:"name"`
	// Command starts the plugin, which speaks over its standard streams.
	Command []string `json:"command"`
}

// Serve makes the host answer HTTP requests, each with a fresh instance. Limits
// hold for each of them: InputBytes bounds a request's body, DeadlineMillis its
// run.
type Serve struct {
	// Listen is host:port; the host may be empty, which is every address.
	Listen string `json:"listen"`
	// Socket, if not 0, is the descriptor of a socket that listens there already.
	Socket int `json:"socket,omitempty"`
	// Concurrent bounds the instances at once, Queue the requests that wait.
	Concurrent int `json:"concurrent"`
	Queue      int `json:"queue"`
	// BufferBytes bounds the bodies that are held in memory at once.
	BufferBytes int64 `json:"bufferBytes"`
	// ContentType is what the output is; empty leaves it to what it looks like.
	ContentType string `json:"contentType,omitempty"`
	// DrainMillis is how long SIGTERM lets requests finish. In the first
	// NoticeMillis of it new ones are still taken, while /readyz already says no.
	DrainMillis  int64 `json:"drainMillis"`
	NoticeMillis int64 `json:"noticeMillis,omitempty"`
}

// Audit says where records go.
type Audit struct {
	// Dir is a directory that the receiver reads.
	Dir string `json:"dir"`
	// Bytes bounds what may wait there.
	Bytes int64 `json:"bytes"`
}

// Lock is what the host locks itself into.
type Lock struct {
	// Dial keeps the right to open connections, Listen one to accept them; the
	// listening socket itself is opened before.
	Dial   bool `json:"dial,omitempty"`
	Listen bool `json:"listen,omitempty"`
	// Read and Write are the directories and files that stay reachable, Write
	// for reading too. All paths are absolute and clean.
	Read  []string `json:"read,omitempty"`
	Write []string `json:"write,omitempty"`
	// Execute are the programs that the host starts before it locks itself
	// ([Extension]). They inherit the limits on files and signals.
	Execute []string `json:"execute,omitempty"`
}

// Args are the words that follow the document's path on the host's command line:
// a part of the lock is put on before the host can read a document. They are
// one to one with the lock; nil gives none.
func (l *Lock) Args() []string {
	if l == nil {
		return nil
	}
	args := []string{"lock"}
	if l.Dial {
		args = append(args, "dial")
	}
	if l.Listen {
		args = append(args, "listen")
	}
	for _, list := range []struct {
		word  string
		paths []string
	}{{"read=", l.Read}, {"write=", l.Write}, {"execute=", l.Execute}} {
		for _, p := range list.paths {
			args = append(args, list.word+p)
		}
	}
	return args
}

func (l *Lock) check(name string) error {
	if l == nil {
		return nil
	}
	for _, p := range slices.Concat(l.Read, l.Write, l.Execute) {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fault.New(fault.Internal, name, "the lock names %q, allowed are absolute paths without detours", p)
		}
	}
	return nil
}

// LeastLock is the narrowest lock that the document, at a path that the host
// sees, can be run under: what it names and nothing else. Whoever lets the host
// resolve names adds the files for that.
func (d *Document) LeastLock(document string) *Lock {
	l := &Lock{
		Dial:   d.Network != nil || d.LLM != nil || d.Media != nil && d.Media.S3 != nil,
		Listen: d.Serve != nil,
	}
	add := func(list *[]string, p string) {
		if p != "" && !slices.Contains(*list, p) {
			*list = append(*list, p)
		}
	}
	for _, p := range []string{document, d.Module, d.SecretsFile} {
		add(&l.Read, p)
	}
	if d.Network != nil {
		add(&l.Read, d.Network.CAFile)
	}
	if d.LLM != nil {
		add(&l.Read, d.LLM.CAFile)
	}
	if d.Media != nil && d.Media.S3 != nil {
		add(&l.Read, d.Media.S3.CAFile)
	}
	if d.Input.Kind == InputFile {
		in := d.Input.Path
		if in == InputPath || strings.HasPrefix(in, InputPath+"/") {
			in = InputPath // a volume, whose links lead within it
		}
		add(&l.Read, in)
	}
	for _, p := range d.Preopens {
		if p.ReadOnly {
			add(&l.Read, p.Host)
		} else {
			add(&l.Write, p.Host)
		}
	}
	if d.ExitFile != "" {
		add(&l.Write, path.Dir(d.ExitFile)) // where it is still to be made
	}
	add(&l.Write, d.Termination)
	if d.Media != nil {
		add(&l.Write, d.Media.Dir)
	}
	if d.Audit != nil {
		add(&l.Write, d.Audit.Dir)
	}
	for _, e := range d.Extensions {
		if len(e.Command) > 0 {
			add(&l.Execute, e.Command[0])
		}
	}
	return l
}

// Command is the command line that runs a document with a host.
func Command(host, document string, l *Lock) []string {
	return append([]string{host, "run", "--document", document}, l.Args()...)
}

// Secrets are values by name, as JSON in [Document.SecretsFile].
type Secrets map[string]string

// Limits bound the run.
type Limits struct {
	// MemoryBytes bounds the guest's linear memories together.
	MemoryBytes int64 `json:"memoryBytes"`
	// DeadlineMillis bounds the run's wall time; 0 is none.
	DeadlineMillis int64 `json:"deadlineMillis,omitempty"`
	// CPUMillis bounds the run's processor time; 0 is none.
	CPUMillis int64 `json:"cpuMillis,omitempty"`
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
	if err := checkSize(name, data); err != nil {
		return nil, err
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
	switch d.Framing {
	case "", FramingRaw, FramingNDJSON:
	default:
		return fault.New(fault.Internal, name, "framing %q, allowed are %q and %q", d.Framing, FramingRaw, FramingNDJSON)
	}
	if n := d.Network; n != nil && n.Mode != NetworkRestricted && n.Mode != NetworkFull {
		return fault.New(fault.Internal, name, "network mode %q, allowed are %q and %q", n.Mode, NetworkRestricted, NetworkFull)
	}
	if m := d.Media; m != nil && (m.Dir == "") == (m.S3 == nil) {
		return fault.New(fault.Internal, name, "media are kept in a directory or in S3, exactly one")
	}
	if s := d.Serve; s != nil {
		switch {
		case s.Concurrent < 1 || s.Concurrent > limits.ServeConcurrent || s.Queue < 0 || s.Queue > limits.ServeQueue:
			return fault.New(fault.Internal, name, "%d requests at once and %d waiting, allowed are 1 to %d and 0 to %d", s.Concurrent, s.Queue, limits.ServeConcurrent, limits.ServeQueue)
		case s.Listen == "" || s.Socket < 0 || s.Socket > 0 && s.Socket < 3:
			return fault.New(fault.Internal, name, "an address to listen on and, if there is a socket, its descriptor are required")
		case s.BufferBytes < d.Limits.InputBytes || s.NoticeMillis < 0 || s.DrainMillis < s.NoticeMillis:
			return fault.New(fault.Internal, name, "what is held must hold one request, and the time to drain the notice")
		case d.Limits.DeadlineMillis == 0:
			return fault.New(fault.Internal, name, "a served run has a deadline")
		}
	}
	if err := d.Lock.check(name); err != nil {
		return err
	}
	if d.Limits.MemoryBytes <= 0 || d.Limits.InputBytes <= 0 || d.Limits.OutputBytes <= 0 || d.Limits.DeadlineMillis < 0 || d.Limits.CPUMillis < 0 {
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
	if err := checkSize(d.Instance, data); err != nil {
		return nil, err
	}
	if err := d.check(d.Instance); err != nil {
		return nil, err
	}
	if replacedText(data) {
		return nil, fault.New(fault.Internal, d.Instance, "the host document would hold a text that is not UTF-8")
	}
	return data, nil
}

// replacedText tells whether the encoder put its escape for invalid UTF-8
// anywhere. The character itself it writes as it is, and a text with the letters
// of the escape has a second backslash before them.
func replacedText(data []byte) bool {
	const escape = `\ufffd`
	for at := 0; ; at += len(escape) {
		i := bytes.Index(data[at:], []byte(escape))
		if i < 0 {
			return false
		}
		at += i
		before := len(data[:at]) - len(bytes.TrimRight(data[:at], `\`))
		if before%2 == 0 {
			return true
		}
	}
}

func checkSize(name string, data []byte) error {
	if len(data) > limits.HostDocumentBytes {
		return fault.New(fault.ResourceLimit, name, "the host document is over %d bytes", limits.HostDocumentBytes)
	}
	return nil
}

func (d *Document) encode() ([]byte, error) { return json.MarshalIndent(d, "", "  ") }
