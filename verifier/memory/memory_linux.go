package memory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/owndir"
	"github.com/mentatlab/mentat/internal/version"
	"github.com/mentatlab/mentat/verifier"
)

// Memory is a directory of verdicts. It may be used by many goroutines and
// processes at once.
type Memory struct {
	dir, program string
}

// Open opens the memory in dir, which should be lost at reboot (a tmpfs), and
// makes it if it is missing.
func Open(dir string) (*Memory, error) {
	if err := owndir.Make(dir); err != nil {
		return nil, fmt.Errorf("cannot keep verdicts in %s: %w", dir, err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot tell which program this is: %w", err)
	}
	program := fmt.Sprintf("%s %s %s", version.Version, version.Revision, verifier.Stamp(self))
	return &Memory{dir: dir, program: program}, nil
}

// entry is what is kept of a judgement.
type entry struct {
	// Judged is when it was made. A clock that went back makes it void.
	Judged  time.Time         `json:"judged"`
	Until   time.Time         `json:"until"`
	Files   map[string]string `json:"files"`
	Verdict verifier.Verdict  `json:"verdict"`
}

// Verify is the verifier's [verifier.Verifier.Verify], or what it said before, which
// has no trace.
func (m *Memory) Verify(ctx context.Context, v *verifier.Verifier, in verifier.Input) *verifier.Verdict {
	if v.Rules() == "" || in.Trace != nil || in.Artifact == nil || !in.Artifact.Attested() && len(in.Envelopes) == 0 {
		return v.Verify(ctx, in)
	}
	path := filepath.Join(m.dir, m.key(v, in))
	if vd := recall(path, v.Now()); vd != nil && ctx.Err() == nil {
		return vd
	}
	judged := v.Now()
	vd := v.Verify(ctx, in)
	if vd.Allowed && len(vd.Warnings) == 0 && !vd.Rests.Until.IsZero() {
		m.keep(path, entry{Judged: judged, Until: vd.Rests.Until, Files: vd.Rests.Files, Verdict: *vd})
	}
	return vd
}

// key names what was judged, by which rules and by which program.
func (m *Memory) key(v *verifier.Verifier, in verifier.Input) string {
	h := sha256.New()
	parts := []string{"mentat verdict 1", m.program, v.Rules().String(), in.Reference, in.Artifact.Digest.String(), in.Index.String()}
	for _, e := range in.Envelopes {
		parts = append(parts, e.MediaType, e.Digest().String())
	}
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// recall returns the verdict in a file if it still holds.
func recall(path string, now time.Time) *verifier.Verdict {
	data, _, err := owndir.Read(path)
	if err != nil {
		return nil
	}
	var e entry
	if json.Unmarshal(data, &e) != nil || !e.Verdict.Allowed || now.Before(e.Judged) || !now.Before(e.Until) {
		return nil
	}
	for file, stamp := range e.Files {
		if verifier.Stamp(file) != stamp {
			return nil
		}
	}
	e.Verdict.Remembered = true
	return &e.Verdict
}

// keep is a help only: a failure costs time, never correctness.
func (m *Memory) keep(path string, e entry) {
	data, err := json.Marshal(e)
	if err != nil || len(data) > owndir.FileBytes {
		return
	}
	if err := owndir.Write(path, data); err == nil {
		m.bound()
	}
}

// bound empties a memory that has grown too large: what is still needed comes
// back with the next start of each agent.
func (m *Memory) bound() {
	names, err := os.ReadDir(m.dir)
	if err != nil || len(names) <= limits.Verdicts {
		return
	}
	for _, name := range names {
		_ = os.Remove(filepath.Join(m.dir, name.Name())) // another process may have
	}
}
