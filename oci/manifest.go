package oci

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// ParseManifest reads an image manifest strictly. Whatever it accepts, every
// other reader of OCI manifests understands in the same way. Errors are
// ArtifactInvalid.
func ParseManifest(raw []byte) (*ocispec.Manifest, error) {
	const on = "manifest"
	if err := checkSize(on, raw); err != nil {
		return nil, err
	}
	m := new(ocispec.Manifest)
	keys, err := strictly(on, raw, documentShape, false, m)
	if err != nil {
		return nil, err
	}
	if err := checkDocument(on, keys, m.SchemaVersion, []string{"config", "layers"}, []string{"manifests", "fsLayers"}); err != nil {
		return nil, err
	}
	if m.MediaType != "" && !IsManifest(m.MediaType) {
		return nil, fault.New(fault.ArtifactInvalid, on, "media type %q is not an image manifest's", m.MediaType)
	}
	if m.Config.MediaType == mediaTypeOctetStream {
		return nil, fault.New(fault.ArtifactInvalid, on, "config type %q makes runtimes rewrite the manifest after its verification", m.Config.MediaType)
	}
	if err := checkDescriptor("config", m.Config); err != nil {
		return nil, err
	}
	if m.Subject != nil {
		if err := checkDescriptor("subject", *m.Subject); err != nil {
			return nil, err
		}
	}
	agents, modules := 0, 0
	for i, l := range m.Layers {
		on := fmt.Sprintf("layer %d", i)
		if err := checkDescriptor(on, l); err != nil {
			return nil, err
		}
		switch l.MediaType {
		case MediaTypeAgentManifest:
			agents++
		case MediaTypeWASM:
			modules++
		}
	}
	if agents > 1 || modules > 1 {
		return nil, fault.New(fault.ArtifactInvalid, on, "%d agent manifests and %d WASM modules, at most one of each is allowed", agents, modules)
	}
	return m, nil
}

// ParseIndex reads an image index strictly. Errors are ArtifactInvalid.
func ParseIndex(raw []byte) (*ocispec.Index, error) {
	const on = "index"
	if err := checkSize(on, raw); err != nil {
		return nil, err
	}
	idx := new(ocispec.Index)
	keys, err := strictly(on, raw, documentShape, false, idx)
	if err != nil {
		return nil, err
	}
	if err := checkDocument(on, keys, idx.SchemaVersion, []string{"manifests"}, []string{"config", "layers", "fsLayers"}); err != nil {
		return nil, err
	}
	if idx.MediaType != "" && !IsIndex(idx.MediaType) {
		return nil, fault.New(fault.ArtifactInvalid, on, "media type %q is not an image index's", idx.MediaType)
	}
	if n := len(idx.Manifests); n > limits.IndexManifests {
		return nil, fault.New(fault.ArtifactInvalid, on, "%d manifests are over the limit of %d", n, limits.IndexManifests)
	}
	if idx.Subject != nil {
		if err := checkDescriptor("subject", *idx.Subject); err != nil {
			return nil, err
		}
	}
	for i, d := range idx.Manifests {
		if err := checkDescriptor(fmt.Sprintf("index entry %d", i), d); err != nil {
			return nil, err
		}
	}
	return idx, nil
}

func checkSize(on string, raw []byte) error {
	if len(raw) > limits.OCIManifestBytes {
		return fault.New(fault.ArtifactInvalid, on, "%d bytes are over the limit of %d bytes", len(raw), limits.OCIManifestBytes)
	}
	return nil
}

// checkDocument refuses a document that is a manifest to one reader and an
// index to another.
func checkDocument(on string, keys map[string]any, version int, required, foreign []string) error {
	if version != 2 {
		return fault.New(fault.ArtifactInvalid, on, "schemaVersion is %d, allowed is 2", version)
	}
	for _, k := range required {
		if _, ok := keys[k]; !ok {
			return fault.New(fault.ArtifactInvalid, on, "key %q is missing", k)
		}
	}
	for _, k := range foreign {
		if _, ok := keys[k]; ok {
			return fault.New(fault.ArtifactInvalid, on, "key %q belongs to another kind of document", k)
		}
	}
	return nil
}

// DetectMediaType tells what a manifest or index says that it is, for callers
// that have bytes without a descriptor. The answer is to be followed by
// [ParseManifest] or [ParseIndex].
func DetectMediaType(raw []byte) (string, error) {
	if err := checkSize("document", raw); err != nil {
		return "", err
	}
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fault.New(fault.ArtifactInvalid, "document", "not a JSON object")
	}
	switch {
	case IsManifest(doc.MediaType), IsIndex(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType != "":
		return "", fault.New(fault.ArtifactInvalid, "document", "media type %q is neither an image manifest's nor an index's", doc.MediaType)
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fault.New(fault.ArtifactInvalid, "document", "neither an image manifest nor an index")
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT]; empty is linux/amd64. Errors
// are Usage.
func ParsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		s = "linux/amd64"
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || len(parts) < 2 || len(parts) > 3 {
			return ocispec.Platform{}, fault.New(fault.Usage, s, "a platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")
		}
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// Select returns the first manifest of an index for the platform. An entry
// without a variant fits every variant asked for, and the other way round.
// Errors are NotFound, naming what there is.
func Select(idx *ocispec.Index, want ocispec.Platform) (ocispec.Descriptor, error) {
	var have []string
	for _, d := range idx.Manifests {
		p := d.Platform
		if p == nil {
			continue
		}
		if p.OS == want.OS && p.Architecture == want.Architecture && (p.Variant == want.Variant || p.Variant == "" || want.Variant == "") {
			return d, nil
		}
		have = append(have, formatPlatform(*p))
	}
	if len(have) == 0 {
		have = []string{"none that names its platform"}
	}
	return ocispec.Descriptor{}, fault.New(fault.NotFound, "index", "no manifest for %s, there are: %s", formatPlatform(want), strings.Join(have, ", "))
}

func formatPlatform(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// descriptorOf describes bytes.
func descriptorOf(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}
