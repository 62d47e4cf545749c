package main

import (
	"context"

	"github.com/mentatlab/mentat/shim"
)

func main() {
	shim.Main(context.Background())
}
