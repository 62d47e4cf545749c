package agentdir

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/toolchain"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// lockVersion is the lock file's format.
const lockVersion = 1

// Lock notes what the artifact was packed from. It belongs into version
// control: it pins the container image that a tag meant.
type Lock struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Release string `json:"release"`
	// Toolchain built the module; none means that it was there already.
	Toolchain toolchain.Kind `json:"toolchain"`
	// Sources is a digest over the sources' names and contents, Inputs are the
	// files among them that are no sources by their name.
	Sources digest.Digest `json:"sources,omitempty"`
	Inputs  []string      `json:"inputs,omitempty"`
	Module  digest.Digest `json:"module,omitempty"`
	// Container is the pinned container image.
	Container *Pin `json:"container,omitempty"`
	// Packed is the OCI manifest before any attestation, Signed the one with
	// it.
	Packed digest.Digest `json:"packed"`
	Signed digest.Digest `json:"signed,omitempty"`
}

// Pin is an image reference and what it meant when it was resolved.
type Pin struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
}

// ReadLock reads the lock file; it returns nil when there is none.
func (d *Dir) ReadLock() (*Lock, error) {
	data, err := readFile(d.LockPath(), limits.ManifestYAMLBytes, "lock file")
	if fault.ReasonOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseLock(d.LockPath(), data)
}

// parseLock reads a lock file strictly; name is the subject of its errors.
func parseLock(name string, data []byte) (*Lock, error) {
	l := new(Lock)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(l); err != nil {
		return nil, fault.Wrap(err, fault.ManifestInvalid, name, "the lock file is malformed").WithHint("build writes it anew once it is removed")
	}
	if dec.More() {
		return nil, fault.New(fault.ManifestInvalid, name, "the lock file has data after its end")
	}
	if l.Version != lockVersion {
		return nil, fault.New(fault.Unsupported, name, "lock file version %d, this mentatctl knows %d", l.Version, lockVersion)
	}
	return l, nil
}

func (d *Dir) writeLock(l *Lock) error {
	data, err := l.marshal()
	if err != nil {
		return fault.Wrap(err, fault.Internal, d.LockPath(), "cannot write the lock file")
	}
	return WriteFile(d.LockPath(), data, 0o644)
}

func (l *Lock) marshal() ([]byte, error) {
	l.Version = lockVersion
	data, err := json.MarshalIndent(l, "", "  ")
	return append(data, '\n'), err
}

// sourceDigest hashes the sources of a toolchain and the further inputs.
func (d *Dir) sourceDigest(kind toolchain.Kind, inputs []string) (digest.Digest, error) {
	if kind == toolchain.None || kind == "" {
		return "", nil
	}
	root, err := os.OpenRoot(d.Path)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, d.Path, "cannot read the sources")
	}
	defer root.Close()
	files := slices.Clone(inputs)
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && skipped(path, kind):
			return fs.SkipDir
		case e.Type().IsRegular() && toolchain.IsSource(kind, path):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, d.Path, "cannot read the sources")
	}
	slices.Sort(files)
	sum := sha256.New()
	for _, f := range slices.Compact(files) {
		data, err := root.ReadFile(filepath.FromSlash(f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // what is gone changes the digest by not being there
		}
		if err != nil {
			return "", fault.Wrap(err, fault.Internal, filepath.Join(d.Path, f), "cannot read the source")
		}
		sum.Write([]byte(digest.FromBytes(data).String() + "  " + f + "\n"))
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// skipped names the directories in which no sources are.
func skipped(path string, kind toolchain.Kind) bool {
	name := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case path == ".", kind == toolchain.Cargo && name == ".cargo":
		return false
	case kind == toolchain.Cargo && name == "target":
		return true
	}
	return strings.HasPrefix(name, ".") || name == "node_modules"
}
