package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func TestCreateLayoutNeverOverwrites(t *testing.T) {
	l := newLayout(t)
	_, err := CreateLayout(l.Dir())
	wantReason(t, err, fault.Exists)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "precious"), nil)
	_, err = CreateLayout(dir)
	wantReason(t, err, fault.Exists)
}

func TestOpenLayoutRefusesWhatIsNone(t *testing.T) {
	header := `{"imageLayoutVersion":"1.0.0"}`
	index := `{"schemaVersion":2,"manifests":[]}`
	for name, c := range map[string]struct {
		files map[string]string
		want  fault.Reason
	}{
		"valid":             {map[string]string{"oci-layout": header, "index.json": index}, ""},
		"empty":             {nil, fault.NotFound},
		"no index":          {map[string]string{"oci-layout": header}, fault.ArtifactInvalid},
		"no header":         {map[string]string{"index.json": index}, fault.NotFound},
		"other version":     {map[string]string{"oci-layout": `{"imageLayoutVersion":"2.0.0"}`, "index.json": index}, fault.ArtifactInvalid},
		"header not JSON":   {map[string]string{"oci-layout": "x", "index.json": index}, fault.ArtifactInvalid},
		"index not JSON":    {map[string]string{"oci-layout": header, "index.json": "{"}, fault.ArtifactInvalid},
		"index a manifest":  {map[string]string{"oci-layout": header, "index.json": good}, fault.ArtifactInvalid},
		"index a directory": {map[string]string{"oci-layout": header, "index.json/x": ""}, fault.ArtifactInvalid},
	} {
		dir := t.TempDir()
		for f, data := range c.files {
			writeFile(t, filepath.Join(dir, f), []byte(data))
		}
		_, err := OpenLayout(dir)
		if got := fault.ReasonOf(err); got != c.want {
			t.Errorf("%s: %q, want %q: %v", name, got, c.want, err)
		}
	}
}

func TestPushKeepsNothingOfWrongContent(t *testing.T) {
	l := newLayout(t)
	desc := descriptorOf("a/b", []byte("content"))
	for content, want := range map[string]fault.Reason{"CONTENT": fault.DigestMismatch, "content!": fault.DigestMismatch, "c": fault.DigestMismatch} {
		wantReason(t, l.Push(t.Context(), desc, strings.NewReader(content)), want)
	}
	wantReason(t, l.Push(t.Context(), desc, io.MultiReader(strings.NewReader("con"), errReader{io.ErrUnexpectedEOF})), fault.Unavailable)
	err := filepath.WalkDir(filepath.Join(l.Dir(), "blobs"), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if have, err := l.Exists(t.Context(), desc); have || err != nil {
		t.Errorf("exists: %v, %v", have, err)
	}
}

func TestDamagedBlobIsReportedAndWrittenAgain(t *testing.T) {
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	a := read(t, l, desc)
	if err := l.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.Dir(), filepath.FromSlash(blobName(a.Module.Digest)))
	writeFile(t, path, []byte("\x00asm\x02\x00\x00\x00"))
	wantReason(t, l.Verify(t.Context()), fault.DigestMismatch)
	wantReason(t, l.ExportTar(io.Discard, ""), fault.DigestMismatch)
	if have, err := l.Exists(t.Context(), *a.Module); have || err != nil {
		t.Errorf("damaged blob exists: %v, %v", have, err)
	}
	if err := l.Push(t.Context(), *a.Module, bytes.NewReader(module)); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(t.Context()); err != nil {
		t.Errorf("after writing again: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wantReason(t, l.Verify(t.Context()), fault.NotFound)
}

func TestFetchFollowsNoLinks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("links need privileges here")
		return
	}
	l := newLayout(t)
	outside := filepath.Join(t.TempDir(), "secret")
	writeFile(t, outside, []byte("secret"))
	desc := descriptorOf("a/b", []byte("secret"))
	path := filepath.Join(l.Dir(), filepath.FromSlash(blobName(desc.Digest)))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, path); err != nil {
		t.Fatal(err)
	}
	_, err := l.Fetch(t.Context(), desc)
	wantReason(t, err, fault.ArtifactInvalid)
	_, err = l.Fetch(t.Context(), ocispec.Descriptor{Digest: "sha256:../../../../etc/passwd"})
	wantReason(t, err, fault.ArtifactInvalid)
}

func TestTagsMoveAndResolve(t *testing.T) {
	l := newLayout(t)
	a := image(t, l, nil)
	b := image(t, l, func(c *ocispec.Image, _ *ocispec.Manifest) { c.Author = "b" })
	if _, err := l.Root(); fault.ReasonOf(err) != fault.ArtifactInvalid {
		t.Errorf("root of two: %v", err)
	}
	for _, step := range []struct {
		desc ocispec.Descriptor
		ref  string
	}{{a, "r.example/x:1"}, {a, "r.example/x:latest"}, {b, "r.example/x:latest"}} {
		if err := l.Tag(t.Context(), step.desc, step.ref); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLayout(l.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]ocispec.Descriptor{"r.example/x:1": a, "r.example/x:latest": b, string(a.Digest): a} {
		if got, err := l.Resolve(t.Context(), ref); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	_, err = l.Resolve(t.Context(), "r.example/x:2")
	wantReason(t, err, fault.NotFound)
	wantReason(t, l.Tag(t.Context(), a, ""), fault.Usage)
}

func TestReplaceManifestKeepsTheNames(t *testing.T) {
	l, old := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	if err := l.Tag(t.Context(), old, "r.example/x:1"); err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	unmarshal(t, rawOf(t, l, old), &m)
	m.Annotations[AnnotationAttestation] = "signed"
	raw := mustJSON(t, m)
	desc, err := l.ReplaceManifest(t.Context(), old, raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Resolve(t.Context(), "r.example/x:1"); err != nil || got.Digest != desc.Digest {
		t.Errorf("the name means %s, want %s: %v", got.Digest, desc.Digest, err)
	}
	if !read(t, l, desc).Attested() || !bytes.Equal(rawOf(t, l, desc), raw) {
		t.Error("the layout does not hold the very bytes")
	}
	_, err = l.Fetch(t.Context(), old)
	wantReason(t, err, fault.NotFound)
	_, err = l.ReplaceManifest(t.Context(), old, raw)
	wantReason(t, err, fault.NotFound)
	_, err = l.ReplaceManifest(t.Context(), desc, []byte("{}"))
	wantReason(t, err, fault.ArtifactInvalid)
	if same, err := l.ReplaceManifest(t.Context(), desc, raw); err != nil || same.Digest != desc.Digest {
		t.Errorf("replacing by itself: %v", err)
	}
	if err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConcurrentWritersLoseNothing(t *testing.T) {
	l := newLayout(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			d := image(t, l, func(c *ocispec.Image, _ *ocispec.Manifest) { c.Author = fmt.Sprint(i) })
			if err := l.Tag(t.Context(), d, fmt.Sprintf("x:%d", i)); err != nil {
				t.Error(err)
			}
			if err := l.Verify(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 16 {
		if _, err := l.Resolve(t.Context(), fmt.Sprintf("x:%d", i)); err != nil {
			t.Error(err)
		}
	}
}

func TestExportIsReproducibleAndReadsBack(t *testing.T) {
	const ref = "127.0.0.1:5000/agents/x:1.0.0"
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module, Container: containerImage(t)})
	if err := l.Tag(t.Context(), desc, ref); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	if err := l.ExportTar(&one, ref); err != nil {
		t.Fatal(err)
	}
	if err := l.ExportTar(&two, ref); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two exports differ: %v", err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	writeFile(t, path, one.Bytes())
	a, err := openArchive(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, name := range []string{ref, ""} {
		root, err := a.resolve(name)
		if err != nil || root.Digest != desc.Digest {
			t.Fatalf("%q: %v, %v", name, root, err)
		}
	}
	var idx ocispec.Index
	data, err := a.read("index.json")
	if err != nil {
		t.Fatal(err)
	}
	unmarshal(t, data, &idx)
	if n := idx.Manifests[0].Annotations; n["io.containerd.image.name"] != ref || n["org.opencontainers.image.ref.name"] != "1.0.0" {
		t.Errorf("names %v", n)
	}
	data, err = a.read("manifest.json")
	if err != nil || !strings.Contains(string(data), `"RepoTags":["`+ref+`"]`) || strings.Count(string(data), "blobs/sha256/") != 2 {
		t.Errorf("docker's manifest: %s, %v", data, err)
	}
	raw, err := ReadBlob(t.Context(), a, desc, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if art, err := Read(t.Context(), a, raw); err != nil || art.Form != FormDual {
		t.Errorf("read back: %v", err)
	}
	wantReason(t, l.ExportTar(io.Discard, "other"), fault.NotFound)
}

func TestOpenImageReadsDirectoriesAndArchives(t *testing.T) {
	amd64 := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	l := newLayout(t)
	a := image(t, l, nil)
	arm := image(t, l, func(c *ocispec.Image, _ *ocispec.Manifest) { c.Architecture = "arm64" })
	idx := newIndex()
	for arch, d := range map[string]ocispec.Descriptor{"amd64": a, "arm64": arm} {
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		idx.Manifests = append(idx.Manifests, d)
	}
	multi := push(t, l, ocispec.MediaTypeImageIndex, mustJSON(t, idx))
	if err := l.Add(t.Context(), multi); err != nil {
		t.Fatal(err)
	}
	if err := l.update(func(all *ocispec.Index) error {
		all.Manifests = []ocispec.Descriptor{multi}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), multi, "x:1"); err != nil {
		t.Fatal(err)
	}
	var tarball bytes.Buffer
	if err := l.ExportTar(&tarball, "x:1"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	writeFile(t, file, tarball.Bytes())
	writeFile(t, filepath.Join(dir, "image.tar.gz"), []byte("\x1f\x8b\x08\x00xxxx"))
	writeFile(t, filepath.Join(dir, "text"), []byte(strings.Repeat("no tar ", 200)))
	writeFile(t, filepath.Join(dir, "twice.tar"), append(tarball.Bytes()[:1024:1024], tarball.Bytes()...))
	writeFile(t, filepath.Join(dir, "plain.tar"), oneFileTar(t, "hello", "x"))
	writeFile(t, filepath.Join(dir, "cut.tar"), tarball.Bytes()[:tarball.Len()/2])

	for _, path := range []string{l.Dir(), file} {
		for _, ref := range []string{"", "x:1"} {
			img, c, err := OpenImage(t.Context(), path, ref, amd64)
			if err != nil {
				t.Fatal(err)
			}
			out, desc := build(t, BuildInput{Agent: containerAgent(t), Container: img})
			if err := out.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			if read(t, out, desc).Config.Architecture != "amd64" {
				t.Error("took the wrong platform")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for path, want := range map[string]fault.Reason{
		filepath.Join(dir, "none"):         fault.NotFound,
		dir:                                fault.NotFound,
		filepath.Join(dir, "image.tar.gz"): fault.ArtifactInvalid,
		filepath.Join(dir, "text"):         fault.ArtifactInvalid,
		filepath.Join(dir, "twice.tar"):    fault.ArtifactInvalid,
		filepath.Join(dir, "plain.tar"):    fault.ArtifactInvalid,
		filepath.Join(dir, "cut.tar"):      fault.ArtifactInvalid,
	} {
		_, _, err := OpenImage(t.Context(), path, "", amd64)
		if fault.ReasonOf(err) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, _, err := OpenImage(t.Context(), file, "x:2", amd64)
	wantReason(t, err, fault.NotFound)
	_, _, err = OpenImage(t.Context(), file, "", ocispec.Platform{OS: "linux", Architecture: "s390x"})
	wantReason(t, err, fault.NotFound)
}

func TestLoadImageTakesOrdinaryImagesOnly(t *testing.T) {
	amd64 := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	l, desc := build(t, BuildInput{Agent: wasmAgent(t), Module: module})
	_, err := LoadImage(t.Context(), l, desc, amd64)
	wantReason(t, err, fault.ArtifactInvalid)

	docker := image(t, l, func(_ *ocispec.Image, m *ocispec.Manifest) {
		m.MediaType, m.Config.MediaType, m.Layers[0].MediaType = mediaTypeDockerManifest, mediaTypeDockerConfig, mediaTypeDockerLayer
	})
	img, err := LoadImage(t.Context(), l, docker, amd64)
	if err != nil || img.Layers[0].MediaType != ocispec.MediaTypeImageLayer {
		t.Errorf("docker's image: %v", err)
	}
	_, err = LoadImage(t.Context(), l, image(t, l, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }), amd64)
	wantReason(t, err, fault.ArtifactInvalid)
	_, err = LoadImage(t.Context(), l, image(t, l, func(c *ocispec.Image, _ *ocispec.Manifest) { c.Architecture = "arm64" }), amd64)
	wantReason(t, err, fault.NotFound)
}

func TestWalkStopsAtIndexesThatNestWithoutEnd(t *testing.T) {
	l := newLayout(t)
	d := image(t, l, nil)
	for range limits.IndexDepth {
		idx := newIndex()
		idx.Manifests = []ocispec.Descriptor{d}
		d = push(t, l, ocispec.MediaTypeImageIndex, mustJSON(t, idx))
	}
	_, err := Walk(t.Context(), l, d)
	wantReason(t, err, fault.ArtifactInvalid)
}

// FuzzReadLayout: whatever index.json and one blob hold, opening never panics
// and refuses with a reason, and what Verify accepts is still accepted after an
// unrelated image was added beside it.
func FuzzReadLayout(f *testing.F) {
	l, desc := build(f, BuildInput{Agent: wasmAgent(f), Module: module})
	index, err := os.ReadFile(filepath.Join(l.Dir(), "index.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(index, rawOf(f, l, desc))
	f.Add([]byte(goodIndex), []byte(good))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), []byte{})
	f.Fuzz(func(t *testing.T, index, blob []byte) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
		writeFile(t, filepath.Join(dir, "index.json"), index)
		desc := descriptorOf(ocispec.MediaTypeImageManifest, blob)
		writeFile(t, filepath.Join(dir, filepath.FromSlash(blobName(desc.Digest))), blob)
		l, err := OpenLayout(dir)
		if err != nil {
			wantReason(t, err, fault.ArtifactInvalid)
			return
		}
		before := l.Verify(t.Context())
		if before != nil && fault.ReasonOf(before) == fault.Internal {
			t.Fatalf("without a reason: %v", before)
		}
		if a, err := Read(t.Context(), l, blob); err == nil {
			if _, err := json.Marshal(a.Manifest); err != nil || a.Form == "" {
				t.Fatalf("accepted without a form: %v", err)
			}
		}
		// A full index refuses the addition; then nothing may have changed.
		if err := l.Tag(t.Context(), imageBlobs(t, l, nil), "fuzz:added"); err != nil {
			t.Skip()
		}
		if after := l.Verify(t.Context()); (before == nil) != (after == nil) {
			t.Fatalf("verified %v before and %v after an addition", before, after)
		}
	})
}

// FuzzOpenImage: whatever an archive holds, it is refused with a reason or
// gives an image whose layers fit its config.
func FuzzOpenImage(f *testing.F) {
	l := newLayout(f)
	image(f, l, nil)
	var b bytes.Buffer
	if err := l.ExportTar(&b, ""); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(oneFileTar(f, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "image.tar")
		writeFile(t, path, data)
		img, c, err := OpenImage(t.Context(), path, "", ocispec.Platform{OS: "linux", Architecture: "amd64"})
		if err != nil {
			if r := fault.ReasonOf(err); img != nil || r != fault.ArtifactInvalid && r != fault.NotFound && r != fault.DigestMismatch {
				t.Fatalf("%q: %v", r, err)
			}
			return
		}
		defer c.Close()
		var cfg ocispec.Image
		if err := json.Unmarshal(img.Config, &cfg); err != nil || len(cfg.RootFS.DiffIDs) != len(img.Layers) {
			t.Fatalf("%d layers for %d diff_ids: %v", len(img.Layers), len(cfg.RootFS.DiffIDs), err)
		}
	})
}
