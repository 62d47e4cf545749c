package launch

import (
	"bytes"
	"encoding/binary"
)

// bootstrap is what matters here of what containerd sends on standard input.
type bootstrap struct {
	socketDir string
	// unusual asks for something that only the serving program does.
	unusual bool
}

// Fields of containerd's BootstrapParams (api/runtime/bootstrap/v1).
const (
	fieldInstanceID = 1
	fieldNamespace  = 2
	fieldLogLevel   = 3
	fieldExtensions = 8
	fieldSocketDir  = 9
)

// parseBootstrap reads bootstrap parameters, which containerd 2.3 and later send,
// and runtime options, which older ones do. Whatever it does not understand is
// unusual: the serving program reads it with the library.
func parseBootstrap(input []byte, call Call) bootstrap {
	var b bootstrap
	var id, namespace string
	var extensions []byte
	verbose := false
	ok := fields(input, func(number, kind uint64, value []byte) {
		switch number {
		case fieldInstanceID:
			id = string(value)
		case fieldNamespace:
			namespace = string(value)
		case fieldSocketDir:
			b.socketDir = string(value)
		case fieldExtensions:
			extensions = append(extensions, value...)
		case fieldLogLevel:
			// The last one counts, and debugging and more is negative.
			level, _ := binary.Uvarint(value)
			verbose = kind != varint || int32(level) < 0
		}
	})
	if !ok || id != call.ID || namespace != call.Namespace {
		// The options of an older containerd, or none.
		b, extensions, verbose = bootstrap{}, input, false
	}
	b.unusual = verbose || placesShim(extensions)
	return b
}

// placesShim tells whether options may ask for a cgroup of the shim's own: those
// of runc in field 3 of their message, those of CRI by name. It may say yes too
// often, which costs time and nothing else.
func placesShim(options []byte) bool {
	return bytes.Contains(options, []byte("runc.v1.Options")) && runcOptionsPlaceShim(options) || bytes.Contains(options, []byte("ShimCgroup"))
}

// runcOptionsPlaceShim looks through runc's options for the field of the shim's
// cgroup, in every message there may be.
func runcOptionsPlaceShim(message []byte) bool {
	const fieldShimCgroup, fieldAnyValue = 3, 2
	found := false
	ok := fields(message, func(number, kind uint64, value []byte) {
		if kind == bytesKind && len(value) > 0 {
			found = found || number == fieldShimCgroup || runcOptionsPlaceShim(value) && number <= fieldAnyValue
		}
	})
	return ok && found
}

// Wire types of protocol buffers.
const (
	varint    = 0
	fixed64   = 1
	bytesKind = 2
	fixed32   = 5
)

// fields calls see for each field of a message; it returns false when the bytes
// are none. The value of a varint is its encoding.
func fields(message []byte, see func(number, kind uint64, value []byte)) bool {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 || tag>>3 == 0 {
			return false
		}
		message = message[n:]
		var size uint64
		switch tag & 7 {
		case varint:
			if _, n = binary.Uvarint(message); n <= 0 {
				return false
			}
			size = uint64(n)
		case fixed64:
			size = 8
		case fixed32:
			size = 4
		case bytesKind:
			if size, n = binary.Uvarint(message); n <= 0 {
				return false
			}
			message = message[n:]
		default:
			return false
		}
		if size > uint64(len(message)) {
			return false
		}
		see(tag>>3, tag&7, message[:size])
		message = message[size:]
	}
	return true
}
