package verifier

import (
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

const remapPolicy = `version: 1
scopes:
  - name: mirrors
    match: ["mirror.example/**", "one.example/echo"]
    stores: [agents]
    identities: [any]
    unsigned_containers: deny
    binding: remap
    remap:
      - {from: "mirror.example/prod/**", to: "registry.example/agents/**"}
      - {from: "mirror.example/prod/closed/**", to: "registry.example/closed/**"}
      - {from: "one.example/echo", to: "registry.example/agents/echo"}
outside: {ordinary_images: deny}
`

func TestARemappedNameIsHeldToTheOneThatWasSigned(t *testing.T) {
	p := testpki.New(t)
	n := newNode(p)
	n.policy = remapPolicy
	v := n.verifier(t)
	signed := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
	unbound := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain(), func(b *Block) { b.Subject.Repository = "" }))
	for reference, want := range map[string]fault.Reason{
		"mirror.example/prod/echo:1.0.0":         "",
		"mirror.example:443/prod/echo:other":     "",
		"one.example/echo:1.0.0":                 "",
		"mirror.example/prod/other:1.0.0":        fault.BindingMismatch,
		"mirror.example/prod/closed/echo:1.0.0":  fault.BindingMismatch,
		"mirror.example/echo:1.0.0":              fault.BindingMismatch,
		"mirror.example/prod:1.0.0":              fault.BindingMismatch,
		"mirror.example/production/echo:1.0.0":   fault.BindingMismatch,
		"registry.example/agents/echo:1.0.0":     fault.PolicyDenied,
		"mirror.example/prod/sub/../../echo:1":   fault.PolicyDenied,
		"one.example/echo/mirror.example/prod:1": fault.PolicyDenied,
		"mirror.example/prod/agents/echo:1.0.0":  fault.BindingMismatch,
		"mirror.example/prod/echo/echo:1.0.0":    fault.BindingMismatch,
	} {
		var trace Trace
		vd := v.Verify(t.Context(), Input{Reference: reference, Artifact: signed, Trace: &trace})
		if vd.Reason != want {
			t.Errorf("%s: %s, want %q", reference, vd.Line(), want)
		}
	}
	expect(t, v.Verify(t.Context(), Input{Reference: "mirror.example/prod/echo:1.0.0", Artifact: unbound}), fault.BindingMismatch)
	// A remapped name is no second name: where it was signed for it counts as before.
	n.policy = testPolicy
	expect(t, n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: signed}), "")
}

func TestRemappingsThatAreNotClearAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ old, with, says string }{
		"without remap":     {"binding: remap", "binding: repository", "no effect"},
		"by default":        {"    binding: remap\n", "", "no effect"},
		"kinds mixed":       {`to: "registry.example/agents/**"`, `to: "registry.example/agents"`, "from and to"},
		"everything":        {`from: "mirror.example/prod/**"`, `from: "*"`, "from and to"},
		"outside the scope": {`from: "mirror.example/prod/**"`, `from: "other.example/prod/**"`, "no effect"},
		"more than it has":  {`from: "one.example/echo"`, `from: "one.example/other"`, "no effect"},
		"twice":             {`from: "mirror.example/prod/closed/**"`, `from: "mirror.example/prod/**"`, "twice"},
		"to missing":        {`, to: "registry.example/closed/**"`, "", "from and to"},
		"tag":               {`to: "registry.example/agents/echo"`, `to: "registry.example/agents/echo:1"`, "from and to"},
		"unknown key":       {`from: "one.example/echo"`, `source: "one.example/echo"`, "source"},
	} {
		text := strings.Replace(remapPolicy, c.old, c.with, 1)
		if text == remapPolicy {
			t.Fatalf("%s: not in the policy", name)
		}
		if _, err := ParsePolicy("p", []byte(text)); fault.ReasonOf(err) != fault.PolicyInvalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	only := remapPolicy[:strings.Index(remapPolicy, "    remap:")] + "outside: {ordinary_images: deny}\n"
	if _, err := ParsePolicy("p", []byte(only)); err == nil || !strings.Contains(err.Error(), "is required") {
		t.Errorf("remap without remappings: %v", err)
	}
}

func TestBelowTheMinimumVersionNothingRuns(t *testing.T) {
	p := testpki.New(t)
	signed := mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()) // mentatlab.echo 1.0.0
	for _, c := range []struct {
		floors    string
		raw       []byte
		reference string
		want      fault.Reason
	}{
		{`{mentatlab.echo: 1.0.0}`, signed, ref, ""},
		{`{mentatlab.echo: 1.0.0-rc.1}`, signed, ref, ""},
		{`{mentatlab.echo: 0.9.0}`, signed, ref, ""},
		{`{mentatlab.other: 9.0.0}`, signed, ref, ""},
		{`{mentatlab.echo: 1.0.1}`, signed, ref, fault.VersionTooLow},
		{`{mentatlab.echo: "1.10.0"}`, signed, ref, fault.VersionTooLow},
		{`{mentatlab.echo: 1.0.1}`, signed, "registry.example/mixed/a:1", fault.VersionTooLow},
		{`{mentatlab.echo: 1.0.1}`, signed, "docker.io/library/alpine", fault.VersionTooLow},
		{`{mentatlab.echo: 1.0.1}`, wasmAgent(t), "registry.example/mixed/a:1", fault.VersionTooLow},
		{`{mentatlab.echo: 1.0.0}`, wasmAgent(t), "registry.example/mixed/a:1", ""},
		{`{mentatlab.echo: 1.0.1}`, container(t), "docker.io/library/alpine", ""},
	} {
		for _, level := range levels {
			n := newNode(p)
			n.policy = strings.ReplaceAll(n.policy, "    unsigned_containers", "    level: "+string(level)+"\n    unsigned_containers") + "minimum_versions: " + c.floors + "\n"
			var trace Trace
			vd := n.verifier(t).Verify(t.Context(), Input{Reference: c.reference, Artifact: read(t, c.raw), Trace: &trace})
			if vd.Reason != c.want {
				t.Errorf("%+v: %s", c, vd.Line())
			}
		}
	}
	for _, bad := range []string{`{mentatlab.echo: latest}`, `{mentatlab.echo: 1.0}`, `{Echo: 1.0.0}`, `{"": 1.0.0}`, `[mentatlab.echo]`} {
		if _, err := ParsePolicy("p", []byte(testPolicy+"minimum_versions: "+bad+"\n")); fault.ReasonOf(err) != fault.PolicyInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
