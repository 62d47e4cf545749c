package oci

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

const (
	sumA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	sumB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// good is a manifest that every case below spoils in one place.
const good = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
	`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + sumA + `","size":2},` +
	`"layers":[{"mediaType":"application/wasm","digest":"` + sumB + `","size":8}],"annotations":{"a":"b"}}`

func TestParseManifestRefusesWhatReadersDisagreeAbout(t *testing.T) {
	if _, err := ParseManifest([]byte(good)); err != nil {
		t.Fatalf("the unspoiled manifest: %v", err)
	}
	swap := func(old, replacement string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the manifest", old)
		}
		return strings.Replace(good, old, replacement, 1)
	}
	layer := `{"mediaType":"application/wasm","digest":"` + sumB + `","size":8}`
	cases := map[string]struct{ raw, message string }{
		"empty":                {"", "strict JSON"},
		"an array":             {"[]", "not a JSON object"},
		"null":                 {"null", ""},
		"trailing data":        {good + " {}", "strict JSON"},
		"a byte order mark":    {"\ufeff" + good, "strict JSON"},
		"bad UTF-8":            {swap(`"a":"b"`, "\"a\":\"\xff\""), "strict JSON"},
		"duplicate key":        {swap(`"schemaVersion":2,`, `"schemaVersion":2,"schemaVersion":2,`), "strict JSON"},
		"escaped duplicate":    {swap(`"schemaVersion":2,`, `"schemaVersion":2,"\u0063onfig":{},`), "strict JSON"},
		"folded key":           {swap(`"config":`, `"Config":{"mediaType":"x"},"config":`), "only in case"},
		"folded instead":       {swap(`"layers":`, `"LAYERS":`), "only in case"},
		"Kelvin sign folded":   {swap(`"layers":`, `"Fſlayerſ":1,"layers":`), "only in case"},
		"folded descriptor":    {swap(`"size":8`, `"size":8,"Digest":"x"`), `"layers.Digest"`},
		"folded platform":      {swap(`"size":8`, `"size":8,"platform":{"OS":"x"}`), `"layers.platform.OS"`},
		"null layers":          {swap(`[`+layer+`]`, `null`), "null"},
		"null layer":           {swap(layer, `null`), "null"},
		"null annotation":      {swap(`"a":"b"`, `"a":null`), "null"},
		"number annotation":    {swap(`"a":"b"`, `"a":1`), "malformed"},
		"missing config":       {`{"schemaVersion":2,"layers":[]}`, `"config" is missing`},
		"missing layers":       {swap(`"layers":[`+layer+`],`, ``), `"layers" is missing`},
		"schema 1":             {swap(`"schemaVersion":2`, `"schemaVersion":1`), "schemaVersion"},
		"schema 1 layers too":  {swap(`"layers":`, `"fsLayers":[],"layers":`), `"fsLayers"`},
		"index inside":         {swap(`"layers":`, `"manifests":[],"layers":`), `"manifests"`},
		"index media type":     {swap("image.manifest.v1", "image.index.v1"), "not an image manifest's"},
		"other media type":     {swap("application/vnd.oci.image.manifest.v1+json", "text/plain"), "not an image manifest's"},
		"octet-stream config":  {swap("application/vnd.oci.image.config.v1+json", "application/octet-stream"), "rewrite the manifest"},
		"foreign urls":         {swap(`"size":8`, `"size":8,"urls":["http://x.example/"]`), "foreign urls"},
		"sha384":               {swap(sumB, "sha384:"+strings.Repeat("b", 96)), "neither a sha256"},
		"short digest":         {swap(sumB, "sha256:bb"), "neither a sha256"},
		"upper-case digest":    {swap(sumB, strings.ToUpper(sumB)), "neither a sha256"},
		"path as digest":       {swap(sumB, "sha256:../../../etc/passwd"), "neither a sha256"},
		"no digest":            {swap(`"digest":"`+sumB+`",`, ``), "neither a sha256"},
		"negative size":        {swap(`"size":8`, `"size":-8`), "negative size"},
		"fractional size":      {swap(`"size":8`, `"size":8.5`), "strict JSON"},
		"size with exponent":   {swap(`"size":8`, `"size":8e0`), ""},
		"size beyond 2^53":     {swap(`"size":8`, `"size":9007199254740993`), "strict JSON"},
		"size as string":       {swap(`"size":8`, `"size":"8"`), "malformed"},
		"no media type":        {swap(`"mediaType":"application/wasm",`, ``), "no media type"},
		"inlined other data":   {swap(`"size":8`, `"size":8,"data":"AAAAAAAAAAA="`), "inlined"},
		"two modules":          {swap(layer, layer+`,`+layer), "2 WASM modules"},
		"two agent manifests":  {swap("application/wasm", MediaTypeAgentManifest+`","digest":"`+sumA+`","size":1},{"mediaType":"`+MediaTypeAgentManifest), "2 agent manifests"},
		"subject without size": {swap(`"annotations"`, `"subject":{"mediaType":"x","digest":"sha1:aa","size":0},"annotations"`), "neither a sha256"},
		"depth 40":             {swap(`"annotations"`, `"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,"annotations"`), "strict JSON"},
		"over 4 MiB":           {swap(`"a":"b"`, `"a":"`+strings.Repeat("b", limits.OCIManifestBytes)+`"`), "over the limit"},
	}
	for name, c := range cases {
		m, err := ParseManifest([]byte(c.raw))
		if err == nil || m != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantReason(t, err, fault.ArtifactInvalid)
		if !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %q does not say %q", name, err, c.message)
		}
		if strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("%s: more than one line: %q", name, err)
		}
	}
}

func TestParseManifestTakesWhatTheSpecificationAllows(t *testing.T) {
	data := `{}`
	inline := fmt.Sprintf(`{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2,"data":"e30="}`, digest.FromString(data))
	for name, raw := range map[string]string{
		"no media type":      strings.Replace(good, `"mediaType":"application/vnd.oci.image.manifest.v1+json",`, ``, 1),
		"unknown keys":       strings.Replace(good, `"annotations"`, `"x-note":[1,null],"annotations"`, 1),
		"docker's types":     strings.Replace(good, "application/vnd.oci.image.manifest.v1+json", mediaTypeDockerManifest, 1),
		"inlined data":       strings.Replace(good, `"layers":[`, `"layers":[`+inline+`,`, 1),
		"spaces":             " \n" + good + "\n",
		"annotation Config":  strings.Replace(good, `"a":"b"`, `"Config":"b","config":"c"`, 1),
		"sha512":             strings.Replace(good, sumB, "sha512:"+strings.Repeat("b", 128), 1),
		"artifact without a": strings.Replace(good, `"layers":[{"mediaType":"application/wasm","digest":"`+sumB+`","size":8}]`, `"layers":[],"artifactType":"text/x"`, 1),
	} {
		if _, err := ParseManifest([]byte(raw)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const goodIndex = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
	`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + sumA + `","size":2,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},` +
	`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + sumB + `","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`

func TestParseIndexRefusesAManifestInDisguise(t *testing.T) {
	if _, err := ParseIndex([]byte(goodIndex)); err != nil {
		t.Fatal(err)
	}
	entry := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + sumA + `","size":2}`
	for name, raw := range map[string]string{
		"a manifest":        good,
		"config too":        strings.Replace(goodIndex, `"manifests"`, `"config":{},"manifests"`, 1),
		"layers too":        strings.Replace(goodIndex, `"manifests"`, `"layers":[],"manifests"`, 1),
		"folded":            strings.Replace(goodIndex, `"manifests"`, `"Manifests"`, 1),
		"manifest type":     strings.Replace(goodIndex, "image.index.v1", "image.manifest.v1", 1),
		"null":              strings.Replace(goodIndex, `"platform":{"os":"linux","architecture":"amd64"}`, `"platform":null`, 1),
		"33 entries":        `{"schemaVersion":2,"manifests":[` + strings.TrimSuffix(strings.Repeat(entry+",", 33), ",") + `]}`,
		"entry with urls":   strings.Replace(goodIndex, `"size":2`, `"size":2,"urls":["x"]`, 1),
		"missing manifests": `{"schemaVersion":2}`,
	} {
		if _, err := ParseIndex([]byte(raw)); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantReason(t, err, fault.ArtifactInvalid)
		}
	}
}

func TestSelectFindsThePlatform(t *testing.T) {
	idx, err := ParseIndex([]byte(goodIndex))
	if err != nil {
		t.Fatal(err)
	}
	for platform, want := range map[string]string{"": sumB, "linux/amd64": sumB, "linux/arm64": sumA, "linux/arm64/v8": sumA, "linux/arm64/v9": "", "wasip1/wasm": ""} {
		p, err := ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Select(idx, p)
		if string(d.Digest) != want {
			t.Errorf("%q: %s, want %s", platform, d.Digest, want)
		}
		if want == "" {
			wantReason(t, err, fault.NotFound)
			if !strings.Contains(err.Error(), "linux/arm64/v8, linux/amd64") {
				t.Errorf("%q: does not say what there is: %v", platform, err)
			}
		}
	}
	for _, bad := range []string{"linux", "/", "linux/", "a/b/c/d", "a//c"} {
		_, err := ParsePlatform(bad)
		wantReason(t, err, fault.Usage)
	}
}

func TestDetectMediaTypeBelievesTheDocument(t *testing.T) {
	for raw, want := range map[string]string{
		good:                    ocispec.MediaTypeImageManifest,
		goodIndex:               ocispec.MediaTypeImageIndex,
		`{"config":{}}`:         ocispec.MediaTypeImageManifest,
		`{"manifests":[]}`:      ocispec.MediaTypeImageIndex,
		`{"mediaType":"x/y"}`:   "",
		`{}`:                    "",
		`<html>`:                "",
		`{"schemaVersion":"2"}`: "",
	} {
		got, err := DetectMediaType([]byte(raw))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.40s: %q, %v", raw, got, err)
		}
	}
}

// FuzzParseManifest: what is accepted reads the same after canonicalization,
// and encoding/json, with which containerd reads, agrees with what we read.
func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(goodIndex))
	f.Add([]byte(strings.Replace(good, `"size":8`, `"size":8,"Digest":"x"`, 1)))
	f.Add([]byte(strings.Replace(good, `"size":8`, `"size":-0`, 1)))
	f.Add([]byte(strings.Replace(good, `"a":"b"`, `"a":"\u0062"`, 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw)
		if err != nil {
			if m != nil {
				t.Fatal("an error and a manifest")
			}
			wantReason(t, err, fault.ArtifactInvalid)
			return
		}
		var theirs ocispec.Manifest
		if err := json.Unmarshal(raw, &theirs); err != nil || !reflect.DeepEqual(*m, theirs) {
			t.Fatalf("encoding/json reads %+v (%v), we read %+v", theirs, err, *m)
		}
		again, err := canonical.JSON(raw)
		if err != nil {
			t.Fatalf("accepted without a canonical form: %v", err)
		}
		m2, err := ParseManifest(again)
		if err != nil || !reflect.DeepEqual(m, m2) {
			t.Fatalf("canonical form reads %+v (%v), the original %+v", m2, err, m)
		}
		if _, err := ParseIndex(raw); err == nil {
			t.Fatal("a manifest and an index at once")
		}
		if mt, err := DetectMediaType(raw); err != nil || !IsManifest(mt) {
			t.Fatalf("detected as %q: %v", mt, err)
		}
	})
}

// FuzzParseIndex: as FuzzParseManifest, for indexes.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(goodIndex))
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(goodIndex, `"os"`, `"oS"`, 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		idx, err := ParseIndex(raw)
		if err != nil {
			wantReason(t, err, fault.ArtifactInvalid)
			return
		}
		var theirs ocispec.Index
		if err := json.Unmarshal(raw, &theirs); err != nil || !reflect.DeepEqual(*idx, theirs) {
			t.Fatalf("encoding/json reads %+v (%v), we read %+v", theirs, err, *idx)
		}
		again, err := canonical.JSON(raw)
		if err != nil {
			t.Fatalf("accepted without a canonical form: %v", err)
		}
		if idx2, err := ParseIndex(again); err != nil || !reflect.DeepEqual(idx, idx2) {
			t.Fatalf("canonical form reads %+v (%v), the original %+v", idx2, err, idx)
		}
	})
}
