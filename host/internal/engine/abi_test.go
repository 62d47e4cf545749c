package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The library's headers and our declarations in one translation unit: C accepts
// a second declaration only if it is the same.
func TestDeclarationsAreTheLibrarysOwn(t *testing.T) {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/bytecodealliance/wasmtime-go/v39").Output()
	if err != nil {
		t.Fatal(err)
	}
	cc, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	compile := func(source string) ([]byte, error) {
		file := filepath.Join(t.TempDir(), "check.c")
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command(strings.TrimSpace(string(cc)), "-std=c11", "-Werror", "-fsyntax-only",
			"-I"+filepath.Join(strings.TrimSpace(string(module)), "build", "include"), "-I"+here, file).CombinedOutput()
	}
	const source = `
#include <wasmtime.h>
#include "wasmtime_abi.h"
#include <string.h>
_Static_assert(sizeof(MT_WASMTIME_VERSION) == sizeof(WASMTIME_VERSION), "version");
_Static_assert(WASMTIME_VERSION_MAJOR == 39 && WASMTIME_VERSION_MINOR == 0 && WASMTIME_VERSION_PATCH == 0, "version");
_Static_assert(MT_STRATEGY_CRANELIFT == WASMTIME_STRATEGY_CRANELIFT, "strategy");
_Static_assert(MT_OPT_LEVEL_SPEED == WASMTIME_OPT_LEVEL_SPEED, "level");
_Static_assert(MT_UPDATE_DEADLINE_CONTINUE == WASMTIME_UPDATE_DEADLINE_CONTINUE, "deadline");
_Static_assert(MT_WASM_EXTERN_FUNC == WASM_EXTERN_FUNC && MT_WASM_EXTERN_GLOBAL == WASM_EXTERN_GLOBAL, "extern kinds");
_Static_assert(WASMTIME_EXTERN_FUNC == 0 && WASMTIME_EXTERN_GLOBAL == 1 && WASMTIME_EXTERN_MEMORY == 3, "extern kinds");
_Static_assert(WASMTIME_I32 == 0 && WASMTIME_I64 == 1, "value kinds");
_Static_assert(WASM_I32 == 0 && WASM_I64 == 1 && WASM_F32 == 2 && WASM_F64 == 3, "type kinds");
_Static_assert(WASMTIME_TRAP_CODE_STACK_OVERFLOW == 0 && WASMTIME_TRAP_CODE_MEMORY_OUT_OF_BOUNDS == 1 &&
               WASMTIME_TRAP_CODE_TABLE_OUT_OF_BOUNDS == 3 && WASMTIME_TRAP_CODE_INDIRECT_CALL_TO_NULL == 4 &&
               WASMTIME_TRAP_CODE_BAD_SIGNATURE == 5 && WASMTIME_TRAP_CODE_INTEGER_OVERFLOW == 6 &&
               WASMTIME_TRAP_CODE_INTEGER_DIVISION_BY_ZERO == 7 && WASMTIME_TRAP_CODE_BAD_CONVERSION_TO_INTEGER == 8 &&
               WASMTIME_TRAP_CODE_UNREACHABLE_CODE_REACHED == 9 && WASMTIME_TRAP_CODE_INTERRUPT == 10, "trap codes");
`
	if out, err := compile(source); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The check itself notices a difference.
	if _, err := compile(source + "\nint wasm_frame_func_index(const wasm_frame_t *);\n"); err == nil {
		t.Error("a wrong declaration passes")
	}
}

func TestVersionIsTheBoundOne(t *testing.T) {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "github.com/bytecodealliance/wasmtime-go/v39").Output()
	if err != nil {
		t.Fatal(err)
	}
	// The binding's patch version is its own: v39.0.1 brings the library 39.0.0.
	if got := strings.TrimSpace(string(module)); got != "v39.0.1" || Version != "39.0.0" {
		t.Errorf("binding %s, library %s: check the headers, then this test", got, Version)
	}
}

func TestInnermostCause(t *testing.T) {
	for report, want := range map[string]string{
		"plain": "plain",
		"error while executing at wasm backtrace:\n    0: 0x3\n\nCaused by:\n    wasm trap: x":           "wasm trap: x",
		"WebAssembly translation error\n\nCaused by:\n    0: outer\n    1: Invalid input at offset 3: y": "Invalid input at offset 3: y",
		"a\n\nCaused by:\n    b\n\nStack backtrace:\n   0: <unknown>":                                    "b",
		"": "",
	} {
		if got := innermost(report); got != want {
			t.Errorf("%q: %q, want %q", report, got, want)
		}
	}
}
