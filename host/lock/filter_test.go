//go:build linux && amd64

package lock

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// data is the kernel's struct seccomp_data.
type data struct {
	number, arch uint32
	pointer      uint64
	args         [6]uint64
}

// decide runs a program as the kernel does and refuses what its checker would.
func decide(program []unix.SockFilter, d data) (uint32, error) {
	var raw []byte
	for _, part := range []any{d.number, d.arch, d.pointer, d.args} {
		var err error
		if raw, err = binary.Append(raw, binary.LittleEndian, part); err != nil {
			return 0, err
		}
	}
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		in := program[pc]
		take := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || in.K > 60 {
				return 0, fmt.Errorf("instruction %d reads at %d", pc, in.K)
			}
			a = binary.LittleEndian.Uint32(raw[in.K:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			take(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			take(a >= in.K)
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, nil
		default:
			return 0, fmt.Errorf("instruction %d is %#x", pc, in.Code)
		}
	}
	return 0, fmt.Errorf("the program runs past its end")
}

// said is the same decision, read off the table row by row.
func said(l *hostdoc.Lock, pid uint32, d data) Verdict {
	if d.arch != archAMD64 || d.number >= x32 {
		return Kill
	}
	for _, c := range Calls {
		if !slices.Contains(c.Numbers, d.number) {
			continue
		}
		if !has(l, c.When) {
			return c.Else
		}
		for _, cond := range c.If {
			half := uint32(d.args[cond.Half/2] >> (32 * (cond.Half % 2)))
			if !slices.ContainsFunc(cond.Values, func(v uint32) bool {
				if v == Own {
					v = pid
				}
				return half&cond.Mask == v
			}) {
				return c.Else
			}
		}
		return c.Verdict
	}
	return Unknown
}

func locks() []*hostdoc.Lock {
	var all []*hostdoc.Lock
	for i := range 8 {
		l := &hostdoc.Lock{Dial: i&1 != 0, Listen: i&2 != 0}
		if i&4 != 0 {
			l.Execute = []string{"/plugin"}
		}
		all = append(all, l)
	}
	return all
}

// FuzzTheProgramDecidesAsTheTable has every number with the arguments that the
// table's conditions name as its seeds.
func FuzzTheProgramDecidesAsTheTable(f *testing.F) {
	const pid = 77
	type variant struct {
		lock    *hostdoc.Lock
		program []unix.SockFilter
	}
	var variants []variant
	for _, l := range locks() {
		program := filter(l, pid)
		if len(program) > unix.BPF_MAXINSNS {
			f.Fatalf("%d instructions", len(program))
		}
		variants = append(variants, variant{l, program})
	}
	for n := range uint32(600) {
		f.Add(n, uint32(archAMD64), uint64(0), uint64(0), uint64(0), uint64(0))
	}
	for _, c := range Calls {
		for _, cond := range c.If {
			for _, v := range append(cond.Values, cond.Mask, ^cond.Mask, 1, ^uint32(0), pid) {
				for _, n := range c.Numbers {
					var args [6]uint64
					args[cond.Half/2] = uint64(v) << (32 * (cond.Half % 2))
					f.Add(n, uint32(archAMD64), args[0], args[1], args[2], args[4])
				}
			}
		}
	}
	f.Add(uint32(x32), uint32(archAMD64), uint64(0), uint64(0), uint64(0), uint64(0))
	f.Add(^uint32(0), uint32(archAMD64), uint64(0), uint64(0), uint64(0), uint64(0))
	f.Add(uint32(0), uint32(0x40000003), uint64(0), uint64(0), uint64(0), uint64(0)) // i386
	f.Add(uint32(41), uint32(archAMD64), uint64(2), uint64(1|unix.SOCK_CLOEXEC), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, number, arch uint32, a0, a1, a2, a4 uint64) {
		d := data{number: number, arch: arch, args: [6]uint64{a0, a1, a2, 0, a4, 0}}
		for _, v := range variants {
			got, err := decide(v.program, d)
			if want := said(v.lock, pid, d); err != nil || got != want.code() {
				t.Fatalf("%+v under %+v: %#x, %v, want %s", d, v.lock, got, err, want)
			}
		}
	})
}

func TestConditionsReadArgumentsThatExist(t *testing.T) {
	for _, c := range Calls {
		for _, cond := range c.If {
			if cond.Half < 0 || cond.Half > 11 || len(cond.Values) == 0 || len(cond.Values) > 255 || c.Only == "" || c.Else == "" {
				t.Errorf("%s: %+v", c.What, cond)
			}
		}
		if (c.When != "") != (c.Else != "" && len(c.If) == 0) && len(c.If) == 0 {
			t.Errorf("%s: what is it without its right?", c.What)
		}
		if len(c.Numbers) == 0 || c.What == "" {
			t.Errorf("a row without calls: %+v", c)
		}
	}
}

func BenchmarkFilter(b *testing.B) {
	for b.Loop() {
		_ = filter(&hostdoc.Lock{}, 1)
	}
}
