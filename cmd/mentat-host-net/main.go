package main

import (
	"os"

	"github.com/mentatlab/mentat/host/lock"
	"github.com/mentatlab/mentat/host/network"
	"github.com/mentatlab/mentat/host/process"
	"github.com/mentatlab/mentat/host/serve/agent"
)

func main() {
	os.Exit(process.Main(os.Args[1:], process.Options{
		Name: "mentat-host-net", Services: network.Services, Serve: agent.Serve,
		Early: lock.Early, Locked: lock.Enter,
	}))
}
