package agentdir

import (
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func (d *Dir) notationPath(artifact digest.Digest) string {
	return filepath.Join(d.Path, stateDir, "notation", artifact.Encoded()+".jws")
}

// SetNotation keeps a Notary Project signature of the artifact in place of any
// other; nil keeps none.
func (d *Dir) SetNotation(artifact digest.Digest, envelope []byte) error {
	path := d.notationPath(artifact)
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot remove old signatures")
	}
	if envelope == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write the signature")
	}
	return WriteFile(path, envelope, 0o644)
}

// Notation is the Notary Project signature of the artifact; nil when there is
// none.
func (d *Dir) Notation(artifact digest.Digest) ([]byte, error) {
	data, err := readFile(d.notationPath(artifact), limits.AttestationBytes, "signature")
	if fault.ReasonOf(err) == fault.NotFound {
		return nil, nil
	}
	return data, err
}
