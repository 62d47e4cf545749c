// Command calls-go is the guest of the conformance suite in Go: it reads a script
// and makes the calls that it names. ../../README.md has the script's form.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o calls-go.wasm
package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"runtime"
	"unsafe"
)

//go:wasmimport mentat abi_version
func abiVersionCall() int32

//go:wasmimport mentat read_input
func readInputCall() int32

//go:wasmimport mentat read
func readCall(a uint32, b uint32, c uint32) int32

//go:wasmimport mentat size
func sizeCall(a uint32) int64

//go:wasmimport mentat close
func closeCall(a uint32) int32

//go:wasmimport mentat write_output
func writeOutputCall(a uint32, b uint32) int32

//go:wasmimport mentat write_output
func writeOutputVoidCall(a uint32, b uint32)

//go:wasmimport mentat set_error
func setErrorCall(a uint32, b uint32, c uint32) int32

//go:wasmimport mentat last_error
func lastErrorCall() int32

//go:wasmimport mentat log
func logCall(a uint32, b uint32)

//go:wasmimport mentat log
func logLevelCall(a uint32, b uint32, c uint32)

//go:wasmimport mentat start_stream
func startStreamCall(a uint32, b uint32) int32

//go:wasmimport mentat write_stream
func writeStreamCall(a uint32, b uint32, c uint32) int32

//go:wasmimport mentat end_stream
func endStreamCall(a uint32, b uint32) int32

//go:wasmimport mentat download_media
func downloadMediaCall(a uint32, b uint32) int32

//go:wasmimport mentat upload_media
func uploadMediaCall(a uint32, b uint32, c uint32, d uint32) int32

//go:wasmimport mentat record_metric
func recordMetricCall(a uint32, b uint32, c uint32, d float64, e uint32, f uint32) int32

//go:wasmimport mentat request_capability
func requestCapabilityCall(a uint32, b uint32, c uint32, d uint32) int32

//go:wasmimport mentat invoke_capability
func invokeCapabilityCall(a uint32, b uint32, c uint32, d uint32, e uint32) int32

//go:wasmimport mentat get_config
func getConfigCall(a uint32, b uint32) int32

const key = "conformance.script"

var (
	script  []byte
	scratch [4096]byte
	results []int32
	at      int
)

func address(p *byte) uint32 { return uint32(uintptr(unsafe.Pointer(p))) }

func take() byte {
	at++
	return script[at-1]
}

func word() uint32 {
	at += 4
	return binary.LittleEndian.Uint32(script[at-4:])
}

// arg is an argument: a value, bytes of the script, scratch, or an earlier result.
func arg() uint32 {
	switch take() {
	case 1:
		// A text may be empty and at the end.
		return address(unsafe.SliceData(script)) + word()
	case 2:
		return address(&scratch[0])
	case 3:
		return uint32(results[word()])
	}
	return word()
}

func argf() float64 {
	at += 9
	return math.Float64frombits(binary.LittleEndian.Uint64(script[at-8:]))
}

func say(line string) {
	logLevelCall(0, address(unsafe.StringData(line)), uint32(len(line)))
	runtime.KeepAlive(line)
}

// gave says what a call gave: '#' and 16 digits, or '#' alone.
func gave(v int64) {
	results = append(results, int32(v))
	say(fmt.Sprintf("#%016x", uint64(v)))
}

func gaveNothing() {
	results = append(results, 0)
	say("#")
}

// load reads the script.
func load() {
	h := uint32(getConfigCall(address(unsafe.StringData(key)), uint32(len(key))))
	var text []byte
	for {
		n := readCall(h, address(&scratch[0]), uint32(len(scratch)))
		if n <= 0 {
			break
		}
		text = append(text, scratch[:n]...)
	}
	closeCall(h)
	var err error
	if script, err = hex.DecodeString(string(text)); err != nil {
		panic(err)
	}
}

//go:wasmexport process
func process() int32 {
	load()
	for {
		switch op := take(); op {
		case 255:
			return int32(word())
		case 254:
			writeOutputVoidCall(address(&scratch[0]), uint32(results[len(results)-1]))
		case 0:
			gave(int64(abiVersionCall()))
		case 1:
			gave(int64(readInputCall()))
		case 2:
			gave(int64(readCall(arg(), arg(), arg())))
		case 3:
			gave(sizeCall(arg()))
		case 4:
			gave(int64(closeCall(arg())))
		case 5:
			gave(int64(writeOutputCall(arg(), arg())))
		case 6:
			writeOutputVoidCall(arg(), arg())
			gaveNothing()
		case 7:
			gave(int64(setErrorCall(arg(), arg(), arg())))
		case 8:
			gave(int64(lastErrorCall()))
		case 9:
			logCall(arg(), arg())
			gaveNothing()
		case 10:
			logLevelCall(arg(), arg(), arg())
			gaveNothing()
		case 11:
			gave(int64(startStreamCall(arg(), arg())))
		case 12:
			gave(int64(writeStreamCall(arg(), arg(), arg())))
		case 13:
			gave(int64(endStreamCall(arg(), arg())))
		case 14:
			gave(int64(downloadMediaCall(arg(), arg())))
		case 15:
			gave(int64(uploadMediaCall(arg(), arg(), arg(), arg())))
		case 16:
			gave(int64(recordMetricCall(arg(), arg(), arg(), argf(), arg(), arg())))
		case 17:
			gave(int64(requestCapabilityCall(arg(), arg(), arg(), arg())))
		case 18:
			gave(int64(invokeCapabilityCall(arg(), arg(), arg(), arg(), arg())))
		case 19:
			gave(int64(getConfigCall(arg(), arg())))
		default:
			panic("an operation that it does not know")
		}
	}
}

func main() {}
