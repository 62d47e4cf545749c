package envelopes

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/owndir"
	"github.com/mentatlab/mentat/verifier"
)

// fileBytes bounds a file: its envelopes are base64.
const fileBytes = limits.Envelopes * (limits.EnvelopeBytes*4/3 + limits.KiB)

// Dir is a node's directory of signatures, one file for each artifact.
type Dir struct {
	path string
	most int
}

// In is the one in a node's state directory.
func In(state string) Dir {
	return Dir{filepath.Join(state, "notation"), limits.KeptArtifacts}
}

type kept struct {
	MediaType string `json:"media_type"`
	Data      []byte `json:"data"`
}

func (d Dir) file(manifest digest.Digest) (string, error) {
	if manifest.Validate() != nil || manifest.Algorithm() != digest.SHA256 {
		return "", fault.New(fault.Internal, string(manifest), "is not the digest of a manifest")
	}
	return filepath.Join(d.path, manifest.Encoded()+".json"), nil
}

// Keep writes the signatures of a manifest in the place of those that were kept
// before. Of more manifests than a node keeps, those that were kept longest ago go.
func (d Dir) Keep(manifest digest.Digest, all []verifier.Envelope) error {
	path, err := d.file(manifest)
	if err != nil {
		return err
	}
	var list []kept
	for _, e := range all {
		if e.Err == nil && len(e.Data) <= limits.EnvelopeBytes && len(list) < limits.Envelopes {
			list = append(list, kept{e.MediaType, e.Data})
		}
	}
	data, err := json.Marshal(list)
	if err == nil {
		err = owndir.Make(d.path)
	}
	if err == nil {
		// On disk before it is there: what lost its power must not find rubbish, which refuses.
		err = atomicfile.Write(path, data, 0o600)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot keep the signatures of %s", manifest)
	}
	d.bound(filepath.Base(path))
	return nil
}

// KeepGood keeps the signatures of an input by each of which alone it is allowed, and
// says how many that are. Where there is none it keeps nothing. Those that were kept
// before go last: one manifest may go by names in several scopes, each with signers of
// its own.
func (d Dir) KeepGood(in verifier.Input, vd *verifier.Verdict) (int, error) {
	var good []verifier.Envelope
	for _, e := range in.Envelopes {
		if vd.Allowed && e.Err == nil && slices.Contains(vd.GoodEnvelopes, e.Digest()) {
			good = append(good, e)
		}
	}
	if len(good) == 0 {
		return 0, nil
	}
	return len(good), d.add(in.Artifact.Digest, good)
}

// add is Keep beside those that were kept before.
func (d Dir) add(manifest digest.Digest, all []verifier.Envelope) error {
	for _, old := range d.Read(manifest) {
		same := func(e verifier.Envelope) bool { return e.MediaType == old.MediaType && e.Digest() == old.Digest() }
		if !slices.ContainsFunc(all, same) {
			all = append(all, old)
		}
	}
	return d.Keep(manifest, all)
}

// bound removes the oldest files, but not the new one: times of files are coarse.
func (d Dir) bound(fresh string) {
	entries, err := os.ReadDir(d.path)
	if err != nil || len(entries) <= d.most {
		return
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != fresh {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, f := range files[:max(0, len(files)+1-d.most)] {
		_ = os.Remove(filepath.Join(d.path, f.Name())) // another process may have
	}
}

// Read returns what is kept of a manifest; nothing, if nothing is.
func (d Dir) Read(manifest digest.Digest) []verifier.Envelope {
	path, err := d.file(manifest)
	if err != nil {
		return []verifier.Envelope{{Err: err}}
	}
	list, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		err := fault.Wrap(err, fault.AttestationFormat, path, "the signatures that are kept cannot be read").WithHint("remove the file and pull the image again")
		return []verifier.Envelope{{Err: err}}
	}
	var all []verifier.Envelope
	for _, k := range list {
		all = append(all, verifier.Envelope{MediaType: k.MediaType, Data: k.Data})
	}
	return all
}

func read(path string) ([]kept, error) {
	f, err := owndir.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || !owndir.Mine(info) {
		return nil, fault.New(fault.AttestationFormat, path, "is %s, not a file of this user", info.Mode())
	}
	data, err := limits.Read(f, fileBytes)
	if err != nil {
		return nil, err
	}
	var list []kept
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	return list, nil
}
