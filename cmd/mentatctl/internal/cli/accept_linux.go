package cli

import (
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
)

func keepGood(state string, in verifier.Input, vd *verifier.Verdict) (int, error) {
	return envelopes.In(state).KeepGood(in, vd)
}
