package main

import (
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
)

// swapModule makes an artifact out of two agents: everything of the one, its
// attestation included, but the module of the other.
func (d *demo) swapModule(of, with string) (*oci.Layout, error) {
	honest, from, err := d.built(of)
	if err != nil {
		return nil, err
	}
	evil, other, err := d.built(with)
	if err != nil {
		return nil, err
	}
	forged, err := oci.CreateLayout(filepath.Join(d.node.Root, "images", "forged"))
	if err != nil {
		return nil, err
	}
	m := *honest.Manifest
	m.Layers = nil
	for _, layer := range honest.Manifest.Layers {
		source := from
		if layer.Digest == honest.Module.Digest {
			layer.Digest, layer.Size, source = evil.Module.Digest, evil.Module.Size, other
		}
		m.Layers = append(m.Layers, layer)
		if err := d.copy(source, forged, layer); err != nil {
			return nil, err
		}
	}
	if err := d.copy(from, forged, m.Config); err != nil {
		return nil, err
	}
	raw, err := canonical.Marshal(m)
	if err != nil {
		return nil, err
	}
	desc, err := forged.PushBytes(d.ctx, m.MediaType, raw)
	if err != nil {
		return nil, err
	}
	return forged, forged.Add(d.ctx, desc)
}

// built opens what `mentatctl build` packed.
func (d *demo) built(agent string) (*oci.Artifact, *oci.Layout, error) {
	layout, err := oci.OpenLayout(filepath.Join(d.dir, agent, ".mentat", "layout"))
	if err != nil {
		return nil, nil, err
	}
	desc, err := layout.Root()
	if err != nil {
		return nil, nil, err
	}
	raw, err := oci.ReadBlob(d.ctx, layout, desc, limits.OCIManifestBytes)
	if err != nil {
		return nil, nil, err
	}
	artifact, err := oci.Read(d.ctx, layout, raw)
	return artifact, layout, err
}

func (d *demo) copy(from oci.Fetcher, to *oci.Layout, desc ocispec.Descriptor) error {
	data, err := oci.ReadBlob(d.ctx, from, desc, limits.ModuleBytes)
	if err != nil {
		return err
	}
	_, err = to.PushBytes(d.ctx, desc.MediaType, data)
	return err
}
