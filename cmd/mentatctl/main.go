package main

import (
	"context"
	"os"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
