package remote

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

func hostsDir(t *testing.T, host, text string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, hostsName), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestHostsFileIsReadAsContainerdReadsIt(t *testing.T) {
	const text = `
server = "https://registry.example"
ca = "root.crt"

[host."https://b.example:8443/mirror"]
  capabilities = ["pull", "resolve"]
  ca = ["/abs.crt", "rel.crt"]
  dial_timeout = "3s"
  [host."https://b.example:8443/mirror".header]
    x-one = "1"
    x-two = ["a", "b"]

[host."http://a.example"]
  override_path = true
  skip_verify = true
`
	got, err := parseHosts("/etc/certs.d/r/hosts.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("%d hosts", len(got))
	}
	b, a, server := got[0], got[1], got[2]
	if b.server != "b.example:8443" || b.path != "/mirror/v2" || b.plain || b.can != canPull|canResolve || b.dialTimeout != 3*time.Second ||
		fmt.Sprint(b.cas) != "[/abs.crt /etc/certs.d/r/rel.crt]" || b.header.Get("X-One") != "1" || len(b.header["X-Two"]) != 2 {
		t.Errorf("first host %+v", b)
	}
	if a.server != "a.example" || a.path != "" || !a.plain || a.can != canAll || !strings.Contains(a.note, "skip_verify") {
		t.Errorf("second host %+v", a)
	}
	if server.server != "registry.example" || server.path != "/v2" || fmt.Sprint(server.cas) != "[/etc/certs.d/r/root.crt]" {
		t.Errorf("server %+v", server)
	}
}

func TestMalformedHostsFilesAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"not toml":         "[[[",
		"unknown key":      `sever = "https://x"`,
		"unknown host key": "[host.\"https://x\"]\nskipverify = true",
		"wrong type":       "server = 1",
		"capability":       "[host.\"https://x\"]\ncapabilities = [\"fly\"]",
		"scheme":           `server = "ftp://x"`,
		"credentials":      `server = "https://u:p@x"`,
		"no host":          `server = "https://"`,
		"ca number":        "ca = 1",
		"ca list":          "ca = [1]",
		"timeout":          `dial_timeout = "soon"`,
		"client missing":   `client = "/does/not/exist.pem"`,
		"client triple":    `client = [["a","b","c"]]`,
		"inline hosts":     `host = {"https://x" = {}}`,
	} {
		_, err := parseHosts("hosts.toml", []byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantReason(t, err, fault.Unavailable)
	}
}

func TestMirrorsAreTriedBeforeTheRegistry(t *testing.T) {
	reg, ref, desc := published(t, 10)
	host, _, _ := strings.Cut(ref, "/")
	mirror := newRegistry()
	mirror.blobs, mirror.types = reg.blobs, reg.types
	mirrorHost := start(t, http.StripPrefix("/proxy", mirror))
	down := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	dir := hostsDir(t, host, fmt.Sprintf(`
server = "http://%s"
[host."http://%s"]
[host."http://%s/proxy/v2"]
override_path = true
header = {x-team = "agents"}
`, host, down, mirrorHost))
	c := client(t, Options{HostsDir: dir})
	// The mirror does not have the manifest, but it has the blobs.
	reg.requests = nil
	dst := emptyLayout(t)
	if got, err := c.Pull(t.Context(), ref, dst); err != nil || got.Digest != desc.Digest {
		t.Fatalf("%v, %v", got, err)
	}
	for _, r := range reg.requests {
		if strings.Contains(r.URL.Path, "/blobs/") {
			t.Errorf("the registry was asked for %s", r.URL.Path)
		}
	}
	seen := false
	for _, r := range mirror.requests {
		seen = seen || strings.HasPrefix(r.URL.Path, "/v2/agents/test/blobs/")
		if r.URL.Query().Get("ns") != host || r.Header.Get("X-Team") != "agents" {
			t.Errorf("mirror got %s, team %q", r.URL, r.Header.Get("X-Team"))
		}
	}
	if !seen {
		t.Error("the mirror was asked for no blob")
	}
	// The registry's own answer is the one that counts.
	_, err := c.Resolve(t.Context(), host+"/agents/none:1")
	wantReason(t, err, fault.NotFound)
}

func TestAnAPIRootIsWhereHostsFileSaysItIs(t *testing.T) {
	reg := newRegistry()
	for base, strip := range map[string]string{"": "", "/v2": "/v2", "/v2/proxy": "/v2/proxy", "/deep/er": "/deep/er"} {
		host := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r2 := r.Clone(r.Context())
			r2.URL.Path = "/v2" + strings.TrimPrefix(r.URL.Path, strip)
			rec := &locator{ResponseWriter: w, base: strip}
			reg.ServeHTTP(rec, r2)
		}))
		dir := hostsDir(t, host, fmt.Sprintf("[host.\"http://%s%s\"]\noverride_path = true\n", host, base))
		c := client(t, Options{HostsDir: dir})
		if _, err := c.Push(t.Context(), agentLayout(t, 1), host+"/x"+strings.ReplaceAll(base, "/", "-")+":1"); err != nil {
			t.Errorf("%q: %v", base, err)
		}
		if _, err := c.Pull(t.Context(), host+"/x"+strings.ReplaceAll(base, "/", "-")+":1", emptyLayout(t)); err != nil {
			t.Errorf("%q: %v", base, err)
		}
	}
}

// locator sends uploads to where the API root is.
type locator struct {
	http.ResponseWriter
	base string
}

func (l *locator) WriteHeader(code int) {
	if to := l.Header().Get("Location"); to != "" {
		l.Header().Set("Location", l.base+strings.TrimPrefix(to, "/v2"))
	}
	l.ResponseWriter.WriteHeader(code)
}

func TestPushGoesOnlyWhereItMay(t *testing.T) {
	reg, mirror := newRegistry(), newRegistry()
	host, mirrorHost := start(t, reg), start(t, mirror)
	dir := hostsDir(t, host, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", host, mirrorHost))
	if _, err := client(t, Options{HostsDir: dir}).Push(t.Context(), agentLayout(t, 1), host+"/x:1"); err != nil {
		t.Fatal(err)
	}
	if len(mirror.requests) != 0 || len(reg.manifests) == 0 {
		t.Error("pushed to the mirror")
	}
	dir = hostsDir(t, host, "capabilities = [\"pull\"]\n")
	_, err := client(t, Options{HostsDir: dir}).Push(t.Context(), agentLayout(t, 1), host+"/x:1")
	wantReason(t, err, fault.Unavailable)
	_, err = client(t, Options{HostsDir: dir}).Resolve(t.Context(), host+"/x:1")
	wantReason(t, err, fault.Unavailable)
}

func TestHostsFileNamesTheAuthority(t *testing.T) {
	reg := newRegistry()
	host, ca := tlsRegistry(t, reg)
	ref := host + "/x:1"
	named := hostsDir(t, host, fmt.Sprintf("server = \"https://%s\"\nca = %q\n", host, ca))
	if _, err := client(t, Options{HostsDir: named}).Push(t.Context(), agentLayout(t, 1), ref); err != nil {
		t.Fatal(err)
	}
	careless := hostsDir(t, host, fmt.Sprintf("server = \"https://%s\"\nskip_verify = true\n", host))
	_, err := client(t, Options{HostsDir: careless}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "skip_verify") {
		t.Errorf("skip_verify is ignored silently: %v", err)
	}
	// docker's layout: the authority beside no hosts.toml
	root := t.TempDir()
	name, port, _ := strings.Cut(host, ":")
	dir := filepath.Join(root, name+"_"+port+"_")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, Options{HostsDir: root}).Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
	broken := hostsDir(t, "_default", "nonsense")
	_, err = client(t, Options{HostsDir: broken}).Resolve(t.Context(), ref)
	wantReason(t, err, fault.Unavailable)
}

// FuzzParseHosts: what is accepted names at least the registry itself, every
// server has a host and a scheme, and nothing may be used for nothing.
func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"http://y/z\"]\ncapabilities = [\"pull\"]\n"))
	f.Add([]byte("[host.'https://y'.header]\na = ['b']\n"))
	f.Add([]byte("host.a.ca = 'x'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hosts, err := parseHosts("hosts.toml", data)
		if err != nil {
			wantReason(t, err, fault.Unavailable)
			return
		}
		if len(hosts) == 0 {
			t.Fatal("accepted without a server")
		}
		for i, h := range hosts {
			if h.server == "" && i != len(hosts)-1 || h.can == 0 || strings.ContainsAny(h.server, "/@") {
				t.Fatalf("host %d: %+v", i, h)
			}
		}
	})
}
