package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/extension"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/secret"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/version"
	"github.com/mentatlab/mentat/manifest"
)

// Services serve capabilities of a document beyond those of package host.
type Services struct {
	// Backends are by the kind of capability; the program that was loaded with
	// them closes them.
	Backends map[string]backend.Backend
	// Media keeps media, or is nil; it is closed after the program.
	Media media.Store
}

// Options are what one program has beyond the others.
type Options struct {
	// Name is the program's.
	Name string
	// Services opens what the document asks for of a network; nil refuses such a
	// document. Nothing of the guest has run when it is called, and the process is
	// not locked.
	Services func(doc *hostdoc.Document, secrets hostdoc.Secrets, meters *backend.Meters) (Services, error)
	// Serve answers requests, as the document's Serve says, until the context
	// ends, and reports the exit; nil refuses such a document.
	Serve func(ctx context.Context, doc *hostdoc.Document, o host.Options) hostdoc.Exit
	// Early judges what the process was locked into before it began, by the
	// arguments behind the flags, and tells what the kernel could not do. Locked
	// puts on the rest, once everything is loaded. Both nil refuses a document with
	// a lock, and such arguments.
	Early  func(lock *hostdoc.Lock, args []string) (missing []string, err error)
	Locked func(lock *hostdoc.Lock) error
}

// Main runs a command line without the program's name, and returns the exit
// status: the agent's or MentatLab's own.
func Main(args []string, o Options) int {
	if len(args) == 0 {
		return Usage(o.Name, "which of its commands? run and version are there")
	}
	switch args[0] {
	case "run":
		return run(args[1:], o)
	case "version", "--version":
		fmt.Fprintln(os.Stdout, o.Name, version.Version, host.Engine)
		return 0
	}
	return Usage(o.Name, fmt.Sprintf("unknown command %q, there are run and version", args[0]))
}

// Usage prints what is wrong with a command line, and returns the exit code.
func Usage(name, message string) int {
	return Finish(fault.New(fault.Usage, name, "%s", message))
}

// Finish prints an error and turns it into an exit code.
func Finish(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return fault.CLICode(err)
}

func run(args []string, o Options) int {
	flags := flag.NewFlagSet(o.Name+" run", flag.ContinueOnError)
	document := flags.String("document", hostdoc.Path, "the host document")
	if err := flags.Parse(args); err != nil {
		return fault.RowOf(fault.Usage).Exit
	}
	if flags.NArg() > 0 && o.Early == nil {
		fmt.Fprintln(os.Stderr, fault.New(fault.Usage, o.Name+" run", "unexpected argument %q", flags.Arg(0)))
		return fault.RowOf(fault.Usage).Exit
	}
	frugal()
	settle()
	doc, err := hostdoc.Read(*document)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return fault.ExitStatus(err)
	}
	options, done, err := o.open(doc, flags.Args())
	if err != nil {
		return refuse(doc, err)
	}
	defer done()
	ctx := signals(doc)
	if doc.Serve != nil {
		return o.Serve(ctx, doc, options).Status
	}
	exit, _ := host.Once(ctx, doc, options, host.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	return exit.Status
}

// refuse reports a run that could not begin.
func refuse(doc *hostdoc.Document, err error) int {
	exit := hostdoc.Exit{
		Version: hostdoc.Version, Status: fault.ExitStatus(err),
		Reason: string(fault.ReasonOf(err)), Message: fault.OneLine(err.Error()),
	}
	newLog(os.Stderr, doc).line("error", "host", exit.Message)
	if err := host.Report(doc, exit); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return exit.Status
}

// open makes what the document asks for. done frees what the loaded program does
// not close.
func (o Options) open(doc *hostdoc.Document, args []string) (_ host.Options, done func(), err error) {
	if err := o.check(doc); err != nil {
		return host.Options{}, nil, err
	}
	options := host.Options{Stderr: os.Stderr, Backends: map[string]backend.Backend{}}
	if o.Early != nil {
		missing, err := o.Early(doc.Lock, args)
		if err != nil {
			return host.Options{}, nil, err
		}
		doc.Notices = append(doc.Notices, missing...)
	}
	if o.Locked != nil {
		options.Locked = func() error { return o.Locked(doc.Lock) }
	}
	secrets, err := readSecrets(doc)
	if err != nil {
		return host.Options{}, nil, err
	}
	log := newLog(os.Stderr, doc)
	// Before the lock, which leaves only its directory.
	records, err := audit.NewRecorder(doc, time.Now)
	if err != nil {
		return host.Options{}, nil, err
	}
	if records != nil {
		options.Recorder = recorder{records}
	}
	if len(doc.Extensions) > 0 {
		programs, err := extension.Start(context.Background(), doc.Extensions, func(name, line string) {
			log.line("info", "extension "+name, line)
		})
		if err != nil {
			return host.Options{}, nil, err
		}
		options.Backends[manifest.KindExtension] = programs
	}
	done = func() {
		if err := records.Close(); err != nil {
			log.line("warn", "host", err.Error())
		}
	}
	if o.Services != nil {
		options.Meters = new(backend.Meters)
		options.Meters.Add(func(u backend.Usage) { log.line("info", "host", usageLine(u)) })
		s, err := o.Services(doc, secrets, options.Meters)
		if err != nil {
			return host.Options{}, nil, errors.Join(err, closeAll(options.Backends))
		}
		for kind, b := range s.Backends {
			options.Backends[kind] = b
		}
		if options.Media = s.Media; s.Media != nil {
			recorded := done
			done = func() {
				_ = s.Media.Close() // nothing is left to write
				recorded()
			}
		}
	}
	return options, done, nil
}

// usageLine says what a chat used.
func usageLine(u backend.Usage) string {
	counted := ""
	if u.Estimated {
		counted = " (estimated)"
	}
	return fmt.Sprintf("run %s: a chat with %s of the provider %s used %d prompt and %d completion tokens%s", u.Run, u.Model, u.Provider, u.Prompt, u.Completion, counted)
}

func closeAll(backends map[string]backend.Backend) error {
	var errs []error
	for _, b := range backends {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}

// check refuses what this program cannot do.
func (o Options) check(doc *hostdoc.Document) error {
	var lacks []string
	need := func(what string, asked, have bool) {
		if asked && !have {
			lacks = append(lacks, what)
		}
	}
	need("network capabilities", doc.Network != nil, o.Services != nil)
	need("llm capabilities", doc.LLM != nil, o.Services != nil)
	need("media in S3", doc.Media != nil && doc.Media.S3 != nil, o.Services != nil)
	need("serving requests", doc.Serve != nil, o.Serve != nil)
	need("the document's lock", doc.Lock != nil, o.Early != nil && o.Locked != nil)
	if len(lacks) > 0 {
		return fault.New(fault.Unsupported, doc.Instance, "%s does not have what the run needs: %s", o.Name, strings.Join(lacks, ", ")).
			WithHint("mentat-host-net has what needs a network")
	}
	return nil
}

// readSecrets reads the secrets into a process that nobody can look into.
func readSecrets(doc *hostdoc.Document) (hostdoc.Secrets, error) {
	if doc.SecretsFile == "" {
		return nil, nil
	}
	err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, doc.Instance, "cannot keep the secrets out of core dumps")
	}
	return secret.Read(doc.SecretsFile)
}

// frugal keeps the host small beside its guest. One thread runs the guest; the
// collector has a few hundred KiB to look after; the engine's WASI starts a
// thread per processor unless told otherwise.
func frugal() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(50)
	// Cannot fail for such names.
	_ = os.Setenv("TOKIO_WORKER_THREADS", "1")
}

// signals returns a context that the first SIGTERM or SIGINT cancels; a second
// one ends the process at once. SIGPIPE becomes an error of the write.
func signals(doc *hostdoc.Document) context.Context {
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.Background())
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		first, _ := (<-c).(syscall.Signal)
		cancel(host.Signal(first))
		second, _ := (<-c).(syscall.Signal)
		status := 128 + int(second)
		// The process ends either way.
		_ = host.Report(doc, hostdoc.Exit{Version: hostdoc.Version, Status: status, Reason: string(fault.Canceled), Message: host.Signal(second).Error()})
		os.Exit(status) //nolint:forbidigo // the second signal is a wish to end at once
	}()
	return ctx
}
