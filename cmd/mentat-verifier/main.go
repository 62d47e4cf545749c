package main

import (
	"context"
	"os"
	"time"

	"github.com/mentatlab/mentat/internal/limits"
)

func main() {
	os.Exit(run(context.Background(), limits.VerifierBudget, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, time.Now))
}
