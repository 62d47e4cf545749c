package capability

import (
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// decisions is what was decided, as "+" or "-" with capability and rule.
func decisions(g Grant) string {
	var parts []string
	for _, d := range g.Decisions {
		s := "-"
		if d.Allowed {
			s = "+"
		}
		s += d.Capability + "=" + d.Rule
		if d.RestRule != "" {
			s += "(" + strings.Join(d.As, ",") + ", rest " + d.RestRule + ")"
		}
		if len(d.DryRun) > 0 {
			s += "?" + strings.Join(d.DryRun, ",")
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

func holes(g Grant) string {
	var parts []string
	for _, h := range g.Holes {
		s := h.Capability + "=" + h.Rule
		if h.DryRun {
			s += "?"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

func TestEachDecisionNamesTheRuleThatMadeIt(t *testing.T) {
	caps := func(list ...string) []manifest.Capability { return capabilities(t, list...) }
	rules := []Rule{
		{Name: "no-admin", Deny: caps("network:https:admin.example.com", "filesystem:read:/data/secret", "llm:gpt-4-32k*")},
		{Name: "web", Allow: caps("network:https:*.example.com")},
		{Name: "api", Allow: caps("network:*:api.example.com", "llm:gpt-4*", "env:TOKEN", "filesystem:read-write:/data", "extension:missing", "media:read")},
		{Name: "no-token", Deny: caps("env:TOKEN")},
		{Name: "no-meta", Deny: caps("network:*:169.254.0.0/16")},
		{Name: "soon", DryRun: true, Deny: caps("network:https:api.example.com", "llm:gpt-4o", "env:OTHER")},
	}
	for asked, want := range map[string]struct{ decisions, grants, holes string }{
		"network:https:api.example.com": {
			"+network:https:api.example.com=web?soon", "network:https:api.example.com=web",
			"network:*:169.254.0.0/16=no-meta network:https:api.example.com=soon?"},
		"network:https:*.example.com": {
			"+network:https:*.example.com=web?soon", "network:https:*.example.com=web",
			"network:https:admin.example.com=no-admin network:*:169.254.0.0/16=no-meta network:https:api.example.com=soon?"},
		"network:https:admin.example.com": {"-network:https:admin.example.com=no-admin", "", ""},
		"network:*:*.example.com": {
			"+network:*:*.example.com=web(network:https:*.example.com,network:*:api.example.com, rest policy)?soon",
			"network:*:api.example.com=api network:https:*.example.com=web",
			"network:https:admin.example.com=no-admin network:*:169.254.0.0/16=no-meta network:https:api.example.com=soon?"},
		"network:https:other.org":         {"-network:https:other.org=policy", "", ""},
		"network:http:169.254.169.254/32": {"-network:http:169.254.169.254/32=no-meta", "", ""},
		"env:TOKEN":                       {"-env:TOKEN=no-token", "", ""},
		"env:OTHER":                       {"-env:OTHER=policy", "", ""},
		"llm:gpt-4*":                      {"+llm:gpt-4*=api?soon", "llm:gpt-4*=api", "llm:gpt-4-32k*=no-admin llm:gpt-4o=soon?"},
		"llm:*":                           {"+llm:*=api(llm:gpt-4*, rest policy)?soon", "llm:gpt-4*=api", "llm:gpt-4-32k*=no-admin llm:gpt-4o=soon?"},
		"extension:missing":               {"-extension:missing=node", "", ""},
		"media:read":                      {"+media:read=api", "media:read=api", ""},
		"filesystem:read-write:/data":     {"+filesystem:read-write:/data=api", "filesystem:read-write:/data=api", "filesystem:read:/data/secret=no-admin"},
	} {
		g := Effective(Request{Manifest: agent(t, "", asked), Trust: "verified", Rules: rules, Serving: everything()})
		if got := decisions(g); got != want.decisions {
			t.Errorf("%s: decided %q, want %q", asked, got, want.decisions)
		}
		var grants []string
		for _, gr := range g.Grants {
			grants = append(grants, gr.Capability+"="+gr.Rule)
		}
		if got := strings.Join(grants, " "); got != want.grants {
			t.Errorf("%s: granted %q, want %q", asked, got, want.grants)
		}
		if got := holes(g); got != want.holes {
			t.Errorf("%s: holes %q, want %q", asked, got, want.holes)
		}
	}
}

func TestADenialWithinAMountWithholdsIt(t *testing.T) {
	for _, c := range []struct{ deny, want, withheld string }{
		{"filesystem:read:/data/secret", "filesystem:read-write:/data", `the rule "no" of the node's policy denies a part of "filesystem:read-write:/data"`},
		{"filesystem:write:/data/keep", "/data=ro filesystem:read-write:/data", ""},
		{"filesystem:write:/", "/data=ro filesystem:read-write:/data", ""},
		{"filesystem:read-write:/other", "/data=rw filesystem:read-write:/data", ""},
	} {
		rules := append(rule(t, "filesystem:read-write:/data"), Rule{Name: "no", Deny: capabilities(t, c.deny)})
		g := Effective(Request{Manifest: agent(t, "", "filesystem:read-write:/data"), Trust: "verified", Rules: rules,
			Given: Given{Mounts: []Mount{{Destination: "/data"}}}})
		if got := summary(g); got != c.want || !strings.Contains(strings.Join(g.Withheld, "\n"), c.withheld) || c.withheld == "" && len(g.Withheld) > 0 {
			t.Errorf("%s: %q, withheld %q", c.deny, got, g.Withheld)
		}
	}
	more := "sandbox:\n  filesystem:\n    temp_dirs:\n      - /tmp: 1MB\n"
	g := Effective(Request{Manifest: agent(t, more), Trust: "verified", Rules: []Rule{{Name: "no", Deny: capabilities(t, "filesystem:write:/tmp/x")}}})
	if len(g.TempDirs) > 0 || len(g.Preopens) > 0 || decisions(g) != "-filesystem:read-write:/tmp=no" {
		t.Errorf("temporary directories %v, %s", g.TempDirs, decisions(g))
	}
}

func TestAPolicyTakesADefaultAway(t *testing.T) {
	m := agent(t, "", "media:read", "media:write")
	g := Effective(Request{Manifest: m, Trust: "signed", Serving: everything()})
	if decisions(g) != "+media:read=default +media:write=default" {
		t.Error(decisions(g))
	}
	g = Effective(Request{Manifest: m, Trust: "signed", Serving: everything(), Rules: []Rule{{Name: "ro", Deny: capabilities(t, "media:write")}}})
	if decisions(g) != "+media:read=default -media:write=ro" {
		t.Error(decisions(g))
	}
	g = Effective(Request{Manifest: m, Trust: "signed"})
	if decisions(g) != "-media:read=node -media:write=node" || g.Media != nil {
		t.Error(decisions(g))
	}
}

func TestEveryPublicHostNeedsBothSidesWord(t *testing.T) {
	const full = "sandbox:\n  network:\n    mode: full\n    blocked_ports: [8080]\n"
	crawler := Rule{Name: "crawler", FullNetwork: true, Private: []string{"10.0.0.0/8"}, Deny: capabilities(t, "network:*:evil.example")}
	for _, c := range []struct {
		more, trust string
		rules       []Rule
		want        string
		mode        string
	}{
		{full, "verified", []Rule{crawler}, "+network:full=crawler", hostdoc.NetworkFull},
		{full, "verified", nil, "-network:full=policy", ""},
		{full, "untrusted", []Rule{crawler}, "-network:full=trust", ""},
		{"", "verified", []Rule{crawler}, "", ""},
		{"sandbox:\n  network:\n    mode: restricted\n", "verified", []Rule{crawler}, "", ""},
		{"sandbox:\n  network:\n    mode: full\n    allowed_hosts: []\n", "verified", []Rule{crawler}, "", ""},
	} {
		g := Effective(Request{Manifest: agent(t, c.more), Trust: c.trust, Rules: c.rules, Serving: Defaults()})
		if got := decisions(g); got != c.want || (g.Network != nil) != (c.mode != "") {
			t.Errorf("%q at %s: %q, network %+v", c.more, c.trust, got, g.Network)
		}
		if n := g.Network; n != nil {
			if n.Mode != c.mode || n.FullRule != "crawler" || !slices.Equal(n.BlockedPorts, []int{22, 25, 3389, 8080}) || !slices.Equal(n.AllowPrivate, []string{"10.0.0.0/8"}) {
				t.Errorf("%+v", n)
			}
			if holes(g) != "network:*:evil.example=crawler" {
				t.Error(holes(g))
			}
		}
	}
}

func TestOnlyWhatAGrantReachesIsServedToAnAgent(t *testing.T) {
	caps := func(list ...string) []manifest.Capability { return capabilities(t, list...) }
	key := Secret{File: "/etc/mentat/secrets/openai"}
	rules := []Rule{
		{Name: "openai", Allow: caps("network:https:api.openai.com"), Private: []string{"10.0.0.0/8"},
			Inject: []Injection{{Capability: caps("network:https:api.openai.com")[0], Header: "authorization", Prefix: "Bearer ", Secret: key}}},
		{Name: "other", Allow: caps("network:https:other.example"), Private: []string{"192.168.0.0/16"},
			Inject: []Injection{{Capability: caps("network:https:other.example")[0], Query: "key", Secret: Secret{Mount: "/var/run/other/key"}}}},
		{Name: "models", Allow: caps("llm:*", "media:read", "extension:x.y")},
	}
	serving := everything()
	serving.Tokens = 1000
	serving.Providers = []Provider{
		{Name: "open", URL: "https://open.example/v1", Models: caps("llm:gpt-*"), Secret: key},
		{Name: "local", URL: "http://localhost:8000/v1", Models: caps("llm:llama*")},
	}
	run := func(asked ...string) Grant {
		return Effective(Request{Manifest: agent(t, "", asked...), Trust: "verified", Rules: rules, Serving: serving})
	}

	g := run("env:A")
	if g.Network != nil || g.LLM != nil || g.Media != nil || g.Extensions != nil || len(g.Secrets) > 0 {
		t.Errorf("an agent that was granted nothing is served %+v", g)
	}

	g = run("network:https:api.openai.com/v1")
	if n := g.Network; n == nil || n.Mode != hostdoc.NetworkRestricted || len(n.Inject) != 1 || n.Inject[0].Header != "authorization" ||
		g.Secrets[n.Inject[0].Secret] != key || !slices.Equal(n.AllowPrivate, []string{"10.0.0.0/8"}) || n.Limits != serving.Limits {
		t.Errorf("network %+v, secrets %v", n, g.Secrets)
	}
	if len(g.Secrets) != 1 || g.LLM != nil {
		t.Errorf("secrets %v, models %v", g.Secrets, g.LLM)
	}

	g = run("network:https:api.openai.com/v1", "network:https:other.example", "llm:gpt-4o")
	if len(g.Secrets) != 2 || g.LLM == nil || len(g.LLM.Providers) != 1 || g.LLM.Tokens != 1000 || g.Secrets[g.LLM.Providers[0].Secret] != key {
		t.Errorf("secrets %v, models %+v", g.Secrets, g.LLM)
	}
	if g = run("llm:llama3"); len(g.Secrets) > 0 || len(g.LLM.Providers) != 1 || g.LLM.Providers[0].Name != "local" {
		t.Errorf("secrets %v, models %+v", g.Secrets, g.LLM)
	}
	if g = run("llm:claude"); g.LLM != nil || decisions(g) != "-llm:claude=node" {
		t.Error(decisions(g))
	}

	g = run("media:read", "extension:x.y")
	if g.Media == nil || g.Media.Dir != "/var/media" || g.Media.ItemBytes != serving.MediaItemBytes || len(g.Extensions) != 1 {
		t.Errorf("media %+v, extensions %v", g.Media, g.Extensions)
	}
	g.Extensions[0].Command[0] = "changed"
	if serving.Extensions[0].Command[0] != "/x" {
		t.Error("the grant shares the policy's slices")
	}
	serving.MediaS3 = &MediaS3{Endpoint: "https://s3.example", Bucket: "b", AccessKey: Secret{File: "/a"}, SecretKey: Secret{File: "/s"}}
	if g = run("media:read"); g.Media.S3 == nil || g.Media.Dir != "" || g.Secrets[g.Media.S3.SecretKey].File != "/s" || g.Secrets[g.Media.S3.AccessKey].File != "/a" {
		t.Errorf("media %+v, secrets %v", g.Media, g.Secrets)
	}
}

func TestAMountWithASecretIsTheHostsAlone(t *testing.T) {
	rules := rule(t, "network:https:a.example", "filesystem:read-write:/")
	rules[0].Inject = []Injection{{Capability: rules[0].Allow[0], Header: "x-key", Secret: Secret{Mount: "/var/run/key/value"}}}
	given := Given{Mounts: []Mount{{Destination: "/var/run/key", ReadOnly: true}, {Destination: "/var/run/keys", ReadOnly: true}}}
	asks := []string{"filesystem:read:/var/run/key", "filesystem:read:/var/run/keys", "network:https:a.example"}
	g := Effective(Request{Manifest: agent(t, "", asks...), Trust: "verified", Rules: rules, Given: given})
	if len(g.Preopens) != 1 || g.Preopens[0].Guest != "/var/run/keys" || len(g.Withheld) != 1 || !strings.Contains(g.Withheld[0], "/var/run/key: it holds a secret") {
		t.Errorf("preopens %v, withheld %q", g.Preopens, g.Withheld)
	}
	// Without the grant nothing is injected, and the mount is one like others.
	g = Effective(Request{Manifest: agent(t, "", asks[:2]...), Trust: "verified", Rules: rules, Given: given})
	if len(g.Preopens) != 2 || len(g.Secrets) != 0 {
		t.Errorf("preopens %v, secrets %v", g.Preopens, g.Secrets)
	}
}

func TestADenialHoldsForAnOperatorsFlagsToo(t *testing.T) {
	m := agent(t, "", "network:https:a.example", "env:B")
	rules := []Rule{{Name: "mine", Allow: capabilities(t, "network:https:a.example"), Deny: capabilities(t, "env:TOKEN", "filesystem:read:/in/private", "network:*:evil.example")}}
	g := Effective(Request{Manifest: m, Trust: "untrusted", Operator: true, Rules: rules, Serving: Defaults(),
		Allow: capabilities(t, "network:https:*.example", "network:https:evil.example"),
		Given: Given{Mounts: []Mount{{Source: "/home/me/in", Destination: "/in"}, {Source: "/home/me/out", Destination: "/out"}}, Env: map[string]string{"TOKEN": "x", "A": "1"}}})
	if got, want := summary(g), "/out=rw A=1 env:A filesystem:read-write:/out network:https:*.example network:https:a.example"; got != want {
		t.Errorf("granted %q, want %q", got, want)
	}
	if got, want := decisions(g), "+network:https:a.example=operator -env:B=operator +network:https:*.example=operator -network:https:evil.example=mine +filesystem:read-write:/out=operator +env:A=operator"; got != want {
		t.Errorf("decided %q, want %q", got, want)
	}
	if len(g.Withheld) != 2 || holes(g) != "network:*:evil.example=mine" || g.Network == nil {
		t.Errorf("withheld %q, holes %q, network %v", g.Withheld, holes(g), g.Network)
	}
	for _, d := range g.Denials() {
		if d.Capability == "env:B" && d.Reason != "no flag of this run grants it" {
			t.Errorf("%+v", d)
		}
	}
}
