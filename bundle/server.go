package bundle

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// serving makes the document that of a server, if the manifest says so: fitted
// into the container's memory, which holds every instance at once.
func (r *wasmRun) serving(spec *specs.Spec, doc *hostdoc.Document) error {
	agent := r.artifact.Agent
	if !agent.Serving() {
		return nil
	}
	if doc.Input.Kind == hostdoc.InputFile {
		return fault.New(fault.Usage, r.id, "the agent is served, so its input is that of its requests, not the file %s", doc.Input.Path).
			WithHint("leave the annotation %s and the variable %s out", inputAnnotation, inputEnv)
	}
	doc.Input = hostdoc.Input{Kind: hostdoc.InputStdin}
	doc.Serve = agent.Served("")
	doc.Limits.InputBytes = agent.BodyLimit()
	// A temporary directory lives as long as the run, and a run is a request.
	doc.Preopens = slices.Clone(doc.Preopens)
	for i, p := range doc.Preopens {
		_, doc.Preopens[i].Fresh = r.grant.TempDirs[p.Guest]
	}
	if doc.Limits.DeadlineMillis == 0 {
		doc.Limits.DeadlineMillis = limits.DefaultServeDeadline.Milliseconds()
	}
	fit, err := fitServed(r.id, agent, doc.Serve, memoryLimit(spec.Linux.Resources))
	if err != nil {
		return err
	}
	if fit.Concurrent < doc.Serve.Concurrent {
		doc.Notices = append(doc.Notices, fmt.Sprintf("serves %d requests at once, not %d: the container's memory limit holds no more", fit.Concurrent, doc.Serve.Concurrent))
	}
	doc.Serve.Concurrent, doc.Serve.BufferBytes, doc.Limits.MemoryBytes = fit.Concurrent, fit.Buffers, fit.Guest
	return nil
}

// fit is how an agent's instances share a container's memory.
type fit struct {
	Concurrent     int
	Guest, Buffers int64
}

// total is the container memory that it needs.
func (f fit) total(host int64) int64 {
	return int64(f.Concurrent)*(f.Guest+limits.ServeShare) + 2*f.Buffers + host
}

// fitServed fits an agent into a container limit of so many bytes, 0 for none.
// What the manifest says is kept or refused; what it leaves open gives way,
// first the size of the buffers, then how many run at once, then the guest's
// memory.
func fitServed(on string, agent *manifest.Manifest, served *hostdoc.Serve, limit int64) (fit, error) {
	f := fit{served.Concurrent, agent.MemoryLimit(), served.BufferBytes}
	saidGuest, saidConcurrent := f.Guest > 0, agent.Serve != nil && agent.Serve.Concurrency > 0
	if !saidGuest {
		f.Guest = limits.DefaultGuestMemory
	}
	if limit <= 0 {
		return f, nil
	}
	f.Buffers = max(agent.BodyLimit(), min(f.Buffers, limit/16))
	host := max(limits.MinServeHost, limit/10)
	left := limit - host - 2*f.Buffers
	if !saidConcurrent {
		// Few instances of a proper size rather than many that can do nothing.
		want := f.Guest
		if !saidGuest {
			want = limits.GoodServeMemory
		}
		f.Concurrent = int(min(int64(f.Concurrent), max(1, left/(want+limits.ServeShare))))
	}
	each := left/int64(f.Concurrent) - limits.ServeShare
	if (!saidGuest || !saidConcurrent) && each < f.Guest {
		f.Guest = each / wasmPage * wasmPage
	}
	if f.Guest < limits.MinServeMemory || f.total(host) > limit {
		f.Guest = max(f.Guest, agent.MemoryLimit(), limits.MinServeMemory)
		return f, fault.New(fault.ResourceLimit, on, "the container's memory limit of %d bytes cannot hold %d instances of %d bytes with their host, which need %d",
			limit, f.Concurrent, f.Guest, f.total(host)).
			WithHint("raise the container's memory limit, or lower serve.concurrency, serve.body or wasm.memory.maximum")
	}
	return f, nil
}

// wasmPage is the unit in which a guest's memory grows.
const wasmPage = 64 * limits.KiB

func memoryLimit(res *specs.LinuxResources) int64 {
	if res == nil || res.Memory == nil || res.Memory.Limit == nil || *res.Memory.Limit <= 0 {
		return 0
	}
	return *res.Memory.Limit
}

// needs is the memory of a container without a limit of its own.
func needs(doc *hostdoc.Document) int64 {
	guest := doc.Limits.MemoryBytes
	if s := doc.Serve; s != nil {
		return fit{s.Concurrent, guest, s.BufferBytes}.total(max(limits.MinServeHost, limits.HostHeadroom(guest)))
	}
	return guest + limits.HostHeadroom(guest)
}

// threads is how many the host may need: while it serves, each instance has one
// and its file system another.
func threads(doc *hostdoc.Document) int64 {
	if s := doc.Serve; s != nil {
		return limits.HostThreads + 2*int64(s.Concurrent)
	}
	return limits.HostThreads
}

// files are the descriptors that a server needs beside those of a run: its
// connections, and what each instance opens.
func files(doc *hostdoc.Document) uint64 {
	s := doc.Serve
	if s == nil {
		return 0
	}
	return uint64(limits.ServeConnections + s.Concurrent + s.Queue + filesPerInstance*s.Concurrent)
}

const filesPerInstance = 4
