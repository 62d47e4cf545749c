package capability

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// agent is a manifest with these capabilities and, as YAML, more of it.
func agent(t testing.TB, more string, caps ...string) *manifest.Manifest {
	t.Helper()
	wasm := ""
	if len(caps) > 0 {
		wasm = "  capabilities:\n"
		for _, c := range caps {
			wasm += fmt.Sprintf("    - %q\n", c)
		}
	}
	text := "id: test.agent\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\nwasm:\n  engine: wasmtime\n" + wasm + more
	m, err := manifest.Parse("manifest.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return m
}

func capabilities(t testing.TB, list ...string) []manifest.Capability {
	t.Helper()
	var caps []manifest.Capability
	for _, s := range list {
		c, err := manifest.ParseCapability(s)
		if err != nil {
			t.Fatal(err)
		}
		caps = append(caps, c)
	}
	return caps
}

// rule is a policy of one rule.
func rule(t testing.TB, allow ...string) []Rule {
	t.Helper()
	return []Rule{{Name: "r", Allow: capabilities(t, allow...)}}
}

// everything is a node that has something to serve every kind with.
func everything() Serving {
	s := Defaults()
	s.MediaDir = "/var/media"
	s.Providers = []Provider{{Name: "p", URL: "https://llm.example/v1", Models: []manifest.Capability{{Kind: manifest.KindLLM, Name: "*"}}}}
	s.Extensions = []hostdoc.Extension{{Name: "x.y", Command: []string{"/x"}}}
	return s
}

// summary is a grant on one line.
func summary(g Grant) string {
	var parts []string
	for _, p := range g.Preopens {
		mode := "rw"
		if p.ReadOnly {
			mode = "ro"
		}
		parts = append(parts, p.Guest+"="+mode)
	}
	parts = append(parts, g.Env...)
	return strings.Join(append(parts, g.Capabilities()...), " ")
}

func TestGrantIsWhatAllThreeSidesAllow(t *testing.T) {
	data := []Mount{{Source: "/srv", Destination: "/data"}}
	readOnly := []Mount{{Source: "/srv", Destination: "/data", ReadOnly: true}}
	for _, c := range []struct {
		name         string
		asked        []string
		more         string
		trust        string
		policy       []string
		given        Given
		want         string
		withheldText []string
	}{
		{name: "nothing asked, nothing given", trust: "verified"},
		{name: "asked, granted and given", asked: []string{"filesystem:read-write:/data"}, trust: "verified", policy: []string{"filesystem:read-write:/data"},
			given: Given{Mounts: data}, want: "/data=rw filesystem:read-write:/data"},
		{name: "the mount is read-only", asked: []string{"filesystem:read-write:/data"}, trust: "verified", policy: []string{"filesystem:read-write:/data"},
			given: Given{Mounts: readOnly}, want: "/data=ro filesystem:read-write:/data"},
		{name: "the policy reads only", asked: []string{"filesystem:read-write:/data"}, trust: "verified", policy: []string{"filesystem:read:/data"},
			given: Given{Mounts: data}, want: "/data=ro filesystem:read:/data"},
		{name: "the manifest reads only", asked: []string{"filesystem:read:/data"}, trust: "verified", policy: []string{"filesystem:read-write:/"},
			given: Given{Mounts: data}, want: "/data=ro filesystem:read:/data"},
		{name: "the manifest's preopen reads only", asked: []string{"filesystem:read-write:/data"}, more: "  wasi:\n    preopens:\n      /data: read-only\n",
			trust: "verified", policy: []string{"filesystem:read-write:/"}, given: Given{Mounts: data}, want: "/data=ro filesystem:read-write:/data"},
		{name: "write without read is no directory", asked: []string{"filesystem:write:/data"}, trust: "verified", policy: []string{"filesystem:read-write:/"},
			given: Given{Mounts: data}, want: "filesystem:write:/data", withheldText: []string{"mount /data", "filesystem:read-write:/data"}},
		{name: "not asked", trust: "verified", policy: []string{"filesystem:read-write:/"}, given: Given{Mounts: readOnly},
			withheldText: []string{"mount /data", "manifest does not ask", "filesystem:read:/data"}},
		{name: "not granted", asked: []string{"filesystem:read:/data"}, trust: "verified", given: Given{Mounts: readOnly},
			withheldText: []string{"mount /data", "no rule of the node's policy grants", "filesystem:read:/data"}},
		{name: "a capability beneath the mount is not the mount", asked: []string{"filesystem:read:/data/in"}, trust: "verified", policy: []string{"filesystem:read:/"},
			given: Given{Mounts: data}, want: "filesystem:read:/data/in", withheldText: []string{"mount /data"}},
		{name: "a mount beneath the capability", asked: []string{"filesystem:read:/data"}, trust: "verified", policy: []string{"filesystem:read:/"},
			given: Given{Mounts: []Mount{{Destination: "/data/in/"}}}, want: "/data/in=ro filesystem:read:/data"},
		{name: "a name that only begins alike", asked: []string{"filesystem:read:/data"}, trust: "verified", policy: []string{"filesystem:read:/"},
			given: Given{Mounts: []Mount{{Destination: "/database"}}}, want: "filesystem:read:/data", withheldText: []string{"mount /database"}},
		{name: "dots lead out of the capability", asked: []string{"filesystem:read:/data"}, trust: "verified", policy: []string{"filesystem:read:/data"},
			given: Given{Mounts: []Mount{{Destination: "/data/../etc"}}}, want: "filesystem:read:/data", withheldText: []string{"mount /etc"}},
		{name: "the kernel's and the host's own paths", asked: []string{"filesystem:read-write:/"}, trust: "verified", policy: []string{"filesystem:read-write:/"},
			given:        Given{Mounts: []Mount{{Destination: "/"}, {Destination: "/run"}, {Destination: "/run/mentat/state"}, {Destination: "/proc/sys"}, {Destination: "/run/media"}}},
			want:         "/run/media=rw filesystem:read-write:/",
			withheldText: []string{"mount /:", "mount /run:", "mount /run/mentat/state:", "mount /proc/sys:"}},
		{name: "untrusted is granted nothing", asked: []string{"filesystem:read:/data", "env:A"}, trust: "untrusted", policy: []string{"filesystem:read:/", "env:A"},
			given: Given{Mounts: data, Env: map[string]string{"A": "1"}}, withheldText: []string{"mount /data", "variables A"}},
		{name: "no level is untrusted", asked: []string{"media:read"}, policy: []string{"media:read"}},
		{name: "variables", asked: []string{"env:A", "env:B", "env:D"}, trust: "verified", policy: []string{"env:A", "env:C", "env:D"},
			given: Given{Env: map[string]string{"A": "1", "B": "2", "C": "3"}}, want: "A=1 env:A env:D",
			withheldText: []string{"variables B", `"env:B"`, "variables C", `"env:C"`}},
		{name: "the container's value wins over the manifest's", asked: []string{"env:A", "env:B"}, more: "  wasi:\n    env:\n      - A=manifest\n      - B=manifest\n",
			trust: "verified", policy: []string{"env:A", "env:B"}, given: Given{Env: map[string]string{"A": "given"}}, want: "A=given B=manifest env:A env:B"},
		{name: "the manifest's own value needs the policy too", asked: []string{"env:A"}, more: "  wasi:\n    env:\n      - A=manifest\n", trust: "verified"},
		{name: "the narrower host", asked: []string{"network:https:*.openai.com"}, trust: "verified", policy: []string{"network:https:api.openai.com", "network:https:example.com"},
			want: "network:https:api.openai.com"},
		{name: "the wider policy", asked: []string{"network:https:api.openai.com/v1*"}, trust: "verified", policy: []string{"network:*:*.openai.com"},
			want: "network:https:api.openai.com/v1*"},
		{name: "no network by the manifest's sandbox", asked: []string{"network:https:api.openai.com"}, more: "sandbox:\n  network:\n    mode: none\n",
			trust: "verified", policy: []string{"network:https:*.openai.com"}},
		{name: "allowed hosts narrow", asked: []string{"network:https:*.openai.com"}, more: "sandbox:\n  network:\n    mode: restricted\n    allowed_hosts: [\"api.openai.com\"]\n",
			trust: "verified", policy: []string{"network:https:*.openai.com"}, want: "network:https:api.openai.com"},
		{name: "no allowed host", asked: []string{"network:https:*.openai.com"}, more: "sandbox:\n  network:\n    mode: restricted\n    allowed_hosts: []\n",
			trust: "verified", policy: []string{"network:https:*.openai.com"}},
		{name: "a blocked port takes a scheme away", asked: []string{"network:*:a.com"}, more: "sandbox:\n  network:\n    blocked_ports: [80]\n",
			trust: "verified", policy: []string{"network:*:a.com"}, want: "network:https:a.com"},
		{name: "a blocked port", asked: []string{"network:https:a.com:8443"}, more: "sandbox:\n  network:\n    blocked_ports: [8443]\n",
			trust: "verified", policy: []string{"network:https:a.com:8443"}},
		{name: "signed agents have media", asked: []string{"media:read", "media:write"}, trust: "signed", want: "media:read media:write"},
		{name: "verified agents have what is listed", asked: []string{"media:read"}, trust: "verified"},
		{name: "who did not ask for media has none", trust: "signed"},
		{name: "a temporary directory", more: "sandbox:\n  filesystem:\n    temp_dirs:\n      - /tmp: 10MB\n", trust: "signed", want: "/tmp=rw"},
		{name: "no temporary directory for the untrusted", more: "sandbox:\n  filesystem:\n    temp_dirs:\n      - /tmp: 10MB\n", trust: "untrusted"},
		{name: "no temporary directory over the host's own files", trust: "signed",
			more: "sandbox:\n  filesystem:\n    temp_dirs:\n      - /run: 10MB\n      - /run/mentat: 10MB\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := Effective(Request{Manifest: agent(t, c.more, c.asked...), Trust: c.trust, Rules: rule(t, c.policy...), Serving: everything(), Given: c.given})
			if got := summary(g); got != c.want {
				t.Errorf("granted %q, want %q", got, c.want)
			}
			all := strings.Join(g.Withheld, "\n")
			for _, text := range c.withheldText {
				if !strings.Contains(all, text) {
					t.Errorf("withheld %q does not name %q", all, text)
				}
			}
			if len(c.withheldText) == 0 && len(g.Withheld) > 0 {
				t.Errorf("withheld %q", all)
			}
			for _, want := range c.asked {
				if !slices.ContainsFunc(g.Decisions, func(d Decision) bool { return d.Capability == want && d.Rule != "" }) {
					t.Errorf("no decision about %s: %v", want, g.Decisions)
				}
			}
		})
	}
}

func TestAModuleWithoutAManifestIsGrantedNothing(t *testing.T) {
	g := Effective(Request{Trust: "verified", Rules: rule(t, "filesystem:read-write:/", "env:A"),
		Given: Given{Mounts: []Mount{{Destination: "/data"}}, Env: map[string]string{"A": "1"}}})
	if summary(g) != "" || len(g.Withheld) != 2 {
		t.Errorf("%+v", g)
	}
}

func TestAnOperatorsFlagsAreTheGrant(t *testing.T) {
	m := agent(t, "", "network:https:a.com", "env:B")
	g := Effective(Request{Manifest: m, Trust: "untrusted", Operator: true,
		Given: Given{Mounts: []Mount{{Source: "/home/me/in", Destination: "/in", ReadOnly: true}}, Env: map[string]string{"A": "1"}}})
	if got, want := summary(g), "/in=ro A=1 env:A filesystem:read:/in"; got != want {
		t.Errorf("granted %q, want %q", got, want)
	}
	if len(g.Preopens) != 1 || g.Preopens[0] != (hostdoc.Preopen{Host: "/home/me/in", Guest: "/in", ReadOnly: true}) {
		t.Errorf("preopens %v", g.Preopens)
	}
}

func TestTheManifestsSettingsAreCopied(t *testing.T) {
	m := agent(t, "config:\n  a: b\n")
	g := Effective(Request{Manifest: m})
	g.Config["a"] = "changed"
	if m.Config["a"] != "b" {
		t.Error("the grant shares the manifest's map")
	}
}

// TestAGrantNeverExceedsAnySide is the package's promise, on random sides.
func TestAGrantNeverExceedsAnySide(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) []string {
		var some []string
		for _, s := range from {
			if random.IntN(3) == 0 {
				some = append(some, s)
			}
		}
		return some
	}
	few := func(from []string) []string {
		var some []string
		for _, s := range from {
			if random.IntN(12) == 0 {
				some = append(some, s)
			}
		}
		return some
	}
	paths := []string{"/", "/data", "/data/in", "/data/in/deep", "/tmp", "/run", "/run/mentat", "/database", "/proc"}
	var universe []string
	for _, access := range []string{"read", "write", "read-write"} {
		for _, p := range paths {
			universe = append(universe, "filesystem:"+access+":"+p)
		}
	}
	for _, host := range []string{"a.com", "*.a.com", "x.a.com", "x.a.com:8443", "a.com/v1*", "10.0.0.0/8", "10.1.0.0/16"} {
		universe = append(universe, "network:http:"+host, "network:https:"+host, "network:*:"+host)
	}
	names := []string{"A", "B", "C"}
	for _, name := range names {
		universe = append(universe, "env:"+name)
	}
	universe = append(universe, "media:read", "media:write", "llm:gpt-4*", "llm:gpt-4o", "llm:*", "extension:x.y")
	levels := []string{"", "untrusted", "signed", "community", "verified"}
	sandboxes := []string{"", "sandbox:\n  network:\n    mode: none\n", "sandbox:\n  network:\n    allowed_hosts: [\"x.a.com\", \"10.1.2.3\"]\n    blocked_ports: [80]\n",
		"sandbox:\n  filesystem:\n    temp_dirs:\n      - /tmp: 1MB\n      - /run: 1MB\n      - /data/in: 1MB\n"}

	granted := 0
	for range 800 {
		r := Request{Manifest: agent(t, sandboxes[random.IntN(len(sandboxes))], pick(universe)...), Trust: levels[random.IntN(len(levels))],
			Rules: []Rule{{Name: "one", Allow: capabilities(t, pick(universe)...), Deny: capabilities(t, few(universe)...)},
				{Name: "two", Allow: capabilities(t, pick(universe)...)}, {Name: "counted", Deny: capabilities(t, pick(universe)...), DryRun: true}},
			Serving: everything(), Given: Given{Env: map[string]string{}}}
		mounts := map[string]Mount{}
		for _, p := range pick(paths) {
			m := Mount{Destination: p, ReadOnly: random.IntN(2) == 0}
			mounts[p] = m
			r.Given.Mounts = append(r.Given.Mounts, m)
		}
		for _, name := range pick(names) {
			r.Given.Env[name] = "given"
		}
		g := Effective(r)
		granted += len(g.Capabilities()) + len(g.Preopens) + len(g.Env)

		policy := slices.Concat(r.Rules[0].Allow, r.Rules[1].Allow)
		if r.Trust == "signed" {
			policy = append(policy, signedDefaults.Allow...)
		}
		denied := func(c manifest.Capability, covers func(d, c manifest.Capability) bool) bool {
			return slices.ContainsFunc(r.Rules[0].Deny, func(d manifest.Capability) bool { return covers(d, c) })
		}
		within := func(what string, c manifest.Capability) {
			if !manifest.Allowed(r.Manifest.Capabilities(), c) || !manifest.Allowed(policy, c) {
				t.Errorf("%s: %s exceeds manifest %v or policy %v", what, c, r.Manifest.Capabilities(), policy)
			}
			if r.Trust == "" || r.Trust == "untrusted" {
				t.Errorf("%s: %s at level %q", what, c, r.Trust)
			}
			if denied(c, manifest.Capability.Denies) {
				t.Errorf("%s: %s is denied by %v", what, c, r.Rules[0].Deny)
			}
			if what != "capability" && denied(c, manifest.Capability.DeniesPart) {
				t.Errorf("%s: a part of %s is denied by %v", what, c, r.Rules[0].Deny)
			}
		}
		for _, s := range g.Capabilities() {
			c, err := manifest.ParseCapability(s)
			if err != nil || c.String() != s {
				t.Fatalf("granted %q is not canonical: %v", s, err)
			}
			within("capability", c)
			if n := sandboxNetwork(r.Manifest); n != nil && c.Kind == manifest.KindNetwork {
				if n.Mode == manifest.NetworkNone || c.Scheme == "http" && c.Port == 0 || c.Scheme == "*" && c.Port == 0 || c.Host == "a.com" || c.Host == "*.a.com" {
					t.Errorf("%s exceeds sandbox.network %+v", s, n)
				}
			}
		}
		for _, p := range g.Preopens {
			if _, temp := g.TempDirs[p.Guest]; temp {
				if _, given := mounts[p.Guest]; r.Trust == "untrusted" || overlapsReserved(p.Guest) || given && slices.ContainsFunc(g.Preopens, func(o hostdoc.Preopen) bool { return o != p && o.Guest == p.Guest }) {
					t.Errorf("temporary directory %+v", p)
				}
				continue
			}
			m, ok := mounts[p.Guest]
			access := manifest.AccessRead
			if !p.ReadOnly {
				access = manifest.AccessReadWrite
			}
			within("preopen", manifest.Capability{Kind: manifest.KindFilesystem, Access: access, Path: p.Guest})
			if !ok || m.ReadOnly && !p.ReadOnly || p.Host != p.Guest || path.Clean(p.Guest) != p.Guest || overlapsReserved(p.Guest) {
				t.Errorf("preopen %+v of mounts %v", p, mounts)
			}
		}
		for _, kv := range g.Env {
			name, value, _ := strings.Cut(kv, "=")
			within("variable", manifest.Capability{Kind: manifest.KindEnv, Name: name})
			if r.Given.Env[name] != value {
				t.Errorf("variable %s of %v", kv, slices.Sorted(maps.Keys(r.Given.Env)))
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if granted < 500 {
		t.Errorf("only %d grants: the property was hardly tried", granted)
	}
}
