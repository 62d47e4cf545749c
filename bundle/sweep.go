package bundle

import (
	"github.com/mentatlab/mentat/aot"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// Sweep removes what preparations left that were killed, as with a shim that
// crashed. Those that go on are not touched.
func Sweep(config *nodeconfig.Config) error { return aot.Sweep(config.Cache.Dir) }
