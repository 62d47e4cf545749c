package lock

import (
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// Offsets in the kernel's struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

const (
	// archAMD64 is AUDIT_ARCH_X86_64, x32 the bit of its 32-bit variant's numbers.
	archAMD64 = 0xc000003e
	x32       = 0x40000000
)

func (v Verdict) code() uint32 {
	switch v {
	case Allow:
		return unix.SECCOMP_RET_ALLOW
	case Refuse:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	case Unknown:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return unix.SECCOMP_RET_KILL_PROCESS
}

func has(l *hostdoc.Lock, r Right) bool {
	switch r {
	case Dial:
		return l.Dial
	case Listen:
		return l.Listen
	case Network:
		return l.Dial || l.Listen
	case Plugins:
		return len(l.Execute) > 0
	}
	return true
}

// span is what becomes of the system calls from a number on: the answer of a row
// of [Calls], or a verdict alone.
type span struct {
	from    uint32
	row     *Call
	verdict Verdict
}

// numbers is how many numbers of system calls there are room for.
const numbers = 512

// filter builds the program for a lock and a process. It works in place: it runs
// at every start.
func filter(l *hostdoc.Lock, pid uint32) []unix.SockFilter {
	program := make([]unix.SockFilter, 0, numbers)
	program = append(program, load(offArch), jump(unix.BPF_JEQ, archAMD64, 1, 0), ret(Kill), load(offNumber))
	return tree(program, spans(l), pid)
}

// spans lists what becomes of every number, in order.
func spans(l *hostdoc.Lock) []span {
	var rows [numbers]uint8 // from 1
	for i := range Calls {
		for _, n := range Calls[i].Numbers {
			rows[n] = uint8(i + 1)
		}
	}
	list := make([]span, 0, numbers/2)
	for n, i := range rows {
		next := span{from: uint32(n), verdict: Unknown}
		if i > 0 {
			next = Calls[i-1].under(l)
			next.from = uint32(n)
		}
		if len(list) == 0 || list[len(list)-1].row != next.row || list[len(list)-1].verdict != next.verdict {
			list = append(list, next)
		}
	}
	return append(list, span{from: numbers, verdict: Unknown}, span{from: x32, verdict: Kill})
}

// under is the row's answer as far as the lock decides it.
func (c *Call) under(l *hostdoc.Lock) span {
	switch {
	case !has(l, c.When):
		return span{verdict: c.Else}
	case len(c.If) == 0:
		return span{verdict: c.Verdict}
	}
	return span{row: c}
}

// tree appends code that finds the span of the number in the accumulator by
// halves: the kernel runs the program once for every number when it is
// installed, and again for calls whose arguments count.
func tree(program []unix.SockFilter, list []span, pid uint32) []unix.SockFilter {
	if len(list) == 1 {
		return list[0].answer(program, pid)
	}
	mid := len(list) / 2
	at := len(program)
	// A condition jumps no further than 255 instructions, a jump anywhere.
	program = append(program, jump(unix.BPF_JGE, list[mid].from, 0, 1), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA})
	program = tree(program, list[:mid], pid)
	program[at+1].K = uint32(len(program) - at - 2)
	return tree(program, list[mid:], pid)
}

func (s *span) answer(program []unix.SockFilter, pid uint32) []unix.SockFilter {
	if s.row == nil {
		return append(program, ret(s.verdict))
	}
	for i := range s.row.If {
		program = s.row.If[i].test(program, pid, s.row.Else)
	}
	return append(program, ret(s.row.Verdict))
}

// test appends code that goes on behind its end when the condition holds.
func (c *Condition) test(program []unix.SockFilter, pid uint32, otherwise Verdict) []unix.SockFilter {
	program = append(program, load(offArgs+4*uint32(c.Half)))
	if c.Mask != whole {
		program = append(program, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.Mask})
	}
	for i, v := range c.Values {
		if v == Own {
			v = pid
		}
		program = append(program, jump(unix.BPF_JEQ, v, uint8(len(c.Values)-i), 0))
	}
	return append(program, ret(otherwise))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(how uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func ret(v Verdict) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v.code()}
}
