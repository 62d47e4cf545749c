package oci

import (
	"encoding/json"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// shape names the keys that readers of a document know, with the shape of what
// is below. Arrays have the shape of their elements; nil is not looked into.
type shape map[string]shape

var (
	platformShape = shape{"architecture": nil, "os": nil, "os.version": nil, "os.features": nil, "variant": nil}

	descriptorShape = shape{
		"mediaType": nil, "digest": nil, "size": nil, "urls": nil, "annotations": nil,
		"data": nil, "platform": platformShape, "artifactType": nil,
	}

	// documentShape is of manifests and indexes together: containerd tells one
	// from the other by these keys.
	documentShape = shape{
		"schemaVersion": nil, "mediaType": nil, "artifactType": nil, "annotations": nil,
		"config": descriptorShape, "layers": descriptorShape, "manifests": descriptorShape,
		"subject": descriptorShape, "fsLayers": nil,
	}

	imageShape = shape{
		"created": nil, "author": nil, "architecture": nil, "os": nil, "os.version": nil, "os.features": nil, "variant": nil,
		"config": {
			"User": nil, "ExposedPorts": nil, "Env": nil, "Entrypoint": nil, "Cmd": nil, "Volumes": nil,
			"WorkingDir": nil, "Labels": nil, "StopSignal": nil, "ArgsEscaped": nil,
		},
		"rootfs":  {"type": nil, "diff_ids": nil},
		"history": {"created": nil, "created_by": nil, "author": nil, "comment": nil, "empty_layer": nil},
	}
)

// strictly decodes raw into out after refusing everything that a JSON reader
// that folds case, ignores null or takes the last of two keys would understand
// differently. It returns the document's top level keys.
func strictly(on string, raw []byte, s shape, nulls bool, out any) (map[string]any, error) {
	if err := canonical.Check(raw); err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, on, "not strict JSON")
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, fault.New(fault.ArtifactInvalid, on, "not a JSON object")
	}
	if err := checkShape(on, "", tree, s, nulls); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fault.Wrap(err, fault.ArtifactInvalid, on, "malformed")
	}
	return tree, nil
}

func checkShape(on, path string, v any, s shape, nulls bool) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := checkShape(on, path, e, s, nulls); err != nil {
				return err
			}
		}
	case map[string]any:
		for key, val := range v {
			below, known := s[key]
			if !known {
				for k := range s {
					if strings.EqualFold(k, key) {
						return fault.New(fault.ArtifactInvalid, on, "key %q differs from %q only in case: readers disagree about it", path+key, path+k)
					}
				}
				continue
			}
			if !nulls && hasNull(val) {
				return fault.New(fault.ArtifactInvalid, on, "null in %q: readers disagree about it", path+key)
			}
			if below != nil {
				if err := checkShape(on, path+key+".", val, below, nulls); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func hasNull(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case []any:
		for _, e := range v {
			if hasNull(e) {
				return true
			}
		}
	case map[string]any:
		for _, e := range v {
			if hasNull(e) {
				return true
			}
		}
	}
	return false
}

func checkDescriptor(on string, d ocispec.Descriptor) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.ArtifactInvalid, on, format, args...)
	}
	if err := checkDigest(d.Digest); err != nil {
		return bad("digest %q is neither a sha256 nor a sha512 digest", d.Digest)
	}
	switch {
	case d.MediaType == "":
		return bad("%s has no media type", d.Digest)
	case d.Size < 0:
		return bad("%s has the negative size %d", d.Digest, d.Size)
	case len(d.URLs) != 0:
		return bad("%s is to be fetched from foreign urls, which is not done", d.Digest)
	case d.Data != nil && (int64(len(d.Data)) != d.Size || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest):
		return bad("the data inlined for %s is not what its digest says", d.Digest)
	}
	return nil
}
