package wasi

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/internal/engine"
	"github.com/mentatlab/mentat/internal/limits"
)

// Call is one call of the guest's. Values holds its parameters, Memory is what the
// guest has.
type Call struct {
	Values []engine.Value
	Memory []byte

	g       *Guest
	outside Span
}

// Span is a piece of the guest's memory.
type Span struct {
	Ptr uint32
	Len uint64
}

var le = binary.LittleEndian

func (c *Call) u32(i int) uint32 { return c.Values[i].U32() }

func (c *Call) u64(i int) uint64 { return c.Values[i].U64() }

// flags reads a parameter of flags; ok says that it has no others.
func (c *Call) flags(i int, known uint32) (flags uint32, ok bool) {
	flags = c.u32(i)
	return flags, flags&^known == 0
}

// at returns n bytes of memory, nil when they are not the guest's: it then traps.
func (c *Call) at(ptr uint32, n uint64) []byte {
	end := uint64(ptr) + n
	if c.Memory == nil || end > uint64(len(c.Memory)) {
		c.outside = Span{ptr, n}
		return nil
	}
	return c.Memory[ptr:end:end]
}

// out returns the n bytes to which parameter i points.
func (c *Call) out(i int, n uint64) []byte { return c.at(c.u32(i), n) }

// buffer returns the bytes to which parameter i points and whose number is in the
// next.
func (c *Call) buffer(i int) []byte { return c.out(i, uint64(c.u32(i+1))) }

// text reads a path or the like from parameters i and i+1.
func (c *Call) text(i int) (string, Errno) {
	b := c.buffer(i)
	switch {
	case b == nil:
		return "", traps
	case len(b) >= limits.PathBytes:
		return "", NameTooLong
	case !utf8.Valid(b):
		return "", IlSeq
	case bytes.IndexByte(b, 0) >= 0:
		return "", Inval
	}
	return string(b), Success
}

// maxVectors bounds the buffers of one call, as the system does.
const maxVectors = 1024

// vectors lists the buffers that parameters i and i+1 name; those without a byte
// are left out. Their places are all looked at before one is used.
func (c *Call) vectors(i int) ([][]byte, Errno) {
	n := c.u32(i + 1)
	list := c.out(i, 8*uint64(n))
	switch {
	case list == nil:
		return nil, traps
	case n > maxVectors:
		return nil, Inval
	}
	v := make([][]byte, 0, n)
	for ; len(list) > 0; list = list[8:] {
		b := c.at(le.Uint32(list), uint64(le.Uint32(list[4:])))
		if b == nil {
			return nil, traps
		}
		if len(b) > 0 {
			v = append(v, b)
		}
	}
	return v, Success
}
