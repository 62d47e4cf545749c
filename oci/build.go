package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// BuildInput is what an artifact is built from. Equal inputs give equal bytes.
type BuildInput struct {
	Agent *manifest.Manifest
	// Module is the WASM module; nil for a container agent.
	Module []byte
	// Container is the container image of a container agent, or the one that
	// the agent also is (dual mode); nil for a WASM agent.
	Container *ContainerImage
	// Created goes into the artifact. Zero means $SOURCE_DATE_EPOCH (seconds
	// since 1970), and without that 1970 itself, so that a build is repeatable.
	Created time.Time
}

// wasmMagic begins every core module; native code never begins like this.
const wasmMagic = "\x00asm\x01\x00\x00\x00"

// Build makes an artifact in dst and enters it, without a name, into dst's
// index. What it made it reads back with [Read] before it returns. Errors:
// ArtifactInvalid when the parts do not fit together, ModuleInvalid for what is
// not a WASM module, else what reading the layers or writing said.
func Build(ctx context.Context, in BuildInput, dst *Layout) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	created, err := createdAt(in.Created)
	if err != nil {
		return none, err
	}
	if err := checkInput(in); err != nil {
		return none, err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{},
		Annotations: map[string]string{
			AnnotationAgentID:         in.Agent.ID,
			ocispec.AnnotationTitle:   in.Agent.ID,
			ocispec.AnnotationVersion: in.Agent.Version,
			ocispec.AnnotationCreated: created.Format(time.RFC3339),
		},
	}
	if in.Agent.Description != "" {
		m.Annotations[ocispec.AnnotationDescription] = in.Agent.Description
	}

	agent, err := in.Agent.Canonical()
	if err != nil {
		return none, err
	}
	labels := map[string]string{LabelAgentManifest: digest.FromBytes(agent).String()}
	if in.Module != nil {
		labels[LabelModule] = digest.FromBytes(in.Module).String()
	}
	var config []byte
	if c := in.Container; c != nil {
		if config, err = labelled(c.Config, labels); err != nil {
			return none, fault.Wrap(err, fault.ArtifactInvalid, in.Agent.ID, "the container's image config cannot be labelled")
		}
		for _, l := range c.Layers {
			if err := copyBlob(ctx, c.Source, dst, l); err != nil {
				return none, err
			}
			m.Layers = append(m.Layers, bare(l))
		}
	} else {
		// Only a pure WASM agent is marked: a runtime that honours the mark
		// would try to run a container's entrypoint as WASM.
		m.Annotations[AnnotationWASMVariant] = wasmVariant
		if config, err = canonical.Marshal(wasmConfig(created, labels)); err != nil {
			return none, fault.Wrap(err, fault.Internal, in.Agent.ID, "cannot encode the image config")
		}
	}
	if m.Config, err = dst.PushBytes(ctx, ocispec.MediaTypeImageConfig, config); err != nil {
		return none, err
	}
	blobs := []struct {
		mediaType string
		data      []byte
	}{{MediaTypeAgentManifest, agent}, {MediaTypeWASM, in.Module}}
	for _, b := range blobs {
		if b.data == nil {
			continue
		}
		d, err := dst.PushBytes(ctx, b.mediaType, b.data)
		if err != nil {
			return none, err
		}
		m.Layers = append(m.Layers, d)
	}
	raw, err := canonical.Marshal(m)
	if err != nil {
		return none, fault.Wrap(err, fault.Internal, in.Agent.ID, "cannot encode the manifest")
	}
	if _, err := Read(ctx, dst, raw); err != nil {
		return none, fault.Wrap(err, fault.ReasonOf(err), in.Agent.ID, "the artifact would not be valid")
	}
	desc, err := dst.PushBytes(ctx, ocispec.MediaTypeImageManifest, raw)
	if err != nil {
		return none, err
	}
	return desc, dst.Add(ctx, desc)
}

func checkInput(in BuildInput) error {
	if in.Agent == nil {
		return fault.New(fault.ArtifactInvalid, "build", "there is no agent manifest")
	}
	id := in.Agent.ID
	switch isWASM := in.Agent.Runtime == manifest.RuntimeWASM; {
	case isWASM && in.Module == nil:
		return fault.New(fault.ArtifactInvalid, id, "runtime %q needs a module", in.Agent.Runtime)
	case !isWASM && in.Module != nil:
		return fault.New(fault.ArtifactInvalid, id, "runtime %q takes no module", in.Agent.Runtime)
	case !isWASM && in.Container == nil:
		return fault.New(fault.ArtifactInvalid, id, "runtime %q needs a container image", in.Agent.Runtime)
	case isWASM && int64(len(in.Module)) > limits.ModuleBytes:
		return fault.New(fault.ModuleInvalid, id, "the module has %d bytes, over the limit of %d bytes", len(in.Module), limits.ModuleBytes)
	case isWASM && !bytes.HasPrefix(in.Module, []byte(wasmMagic)):
		return fault.New(fault.ModuleInvalid, id, "the module is not a core WASM module; native and precompiled code is never put into an artifact")
	}
	return nil
}

func createdAt(t time.Time) (time.Time, error) {
	if !t.IsZero() {
		return t.UTC().Truncate(time.Second), nil
	}
	const env = "SOURCE_DATE_EPOCH"
	s := os.Getenv(env)
	if s == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	sec, err := strconv.ParseInt(s, 10, 64)
	// Beyond year 9999 there is no RFC 3339.
	if err != nil || sec < 0 || sec > 253402300799 {
		return time.Time{}, fault.New(fault.Usage, env, "%q is not a number of seconds since 1970", s)
	}
	return time.Unix(sec, 0).UTC(), nil
}

// labelled adds labels to an image config and keeps everything else that is in
// it, known or not.
func labelled(config []byte, labels map[string]string) ([]byte, error) {
	image := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, err
	}
	settings := map[string]json.RawMessage{}
	if raw, ok := image["config"]; ok {
		if err := json.Unmarshal(raw, &settings); err != nil {
			return nil, err
		}
	}
	all := map[string]string{}
	if raw, ok := settings["Labels"]; ok {
		if err := json.Unmarshal(raw, &all); err != nil {
			return nil, err
		}
	}
	if all == nil { // the config says null
		all = map[string]string{}
	}
	maps.Copy(all, labels)
	var err error
	if settings["Labels"], err = json.Marshal(all); err != nil {
		return nil, err
	}
	if image["config"], err = json.Marshal(settings); err != nil {
		return nil, err
	}
	return json.Marshal(image)
}

func wasmConfig(created time.Time, labels map[string]string) ocispec.Image {
	return ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: wasmOS, Architecture: wasmArch},
		Config:   ocispec.ImageConfig{Entrypoint: []string{wasmEntrypoint}, Labels: labels},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
}

// copyBlob copies one blob into a layout, checked, if it is not there yet.
func copyBlob(ctx context.Context, src Fetcher, dst *Layout, d ocispec.Descriptor) error {
	have, err := dst.Exists(ctx, d)
	if err != nil || have {
		return err
	}
	rc, err := src.Fetch(ctx, d)
	if err != nil {
		return asFault(err, string(d.Digest), "cannot be fetched")
	}
	defer rc.Close()
	return dst.Push(ctx, d, rc)
}
