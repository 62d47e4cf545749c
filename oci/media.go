package oci

import (
	"encoding/json"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of an artifact beside those of the OCI image specification.
const (
	// MediaTypeAgentManifest is the agent manifest as canonical JSON, without
	// its attestation.
	MediaTypeAgentManifest = "application/vnd.mentatlab.agent.manifest.v1+json"
	// MediaTypeWASM is a WASM module.
	MediaTypeWASM = "application/wasm"
	// MediaTypeWASMConfigCNCF is the config of a CNCF WASM artifact, which is
	// read but never written: nerdctl and ctr cannot run it.
	MediaTypeWASMConfigCNCF = "application/vnd.wasm.config.v0+json"

	mediaTypeDockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerConfig    = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	mediaTypeDockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	mediaTypeDockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"

	// mediaTypeOctetStream as a config type makes containerd rewrite the
	// manifest after it was verified.
	mediaTypeOctetStream = "application/octet-stream"
)

// Annotations of an artifact's manifest.
const (
	// AnnotationAttestation holds the attestation block as canonical JSON.
	AnnotationAttestation = "dev.mentatlab.attestation.v1"
	// AnnotationAgentID repeats the agent's id where registries show it.
	AnnotationAgentID = "dev.mentatlab.agent.id"
	// AnnotationWASMVariant marks a WASM agent for registries and for crun.
	AnnotationWASMVariant = "module.wasm.image/variant"

	wasmVariant = "compat"
)

// Labels in an agent's image config. Kubernetes identifies an image on a node by
// its config's digest alone, so two agents must never share a config.
const (
	// LabelAgentManifest and LabelModule are the digests of the two blobs.
	LabelAgentManifest = "dev.mentatlab.agent.manifest"
	LabelModule        = "dev.mentatlab.module"
)

// What a WASM agent's config says: one image for every CPU.
const (
	wasmOS         = "wasip1"
	wasmArch       = "wasm"
	wasmEntrypoint = "/agent.wasm"
)

// tarLayers maps the layer types that are unpacked into a root file system to
// what they are called in an artifact of ours.
var tarLayers = map[string]string{
	ocispec.MediaTypeImageLayer:     ocispec.MediaTypeImageLayer,
	ocispec.MediaTypeImageLayerGzip: ocispec.MediaTypeImageLayerGzip,
	ocispec.MediaTypeImageLayerZstd: ocispec.MediaTypeImageLayerZstd,
	mediaTypeDockerLayer:            ocispec.MediaTypeImageLayer,
	mediaTypeDockerLayerGzip:        ocispec.MediaTypeImageLayerGzip,
	mediaTypeDockerLayerZstd:        ocispec.MediaTypeImageLayerZstd,
}

// IsManifest tells whether a media type is an image manifest's.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == mediaTypeDockerManifest
}

// IsIndex tells whether a media type is an image index's.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == mediaTypeDockerIndex
}

// LooksLikeIndex tells an index from a manifest by its content: what is found by
// digest alone has no media type, and the strict readers check the rest.
func LooksLikeIndex(raw []byte) bool {
	var head struct {
		Manifests json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(raw, &head) == nil && head.Manifests != nil
}

func isImageConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == mediaTypeDockerConfig
}

// looksWASM is deliberately wide: there are at least four media types for
// modules and three for their configs, and code that is taken for data would
// escape the rules for unsigned agents.
func looksWASM(mediaType string) bool {
	return strings.Contains(strings.ToLower(mediaType), "wasm")
}
