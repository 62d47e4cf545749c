package module

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

var (
	typeProcess = FuncType{Results: []ValType{I32}}
	typeVoid    = FuncType{}
	typeAlloc   = FuncType{Params: []ValType{I32}, Results: []ValType{I32}}
)

// entryTypes are the signatures of the exports with a meaning.
var entryTypes = []struct {
	name string
	typ  FuncType
}{
	{exportProcess, typeProcess},
	{exportStart, typeVoid},
	{exportInitialize, typeVoid},
	{exportAlloc, typeAlloc},
}

// Check reports everything that keeps the host from running the module, in one
// [fault.ModuleInvalid] error: imports that no host function satisfies (all
// named), a missing or mistyped entry, and a memory that the host cannot reach.
func (i *Info) Check() error {
	var problems []string
	hint := ""
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	var unknown []string
	for _, im := range i.Imports {
		name := im.Module + "." + im.Name
		f := Lookup(im.Module, im.Name)
		switch {
		case im.Kind != KindFunc:
			unknown = append(unknown, fmt.Sprintf("%s (a %s)", name, im.Kind))
		case f == nil:
			unknown = append(unknown, name)
			if hint == "" {
				hint = importHints[im.Module]
			}
		case !f.Accepts(im.Type):
			add("imports %s as %s, the host provides %s", name, im.Type, signatures(f.Types))
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		problems = slices.Insert(problems, 0, "imports what the host does not provide: "+strings.Join(slices.Compact(unknown), ", "))
	}

	if i.Entry == "" {
		add("exports neither %s nor %s", exportProcess, exportStart)
	}
	for _, want := range entryTypes {
		switch ex := i.export(want.name); {
		case ex == nil:
		case want.name == exportStart && i.Entry != hostdoc.EntryCommand:
			// With process there, _start is never called.
		case ex.Kind != KindFunc:
			add("exports %s as a %s, it must be a function", want.name, ex.Kind)
		case !ex.Type.Equal(want.typ):
			add("exports %s as %s, it must be %s", want.name, ex.Type, want.typ)
		}
	}

	switch ex := i.export(exportMemory); {
	case i.Memories > 1:
		add("has %d memories, one is allowed", i.Memories)
	case ex == nil:
		add("exports no memory named %q", exportMemory)
	case ex.Kind != KindMemory:
		add("exports %q as a %s, it must be a memory", exportMemory, ex.Kind)
	}

	if len(problems) == 0 {
		return nil
	}
	err := invalid("the module %s", strings.Join(problems, "; it "))
	if hint != "" {
		err = err.WithHint("%s", hint)
	}
	return err
}

// importHints say what an import from a foreign host usually means.
var importHints = map[string]string{
	"wasi_unstable": "this is WASI preview 0, build for wasm32-wasip1",
	"env":           "a function was declared but never linked, or lacks its import module",
	"wbg":           "this module was made for a browser by wasm-bindgen",
	"gojs":          "this module was made for a browser, build with GOOS=wasip1",
	"go":            "this module was made for a browser, build with GOOS=wasip1",
	ModuleMentat:    "this function is not part of the mentat ABI 1.0",
	ModuleWASI:      "this function is not part of WASI preview 1",
}

func signatures(types []FuncType) string {
	all := make([]string, len(types))
	for i, t := range types {
		all[i] = t.String()
	}
	return strings.Join(all, " or ")
}

func (i *Info) export(name string) *Export {
	for k := range i.Exports {
		if i.Exports[k].Name == name {
			return &i.Exports[k]
		}
	}
	return nil
}
