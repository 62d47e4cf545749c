package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

func TestBuildGivesTheArtifactOfTheDesign(t *testing.T) {
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	raw := rawOf(t, l, desc)
	if c, err := canonical.JSON(raw); err != nil || !bytes.Equal(c, raw) {
		t.Errorf("the manifest is not its own canonical form: %v", err)
	}
	a := read(t, l, desc)
	if a.Form != FormWASM || a.Digest != desc.Digest || a.Attested() || a.ChainID() != "" {
		t.Errorf("form %s, attested %v, chain %q", a.Form, a.Attested(), a.ChainID())
	}
	var types []string
	for _, d := range a.Manifest.Layers {
		types = append(types, d.MediaType)
	}
	if !slices.Equal(types, []string{MediaTypeAgentManifest, MediaTypeWASM}) {
		t.Errorf("layers %v", types)
	}
	want := map[string]string{
		AnnotationAgentID: "mentatlab.test", ocispec.AnnotationVersion: "1.2.3", ocispec.AnnotationTitle: "mentatlab.test",
		ocispec.AnnotationDescription: "a test", ocispec.AnnotationCreated: "1970-01-01T00:00:00Z", AnnotationWASMVariant: "compat",
	}
	for k, v := range want {
		if a.Manifest.Annotations[k] != v {
			t.Errorf("annotation %s is %q, want %q", k, a.Manifest.Annotations[k], v)
		}
	}
	config, err := ReadBlob(t.Context(), l, a.Manifest.Config, limits.ImageConfigBytes)
	if err != nil {
		t.Fatal(err)
	}
	wantConfig := `{"architecture":"wasm","config":{"Entrypoint":["/agent.wasm"],"Labels":{"dev.mentatlab.agent.manifest":"` + string(a.AgentDesc.Digest) +
		`","dev.mentatlab.module":"` + string(a.Module.Digest) + `"}},"created":"1970-01-01T00:00:00Z","os":"wasip1","rootfs":{"diff_ids":[],"type":"layers"}}`
	if string(config) != wantConfig {
		t.Errorf("config %s\nwant   %s", config, wantConfig)
	}
	if root, err := l.Root(); err != nil || root.Digest != desc.Digest {
		t.Errorf("root %v, %v", root, err)
	}
}

func TestBuildIsReproducible(t *testing.T) {
	files := func(dir string) map[string]string {
		out := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			rel, _ := filepath.Rel(dir, path)
			out[rel] = string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, in := range map[string]BuildInput{
		"wasm": {Agent: wasmAgent(t), Module: module},
		"dual": {Agent: wasmAgent(t), Module: module, Container: containerImage(t)},
	} {
		a, _ := build(t, in)
		b, _ := build(t, in)
		fa, fb := files(a.Dir()), files(b.Dir())
		if len(fa) != len(fb) || len(fa) < 6 {
			t.Errorf("%s: %d and %d files", name, len(fa), len(fb))
		}
		for f, data := range fa {
			if fb[f] != data {
				t.Errorf("%s: %s differs", name, f)
			}
		}
	}
}

func TestBuildTakesItsTimeFromTheCallerOrTheEnvironment(t *testing.T) {
	created := func(in BuildInput) string {
		l, d := build(t, in)
		return read(t, l, d).Manifest.Annotations[ocispec.AnnotationCreated]
	}
	in := BuildInput{Agent: wasmAgent(t), Module: module}
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	if got := created(in); got != "2023-11-14T22:13:20Z" {
		t.Errorf("from the environment: %s", got)
	}
	in.Created = time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("x", 3600))
	if got := created(in); got != "2026-01-02T02:04:05Z" {
		t.Errorf("from the caller: %s", got)
	}
	in.Created = time.Time{}
	for _, bad := range []string{"yesterday", "-1", "1e9", "999999999999999"} {
		t.Setenv("SOURCE_DATE_EPOCH", bad)
		_, err := Build(t.Context(), in, newLayout(t))
		wantReason(t, err, fault.Usage)
	}
}

func TestBuildKeepsTheContainerImage(t *testing.T) {
	img := containerImage(t)
	for form, in := range map[Form]BuildInput{
		FormContainer: {Agent: containerAgent(t), Container: img},
		FormDual:      {Agent: wasmAgent(t), Module: module, Container: img},
	} {
		l, desc := build(t, in)
		a := read(t, l, desc)
		if a.Form != form || a.Config.OS != "linux" || a.ChainID() != a.Config.RootFS.DiffIDs[0] {
			t.Errorf("form %s, want %s; chain %s", a.Form, form, a.ChainID())
		}
		if (a.Module != nil) != (form == FormDual) {
			t.Errorf("%s: module %v", form, a.Module)
		}
		if v, ok := a.Manifest.Annotations[AnnotationWASMVariant]; ok {
			t.Errorf("%s: marked %q, so that crun would run the container as WASM", form, v)
		}
		if a.Manifest.Layers[0].Digest != img.Layers[0].Digest {
			t.Errorf("%s: the layer changed", form)
		}
		sameButLabels(t, l, a, img.Config)
		if err := l.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}

// sameButLabels checks that the config is the container's with our labels.
func sameButLabels(t *testing.T, l *Layout, a *Artifact, original []byte) {
	t.Helper()
	data, err := ReadBlob(t.Context(), l, a.Manifest.Config, limits.ImageConfigBytes)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := errors.Join(json.Unmarshal(data, &got), json.Unmarshal(original, &want)); err != nil {
		t.Fatal(err)
	}
	labels := got["config"].(map[string]any)["Labels"].(map[string]any)
	if labels[LabelAgentManifest] != string(a.AgentDesc.Digest) {
		t.Errorf("labels %v", labels)
	}
	delete(labels, LabelAgentManifest)
	delete(labels, LabelModule)
	if len(labels) == 0 {
		delete(got["config"].(map[string]any), "Labels")
	}
	if settings := got["config"].(map[string]any); len(settings) == 0 && want["config"] == nil {
		delete(got, "config")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config %v\nwant   %v", got, want)
	}
}

// Kubernetes knows an image on a node by its config's digest alone.
func TestDifferentAgentsNeverShareAConfig(t *testing.T) {
	configs := map[digest.Digest]string{}
	other := append(slices.Clone(module), 0, 3, 1, 'x', 0) // a custom section more
	renamed := *wasmAgent(t)
	renamed.Description = "another manifest"
	for name, in := range map[string]BuildInput{
		"one":              {Agent: wasmAgent(t), Module: module},
		"another module":   {Agent: wasmAgent(t), Module: other},
		"another manifest": {Agent: &renamed, Module: module},
	} {
		l, desc := build(t, in)
		d := read(t, l, desc).Manifest.Config.Digest
		if was, taken := configs[d]; taken {
			t.Errorf("%s and %s share the config %s", name, was, d)
		}
		configs[d] = name
	}
}

func TestBuildRefusesPartsThatDoNotFit(t *testing.T) {
	img := containerImage(t)
	lost := *img
	lost.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: sumA, Size: 3}}
	extra := *img
	extra.Layers = append(slices.Clone(img.Layers), img.Layers...)
	for name, c := range map[string]struct {
		in   BuildInput
		want fault.Reason
	}{
		"no agent":               {BuildInput{Module: module}, fault.ArtifactInvalid},
		"no module":              {BuildInput{Agent: wasmAgent(t)}, fault.ArtifactInvalid},
		"module of a container":  {BuildInput{Agent: containerAgent(t), Module: module, Container: img}, fault.ArtifactInvalid},
		"no container":           {BuildInput{Agent: containerAgent(t)}, fault.ArtifactInvalid},
		"empty module":           {BuildInput{Agent: wasmAgent(t), Module: []byte{}}, fault.ModuleInvalid},
		"native code":            {BuildInput{Agent: wasmAgent(t), Module: []byte("\x7fELF\x02\x01\x01")}, fault.ModuleInvalid},
		"a component":            {BuildInput{Agent: wasmAgent(t), Module: []byte("\x00asm\x0d\x00\x01\x00")}, fault.ModuleInvalid},
		"module over the limit":  {BuildInput{Agent: wasmAgent(t), Module: append([]byte(wasmMagic), make([]byte, limits.ModuleBytes)...)}, fault.ModuleInvalid},
		"layer that is lost":     {BuildInput{Agent: containerAgent(t), Container: &lost}, fault.NotFound},
		"layer without diff_id":  {BuildInput{Agent: containerAgent(t), Container: &extra}, fault.ArtifactInvalid},
		"config that is not one": {BuildInput{Agent: containerAgent(t), Container: &ContainerImage{Config: []byte("[]"), Layers: img.Layers, Source: img.Source}}, fault.ArtifactInvalid},
	} {
		l := newLayout(t)
		_, err := Build(t.Context(), c.in, l)
		if fault.ReasonOf(err) != c.want {
			t.Errorf("%s: %q, want %q: %v", name, fault.ReasonOf(err), c.want, err)
		}
		if _, err := l.Root(); fault.ReasonOf(err) != fault.NotFound {
			t.Errorf("%s: a refused build is in the index: %v", name, err)
		}
	}
}

func TestReadRefusesAnArtifactThatDisagreesWithItself(t *testing.T) {
	wasm := BuildInput{Agent: wasmAgent(t), Module: module}
	dual := BuildInput{Agent: wasmAgent(t), Module: module, Container: containerImage(t)}
	container := BuildInput{Agent: containerAgent(t), Container: containerImage(t)}
	config := func(change func(*ocispec.Image)) func(*testing.T, *Layout, *ocispec.Manifest) {
		return func(t *testing.T, l *Layout, m *ocispec.Manifest) {
			var c ocispec.Image
			data, err := ReadBlob(t.Context(), l, m.Config, limits.ImageConfigBytes)
			if err != nil {
				t.Fatal(err)
			}
			unmarshal(t, data, &c)
			change(&c)
			m.Config = push(t, l, m.Config.MediaType, mustJSON(t, c))
		}
	}
	agent := func(text string) func(*testing.T, *Layout, *ocispec.Manifest) {
		return func(t *testing.T, l *Layout, m *ocispec.Manifest) {
			for i := range m.Layers {
				if m.Layers[i].MediaType == MediaTypeAgentManifest {
					m.Layers[i] = push(t, l, MediaTypeAgentManifest, []byte(text))
				}
			}
		}
	}
	cases := []struct {
		name    string
		in      BuildInput
		spoil   func(*testing.T, *Layout, *ocispec.Manifest)
		message string
	}{
		{"other id", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Annotations[AnnotationAgentID] = "evil" }, AnnotationAgentID},
		{"no id", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { delete(m.Annotations, AnnotationAgentID) }, AnnotationAgentID},
		{"other version", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) {
			m.Annotations[ocispec.AnnotationVersion] = "9.9.9"
		}, "org.opencontainers.image.version"},
		{"module gone", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Layers = m.Layers[:1] }, "there is no module"},
		{"module added", container, func(t *testing.T, l *Layout, m *ocispec.Manifest) {
			m.Layers = append(m.Layers, push(t, l, MediaTypeWASM, module))
		}, "there is a module"},
		{"module first", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { slices.Reverse(m.Layers) }, "last layer"},
		{"tar layer last", dual, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) {
			m.Layers = []ocispec.Descriptor{m.Layers[1], m.Layers[2], m.Layers[0]}
		}, "must be last"},
		{"tar layer gone", dual, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Layers = m.Layers[1:] }, "0 tar layers, but the config names 1"},
		{"unknown layer", wasm, func(t *testing.T, l *Layout, m *ocispec.Manifest) {
			m.Layers = append([]ocispec.Descriptor{push(t, l, "application/x-sbom", []byte("x"))}, m.Layers...)
		}, "nothing else"},
		{"module too large", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Layers[1].Size = limits.ModuleBytes + 1 }, "over the limit"},
		{"config of a plain WASM", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Config.MediaType = MediaTypeWASMConfigCNCF }, "config type"},
		{"docker's config", container, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.Config.MediaType = mediaTypeDockerConfig }, "config type"},
		{"no manifest type", wasm, func(_ *testing.T, _ *Layout, m *ocispec.Manifest) { m.MediaType = "" }, "manifest type"},
		{"layers claimed by a WASM config", wasm, config(func(c *ocispec.Image) { c.RootFS.DiffIDs = []digest.Digest{sumA} }), "tar layers"},
		{"other entrypoint", wasm, config(func(c *ocispec.Image) { c.Config.Entrypoint = []string{"/bin/sh"} }), "entrypoint /agent.wasm"},
		{"linux without layers", wasm, config(func(c *ocispec.Image) { c.OS, c.Architecture = "linux", "amd64" }), "at least one tar layer"},
		{"wasm architecture of a container", container, config(func(c *ocispec.Image) { c.Architecture = "wasm" }), "wasip1/wasm"},
		{"bad diff_id", container, config(func(c *ocispec.Image) { c.RootFS.DiffIDs = []digest.Digest{"sha256:zz"} }), "diff_id"},
		{"agent manifest of a container", wasm, agent(`{"id":"mentatlab.test","image":"registry.example/x:1","runtime":"python3.12","version":"1.2.3"}`), "there is a module"},
		{"agent manifest with spaces", wasm, agent(`{"id":"mentatlab.test", "module":"agent.wasm","runtime":"wasm","version":"1.2.3"}`), "canonical"},
		{"agent manifest with an unknown key", wasm, agent(`{"evil":1,"id":"mentatlab.test","module":"agent.wasm","runtime":"wasm","version":"1.2.3"}`), "evil"},
		{"agent manifest that is empty", wasm, agent(``), "agent manifest"},
		{"config with a folded key", wasm, func(t *testing.T, l *Layout, m *ocispec.Manifest) {
			m.Config = push(t, l, m.Config.MediaType, []byte(`{"architecture":"wasm","os":"wasip1","Os":"linux","config":{"Entrypoint":["/agent.wasm"]},"rootfs":{"type":"layers","diff_ids":[]}}`))
		}, "only in case"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, desc := build(t, c.in)
			var m ocispec.Manifest
			unmarshal(t, rawOf(t, l, desc), &m)
			c.spoil(t, l, &m)
			a, err := Read(t.Context(), l, mustJSON(t, m))
			wantReason(t, err, fault.ArtifactInvalid)
			if a != nil || err != nil && !strings.Contains(err.Error(), c.message) {
				t.Errorf("%v does not say %q", err, c.message)
			}
		})
	}
}

func TestReadChecksWhatItFetches(t *testing.T) {
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	raw := rawOf(t, l, desc)
	a := read(t, l, desc)
	for name, d := range map[string]ocispec.Descriptor{"config": a.Manifest.Config, "agent manifest": *a.AgentDesc} {
		path := filepath.Join(l.Dir(), filepath.FromSlash(blobName(d.Digest)))
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Replace(good, []byte("wasm"), []byte("WASM"), 1)
		writeFile(t, path, bad)
		_, err = Read(t.Context(), l, raw)
		if fault.ReasonOf(err) != fault.DigestMismatch {
			t.Errorf("changed %s: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_, err = Read(t.Context(), l, raw)
		if fault.ReasonOf(err) != fault.NotFound {
			t.Errorf("missing %s: %v", name, err)
		}
		writeFile(t, path, good)
	}
}

func TestAttestationIsSeen(t *testing.T) {
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	var m ocispec.Manifest
	unmarshal(t, rawOf(t, l, desc), &m)
	m.Annotations[AnnotationAttestation] = ""
	a, err := Read(t.Context(), l, mustJSON(t, m))
	if err != nil || !a.Attested() {
		t.Errorf("an empty attestation is one that is broken, not one that is absent: %v", err)
	}
}

func TestPlainFormsAreToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*ocispec.Image, *ocispec.Manifest)
		want   Form
	}{
		"ordinary": {nil, FormImage},
		"docker's": {func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.MediaType, m.Config.MediaType = mediaTypeDockerManifest, mediaTypeDockerConfig
		}, FormImage},
		"wasm entrypoint": {func(c *ocispec.Image, _ *ocispec.Manifest) { c.Config.Entrypoint = []string{"/app.wasm"} }, FormPlainWASM},
		"wasm command": {func(c *ocispec.Image, _ *ocispec.Manifest) {
			c.Config.Entrypoint, c.Config.Cmd = nil, []string{"app.wasm"}
		}, FormPlainWASM},
		"wasm argument":     {func(c *ocispec.Image, _ *ocispec.Manifest) { c.Config.Cmd = []string{"app.wasm"} }, FormImage},
		"os wasi":           {func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "wasi" }, FormPlainWASM},
		"architecture wasm": {func(c *ocispec.Image, _ *ocispec.Manifest) { c.Architecture = "wasm" }, FormPlainWASM},
		"wasm layer":        {func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].MediaType = MediaTypeWASM }, FormPlainWASM},
		"old wasm layer": {func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Layers[0].MediaType = "application/vnd.WASM.content.layer.v1+wasm"
		}, FormPlainWASM},
		"CNCF config": {func(_ *ocispec.Image, m *ocispec.Manifest) { m.Config.MediaType = MediaTypeWASMConfigCNCF }, FormPlainWASM},
		"old wasm config": {func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Config.MediaType = "application/vnd.wasm.config.v1+json"
		}, FormPlainWASM},
		"a chart": {func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}, FormOther},
		"mentat-looking chart": {func(_ *ocispec.Image, m *ocispec.Manifest) {
			m.Config.MediaType = "application/vnd.x+json"
			m.Layers[0].MediaType = "a/b"
		}, FormOther},
	} {
		l := newLayout(t)
		a := read(t, l, image(t, l, c.change))
		if a.Form != c.want || a.Agent != nil {
			t.Errorf("%s: %s, want %s", name, a.Form, c.want)
		}
	}
}

type fetchFunc func() (io.ReadCloser, error)

func (f fetchFunc) Fetch(context.Context, ocispec.Descriptor) (io.ReadCloser, error) { return f() }

func TestReadBlobTrustsNothing(t *testing.T) {
	content := []byte("content")
	desc := descriptorOf("a/b", content)
	body := func(b string, err error) fetchFunc {
		return func() (io.ReadCloser, error) {
			r := io.Reader(strings.NewReader(b))
			if err != nil {
				r = io.MultiReader(r, errReader{err})
			}
			return io.NopCloser(r), nil
		}
	}
	change := func(f func(*ocispec.Descriptor)) ocispec.Descriptor { d := desc; f(&d); return d }
	for name, c := range map[string]struct {
		f    fetchFunc
		desc ocispec.Descriptor
		want fault.Reason
	}{
		"right":         {body("content", nil), desc, ""},
		"changed":       {body("CONTENT", nil), desc, fault.DigestMismatch},
		"longer":        {body("content and more", nil), desc, fault.DigestMismatch},
		"shorter":       {body("cont", nil), desc, fault.DigestMismatch},
		"empty":         {body("", nil), desc, fault.DigestMismatch},
		"broken off":    {body("cont", io.ErrUnexpectedEOF), desc, fault.Unavailable},
		"broken at end": {body("content", errors.New("reset")), desc, fault.Unavailable},
		"cancelled":     {body("cont", context.Canceled), desc, fault.Canceled},
		"not there":     {func() (io.ReadCloser, error) { return nil, fault.New(fault.NotFound, "x", "gone") }, desc, fault.NotFound},
		"failing fetch": {func() (io.ReadCloser, error) { return nil, errors.New("no") }, desc, fault.Unavailable},
		"over limit":    {body("content", nil), change(func(d *ocispec.Descriptor) { d.Size = 1 << 40 }), fault.ArtifactInvalid},
		"negative":      {body("content", nil), change(func(d *ocispec.Descriptor) { d.Size = -1 }), fault.ArtifactInvalid},
		"bad digest":    {body("content", nil), change(func(d *ocispec.Descriptor) { d.Digest = "md5:x" }), fault.ArtifactInvalid},
	} {
		data, err := ReadBlob(t.Context(), c.f, c.desc, 100)
		if got := fault.ReasonOf(err); got != c.want {
			t.Errorf("%s: %q, want %q: %v", name, got, c.want, err)
		}
		if (err == nil) != bytes.Equal(data, content) {
			t.Errorf("%s: data %q with error %v", name, data, err)
		}
	}
}

func TestConfigOfAnOrdinaryImageIsReadAsContainerdReadsIt(t *testing.T) {
	l := newLayout(t)
	d := image(t, l, nil)
	var m ocispec.Manifest
	unmarshal(t, rawOf(t, l, d), &m)
	loose := []byte(`{"os":"linux","architecture":"amd64","OS":"windows","rootfs":{"type":"layers","diff_ids":["` + sumA + `"]},"x":1.5}`)
	m.Config = push(t, l, m.Config.MediaType, loose)
	a, err := Read(t.Context(), l, mustJSON(t, m))
	if err != nil {
		t.Fatal(err)
	}
	var theirs ocispec.Image
	if err := json.Unmarshal(loose, &theirs); err != nil || theirs.OS != a.Config.OS {
		t.Errorf("containerd reads os %q, we read %q", theirs.OS, a.Config.OS)
	}
}
