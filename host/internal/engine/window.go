package engine

/*
#include "engine.h"
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// Window is a place of a run from which a guest reads without the host: the
// bytes that are there already. There is one, for guests read one thing at a
// time; it belongs to the goroutine that runs the guest.
type Window struct {
	r      *Run
	pinned runtime.Pinner
}

// Show lets the guest read data by that handle, in place of what was shown before.
// The bytes must not change until they are hidden.
func (w *Window) Show(handle int32, data []byte) {
	w.Hide()
	if len(data) == 0 {
		return
	}
	p := unsafe.SliceData(data)
	w.pinned.Pin(p)
	w.r.p.window = C.struct_mt_window{handle: C.int32_t(handle), data: (*C.uint8_t)(p), end: C.size_t(len(data))}
}

// Taken is how much of what is shown the guest has read.
func (w *Window) Taken() int { return int(w.r.p.window.pos) }

// Hide takes away what is shown.
func (w *Window) Hide() {
	if w.r.p.window.data == nil {
		return
	}
	w.r.p.window = C.struct_mt_window{}
	w.pinned.Unpin()
}
