package verifier

import (
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/imageref"
)

// Every spelling under which the scope's server is reached is in its scope, so
// that an unsigned container does not become an ordinary image outside of it.
func TestNoSpellingOfANameLeadsOutOfItsScope(t *testing.T) {
	v := newNode(testpki.New(t)).verifier(t)
	for _, name := range []string{
		ref, repository, "REGISTRY.Example/agents/echo:1.0.0",
		"registry.example:443/agents/echo:1.0.0", "registry.example:0443/agents/echo:1.0.0", "registry.example:00000443/agents/echo",
		repository + ":latest@sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		repository + "@sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		repository + ":" + "__odd.TAG--1", "registry.example/agents/a/b/c__d/e-f:1",
	} {
		vd := v.Verify(t.Context(), Input{Reference: name, Artifact: read(t, container(t))})
		if vd.Scope != "agents" || vd.Reason != fault.Unsigned {
			t.Errorf("%s: scope %q, %s", name, vd.Scope, vd.Line())
		}
	}
}

func TestDockerHubHasOneName(t *testing.T) {
	for _, pattern := range []string{"docker.io/**", "docker.io/library/**", "docker.io/library/alpine", "index.docker.io/**", "registry-1.docker.io/library/**"} {
		if _, ok := imageref.ParsePattern(pattern); ok == strings.HasPrefix(pattern, "index.") {
			t.Errorf("%s: %v", pattern, ok)
		}
	}
	p := policy(t, `version: 1
scopes:
  - {name: hub, match: ["docker.io/library/**"], stores: [a], identities: [any], unsigned_containers: deny}
outside: {ordinary_images: allow}
`)
	for _, name := range []string{"alpine", "alpine:3", "library/alpine", "docker.io/alpine", "index.docker.io/alpine", "registry-1.docker.io/library/alpine"} {
		if s := p.scope(imageref.Parse(name)); s == nil {
			t.Errorf("%s is in no scope", name)
		}
	}
}

// What looks like a name in the scope and is not one is outside: an agent's
// module does not run there.
func TestNamesThatAreNoneAreUnknown(t *testing.T) {
	p := testpki.New(t)
	v := newNode(p).verifier(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain())
	for _, name := range []string{
		"registry.example/agents/Echo:1.0.0", "registry.example/agents//echo:1.0.0", "registry.example/agents/../agents/echo:1.0.0",
		"registry.example./agents/echo:1.0.0", "https://registry.example/agents/echo:1.0.0", "registry.example/agents/echo:1.0.0\n", " " + ref,
		"registry\u3002example/agents/echo:1.0.0", "reg\u0131stry.example/agents/echo:1.0.0", "registry.example%2fagents/echo:1.0.0", repository + "@sha256:abc",
		"registry.example:/agents/echo", "user@registry.example/agents/echo:1.0.0", "registry.example:443:443/agents/echo:1.0.0",
	} {
		if vd := v.Verify(t.Context(), Input{Reference: name, Artifact: read(t, signed)}); vd.Allowed || vd.Scope != "" {
			t.Errorf("%q: scope %q, %s", name, vd.Scope, vd.Line())
		}
	}
}
