//go:build !linux

package cli

import (
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
)

func keepGood(string, verifier.Input, *verifier.Verdict) (int, error) {
	return 0, fault.New(fault.Unsupported, "signatures", "are kept on nodes, which run Linux")
}
