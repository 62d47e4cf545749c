package integration

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci/remote"
)

// registryCA makes a private CA's certificate, which is also the server's own, and
// its key.
func (g *guarded) registryCA() (certFile, keyFile string) {
	g.t.Helper()
	key := testpki.RSA(g.t, "registry", 2048)
	template := &x509.Certificate{
		SerialNumber: g.pki.Leaf.SerialNumber, Subject: testpki.Name("a private registry"),
		NotBefore: testpki.Now.Add(-time.Hour), NotAfter: testpki.Now.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert := testpki.Issue(g.t, template, template, key.Public(), key)
	dir := g.t.TempDir()
	certFile, keyFile = filepath.Join(dir, "registry.crt"), filepath.Join(dir, "registry.key")
	if err := errors.Join(os.WriteFile(certFile, testpki.PEM(cert), 0o600), os.WriteFile(keyFile, testpki.KeyPEM(g.t, key), 0o600)); err != nil {
		g.t.Fatal(err)
	}
	return certFile, keyFile
}

// hosts tells the node where the registry is and whom to believe that.
func (g *guarded) hosts(certFile string) {
	g.t.Helper()
	hosts := filepath.Join(g.Etc, "certs.d", g.registry.Host)
	toml := fmt.Sprintf("server = \"https://%s\"\nca = %q\n", g.registry.Host, certFile)
	if err := errors.Join(os.MkdirAll(hosts, 0o700), os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(toml), 0o600)); err != nil {
		g.t.Fatal(err)
	}
}

// private is a registry behind TLS of a private CA and a password, and an agent
// in it.
func (g *guarded) private(name string) (ref, user, password string) {
	g.t.Helper()
	certFile, keyFile := g.registryCA()
	user, password = "robot$agents", "s3cret"
	r, err := g.StartRegistry(g.t.Context(), node.RegistryConfig{Certificate: certFile, Key: keyFile, Username: user, Password: password})
	if err != nil {
		g.t.Fatal(err)
	}
	g.registry = r
	g.policy("")
	g.hosts(certFile)
	l, _ := g.build(name, assemble(g.t, guestMarker(1)), "")
	g.sign(l, g.pki, name, r.Host+"/agents/"+name, nil)
	c, err := remote.New(remote.Options{CAFile: certFile, Username: user, Password: password})
	if err != nil {
		g.t.Fatal(err)
	}
	ref = g.ref(name)
	if _, err := c.Push(g.t.Context(), l, ref); err != nil {
		g.t.Fatal(err)
	}
	return ref, user, password
}

func TestThePullGateUsesTheNodesHostsAndCredentials(t *testing.T) {
	g := newGuarded(t)
	ref, user, password := g.private("private")
	pull := func() error {
		_, err := g.Ctr(t.Context(), "images", "pull", "--hosts-dir", filepath.Join(g.Etc, "certs.d"), "--user", user+":"+password, ref)
		return err
	}
	credentials := filepath.Join(g.Etc, "docker", "config.json")

	// containerd hands no pull secret to a verifier: without credentials of the
	// node's own it cannot fetch, and the policy says what follows.
	g.policy("on_unfetchable: deny\n")
	if err := pull(); err == nil || !strings.Contains(err.Error(), "access-denied") && !strings.Contains(err.Error(), "credentials") {
		t.Errorf("without credentials and on_unfetchable: deny: %v", err)
	}
	c, err := remote.New(remote.Options{DockerConfig: credentials, HostsDir: filepath.Join(g.Etc, "certs.d")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(t.Context(), g.registry.Host, user, password); err != nil {
		t.Fatal(err)
	}
	if err := pull(); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestADeferredPullIsDecidedAtRun(t *testing.T) {
	g := newGuarded(t)
	ref, user, password := g.private("deferred")
	if _, err := g.Ctr(t.Context(), "images", "pull", "--hosts-dir", filepath.Join(g.Etc, "certs.d"), "--user", user+":"+password, ref); err != nil {
		t.Fatalf("a pull that the gate cannot judge is deferred by default: %v", err)
	}
	g.trust(g.pki, testpki.Revoking(g.pki.Leaf), testpki.Numbered(2))
	got := g.run("", ref, g.id())
	if got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "revoked") {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestARegistryThatIsGoneStopsNoAgent(t *testing.T) {
	g := newGuarded(t)
	ref := g.good("good")
	if err := g.pull(ref); err != nil {
		t.Fatal(err)
	}
	if err := g.registry.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 {
		t.Errorf("status %d, stderr %q", got.code, got.stderr)
	}
	if err := g.pull(ref); err == nil {
		t.Error("a pull from a registry that is gone succeeds")
	}
}
