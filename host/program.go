package host

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/env"
	"github.com/mentatlab/mentat/host/filesystem"
	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/module"
)

// Options is what a program works with beside its document. The zero value
// serves what needs nothing.
type Options struct {
	// Stderr takes the log lines; nil discards them.
	Stderr io.Writer
	// Backends serve capabilities, by their kind; env and filesystem need none, and
	// another kind without one is UNSUPPORTED. [Program.Close] closes them.
	Backends map[string]backend.Backend
	// Media keeps media; nil is the document's directory, if it has one. The store
	// stays the caller's.
	Media media.Store
	// Metrics takes what guests measure; nil is a registry of the program's own.
	Metrics *metrics.Registry
	// Meters tell whoever is added what chats used; nil where nothing chats.
	Meters *backend.Meters
	// Recorder keeps decisions and runs; nil records nothing.
	Recorder Recorder
	// Locked is called once when everything is loaded, before the guest's first
	// instruction; its error is [Load]'s.
	Locked func() error
}

// IO is what one run works with.
type IO struct {
	// ID names the run in log lines and records.
	ID string
	// Input may be nil: no input. What a [bytes.Reader] or [strings.Reader] holds
	// has a known size.
	Input io.Reader
	Sink  output.Sink
	// Media are references that the run may read, beside the document's.
	Media []media.Ref
	// Freed, if not nil, is called once when what the run took was given back: not
	// after [Program.Run] returns, but for a guest that does not come back, when it
	// does.
	Freed func()
}

// Program is a loaded module and what all its runs share.
type Program struct {
	doc *hostdoc.Document
	o   Options
	log *logger
	mod *engine.Module
	// ready is the module with its imports resolved.
	ready *engine.Program
	dirs  []*os.File // of doc.Preopens
	// fresh says that runs have directories of their own, serial numbers them.
	fresh  bool
	serial atomic.Int64

	authority *authority
	backends  map[string]backend.Backend
	metrics   *metrics.Registry
	media     media.Store
	// given are the media that every run may read.
	given []media.Ref
	// own are what the program opened itself.
	own []io.Closer

	// funcs serve the imports, by number.
	funcs   []hostFunc
	globals []string
	// command says that the entry is _start, hasAlloc that the module exports
	// mentat_alloc, wasi that it uses WASI, reused that many runs are made of it.
	command, hasAlloc, wasi, reused bool

	described sync.Once // its metadata are logged
	// runs are those that still use the module, left behind ones too.
	runs sync.WaitGroup
}

// Load maps the compiled module and makes what all runs share. Nothing of the
// guest runs yet. The document stays the caller's and must not change.
func Load(doc *hostdoc.Document, o Options) (*Program, error) {
	return load(doc, o, newLogger(o.Stderr, doc), true)
}

func load(doc *hostdoc.Document, o Options, log *logger, reused bool) (_ *Program, err error) {
	for _, notice := range doc.Notices {
		log.log(levelWarn, fromHost, notice)
	}
	eng, err := shared()
	if err != nil {
		return nil, err
	}
	p := &Program{doc: doc, o: o, log: log, reused: reused}
	defer func() {
		if err != nil {
			p.free()
		}
	}()
	if p.mod, err = eng.Load(doc.Module); err != nil {
		return nil, loadError(doc.Module, err)
	}
	funcs, globals := p.mod.Exports()
	p.globals = globals
	p.hasAlloc = slices.Contains(funcs, "mentat_alloc")
	p.command = doc.Entry == hostdoc.EntryCommand || doc.Entry == "" && !slices.Contains(funcs, "process")
	if err := p.link(); err != nil {
		return nil, err
	}
	if err := p.serve(); err != nil {
		return nil, err
	}
	if reused {
		eng.KeepMemories(limits.KeptMemories, limits.KeptMemoryBytes)
	}
	if o.Locked != nil {
		if err := o.Locked(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// serve makes what serves the guest beside the engine.
func (p *Program) serve() (err error) {
	if p.authority, err = newAuthority(p.doc); err != nil {
		return err
	}
	if p.dirs, err = openDirs(p.doc.Preopens); err != nil {
		return err
	}
	if p.wasi {
		c := p.wasiConfig(request{}, p.dirs)
		if err := c.Check(); err != nil {
			return err
		}
	}
	p.fresh = slices.ContainsFunc(p.doc.Preopens, func(d hostdoc.Preopen) bool { return d.Fresh })
	if p.given, err = givenMedia(p.doc); err != nil {
		return err
	}
	store, own, err := mediaOf(p.doc, p.o.Media)
	if err != nil {
		return err
	}
	p.media = store
	if own != nil {
		p.own = append(p.own, own)
	}
	if p.metrics = p.o.Metrics; p.metrics == nil {
		p.metrics = metrics.New()
	}
	p.backends = p.localBackends()
	maps.Copy(p.backends, p.o.Backends)
	return nil
}

// MemoryInUse is the size of the memories of all guests that there are, in bytes.
func MemoryInUse() int64 { return engine.MemoryInUse() }

// localBackends serve what the document alone says, where something is granted.
func (p *Program) localBackends() map[string]backend.Backend {
	local := map[string]backend.Backend{}
	for _, kind := range p.authority.kinds {
		switch kind {
		case manifest.KindEnv:
			local[kind] = env.New(p.doc.Env)
		case manifest.KindFilesystem:
			local[kind] = filesystem.New(p.filesOf(p.dirs))
		}
	}
	return local
}

// Run runs the guest once, in an instance of its own, and says how it ended.
// Any number may go on at once, each of which takes a thread while it lasts. When
// the context is cancelled the guest is asked to end and, after
// [limits.DrainGrace], interrupted; with the cause [output.ErrGone] at once, for
// nobody would see what it still does. A sink that may block should be an
// [output.Interrupter]: else its calls hold up the end of the run. The sink is
// not touched after Run has returned, unless the guest was left behind, as it may
// be when the document has preopens. A read of the input that waits goes on until
// it returns.
//
// The error is nil when the guest ended by itself, whatever its status, and
// else what the exit's reason says.
func (p *Program) Run(ctx context.Context, io IO) (hostdoc.Exit, error) {
	log := p.log.of(io.ID)
	return p.run(ctx, request{id: io.ID, in: newInput(io.Input), sink: io.Sink, media: io.Media, freed: io.Freed, began: time.Now()}, log)
}

// Close frees the program. No run may begin any more; what was left behind keeps
// what it uses until it comes back.
func (p *Program) Close() error {
	var errs []error
	for _, b := range p.o.Backends {
		if b != nil {
			errs = append(errs, b.Close())
		}
	}
	back := make(chan struct{})
	go func() {
		p.runs.Wait()
		p.free()
		close(back)
	}()
	select {
	case <-back:
	case <-time.After(limits.StopGrace):
	}
	return errors.Join(errs...)
}

func (p *Program) free() {
	closeAll(p.dirs)
	for _, c := range p.own {
		_ = c.Close() // only read
	}
	if p.ready != nil {
		p.ready.Close()
	}
	if p.mod != nil {
		p.mod.Close()
	}
}

// link finds a server for every import, by name and by the type under which the
// module imports it.
func (p *Program) link() error {
	imports := p.mod.Imports()
	served := make([]engine.Served, len(imports))
	var unknown []string
	for i, im := range imports {
		known := module.Lookup(im.Module, im.Name)
		if !im.Func || known == nil || !known.Accepts(module.FuncType{Params: valTypes(im.Params), Results: valTypes(im.Results)}) {
			unknown = append(unknown, im.Module+"."+im.Name)
			continue
		}
		serve := p.resolve(im)
		if serve == nil {
			unknown = append(unknown, im.Module+"."+im.Name)
			continue
		}
		served[i] = engine.Served{Number: len(p.funcs), Kind: kinds[[2]string{im.Module, im.Name}]}
		p.funcs = append(p.funcs, hostFunc{im.Module, im.Name, len(im.Params), len(im.Results), serve})
	}
	if len(unknown) > 0 {
		return fault.New(fault.ModuleInvalid, p.doc.Agent.ID, "imports what this host does not provide: %s", strings.Join(unknown, ", "))
	}
	ready, err := p.mod.Prepare(served, abiVersion)
	if err != nil {
		return fault.Wrap(err, fault.Internal, p.doc.Agent.ID, "cannot link the module")
	}
	p.ready = ready
	return nil
}

// kinds are of the functions that are served without Go where that is possible.
var kinds = map[[2]string]engine.Kind{
	{module.ModuleMentat, "abi_version"}: engine.ServesVersion,
	{module.ModuleMentat, "read"}:        engine.ServesRead,
	{module.ModuleWASI, "fd_read"}:       engine.ServesFDRead,
	{module.ModuleWASI, "fd_write"}:      engine.ServesFDWrite,
	{module.ModuleWASI, "fd_pread"}:      engine.ServesFDPread,
	{module.ModuleWASI, "fd_pwrite"}:     engine.ServesFDPwrite,
	{module.ModuleWASI, "fd_seek"}:       engine.ServesFDSeek,
	{module.ModuleWASI, "fd_tell"}:       engine.ServesFDTell,
}

func valTypes(b []byte) []module.ValType {
	out := make([]module.ValType, len(b))
	for i, t := range b {
		out[i] = module.ValType(t)
	}
	return out
}

// loadError explains why a compiled module cannot be mapped.
func loadError(path string, err error) error {
	e := fault.Wrap(err, fault.Internal, path, "cannot load the compiled module")
	var st unix.Statfs_t
	switch {
	case unix.Access(path, unix.R_OK) != nil:
		return e.WithHint("the file is missing, or its owner is not the user the run has")
	case unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOEXEC != 0:
		return e.WithHint("it lies on a filesystem that is mounted noexec: move the cache to one that is not")
	}
	return e.WithHint("it was compiled for another machine or version: remove it from the cache")
}
