package conformance

import (
	"encoding/binary"
	"encoding/hex"
	"math"
)

// ScratchBytes is the place that a guest must have for what it reads.
const ScratchBytes = 4096

// ScriptKey is the setting under which a guest finds its script, in hexadecimal.
const ScriptKey = "conformance.script"

// The script's format; README.md describes it.
const (
	opShow = 0xfe // write what the last call read as output
	opEnd  = 0xff

	tagValue   = 0 // an i32, or the bits of an f64
	tagBytes   = 1 // a pointer to bytes of the script, by their place in it
	tagScratch = 2
	tagResult  = 3 // what an earlier call gave, by its number
)

// Script is what the case tells a guest to do.
func (c *Case) Script() string {
	code := &scripter{}
	for _, s := range c.steps {
		if s.event != nil {
			continue
		}
		code.call(s)
	}
	code.bytes = binary.LittleEndian.AppendUint32(append(code.bytes, opEnd), uint32(c.returns))
	// Texts come behind the calls.
	base := len(code.bytes)
	for _, f := range code.fixes {
		binary.LittleEndian.PutUint32(code.bytes[f.at:], uint32(base+f.to))
	}
	return hex.EncodeToString(append(code.bytes, code.texts...))
}

type scripter struct {
	bytes, texts []byte
	fixes        []fix
}

// fix is a pointer at a place, to a place among the texts.
type fix struct{ at, to int }

func (s *scripter) call(step step) {
	s.bytes = append(s.bytes, byte(step.call))
	for _, a := range step.args {
		switch a.kind {
		case argInt:
			s.arg(tagValue, uint32(a.value))
		case argFloat:
			s.bytes = append(s.bytes, tagValue)
			s.bytes = binary.LittleEndian.AppendUint64(s.bytes, math.Float64bits(a.float))
		case argText:
			s.fixes = append(s.fixes, fix{len(s.bytes) + 1, len(s.texts)})
			s.arg(tagBytes, 0)
			s.arg(tagValue, uint32(len(a.text)))
			s.texts = append(s.texts, a.text...)
		case argScratch:
			s.bytes = append(s.bytes, tagScratch)
		case argResult:
			s.arg(tagResult, uint32(a.value))
		}
	}
	if step.want.hasData {
		s.bytes = append(s.bytes, opShow)
	}
}

func (s *scripter) arg(tag byte, value uint32) {
	s.bytes = binary.LittleEndian.AppendUint32(append(s.bytes, tag), value)
}
