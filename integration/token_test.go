package integration

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
)

const (
	robot       = "robot$agents+ci"
	robotSecret = "r0b0t-s3cret"
)

// tokens is a token server as Harbor has one: whoever shows a name and a secret
// gets a signed token for what was asked.
type tokens struct {
	*httptest.Server
	t   *testing.T
	key tls.Certificate

	mu sync.Mutex
	// life is of the tokens to come, negative for ones that ended long ago.
	life time.Duration
	// answer, if set, is in the place of tokens.
	answer http.HandlerFunc
}

func (g *guarded) tokens(certFile, keyFile string) *tokens {
	g.t.Helper()
	key, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		g.t.Fatal(err)
	}
	s := &tokens{t: g.t, key: key, life: time.Hour}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{key}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	g.t.Cleanup(s.Close)
	return s
}

func (s *tokens) set(life time.Duration, answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.answer = life, answer
}

// ServeHTTP answers by the distribution token protocol.
func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, secret, _ := r.BasicAuth()
	s.mu.Lock()
	life, answer := s.life, s.answer
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	if user != robot || secret != robotSecret || r.URL.Query().Get("service") != node.Service {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	access := []map[string]any{}
	for _, scope := range r.URL.Query()["scope"] {
		part := strings.Split(scope, ":")
		if len(part) == 3 && strings.HasPrefix(part[1], "agents/") {
			access = append(access, map[string]any{"type": part[0], "name": part[1], "actions": strings.Split(part[2], ",")})
		}
	}
	now := time.Now()
	claims := map[string]any{
		"iss": node.Issuer, "aud": node.Service, "sub": user, "access": access, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(life).Unix(),
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": s.sign(claims), "expires_in": 3600}) // the client asks again
}

func (s *tokens) sign(claims any) string {
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			s.t.Error(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	text := part(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(s.key.Certificate[0])}}) + "." + part(claims)
	hash := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, s.key.PrivateKey.(*rsa.PrivateKey), crypto.SHA256, hash[:])
	if err != nil {
		s.t.Error(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// A registry as Harbor is one: TLS of a private CA, tokens, a robot.
func TestARobotPublishesAndANodePullsByToken(t *testing.T) {
	g := newGuarded(t)
	certFile, keyFile := g.registryCA()
	server := g.tokens(certFile, keyFile)
	var err error
	if g.registry, err = g.StartRegistry(t.Context(), node.RegistryConfig{Certificate: certFile, Key: keyFile, TokenRealm: server.URL, TokenRoots: certFile}); err != nil {
		t.Fatal(err)
	}
	g.policy("on_unfetchable: deny\n")
	g.hosts(certFile)
	l, _ := g.build("robot", assemble(t, guestMarker(1)), "")
	g.sign(l, g.pki, "robot", g.registry.Host+"/agents/robot", nil)
	ref := g.ref("robot")

	push := func(t *testing.T, l *oci.Layout, secret string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := remote.New(remote.Options{CAFile: certFile, Username: robot, Password: secret})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Push(ctx, l, ref)
		return err
	}
	elsewhere := &spy{}
	other := httptest.NewUnstartedServer(elsewhere)
	other.TLS = &tls.Config{Certificates: []tls.Certificate{server.key}, MinVersion: tls.VersionTLS12}
	other.StartTLS()
	defer other.Close()
	for name, c := range map[string]struct {
		secret string
		life   time.Duration
		answer http.HandlerFunc
		want   fault.Reason
	}{
		"a wrong secret":     {"wrong", time.Hour, nil, fault.AccessDenied},
		"a token that ended": {robotSecret, -time.Hour, nil, fault.AccessDenied},
		"no token":           {robotSecret, time.Hour, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, fault.Unavailable},
		"a failing server":   {robotSecret, time.Hour, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, fault.Unavailable},
		"a redirect": {robotSecret, time.Hour, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, fault.AccessDenied},
	} {
		t.Run(name, func(t *testing.T) {
			server.set(c.life, c.answer)
			err := push(t, l, c.secret)
			if fault.ReasonOf(err) != c.want || strings.Contains(err.Error(), robotSecret) {
				t.Errorf("%v (%s), want %s", err, fault.ReasonOf(err), c.want)
			}
		})
	}
	if asked, seen := elsewhere.saw(); asked == 0 || seen != "" {
		t.Errorf("another server was asked %d times and shown %q", asked, seen)
	}

	server.set(time.Hour, nil)
	if err := push(t, l, robotSecret); err != nil {
		t.Fatal(err)
	}
	c, err := remote.New(remote.Options{DockerConfig: filepath.Join(g.Etc, "docker", "config.json"), HostsDir: filepath.Join(g.Etc, "certs.d")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(t.Context(), g.registry.Host, robot, "wrong"); fault.ReasonOf(err) != fault.AccessDenied {
		t.Errorf("a login with a wrong secret: %v", err)
	}
	if err := c.Login(t.Context(), g.registry.Host, robot, robotSecret); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Ctr(t.Context(), "images", "pull", "--hosts-dir", filepath.Join(g.Etc, "certs.d"), "--user", robot+":"+robotSecret, ref); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", ref, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	server.set(time.Hour, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	if _, err := g.Ctr(t.Context(), "images", "pull", "--hosts-dir", filepath.Join(g.Etc, "certs.d"), "--user", robot+":"+robotSecret, ref); err == nil {
		t.Error("a pull without a token succeeds")
	}
	if got := g.run("", ref, g.id()); got.code != 0 {
		t.Errorf("what was pulled needs a token to run: status %d, stderr %q", got.code, got.stderr)
	}
	server.set(time.Hour, nil)
	g.mirrored(ref)
}

// mirrored copies an agent to a second registry, from which it is pulled and run under
// the signature that it has, where the policy says that the one is a mirror of the
// other, and nowhere else.
func (g *guarded) mirrored(ref string) {
	t := g.t
	second, err := g.StartRegistry(t.Context(), node.RegistryConfig{})
	if err != nil {
		t.Fatal(err)
	}
	there := strings.Replace(ref, g.registry.Host, second.Host, 1)
	scope := func(binding string) {
		g.policy("")
		data, err := os.ReadFile(filepath.Join(g.Etc, "policy.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		mirror := fmt.Sprintf("  - {name: mirror, match: [\"%s/agents/**\"], stores: [agents], identities: [\"email:%s\"], unsigned_containers: deny, %s}\noutside:", second.Host, testpki.Email, binding)
		if err := g.WritePolicy(strings.Replace(string(data), "outside:", mirror, 1)); err != nil {
			t.Fatal(err)
		}
	}
	promote := func() (string, error) {
		out, err := g.Command(t.Context(), "mentatctl", "copy", "--policy", filepath.Join(g.Etc, "policy.yaml"), "--trust", filepath.Join(g.Etc, "trust"),
			"--docker-config", filepath.Join(g.Etc, "docker", "config.json"), "--hosts-dir", filepath.Join(g.Etc, "certs.d"), ref, there).CombinedOutput()
		return string(out), err
	}
	scope("binding: repository")
	if out, err := promote(); err == nil || !strings.Contains(out, string(fault.BindingMismatch)) && !strings.Contains(out, "is for") {
		t.Errorf("copied to where the policy refuses it: %v\n%s", err, out)
	}
	scope(fmt.Sprintf("binding: remap, remap: [{from: \"%s/agents/**\", to: \"%s/agents/**\"}]", second.Host, g.registry.Host))
	if out, err := promote(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := g.pull(there); err != nil {
		t.Fatal(err)
	}
	if got := g.run("", there, g.id()); got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("from the mirror: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	scope("binding: repository")
	if got := g.run("", there, g.id()); got.code == 0 || strings.Contains(got.stdout, marker) {
		t.Errorf("from a mirror that is none any more: status %d, stdout %q", got.code, got.stdout)
	}
}

// spy keeps the credentials that it is shown.
type spy struct {
	mu    sync.Mutex
	asked int
	seen  []string
}

func (s *spy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	for _, name := range []string{"Authorization", "Cookie"} {
		if v := r.Header.Get(name); v != "" {
			s.seen = append(s.seen, name+" "+v)
		}
	}
	w.WriteHeader(http.StatusUnauthorized)
}

func (s *spy) saw() (asked int, credentials string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, strings.Join(s.seen, ", ")
}
