package conformance

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/mentatlab/mentat/host"
	"github.com/mentatlab/mentat/manifest/module"
)

var update = flag.Bool("update", false, "write the built guests anew")

// program builds the host once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mentat-conformance-")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "mentat-host")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/mentat-host").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

var built string

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

// build makes a guest's module by a command.
func build(t *testing.T, dir, out string, env []string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func goGuest(t *testing.T) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "calls-go.wasm")
	return build(t, filepath.Join("testdata", "calls-go"), out, []string{"GOOS=wasip1", "GOARCH=wasm"}, "go", "build", "-buildmode=c-shared", "-o", out, "main.go")
}

func TestTheHostConforms(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cases, err := Cases()
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 100 {
		t.Fatalf("only %d cases", len(cases))
	}
	guests := map[string][]byte{"go": goGuest(t)}
	for name, wasm := range Modules {
		guests[name] = wasm
	}
	for name, wasm := range guests {
		t.Run(name, func(t *testing.T) {
			h := &Host{Path: path, Dir: t.TempDir()}
			g, err := h.Compile(t.Context(), name, wasm)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cases {
				// Go's own way to export a function leaves no _start.
				if c.Command() && name == "go" {
					continue
				}
				t.Run(strings.TrimSuffix(c.File, ".txt")+"/"+c.Name, func(t *testing.T) {
					t.Parallel()
					if err := h.Run(t.Context(), g, &c); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// A difference of any kind must be noticed, or passing means nothing.
func TestWhatDiffersIsNoticed(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{Path: path, Dir: t.TempDir()}
	g, err := h.Compile(t.Context(), "wat", watGuest)
	if err != nil {
		t.Fatal(err)
	}
	good := `== good
config model "small"
call start_stream "a" -> $a
> {"event":"start","stream":"a"}
call end_stream $a 0 -> 0
> {"event":"end","stream":"a","status":0}
call get_config "model" -> $h
call read $h scratch:100 -> 5 "small"
call log "hi"
> {"event":"log","level":"info","message":"hi"}
return 3
exit 3
`
	run := func(text string) error {
		cases, err := ParseCases("test", text)
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		return h.Run(t.Context(), g, &cases[0])
	}
	if err := run(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"a result":          {`call end_stream $a 0 -> 0`, `call end_stream $a 0 -> 1`},
		"a handle":          {`call end_stream $a 0 -> 0`, `call end_stream $a -1 -> $x`},
		"a trap":            {`call end_stream $a 0 -> 0`, `call end_stream $a 0 -> trap`},
		"what was read":     {`-> 5 "small"`, `-> 5 "large"`},
		"a part":            {`-> 5 "small"`, `-> 5 has "large"`},
		"an event":          {`"status":0}`, `"status":1}`},
		"a missing event":   {`> {"event":"start","stream":"a"}`, `> {"event":"start","stream":"a"}` + "\n" + `> {"event":"start","stream":"a"}`},
		"an event too much": {`> {"event":"log","level":"info","message":"hi"}`, ``},
		"the status":        {`exit 3`, `exit 4`},
		"the reason":        {`exit 3`, `exit 3 trap`},
		"the message":       {`exit 3`, `exit 3 "" "something"`},
		"a call":            {`call log "hi"`, `call log @0xffffffff:1`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s: nothing changed", name)
		}
		if err := run(text); err == nil {
			t.Errorf("%s: passes", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestTheFunctionsAreTheABIs(t *testing.T) {
	letters := map[module.ValType]string{module.I32: "i", module.I64: "I", module.F64: "F"}
	spell := func(types []module.ValType) string {
		var b strings.Builder
		for _, v := range types {
			b.WriteString(letters[v])
		}
		return b.String()
	}
	want := map[string]bool{}
	for _, f := range module.ABI {
		for _, typ := range f.Types {
			if f.Module == module.ModuleMentat {
				want[f.Name+" "+spell(typ.Params)+":"+spell(typ.Results)] = true
			}
		}
	}
	cases, err := Cases()
	if err != nil {
		t.Fatal(err)
	}
	used := map[int]bool{}
	for _, c := range cases {
		for _, s := range c.steps {
			if s.event == nil {
				used[s.call] = true
			}
		}
	}
	for i, f := range Functions {
		key := f.Name + " " + f.Params + ":" + f.Result
		if !want[key] {
			t.Errorf("%s is none of the ABI's", key)
		}
		delete(want, key)
		if !used[i] {
			t.Errorf("no case calls %s", f)
		}
	}
	for key := range want {
		t.Errorf("the suite lacks %s", key)
	}
}

// The built guests are those of their sources.
func TestGuestsAreBuiltFromTheirSources(t *testing.T) {
	text, err := os.ReadFile("guests/calls.wat")
	if err != nil {
		t.Fatal(err)
	}
	wasm, err := wasmtime.Wat2Wasm(string(text))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "guests/calls-wat.wasm", wasm)

	out := filepath.Join(t.TempDir(), "calls-c.wasm")
	rebuilt := build(t, "guests", out, nil, "clang", "--target=wasm32", "-O2", "-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all", "calls.c", "-o", out)
	version, err := exec.Command("clang", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(version, []byte("clang version 14.0.")) || *update {
		same(t, "guests/calls-c.wasm", rebuilt)
	}
	if _, err := host.Compile(rebuilt); err != nil {
		t.Error(err)
	}
}

func same(t *testing.T, name string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale: run go test ./sdk/conformance -update", name)
	}
}

func TestLinesThatAreNoCaseAreRefused(t *testing.T) {
	for _, line := range []string{
		`call`, `call nothing`, `call read`, `call read 0`, `call read 0 scratch:99999`, `call read 0 "x" -> 0 1`, `call close $x -> 0`, `call close 0 ->`, `call close 0 -> NOTHING`,
		`call close 1.5`, `call log @1`, `call log @1:x`, `call log "x`, `> {`, `> []`, `frobnicate`, `limit output x`, `exit x`, `exit`, `media 1`, `grant`, `call close 99999999999`,
	} {
		if cases, err := ParseCases("test", "== name\n"+line+"\n"); err == nil {
			t.Errorf("%s: %+v", line, cases)
		} else if !strings.Contains(err.Error(), "test:2") {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := ParseCases("test", "call close 0\n"); err == nil {
		t.Error("a call without a case")
	}
}

// FuzzParseCases: what is read can be made into a script, and errors name a line.
func FuzzParseCases(f *testing.F) {
	entries, err := caseFiles.ReadDir("cases")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		text, err := caseFiles.ReadFile("cases/" + e.Name())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("== x\ngiven \"y\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		cases, err := ParseCases("test", text)
		if err != nil {
			if cases != nil || !strings.HasPrefix(err.Error(), "test:") {
				t.Errorf("%v, %v", cases, err)
			}
			return
		}
		for _, c := range cases {
			if c.Script() == "" {
				t.Error("no script")
			}
		}
	})
}
