//go:build wasip1

// Command asks is a guest that asks for the capabilities that its arguments name
// and says what it got, a line each.
package main

import (
	"fmt"
	"os"

	"github.com/mentatlab/mentat/integration/testdata/escapes/raw"
)

func main() {
	for _, name := range os.Args[1:] {
		got := "granted"
		if h := raw.Request(name); h < 0 {
			got = fmt.Sprint("refused ", h)
		}
		fmt.Println(name, got)
	}
}
