package module

import (
	"slices"
	"strings"
)

// ValType is a value type as the binary format encodes it.
type ValType byte

// The value types of WebAssembly 2.0.
const (
	I32       ValType = 0x7f
	I64       ValType = 0x7e
	F32       ValType = 0x7d
	F64       ValType = 0x7c
	V128      ValType = 0x7b
	FuncRef   ValType = 0x70
	ExternRef ValType = 0x6f
)

var valTypeNames = map[ValType]string{
	I32: "i32", I64: "i64", F32: "f32", F64: "f64", V128: "v128", FuncRef: "funcref", ExternRef: "externref",
}

// String gives the name of the text format.
func (v ValType) String() string {
	if name, ok := valTypeNames[v]; ok {
		return name
	}
	return "unknown type"
}

// FuncType is a function's signature.
type FuncType struct {
	Params, Results []ValType
}

// Equal reports whether the two are one type.
func (t FuncType) Equal(o FuncType) bool {
	return slices.Equal(t.Params, o.Params) && slices.Equal(t.Results, o.Results)
}

// String gives the signature as "(i32, i32) -> (i32)".
func (t FuncType) String() string {
	return "(" + typeList(t.Params) + ") -> (" + typeList(t.Results) + ")"
}

func typeList(types []ValType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}

// The modules whose functions the host provides.
const (
	ModuleMentat = "mentat"
	ModuleWASI   = "wasi_snapshot_preview1"
	ModuleEnv    = "env"
)

// Function is a function that the host provides.
type Function struct {
	Module, Name string
	// Types are the signatures under which it may be imported; the host links
	// the one that the module asks for. The first is the documented one.
	Types []FuncType
}

// Accepts reports whether the function may be imported with type t.
func (f *Function) Accepts(t FuncType) bool {
	return slices.ContainsFunc(f.Types, t.Equal)
}

// ABI is every function that the host provides: the `mentat` ABI 1.0, WASI
// preview 1 and what AssemblyScript's compiler imports by itself. A published
// name and signature never changes; a test holds the table against a copy.
var ABI = []Function{
	mentat("abi_version", ":i"),
	mentat("read_input", ":i"),
	mentat("read", "iii:i"),
	mentat("size", "i:I"),
	mentat("close", "i:i"),
	mentat("write_output", "ii:", "ii:i"),
	mentat("set_error", "iii:i"),
	mentat("last_error", ":i"),
	mentat("log", "ii:", "iii:"),
	mentat("start_stream", "ii:i"),
	mentat("write_stream", "iii:i"),
	mentat("end_stream", "ii:i"),
	mentat("download_media", "ii:i"),
	mentat("upload_media", "iiii:i"),
	mentat("record_metric", "iiiFii:i"),
	mentat("request_capability", "iiii:i"),
	mentat("invoke_capability", "iiiii:i"),
	mentat("get_config", "ii:i"),

	wasi("args_get", "ii:i"),
	wasi("args_sizes_get", "ii:i"),
	wasi("clock_res_get", "ii:i"),
	wasi("clock_time_get", "iIi:i"),
	wasi("environ_get", "ii:i"),
	wasi("environ_sizes_get", "ii:i"),
	wasi("fd_advise", "iIIi:i"),
	wasi("fd_allocate", "iII:i"),
	wasi("fd_close", "i:i"),
	wasi("fd_datasync", "i:i"),
	wasi("fd_fdstat_get", "ii:i"),
	wasi("fd_fdstat_set_flags", "ii:i"),
	wasi("fd_fdstat_set_rights", "iII:i"),
	wasi("fd_filestat_get", "ii:i"),
	wasi("fd_filestat_set_size", "iI:i"),
	wasi("fd_filestat_set_times", "iIIi:i"),
	wasi("fd_pread", "iiiIi:i"),
	wasi("fd_prestat_dir_name", "iii:i"),
	wasi("fd_prestat_get", "ii:i"),
	wasi("fd_pwrite", "iiiIi:i"),
	wasi("fd_read", "iiii:i"),
	wasi("fd_readdir", "iiiIi:i"),
	wasi("fd_renumber", "ii:i"),
	wasi("fd_seek", "iIii:i"),
	wasi("fd_sync", "i:i"),
	wasi("fd_tell", "ii:i"),
	wasi("fd_write", "iiii:i"),
	wasi("path_create_directory", "iii:i"),
	wasi("path_filestat_get", "iiiii:i"),
	wasi("path_filestat_set_times", "iiiiIIi:i"),
	wasi("path_link", "iiiiiii:i"),
	wasi("path_open", "iiiiiIIii:i"),
	wasi("path_readlink", "iiiiii:i"),
	wasi("path_remove_directory", "iii:i"),
	wasi("path_rename", "iiiiii:i"),
	wasi("path_symlink", "iiiii:i"),
	wasi("path_unlink_file", "iii:i"),
	wasi("poll_oneoff", "iiii:i"),
	wasi("proc_exit", "i:"),
	wasi("proc_raise", "i:i"),
	wasi("random_get", "ii:i"),
	wasi("sched_yield", ":i"),
	wasi("sock_accept", "iii:i"),
	wasi("sock_recv", "iiiiii:i"),
	wasi("sock_send", "iiiii:i"),
	wasi("sock_shutdown", "ii:i"),

	env("abort", "iiii:"),
	env("trace", "iiFFFFF:"),
	env("seed", ":F"),
}

func mentat(name string, types ...string) Function { return function(ModuleMentat, name, types) }
func wasi(name string, types ...string) Function   { return function(ModuleWASI, name, types) }
func env(name string, types ...string) Function    { return function(ModuleEnv, name, types) }

// function reads the table's shorthand: i, I, f, F for i32, i64, f32, f64,
// parameters before the colon and results after it.
func function(module, name string, types []string) Function {
	f := Function{Module: module, Name: name}
	for _, t := range types {
		params, results, _ := strings.Cut(t, ":")
		f.Types = append(f.Types, FuncType{Params: letters(params), Results: letters(results)})
	}
	return f
}

func letters(s string) []ValType {
	types := make([]ValType, len(s))
	for i := range types {
		types[i] = map[byte]ValType{'i': I32, 'I': I64, 'f': F32, 'F': F64}[s[i]]
	}
	return types
}

type qualified struct{ module, name string }

var byName = func() map[qualified]*Function {
	m := make(map[qualified]*Function, len(ABI))
	for i := range ABI {
		m[qualified{ABI[i].Module, ABI[i].Name}] = &ABI[i]
	}
	return m
}()

// Lookup finds a host function; nil means that the host has none of that name.
func Lookup(module, name string) *Function {
	return byName[qualified{module, name}]
}
