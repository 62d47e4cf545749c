package host

import (
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// frugalWith bounds a run's processor time to so many milliseconds.
func frugalWith(ms int64) func(*hostdoc.Document) {
	return func(d *hostdoc.Document) { d.Limits.CPUMillis = ms }
}

func TestProcessorTimeEndsABusyGuest(t *testing.T) {
	for name, text := range map[string]string{
		"loop":       agent(`(loop $again (br $again)) (i32.const 0)`),
		"calls":      agent(`(loop $again (drop (call $abi_version)) (br $again)) (i32.const 0)`),
		"memory":     agent(`(loop $again (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $again)) (i32.const 0)`),
		"initialize": agent(`(i32.const 0)`, `(func (export "_initialize") (loop $again (br $again)))`),
		"start":      agent(`(i32.const 0)`, `(func $s (loop $again (br $again))) (start $s)`),
	} {
		t.Run(name, func(t *testing.T) {
			setup{wat: text, edit: frugalWith(30)}.run(t).wants(t, fault.ExitDeadline, fault.CPUTime).says(t, "processor time of 30 ms")
		})
	}
	setup{wat: command(`(loop $again (br $again))`), edit: asCommand(frugalWith(30))}.run(t).wants(t, fault.ExitDeadline, fault.CPUTime)
}

// Waiting costs no processor time, however long it takes: the guest's wait is
// many times its limit.
func TestAGuestThatWaitsSpendsNoProcessorTime(t *testing.T) {
	began := time.Now()
	setup{wat: command(`
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const 1500000000))
    (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))
    (call $proc_exit (i32.const 7))`), edit: asCommand(frugalWith(300))}.run(t).wants(t, 7, "")
	if waited := time.Since(began); waited < 1500*time.Millisecond {
		t.Errorf("it waited only %v", waited)
	}
}

func TestAThreadsClockIsItsOwn(t *testing.T) {
	busy, end, closed := make(chan threadClock), make(chan struct{}), make(chan struct{})
	close(closed)
	go func() {
		busy <- ownClock()
		for open := true; open; {
			select {
			case <-end:
				open = false
			case <-closed:
			}
		}
	}()
	idle := make(chan threadClock)
	go func() {
		idle <- ownClock()
		<-end
	}()
	b, i := <-busy, <-idle
	for deadline := time.Now().Add(time.Minute); ; {
		now, ok := b.read()
		if !ok {
			t.Fatal("the clock of a thread that runs cannot be read")
		}
		if now-b.before > 50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a thread that does not wait has a clock that stands")
		}
		time.Sleep(time.Millisecond)
	}
	if now, _ := i.read(); now-i.before > 25*time.Millisecond {
		t.Errorf("a thread that waits has spent %v", now-i.before)
	}
	close(end)
	// No thread has so high a number.
	if gone := (threadClock{id: -(1<<22+1)<<3 | 6}); gone.left(time.Hour) != 0 {
		t.Error("a clock that cannot be read leaves time")
	}
}
