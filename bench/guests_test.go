package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"
)

var update = flag.Bool("update", false, "assemble the guests anew")

func TestTheGuestsAreWhatTheirSourcesSay(t *testing.T) {
	sources, err := filepath.Glob("testdata/*.wat")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		want, err := wasmtime.Wat2Wasm(string(text))
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		name := strings.TrimSuffix(source, ".wat") + ".wasm"
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what %s says (%v): run go test ./bench -update", name, source, err)
		}
	}
}
