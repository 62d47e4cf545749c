package module

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Kind says what is imported or exported.
type Kind byte

// The kinds, as the binary format numbers them.
const (
	KindFunc Kind = iota
	KindTable
	KindMemory
	KindGlobal
	KindTag
)

var kindNames = []string{"function", "table", "memory", "global", "tag"}

// String gives the kind's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown kind"
}

// Import is one thing that a module wants from its host.
type Import struct {
	Module, Name string
	Kind         Kind
	// Type is set for functions.
	Type FuncType
}

// Export is one thing that a module shows its host.
type Export struct {
	Name string
	Kind Kind
	// Type is set for functions.
	Type FuncType
	// index is into the kind's index space.
	index uint32
}

// Info is what a module says about itself.
type Info struct {
	Imports []Import
	Exports []Export
	// Entry is [hostdoc.EntryProcess], [hostdoc.EntryCommand] or, for a module
	// without an entry, empty.
	Entry string
	// Reactor says that `_initialize` is to be called first.
	Reactor bool
	// Memories counts the module's own memories. MemoryMinPages and
	// MemoryMaxPages, in pages of 64 KiB, are their sums; a maximum of 0 means
	// that there is none.
	Memories       int
	MemoryMinPages uint64
	MemoryMaxPages uint64
	// Functions counts the functions that the module defines, LargestBody is
	// the size in bytes of the largest.
	Functions   int
	LargestBody int
	// Globals are the values of exported, constant i32 and i64 globals: the
	// module's metadata, like agent_version.
	Globals map[string]int64
	// Size is that of the binary in bytes.
	Size int64
}

// The names with a meaning, abi.md "Entry".
const (
	exportProcess    = "process"
	exportStart      = "_start"
	exportInitialize = "_initialize"
	exportMemory     = "memory"
	exportAlloc      = "mentat_alloc"
)

// Bounds that the binary format leaves open; engines have similar ones.
const (
	maxTypes   = 100_000
	maxImports = 10_000
	maxExports = 100_000
	maxGlobals = 200_000
	maxValues  = 1_000
	maxName    = 100_000
)

// Inspect reads a module. Its errors are [fault.ModuleInvalid] and say what
// data is instead, or in which section it breaks.
func Inspect(data []byte) (*Info, error) {
	const magic = "\x00asm"
	switch {
	case len(data) == 0:
		return nil, invalid("the module is empty")
	case len(data) > limits.ModuleBytes:
		return nil, invalid("the module has %d bytes, at most %d are allowed", len(data), limits.ModuleBytes).
			WithHint("optimise for size and strip debug information")
	case len(data) < 8 && strings.HasPrefix(magic+"\x01\x00\x00\x00", string(data)):
		return nil, invalid("the module is truncated in its header")
	case !bytes.HasPrefix(data, []byte(magic)):
		return nil, invalid("not a WebAssembly module but %s", looksLike(data))
	case len(data) < 8:
		return nil, invalid("the module's header is malformed")
	}
	version, layer := uint16(data[4])|uint16(data[5])<<8, uint16(data[6])|uint16(data[7])<<8
	switch {
	case layer == 1:
		return nil, invalid("a WebAssembly component, only core modules run").
			WithHint("build for wasm32-wasip1 or wasm32-unknown-unknown")
	case layer != 0 || version != 1:
		return nil, invalid("WebAssembly version %d, only version 1 runs", uint32(layer)<<16|uint32(version))
	}
	p := parser{reader: reader{data: data, pos: 8}, info: &Info{Size: int64(len(data)), Globals: map[string]int64{}}}
	if err := p.sections(); err != nil {
		return nil, err
	}
	p.finish()
	return p.info, nil
}

func invalid(format string, args ...any) *fault.Error {
	return fault.New(fault.ModuleInvalid, "", format, args...)
}

// section is a section id; the order is that in which they must come.
type section struct {
	id   byte
	name string
	read func(*parser) error
}

var sectionOrder = []section{
	{1, "type", (*parser).types},
	{2, "import", (*parser).imports},
	{3, "function", (*parser).functions},
	{4, "table", (*parser).tables},
	{5, "memory", (*parser).memories},
	{13, "tag", (*parser).tags},
	{6, "global", (*parser).globals},
	{7, "export", (*parser).exports},
	{8, "start", (*parser).skip},
	{9, "element", (*parser).skip},
	{12, "data count", (*parser).skip},
	{10, "code", (*parser).code},
	{11, "data", (*parser).skip},
}

type global struct {
	typ      ValType
	mutable  bool
	constant bool
	value    int64
}

type parser struct {
	reader
	info  *Info
	where string

	funcTypes    []FuncType
	funcIndex    []uint32 // type of every function, imported ones first
	importedFunc int
	allGlobals   []global
	tableCount   int
	memoryCount  int
	tagCount     int
	bodies       int
}

func (p *parser) errorf(format string, args ...any) error {
	return fault.New(fault.ModuleInvalid, p.where, format, args...)
}

// fail turns a reader's failure into an error about the current section.
func (p *parser) fail(err error) error {
	return fault.Wrap(err, fault.ModuleInvalid, p.where, "the module is malformed at byte %d", p.pos)
}

func (p *parser) sections() error {
	next := 0
	whole := p.data
	for p.pos < len(whole) {
		p.where = "section header"
		id, err := p.byte()
		if err != nil {
			return p.fail(err)
		}
		index := slices.IndexFunc(sectionOrder, func(s section) bool { return s.id == id })
		name := "custom"
		if index >= 0 {
			name = sectionOrder[index].name
		} else if id != 0 {
			return p.errorf("unknown section %d at byte %d", id, p.pos-1)
		}
		p.where = name + " section"
		size, err := p.u32()
		if err != nil {
			return p.truncated(err)
		}
		if uint64(size) > uint64(len(whole)-p.pos) {
			return p.errorf("the module is truncated: %d bytes are missing", uint64(size)-uint64(len(whole)-p.pos))
		}
		end := p.pos + int(size)
		p.data = whole[:end]
		if index < 0 {
			if _, err := p.name(); err != nil {
				return p.fail(err)
			}
			p.pos = end
		} else {
			if index < next {
				return p.errorf("the section is out of order or there twice")
			}
			next = index + 1
			if err := sectionOrder[index].read(p); err != nil {
				return err
			}
		}
		if p.pos != end {
			return p.errorf("%d bytes too many in the section", end-p.pos)
		}
		p.data = whole
	}
	p.where = "code section"
	if defined := len(p.funcIndex) - p.importedFunc; p.bodies != defined {
		return p.errorf("the module is truncated: %d functions are declared, %d have a body", defined, p.bodies)
	}
	return nil
}

func (p *parser) truncated(err error) error {
	return fault.Wrap(err, fault.ModuleInvalid, p.where, "the module is truncated")
}

func (p *parser) skip() error {
	p.pos = len(p.data)
	return nil
}

// count reads the length of a vector, of which every element takes a byte at
// the least: the claim is checked before anything is allocated for it.
func (p *parser) count(what string, limit int) (int, error) {
	n, err := p.u32()
	if err != nil {
		return 0, p.fail(err)
	}
	if uint64(n) > uint64(limit) {
		return 0, p.errorf("%d %s, at most %d are allowed", n, what, limit)
	}
	if uint64(n) > uint64(len(p.data)-p.pos) {
		return 0, p.errorf("%d %s do not fit into the section", n, what)
	}
	return int(n), nil
}

func (p *parser) types() error {
	n, err := p.count("types", maxTypes)
	if err != nil {
		return err
	}
	p.funcTypes = make([]FuncType, 0, n)
	for range n {
		form, err := p.byte()
		if err != nil {
			return p.fail(err)
		}
		if form != 0x60 {
			return p.errorf("type form 0x%02x is not run: MentatLab's engine has garbage-collected types off", form)
		}
		var t FuncType
		if t.Params, err = p.values("parameters"); err != nil {
			return err
		}
		if t.Results, err = p.values("results"); err != nil {
			return err
		}
		p.funcTypes = append(p.funcTypes, t)
	}
	return nil
}

func (p *parser) values(what string) ([]ValType, error) {
	n, err := p.count(what, maxValues)
	if err != nil {
		return nil, err
	}
	types := make([]ValType, n)
	for i := range types {
		if types[i], err = p.valType(); err != nil {
			return nil, err
		}
	}
	return types, nil
}

func (p *parser) valType() (ValType, error) {
	b, err := p.byte()
	if err != nil {
		return 0, p.fail(err)
	}
	t := ValType(b)
	if _, ok := valTypeNames[t]; !ok {
		return 0, p.errorf("value type 0x%02x is not run", b)
	}
	return t, nil
}

func (p *parser) imports() error {
	n, err := p.count("imports", maxImports)
	if err != nil {
		return err
	}
	for range n {
		var im Import
		if im.Module, err = p.name(); err != nil {
			return p.fail(err)
		}
		if im.Name, err = p.name(); err != nil {
			return p.fail(err)
		}
		kind, err := p.byte()
		if err != nil {
			return p.fail(err)
		}
		im.Kind = Kind(kind)
		switch im.Kind {
		case KindFunc:
			index, t, err := p.typeIndex()
			if err != nil {
				return err
			}
			im.Type = t
			p.funcIndex = append(p.funcIndex, index)
			p.importedFunc++
		case KindTable:
			if err := p.table(); err != nil {
				return err
			}
		case KindMemory:
			p.memoryCount++
			if _, _, err := p.limits("memory"); err != nil {
				return err
			}
		case KindGlobal:
			g, err := p.globalType()
			if err != nil {
				return err
			}
			p.allGlobals = append(p.allGlobals, g)
		case KindTag:
			p.tagCount++
			if err := p.tag(); err != nil {
				return err
			}
		default:
			return p.errorf("import %q.%q has the unknown kind %d", im.Module, im.Name, kind)
		}
		p.info.Imports = append(p.info.Imports, im)
	}
	return nil
}

func (p *parser) typeIndex() (uint32, FuncType, error) {
	index, err := p.u32()
	if err != nil {
		return 0, FuncType{}, p.fail(err)
	}
	if uint64(index) >= uint64(len(p.funcTypes)) {
		return 0, FuncType{}, p.errorf("type %d does not exist", index)
	}
	return index, p.funcTypes[index], nil
}

func (p *parser) tag() error {
	if attribute, err := p.byte(); err != nil {
		return p.fail(err)
	} else if attribute != 0 {
		return p.errorf("tag attribute %d is unknown", attribute)
	}
	_, _, err := p.typeIndex()
	return err
}

func (p *parser) tags() error {
	n, err := p.count("tags", maxTypes)
	if err != nil {
		return err
	}
	for range n {
		if err := p.tag(); err != nil {
			return err
		}
		p.tagCount++
	}
	return nil
}

// limits reads a minimum and a maximum; a maximum of 0 means none.
func (p *parser) limits(what string) (lowest, highest uint64, err error) {
	flags, err := p.byte()
	if err != nil {
		return 0, 0, p.fail(err)
	}
	switch {
	case flags&^byte(0x0f) != 0:
		return 0, 0, p.errorf("%s flags 0x%02x are unknown", what, flags)
	case flags&0x02 != 0:
		return 0, 0, p.errorf("a shared %s is not run: MentatLab's engine has threads off", what)
	case flags&0x04 != 0:
		return 0, 0, p.errorf("a 64-bit %s is not run: build for wasm32", what)
	case flags&0x08 != 0:
		return 0, 0, p.errorf("a %s with a page size of its own is not run", what)
	}
	first, err := p.u32()
	if err != nil {
		return 0, 0, p.fail(err)
	}
	lowest = uint64(first)
	if flags&0x01 != 0 {
		second, err := p.u32()
		if err != nil {
			return 0, 0, p.fail(err)
		}
		highest = uint64(second)
		if highest < lowest {
			return 0, 0, p.errorf("a %s's maximum %d is below its minimum %d", what, highest, lowest)
		}
	}
	return lowest, highest, nil
}

func (p *parser) table() error {
	if t, err := p.valType(); err != nil {
		return err
	} else if t != FuncRef && t != ExternRef {
		return p.errorf("a table of %s", t)
	}
	lowest, _, err := p.limits("table")
	if err != nil {
		return err
	}
	if lowest > limits.TableElements {
		return p.errorf("a table of %d elements, at most %d are allowed", lowest, limits.TableElements)
	}
	p.tableCount++
	return nil
}

func (p *parser) tables() error {
	n, err := p.count("tables", maxImports)
	if err != nil {
		return err
	}
	for range n {
		if err := p.table(); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) functions() error {
	n, err := p.count("functions", limits.ModuleFunctions)
	if err != nil {
		return err
	}
	p.funcIndex = slices.Grow(p.funcIndex, n)
	for range n {
		index, _, err := p.typeIndex()
		if err != nil {
			return err
		}
		p.funcIndex = append(p.funcIndex, index)
	}
	p.info.Functions = n
	return nil
}

// maxMemoryPages is 4 GiB, all that a 32-bit memory can address.
const maxMemoryPages = 1 << 16

func (p *parser) memories() error {
	n, err := p.count("memories", maxImports)
	if err != nil {
		return err
	}
	bounded := true
	for range n {
		lowest, highest, err := p.limits("memory")
		if err != nil {
			return err
		}
		if lowest > maxMemoryPages || highest > maxMemoryPages {
			return p.errorf("a memory of over %d pages", maxMemoryPages)
		}
		p.info.MemoryMinPages += lowest
		p.info.MemoryMaxPages += highest
		bounded = bounded && highest > 0
	}
	if !bounded {
		p.info.MemoryMaxPages = 0
	}
	p.info.Memories = n
	p.memoryCount += n
	return nil
}

func (p *parser) globalType() (global, error) {
	t, err := p.valType()
	if err != nil {
		return global{}, err
	}
	mutable, err := p.byte()
	if err != nil {
		return global{}, p.fail(err)
	}
	if mutable > 1 {
		return global{}, p.errorf("global flags 0x%02x are unknown", mutable)
	}
	return global{typ: t, mutable: mutable == 1}, nil
}

func (p *parser) globals() error {
	n, err := p.count("globals", maxGlobals)
	if err != nil {
		return err
	}
	for range n {
		g, err := p.globalType()
		if err != nil {
			return err
		}
		if err := p.initialiser(&g); err != nil {
			return err
		}
		p.allGlobals = append(p.allGlobals, g)
	}
	return nil
}

// initialiser reads a constant expression; only a lone i32.const or i64.const
// gives the global a value here.
func (p *parser) initialiser(g *global) error {
	for instructions := 0; ; instructions++ {
		op, err := p.byte()
		if err != nil {
			return p.fail(err)
		}
		if instructions > 0 {
			g.constant = g.constant && op == 0x0b
		}
		switch op {
		case 0x0b: // end
			return nil
		case 0x41: // i32.const
			g.value, err = p.signed(32)
			g.constant = instructions == 0
		case 0x42: // i64.const
			g.value, err = p.signed(64)
			g.constant = instructions == 0
		case 0x43: // f32.const
			err = p.advance(4)
		case 0x44: // f64.const
			err = p.advance(8)
		case 0x23, 0xd2: // global.get, ref.func
			_, err = p.u32()
		case 0xd0: // ref.null
			_, err = p.valType()
		case 0x6a, 0x6b, 0x6c, 0x7c, 0x7d, 0x7e: // add, sub, mul of i32 and i64
		case 0xfd: // v128.const is the only constant one of the vector instructions
			var sub uint32
			if sub, err = p.u32(); err == nil && sub != 12 {
				return p.errorf("vector instruction %d in a constant expression", sub)
			}
			if err == nil {
				err = p.advance(16)
			}
		default:
			return p.errorf("instruction 0x%02x in a constant expression", op)
		}
		if err != nil {
			return p.fail(err)
		}
	}
}

func (p *parser) exports() error {
	n, err := p.count("exports", maxExports)
	if err != nil {
		return err
	}
	seen := make(map[string]struct{}, n)
	for range n {
		var ex Export
		if ex.Name, err = p.name(); err != nil {
			return p.fail(err)
		}
		if _, ok := seen[ex.Name]; ok {
			return p.errorf("%q is exported twice", ex.Name)
		}
		seen[ex.Name] = struct{}{}
		kind, err := p.byte()
		if err != nil {
			return p.fail(err)
		}
		ex.Kind = Kind(kind)
		if ex.index, err = p.u32(); err != nil {
			return p.fail(err)
		}
		var have int
		switch ex.Kind {
		case KindFunc:
			have = len(p.funcIndex)
		case KindMemory:
			have = p.memoryCount
		case KindGlobal:
			have = len(p.allGlobals)
		case KindTag:
			have = p.tagCount
		case KindTable:
			have = p.tableCount
		default:
			return p.errorf("export %q has the unknown kind %d", ex.Name, kind)
		}
		if uint64(ex.index) >= uint64(have) {
			return p.errorf("export %q names %s %d, which does not exist", ex.Name, ex.Kind, ex.index)
		}
		if ex.Kind == KindFunc {
			ex.Type = p.funcTypes[p.funcIndex[ex.index]]
		}
		p.info.Exports = append(p.info.Exports, ex)
	}
	return nil
}

func (p *parser) code() error {
	n, err := p.count("function bodies", limits.ModuleFunctions)
	if err != nil {
		return err
	}
	for i := range n {
		size, err := p.u32()
		if err != nil {
			return p.fail(err)
		}
		if uint64(size) > uint64(len(p.data)-p.pos) {
			return p.errorf("the module is truncated in function %d", i)
		}
		if size > limits.FunctionBodyBytes {
			return p.errorf("function %d has %d bytes, at most %d are allowed", i, size, limits.FunctionBodyBytes)
		}
		p.info.LargestBody = max(p.info.LargestBody, int(size))
		p.pos += int(size)
	}
	p.bodies = n
	return nil
}

// finish derives what needs all sections.
func (p *parser) finish() {
	for _, ex := range p.info.Exports {
		switch {
		case ex.Kind == KindGlobal:
			if g := p.allGlobals[ex.index]; g.constant && !g.mutable {
				p.info.Globals[ex.Name] = g.value
			}
		case ex.Kind != KindFunc:
		case ex.Name == exportProcess:
			p.info.Entry = hostdoc.EntryProcess
		case ex.Name == exportStart && p.info.Entry == "":
			p.info.Entry = hostdoc.EntryCommand
		case ex.Name == exportInitialize:
			p.info.Reactor = true
		}
	}
}

// reader reads the primitives of the binary format.
type reader struct {
	data []byte
	pos  int
}

type malformed string

func (m malformed) Error() string { return string(m) }

const (
	errEnd    = malformed("unexpected end")
	errNumber = malformed("a number is over-long or out of range")
	errUTF8   = malformed("a name is not UTF-8")
	errName   = malformed("a name is too long")
)

func (r *reader) byte() (byte, error) {
	if r.pos >= len(r.data) {
		return 0, errEnd
	}
	r.pos++
	return r.data[r.pos-1], nil
}

func (r *reader) advance(n int) error {
	if n > len(r.data)-r.pos {
		return errEnd
	}
	r.pos += n
	return nil
}

// u32 reads an unsigned LEB128 number, which the format bounds to five bytes
// without superfluous bits.
func (r *reader) u32() (uint32, error) {
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			if v > 1<<32-1 {
				return 0, errNumber
			}
			return uint32(v), nil
		}
	}
	return 0, errNumber
}

// signed reads a signed LEB128 number of the given width.
func (r *reader) signed(bits int) (int64, error) {
	var v int64
	for shift := 0; shift < bits; shift += 7 {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		v |= int64(b&0x7f) << shift
		if b&0x80 != 0 {
			continue
		}
		if rest := bits - shift; rest < 7 {
			// The bits above the number must repeat its sign.
			if above := int8(b<<1) >> rest; above != 0 && above != -1 {
				return 0, errNumber
			}
		}
		if shift+7 < 64 {
			v = v << (64 - shift - 7) >> (64 - shift - 7)
		}
		return v, nil
	}
	return 0, errNumber
}

func (r *reader) name() (string, error) {
	n, err := r.u32()
	if err != nil {
		return "", err
	}
	if n > maxName {
		return "", errName
	}
	start := r.pos
	if err := r.advance(int(n)); err != nil {
		return "", err
	}
	text := r.data[start:r.pos]
	if !utf8.Valid(text) {
		return "", errUTF8
	}
	return string(text), nil
}
