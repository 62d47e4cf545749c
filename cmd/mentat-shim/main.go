package main

import (
	"context"
	"os"

	"github.com/mentatlab/mentat/shim"
)

func main() {
	os.Exit(shim.Main(context.Background()))
}
