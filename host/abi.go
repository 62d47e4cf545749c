package host

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/host/wasi"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/module"
)

// hostFunc is one import of the module, under the type that the module gives it.
type hostFunc struct {
	module, name    string
	params, results int
	serve           func(*call) bool
}

// call is one call of a host function.
type call struct {
	s      *session
	f      *hostFunc
	values []engine.Value
	memory []byte
}

// bytes returns the guest's bytes at the pointer in parameter i with the length
// in parameter i+1. Out of range it has trapped the guest: the caller returns.
func (c *call) bytes(i int) ([]byte, bool) {
	b := view(c.memory, c.values[i].U32(), c.values[i+1].U32())
	if b == nil {
		return nil, c.outOfRange(c.values[i].U32(), uint64(c.values[i+1].U32()))
	}
	return b, true
}

func (c *call) outOfRange(ptr uint32, n uint64) bool {
	c.s.tally.violations++
	return c.s.trap(endOf(fault.Trap, fmt.Sprintf("%s.%s: pointer %#x with length %d is outside of the guest's memory of %d bytes",
		c.f.module, c.f.name, ptr, n, len(c.memory))))
}

// view returns memory[ptr:ptr+n], or nil when that is out of range.
func view(memory []byte, ptr, n uint32) []byte {
	end := uint64(ptr) + uint64(n)
	if memory == nil || end > uint64(len(memory)) {
		return nil
	}
	return memory[ptr:end:end]
}

// returns gives the result to the guest, if it imported one.
func (c *call) returns(v int32) bool {
	if c.f.results > 0 {
		c.values[0].SetI32(v)
	}
	return true
}

func (c *call) fails(code int32, d detail) bool { return c.returns(c.s.fail(code, d)) }

// mentatFuncs serves the ABI. Every function of the table is here.
var mentatFuncs = map[string]func(*call) bool{
	"abi_version":        func(c *call) bool { return c.returns(abiVersion) },
	"read_input":         readInput,
	"read":               read,
	"size":               size,
	"close":              closeHandle,
	"write_output":       writeOutput,
	"set_error":          setError,
	"last_error":         func(c *call) bool { return c.returns(c.s.lastError()) },
	"log":                logLineOf,
	"get_config":         getConfig,
	"start_stream":       startStream,
	"write_stream":       writeStream,
	"end_stream":         endStream,
	"download_media":     downloadMedia,
	"upload_media":       uploadMedia,
	"record_metric":      recordMetric,
	"request_capability": requestCapability,
	"invoke_capability":  invokeCapability,
}

var envFuncs = map[string]func(*call) bool{
	"abort": abort,
	"trace": trace,
	"seed":  seed,
}

// resolve finds who serves an import, or nil.
func (p *Program) resolve(im engine.Import) func(*call) bool {
	switch im.Module {
	case module.ModuleMentat:
		return mentatFuncs[im.Name]
	case module.ModuleEnv:
		return envFuncs[im.Name]
	case module.ModuleWASI:
		if im.Name == "proc_exit" {
			return procExit
		}
		if f := wasi.Functions[im.Name]; f != nil {
			p.wasi = true
			return wasiFunc(f)
		}
	}
	return nil
}

func readInput(c *call) bool {
	s := c.s
	s.sync()
	in, _ := s.handles[0].(*input)
	if s.inAlloc {
		return s.trap(endOf(fault.Trap, "mentat.read_input: called from mentat_alloc"))
	}
	var n int32
	if in == nil {
		n = s.fail(codeBadHandle, detail{Reason: "the input was closed"})
	} else {
		n = in.slurp(s)
	}
	if !s.p.hasAlloc {
		return c.returns(n)
	}
	if n < 0 {
		return c.returns(0) // the code is in last_error
	}
	// The pointer form: the guest allocates, the host fills.
	want := 4 + n
	var ptr int32
	s.inAlloc = true
	err := s.run.Call("mentat_alloc", &want, &ptr)
	s.inAlloc = false
	if err != nil {
		s.inner = asFailure(err)
		return false
	}
	if ptr == 0 {
		s.fail(codeLimit, detail{Reason: "mentat_alloc returned 0"})
		return c.returns(0)
	}
	c.memory = s.run.Memory()
	dst := view(c.memory, uint32(ptr), uint32(want))
	if dst == nil {
		return c.outOfRange(uint32(ptr), uint64(uint32(want)))
	}
	binary.LittleEndian.PutUint32(dst, uint32(n))
	copy(dst[4:], in.buf)
	return c.returns(ptr)
}

func read(c *call) bool {
	p := view(c.memory, c.values[1].U32(), c.values[2].U32())
	if p == nil {
		return c.outOfRange(c.values[1].U32(), uint64(c.values[2].U32()))
	}
	s, h := c.s, c.values[0].I32()
	s.sync()
	r := s.handle(h)
	if r == nil {
		return c.returns(codeBadHandle)
	}
	// A count must fit into the result.
	n := r.read(s, p[:min(len(p), maxCount)])
	if l, ok := r.(interface{ left() *stretch }); ok {
		s.show(h, l.left())
	}
	return c.returns(n)
}

func size(c *call) bool {
	n := int64(codeBadHandle)
	c.s.sync()
	if r := c.s.handle(c.values[0].I32()); r != nil {
		n = r.size(c.s)
	}
	c.values[0].SetI64(n)
	return true
}

func closeHandle(c *call) bool {
	h := c.values[0].I32()
	c.s.sync()
	if h < 0 || h >= c.s.next {
		return c.fails(codeBadHandle, detail{Reason: "no such handle was ever given out"})
	}
	if r, ok := c.s.handles[h]; ok {
		delete(c.s.handles, h)
		r.close(c.s)
	}
	return c.returns(0)
}

func writeOutput(c *call) bool {
	data, ok := c.bytes(0)
	if !ok {
		return false
	}
	switch err := c.s.out.write(data); {
	case err == nil:
		return c.returns(0)
	case errors.Is(err, errOutputLimit) && c.f.results > 0:
		return c.fails(codeLimit, detail{Reason: err.Error()})
	default:
		return c.s.trap(outputEnd(err))
	}
}

func setError(c *call) bool {
	text, ok := c.bytes(1)
	switch {
	case !ok:
		return false
	case len(text) > limits.ErrorMessageBytes:
		return c.fails(codeLimit, detail{Reason: fmt.Sprintf("the message is over %d bytes", limits.ErrorMessageBytes)})
	case !utf8.Valid(text):
		return c.fails(codeInvalid, detail{Reason: "the message is not UTF-8"})
	}
	c.s.failure = &guestError{c.values[0].I32(), string(text)}
	return c.returns(0)
}

func logLineOf(c *call) bool {
	level, at := levelInfo, 0
	if c.f.params == 3 {
		level, at = min(max(int(c.values[0].I32()), levelTrace), levelError), 1
	}
	text, ok := c.bytes(at)
	if !ok {
		return false
	}
	c.s.say(level, string(text))
	return c.returns(0)
}

func getConfig(c *call) bool {
	key, ok := c.bytes(0)
	if !ok {
		return false
	}
	value, ok := c.s.p.doc.Config[string(key)]
	if !ok {
		return c.fails(codeNotFound, detail{Reason: "the manifest's config has no such key", Hint: "add it under config: in manifest.yaml"})
	}
	return c.returns(c.s.open(&blob{data: value}))
}

// procExit ends the guest with a status of its own.
func procExit(c *call) bool {
	status := int(min(c.values[0].U32(), 255))
	return c.s.trap(&end{status: status})
}

// abort is AssemblyScript's: it ends the guest with a message and its place.
func abort(c *call) bool {
	message := fmt.Sprintf("abort: %s at %s:%d:%d",
		utf16String(c.memory, c.values[0].U32()), utf16String(c.memory, c.values[1].U32()), c.values[2].U32(), c.values[3].U32())
	return c.s.trap(endOf(fault.Trap, message))
}

// trace is AssemblyScript's debug print, with up to five numbers.
func trace(c *call) bool {
	var b strings.Builder
	b.WriteString(utf16String(c.memory, c.values[0].U32()))
	for i := range min(max(int(c.values[1].I32()), 0), 5) {
		fmt.Fprintf(&b, " %g", c.values[2+i].F64())
	}
	c.s.say(levelTrace, b.String())
	return true
}

// utf16String reads an AssemblyScript string: UTF-16, its size in bytes in the
// word before it. Nothing is returned for what does not lie in memory: the
// guest is about to end or only prints.
func utf16String(memory []byte, ptr uint32) string {
	if ptr < 4 {
		return ""
	}
	head := view(memory, ptr-4, 4)
	if head == nil {
		return ""
	}
	data := view(memory, ptr, min(binary.LittleEndian.Uint32(head), limits.LogLineBytes)&^1)
	units := make([]uint16, len(data)/2)
	if err := binary.Read(bytes.NewReader(data), binary.LittleEndian, units); err != nil {
		return ""
	}
	return string(utf16.Decode(units))
}

// seed gives AssemblyScript's Math.random its start: a number in [0, 2^53).
func seed(c *call) bool {
	var b [8]byte
	// Never fails: the runtime aborts instead.
	_, _ = rand.Read(b[:])
	c.values[0].SetF64(float64(binary.LittleEndian.Uint64(b[:]) >> 11))
	return true
}
