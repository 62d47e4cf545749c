package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/sdk/conformance"
)

func main() {
	passed, failed, err := run(context.Background(), os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(fault.CLICode(err))
	}
	fmt.Fprintf(os.Stdout, "%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (passed, failed int, err error) {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	host := flags.String("host", "mentat-host", "the host program")
	commands := flags.Bool("commands", true, "run the cases that need _start")
	if err := flags.Parse(args); err != nil {
		return 0, 0, fault.Wrap(err, fault.Usage, "conformance", "")
	}
	guests := conformance.Modules
	if flags.NArg() > 0 {
		guests = map[string][]byte{}
	}
	for _, name := range flags.Args() {
		if guests[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			return 0, 0, fault.Wrap(err, fault.NotFound, name, "cannot read the guest")
		}
	}
	cases, err := conformance.Cases()
	if err != nil {
		return 0, 0, err
	}
	dir, err := os.MkdirTemp("", "mentat-conformance-")
	if err != nil {
		return 0, 0, fault.Wrap(err, fault.Internal, "", "cannot make a directory")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h := &conformance.Host{Path: *host, Dir: dir}
	for name, wasm := range guests {
		g, err := h.Compile(ctx, name, wasm)
		if err != nil {
			return passed, failed, err
		}
		for _, c := range cases {
			if c.Command() && !*commands {
				continue
			}
			if err := h.Run(ctx, g, &c); err != nil {
				fmt.Fprintln(out, err)
				failed++
				continue
			}
			passed++
		}
	}
	return passed, failed, nil
}
