package envelopes

import (
	"fmt"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// Pulls of one manifest by several names go on at once, and none loses what another
// kept; of more than are looked at the last pull's stay.
func TestPullsAtOnceLoseNoSignatureOfEachOther(t *testing.T) {
	state, m := t.TempDir(), digest.FromString("manifest")
	pull := func(i int) {
		e := verifier.Envelope{MediaType: "a", Data: fmt.Append(nil, i)}
		in := verifier.Input{Artifact: &oci.Artifact{Digest: m}, Envelopes: []verifier.Envelope{{Data: []byte("bad")}, e}}
		vd := &verifier.Verdict{Allowed: true, GoodEnvelopes: []digest.Digest{e.Digest()}}
		if n, err := In(state).KeepGood(in, vd); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	var all sync.WaitGroup
	for i := range limits.Envelopes {
		all.Go(func() { pull(i) })
	}
	all.Wait()
	if kept := In(state).Read(m); len(kept) != limits.Envelopes {
		t.Errorf("%d of %d are kept", len(kept), limits.Envelopes)
	}
	pull(100)
	if kept := In(state).Read(m); len(kept) != limits.Envelopes || string(kept[0].Data) != "100" {
		t.Errorf("%d are kept, the first is %q", len(kept), kept[0].Data)
	}
}
