//go:build wasm && !js

package mentat

import (
	"errors"
	"unsafe"
)

//go:wasmimport mentat abi_version
func abiVersion() int32

//go:wasmimport mentat read_input
func readInput() int32

//go:wasmimport mentat read
func read(handle int32, ptr unsafe.Pointer, size uint32) int32

//go:wasmimport mentat close
func closeHandle(handle int32) int32

//go:wasmimport mentat write_output
func writeOutput(ptr unsafe.Pointer, size uint32) int32

//go:wasmimport mentat set_error
func setError(code int32, ptr unsafe.Pointer, size uint32) int32

//go:wasmimport mentat last_error
func lastError() int32

//go:wasmimport mentat log
func log(level int32, ptr unsafe.Pointer, size uint32)

//go:wasmimport mentat get_config
func getConfig(ptr unsafe.Pointer, size uint32) int32

// abiMajor is the ABI's major version that these imports belong to.
const abiMajor = 1

// chunk is how much is read at once when the size is not known.
const chunk = 4096

// Module is the MentatLab host as a module sees it.
type Module struct{}

// ReadInput reads the whole input, which is handle 0.
func (Module) ReadInput() ([]byte, error) {
	if v := abiVersion(); v>>16 != abiMajor {
		return nil, errors.New("this agent was built for ABI version 1, which the host does not speak")
	}
	n := readInput()
	if n < 0 {
		return nil, failure(n)
	}
	return readAll(0, int(n))
}

// WriteOutput appends to the output.
func (Module) WriteOutput(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if code := writeOutput(unsafe.Pointer(unsafe.SliceData(data)), uint32(len(data))); code < 0 {
		return failure(code)
	}
	return nil
}

// SetError marks the run failed.
func (Module) SetError(code int32, message string) {
	setError(code, unsafe.Pointer(unsafe.StringData(message)), uint32(len(message)))
}

// Log writes one line.
func (Module) Log(level int32, message string) {
	log(level, unsafe.Pointer(unsafe.StringData(message)), uint32(len(message)))
}

// Config reads one setting of the manifest.
func (Module) Config(key string) (string, error) {
	h := getConfig(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)))
	if h < 0 {
		return "", failure(h)
	}
	data, err := readAll(h, 0)
	closeHandle(h)
	return string(data), err
}

// readAll reads a handle to its end; size is what to expect, if known.
func readAll(handle int32, size int) ([]byte, error) {
	// One byte more than expected, so that the end shows without growing.
	buf := make([]byte, 0, max(size+1, 64))
	for {
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 2*cap(buf)+chunk), buf...)
		}
		free := buf[len(buf):cap(buf)]
		n := read(handle, unsafe.Pointer(unsafe.SliceData(free)), uint32(len(free)))
		if n < 0 {
			return nil, failure(n)
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+int(n)]
	}
}

// failure asks for the detail of the error that just happened.
func failure(code int32) error {
	f := &Failure{Code: code}
	h := lastError()
	if h < 0 {
		return f
	}
	buf := make([]byte, chunk)
	for used := 0; used < len(buf); {
		n := read(h, unsafe.Pointer(&buf[used]), uint32(len(buf)-used))
		if n <= 0 {
			f.Detail = buf[:used]
			break
		}
		used += int(n)
	}
	closeHandle(h)
	return f
}
