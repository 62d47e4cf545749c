package module

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// prefixes names what a file that is no WebAssembly begins like. Longer and
// more telling prefixes come first.
var prefixes = []struct{ magic, what string }{
	{"MZ", "a Windows program; native code is never run"},
	{"\xfe\xed\xfa\xce", "a macOS program; native code is never run"},
	{"\xfe\xed\xfa\xcf", "a macOS program; native code is never run"},
	{"\xce\xfa\xed\xfe", "a macOS program; native code is never run"},
	{"\xcf\xfa\xed\xfe", "a macOS program; native code is never run"},
	{"\xca\xfe\xba\xbe", "a macOS universal program or a Java class; native code is never run"},
	{"!<arch>\n", "a static library; link it into a module first"},
	{"BC\xc0\xde", "LLVM bitcode; link it into a module first"},
	{"\xde\xc0\x17\x0b", "LLVM bitcode; link it into a module first"},
	{"\x1f\x8b", "gzip data; unpack it first"},
	{"\x28\xb5\x2f\xfd", "zstd data; unpack it first"},
	{"BZh", "bzip2 data; unpack it first"},
	{"\xfd7zXZ\x00", "xz data; unpack it first"},
	{"PK\x03\x04", "a zip archive; unpack it first"},
	{"#!", "a script"},
	{"version https://git-lfs", "a Git LFS pointer; fetch the real file first"},
	{"<", "HTML or XML, as a failed download leaves it"},
	{"{", "JSON"},
}

// looksLike says what data, which does not begin as WebAssembly does, is.
func looksLike(data []byte) string {
	if bytes.HasPrefix(data, []byte("\x7fELF")) {
		// An engine's compiled module is an ELF file with sections of its own.
		if bytes.Contains(data, []byte(".wasmtime.")) {
			return "a module compiled by wasmtime (.cwasm); native code is never loaded from a file, give the .wasm it was made from"
		}
		return "native code (ELF); build for WebAssembly"
	}
	for _, p := range prefixes {
		if bytes.HasPrefix(data, []byte(p.magic)) {
			return p.what
		}
	}
	if len(data) > 262 && string(data[257:262]) == "ustar" {
		return "a tar archive; unpack it first"
	}
	head := data[:min(len(data), 4096)]
	if text := skipComments(string(head)); strings.HasPrefix(text, "(module") || strings.HasPrefix(text, "(component") {
		return "WebAssembly text; turn it into a binary with wat2wasm or wasm-tools parse"
	}
	if utf8.Valid(head) && !bytes.ContainsRune(head, 0) {
		return "text"
	}
	if len(data) >= 4 && binary.BigEndian.Uint32(data) == 0 {
		return "a file that begins with zero bytes"
	}
	return "unknown data"
}

// skipComments drops blanks and comments of the WebAssembly text format.
func skipComments(s string) string {
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		var found bool
		switch {
		case strings.HasPrefix(s, ";;"):
			_, s, found = strings.Cut(s, "\n")
		case strings.HasPrefix(s, "(;"):
			_, s, found = strings.Cut(s, ";)")
		default:
			return s
		}
		if !found {
			return ""
		}
	}
}
