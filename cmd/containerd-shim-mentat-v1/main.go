package main

import (
	"os"

	"github.com/mentatlab/mentat/shim/launch"
)

func main() {
	os.Exit(launch.Main(os.Args, os.Stdin, os.Stdout))
}
