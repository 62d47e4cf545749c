package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

const (
	canaryID      = "mentatlab.doctor-canary"
	canaryVersion = "1.0.0"
	canaryPath    = "/mentat-doctor/canary"
	// canaryTime bounds one question to the node's gates.
	canaryTime = 2 * time.Minute
)

// canaryModule is the smallest module there is. It has no entry, so that it could
// do nothing even where a gate let it through.
var canaryModule = []byte("\x00asm\x01\x00\x00\x00")

// canary is an artifact that a gate must refuse.
type canary struct {
	name     string
	layout   *oci.Layout
	desc     ocispec.Descriptor
	artifact *oci.Artifact
}

// canaries are an unsigned agent, and one whose signature does not fit it, which is
// refused whatever a policy says.
func canaries(ctx context.Context, dir string, now time.Time) ([]*canary, error) {
	unsigned, err := newCanary(ctx, filepath.Join(dir, "unsigned"), "unsigned", nil)
	if err != nil {
		return nil, err
	}
	forged, err := newCanary(ctx, filepath.Join(dir, "forged"), "wrongly signed", func(raw []byte) ([]byte, error) { return forge(raw, now) })
	if err != nil {
		return nil, err
	}
	return []*canary{unsigned, forged}, nil
}

func newCanary(ctx context.Context, dir, name string, change func([]byte) ([]byte, error)) (*canary, error) {
	m, err := manifest.Parse("canary", []byte("id: "+canaryID+"\nversion: "+canaryVersion+"\nruntime: wasm\nmodule: canary.wasm\n"))
	if err != nil {
		return nil, err
	}
	c := &canary{name: name}
	if c.layout, err = oci.CreateLayout(dir); err != nil {
		return nil, err
	}
	if c.desc, err = oci.Build(ctx, oci.BuildInput{Agent: m, Module: canaryModule}, c.layout); err != nil {
		return nil, err
	}
	raw, err := oci.ReadBlob(ctx, c.layout, c.desc, limits.OCIManifestBytes)
	if err != nil {
		return nil, err
	}
	if change != nil {
		if raw, err = change(raw); err != nil {
			return nil, err
		}
		if c.desc, err = c.layout.ReplaceManifest(ctx, c.desc, raw); err != nil {
			return nil, err
		}
	}
	c.artifact, err = oci.Read(ctx, c.layout, raw)
	return c, err
}

// forge signs a manifest with a key that nobody knows, and then changes what was
// signed.
func forge(raw []byte, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	name := func(cn string) pkix.Name { return pkix.Name{CommonName: cn} }
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: name("Canary CA"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: name("Canary"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, EmailAddresses: []string{"canary@invalid.invalid"},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	signed, _, err := verifier.Sign(verifier.SignRequest{
		Raw: raw, Key: key, Chain: []*x509.Certificate{c}, Time: now,
		Subject: verifier.Subject{ID: canaryID, Version: canaryVersion},
	})
	if err != nil {
		return nil, err
	}
	const from, to = `"` + ocispec.AnnotationCreated + `":"`, `"` + ocispec.AnnotationCreated + `":"2`
	if !bytes.Contains(signed, []byte(from)) {
		return nil, fault.New(fault.Internal, "canary", "it has nothing to change")
	}
	return bytes.Replace(signed, []byte(from), []byte(to), 1), nil
}

// gates are the node's own, as they were found.
type gates struct {
	daemon   *Daemon
	address  string
	verifier string // the entry of containerd's directory, "" for none
	ctr      string
	judge    *verifier.Verifier
	dir      string
}

// askGates offers the canaries to every gate.
func askGates(ctx context.Context, r *Report, g gates, now time.Time) {
	all, err := canaries(ctx, g.dir, now)
	if err != nil {
		r.fail(checkCanaryGate, "canary", "cannot be made: "+err.Error(), "whether the gates refuse anything was not shown", "run the doctor again, with a TMPDIR that has room")
		return
	}
	if g.verifier == "" {
		r.fail(checkCanaryGate, "mentat-verifier", "was not asked: containerd does not ask it either", "nothing is refused at a pull", "see the findings above")
	}
	for _, c := range all {
		server, err := serve(c)
		if err != nil {
			r.fail(checkCanaryPull, "loopback", "no registry can be offered: "+err.Error(), "whether the gates refuse anything was not shown", "run the doctor where loopback works")
			return
		}
		ref := server.host + canaryPath + ":" + canaryVersion
		if want := g.wanted(ctx, r, c, ref); want != "" {
			g.askVerifier(ctx, r, c, ref, want)
			g.askPull(ctx, r, c, ref, want)
			g.askCRI(ctx, r, c, ref, want)
		}
		server.close()
		ref = scopeReference(g.judge)
		if want := g.wanted(ctx, r, c, ref); want != "" {
			g.askRun(ctx, r, c, ref, want)
		}
	}
}

// scopeReference is a name within the policy's first scope: an image that is
// imported needs no registry.
func scopeReference(v *verifier.Verifier) string {
	if v.Policy() == nil || len(v.Policy().Scopes()) == 0 {
		return "mentat-doctor.invalid" + canaryPath + ":" + canaryVersion
	}
	pattern := v.Policy().Scopes()[0].Patterns[0]
	switch base, below := strings.CutSuffix(pattern, "/**"); {
	case pattern == "*":
		return "mentat-doctor.invalid" + canaryPath + ":" + canaryVersion
	case below:
		return base + canaryPath + ":" + canaryVersion
	}
	return pattern + ":" + canaryVersion
}

// wanted is what the policy says to the canary, which every gate has to say too;
// "" where the policy itself lets it run.
func (g gates) wanted(ctx context.Context, r *Report, c *canary, ref string) string {
	vd := g.judge.Verify(ctx, verifier.Input{Reference: ref, Artifact: c.artifact})
	switch {
	case vd.Allowed && vd.Developer:
		r.note(checkCanaryGate, "canary", "the "+c.name+" one is not offered", "without a policy every gate lets it run, which is told above")
		return ""
	case vd.Allowed && vd.Pending != nil:
		r.warn(checkPolicy, ref, "an "+c.name+" agent of this name may run, as "+string(vd.Trust), "attestation_required is not enforced yet", "see policy.enforcement")
		return ""
	case vd.Allowed:
		r.warn(checkPolicy, ref, "an "+c.name+" agent of this name may run, as "+string(vd.Trust), "the policy asks nobody to have signed it", "deny it in the scope, unless that is meant")
		return ""
	}
	var f *fault.Error
	if errors.As(vd.Err, &f) {
		return f.Msg
	}
	return vd.Message
}

// told judges a gate's answer: it has to refuse, and for the policy's reason. err is
// nil where it let the canary pass.
func told(r *Report, check, on string, c *canary, err error, said, want string) {
	switch {
	case err == nil:
		r.fail(check, on, "let an agent pass that is "+c.name, "the policy does not hold there", "see the findings above; what they do not explain is a flaw: report it")
	case !strings.Contains(said, want):
		instead := "it said nothing: " + err.Error()
		if text := words(said); text != "" {
			instead = fmt.Sprintf("%q", text)
		}
		r.fail(check, on, fmt.Sprintf("refused an agent that is %s, but not because of that: %s instead of %q", c.name, instead, want),
			"something else is broken, and whether the gate holds was not shown", "repair what it says, and run the doctor again")
	default:
		r.ok(check, on, "refused an agent that is %s", c.name)
	}
}

// chatter is a line of a program's log that is no error.
var chatter = regexp.MustCompile(`\blevel="?(trace|debug|info|warning)\b`)

// words is the last line of a program's output that says why it ended.
func words(said string) string {
	last := ""
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" && !chatter.MatchString(line) {
			last = line
		}
	}
	return last
}

// askVerifier runs the verifier as containerd does.
func (g gates) askVerifier(ctx context.Context, r *Report, c *canary, ref, want string) {
	if g.verifier == "" {
		return
	}
	desc, err := json.Marshal(ocispec.Descriptor{MediaType: c.desc.MediaType, Digest: c.desc.Digest, Size: c.desc.Size})
	if err != nil {
		r.fail(checkCanaryGate, g.verifier, err.Error(), "whether it refuses anything was not shown", "run the doctor again")
		return
	}
	stdout, stderr, err := output(ctx, g.daemon.env, string(desc)+"\n", g.verifier,
		"-name", ref, "-digest", c.desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	told(r, checkCanaryGate, g.verifier, c, err, stderr+stdout, want)
}

// askPull pulls through the running daemon.
func (g gates) askPull(ctx context.Context, r *Report, c *canary, ref, want string) {
	space, ok := g.namespace(r, checkCanaryPull)
	if !ok {
		return
	}
	said, err := space.ctr(ctx, "images", "pull", "--plain-http", "--local=false", ref)
	told(r, checkCanaryPull, "containerd", c, err, said, want)
	space.remove(ctx, r, checkCanaryPull, ref)
}

// askRun imports the canary, which no verifier is asked about, and starts it.
func (g gates) askRun(ctx context.Context, r *Report, c *canary, ref, want string) {
	space, ok := g.namespace(r, checkCanaryRun)
	if !ok {
		return
	}
	defer space.remove(ctx, r, checkCanaryRun, ref)
	tar := filepath.Join(g.dir, hex.EncodeToString([]byte(c.name))+".tar")
	err := export(ctx, c, tar, ref)
	said := ""
	if err == nil {
		said, err = space.ctr(ctx, "images", "import", "--all-platforms", "--local", tar)
	}
	if err != nil {
		r.fail(checkCanaryRun, ref, "cannot be imported: "+words(said)+" ("+err.Error()+")", "whether the gate before a start holds was not shown", "run the doctor again")
		return
	}
	said, err = space.ctr(ctx, "run", "--rm", "--fifo-dir", filepath.Join(g.dir, "fifo"), "--runtime", mentatRuntime, ref, "mentat-doctor")
	told(r, checkCanaryRun, mentatRuntime, c, err, said, want)
}

func export(ctx context.Context, c *canary, path, ref string) error {
	if err := c.layout.Tag(ctx, c.desc, ref); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(c.layout.ExportTar(f, ref), f.Close())
}

// space is a namespace of containerd for one question.
type space struct {
	gates
	name string
}

func (g gates) namespace(r *Report, check string) (*space, bool) {
	const why = "whether the node's own gate refuses anything was not shown"
	if g.daemon.PID == 0 {
		r.fail(check, g.address, "was not asked: no containerd answers", why, "start containerd")
		return nil, false
	}
	if g.ctr == "" {
		r.warn(check, "ctr", "is not there", why, "install ctr, which comes with containerd")
		return nil, false
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails
	return &space{g, "mentat-doctor-" + hex.EncodeToString(id)}, true
}

// ctr runs ctr and returns all it said.
func (s *space) ctr(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	stdout, stderr, err := output(ctx, s.daemon.env, "", s.gates.ctr, append([]string{"--address", s.address, "--namespace", s.name}, args...)...)
	return stdout + stderr, err
}

// remove takes back what a question left; what is not there need not be taken.
func (s *space) remove(ctx context.Context, r *Report, check, ref string) {
	ctx = context.WithoutCancel(ctx)
	_, _ = s.ctr(ctx, "containers", "rm", "mentat-doctor")
	_, _ = s.ctr(ctx, "images", "rm", "--sync", ref)
	said, err := s.ctr(ctx, "namespaces", "rm", s.name)
	if err == nil || strings.Contains(said, "not found") {
		return
	}
	r.warn(check, s.name, "the doctor's own namespace cannot be removed: "+words(said), "it stays on the node", "remove it: ctr namespaces rm "+s.name)
}

// registry offers one canary on a loopback port.
type registry struct {
	host   string
	server *http.Server
}

func serve(c *canary) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{host: l.Addr().String(), server: &http.Server{Handler: c, ReadHeaderTimeout: programTime}}
	go func() { _ = r.server.Serve(l) }() // it ends when it is closed
	return r, nil
}

func (r *registry) close() { _ = r.server.Close() } // its connections are the doctor's own

// ServeHTTP answers like a registry with one image in it.
func (c *canary) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	path := strings.TrimPrefix(q.URL.Path, "/v2")
	if path == "/" {
		return
	}
	desc, ok := c.desc, false
	if name, found := strings.CutPrefix(path, canaryPath+"/manifests/"); found {
		ok = name == canaryVersion || name == desc.Digest.String()
	} else if name, found := strings.CutPrefix(path, canaryPath+"/blobs/"); found {
		desc, ok = c.blob(digest.Digest(name))
	}
	content, err := c.layout.Fetch(q.Context(), desc)
	if !ok || q.Method != http.MethodGet && q.Method != http.MethodHead || err != nil {
		http.NotFound(w, q)
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	w.Header().Set("Content-Length", fmt.Sprint(desc.Size))
	if q.Method == http.MethodGet {
		_, _ = io.Copy(w, content) // who asked sees that it is short
	}
}

func (c *canary) blob(d digest.Digest) (ocispec.Descriptor, bool) {
	for _, desc := range append(c.artifact.Manifest.Layers, c.artifact.Manifest.Config) {
		if desc.Digest == d {
			return desc, true
		}
	}
	return ocispec.Descriptor{}, false
}

// judgeOf is what the node's gates decide with; in developer mode that is a
// verifier without a policy.
func judgeOf(v *verifier.Verifier, cfg *nodeconfig.Config, clock func() time.Time) (*verifier.Verifier, error) {
	if v != nil || cfg.Verify.Policy != "" {
		return v, nil
	}
	return verifier.New(verifier.Config{Clock: clock})
}
