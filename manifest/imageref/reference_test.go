package imageref

import (
	"strings"
	"testing"

	"github.com/distribution/reference"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestAReferenceIsReadAsContainerClientsReadIt(t *testing.T) {
	for in, want := range map[string]Reference{
		"alpine":                 {Name: "docker.io/library/alpine"},
		"alpine:3.19":            {Name: "docker.io/library/alpine", Tag: "3.19"},
		"grafana/loki":           {Name: "docker.io/grafana/loki"},
		"index.docker.io/alpine": {Name: "docker.io/library/alpine"},
		"localhost/a":            {Name: "localhost/a"},
		"127.0.0.1:5000/agents/a:1@" + someDigest:  {Name: "127.0.0.1:5000/agents/a", Tag: "1", Digest: someDigest},
		"registry.example/agents/a.b/c__d/e---f:1": {Name: "registry.example/agents/a.b/c__d/e---f", Tag: "1"},
		"REGISTRY/a":           {Name: "REGISTRY/a"},
		"[2001:db8::1]:5000/a": {Name: "[2001:db8::1]:5000/a"},
	} {
		if got, ok := ParseReference(in); !ok || got != want {
			t.Errorf("%s: %+v, %v", in, got, ok)
		}
	}
}

func FuzzAReferenceMeansWhatTheLibraryMeansByIt(f *testing.F) {
	for _, s := range []string{
		"", "/", "a", "A", "a:1", "a:", "a@", "a:1@" + someDigest, "a@" + someDigest, "a@" + strings.ToUpper(someDigest), "a@sha256:abc", "a@sha512:" + strings.Repeat("a", 128),
		"a/b", "a.b/c", "a.b/c:x/y", "a:80/b", "a:80/b:t", "a:x/b", "localhost/a", "localhost", "localhost:5000", "docker.io/a", "index.docker.io/a/b", "docker.io/", "docker.io",
		"a..b/c", "-a/b", "a-.b/c", "foo_bar.x/y", "foo__bar.x/y", "foo___bar.x/y", "a_/b", "a/_b", "a/b-", "a/b--c", "a/b.-c", "a//b", "a/b/", "é/a", "a.b/é", "ſ.x/a",
		"[::1]/a", "[::1]:80/a", "[::1]:/a", "[]/a", "[::1/a", "[g]/a", "::1/a", "a.b:/c", "a.b:80:81/c", "A/b", "A.b/C", "a\n", "a:\n", "a b", strings.Repeat("0", 64), strings.Repeat("A", 64),
		"a.b/" + strings.Repeat("c", 255), "a.b/" + strings.Repeat("c", 256), strings.Repeat("a", 300) + ".b/c", "a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), "a:.t", "a:-t", "a:_t",
		"a_b.c/" + strings.Repeat("d", 252), "user@host/a", "https://a.b/c", "a.b/c@x@y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := ParseReference(s)
		want, err := reference.ParseNormalizedNamed(s)
		if ok != (err == nil) {
			t.Fatalf("%q: %+v %v, the library says %v", s, got, ok, err)
		}
		if !ok {
			return
		}
		tag, digest := "", ""
		if tagged, ok := want.(reference.Tagged); ok {
			tag = tagged.Tag()
		}
		if digested, ok := want.(reference.Digested); ok {
			digest = digested.Digest().String()
		}
		if got.Name != want.Name() || got.Tag != tag || got.Digest.String() != digest {
			t.Fatalf("%q: %+v, the library says %s", s, got, want)
		}
		client, err := reference.ParseDockerRef(s)
		if err != nil || client.String() != got.String() {
			t.Fatalf("%q: %s, the library says %v %v", s, got, client, err)
		}
	})
}
