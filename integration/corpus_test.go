package integration

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testcorpus"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/manifest/canonical"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
)

// Issuers below the trusted root of which the node has no list, an old one, and one
// that somebody else signed.
const (
	quietIssuer  = "Quiet Agent CA"
	slowIssuer   = "Slow Agent CA"
	forgedIssuer = "Forged Agent CA"
)

// Serial numbers that are on the lists from the beginning.
const (
	revokedLeaf   = 0xdead
	revokedIssuer = 0x22
	revokedStamp  = 0x78
)

// beforeTheGate are the vectors of which containerd itself makes no container: it imports
// the first as little as it pulls it, and finds no configuration in the second.
var beforeTheGate = []string{"manifest-and-index", "config-that-containerd-rewrites"}

// withdrawnSalt makes the module that the release list denies.
const withdrawnSalt = 404

// besieged is a node whose policy has an answer to the whole corpus.
type besieged struct {
	*guarded
	vault    *testpki.PKI // trusted in a scope of its own
	tsa      *testpki.TSA
	careless *careless
}

// careless is a registry that serves what a good one would not take.
type careless struct {
	host string
	mu   sync.Mutex
	// blobs and manifests by the last part of their paths, which may be a tag's.
	held map[string]served
}

type served struct {
	mediaType string
	data      []byte
}

func newCareless(t *testing.T) *careless {
	t.Helper()
	c := &careless{held: map[string]served{}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	c.host = strings.TrimPrefix(srv.URL, "http://")
	return c
}

func (c *careless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := strings.TrimPrefix(r.URL.Path, "/v2/")
	name = name[strings.LastIndexByte(name, '/')+1:]
	if repository, isTag := strings.CutSuffix(r.URL.Path, "/manifests/1.0.0"); isTag {
		name = strings.TrimPrefix(repository, "/v2/")
	}
	if s, ok := c.held[name]; ok {
		w.Header().Set("Content-Type", s.mediaType)
		w.Header().Set("Content-Length", strconv.Itoa(len(s.data)))
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(s.data).String())
		if r.Method != http.MethodHead {
			_, _ = w.Write(s.data) // a client that went away is its own matter
		}
		return
	}
	if name != "" {
		w.WriteHeader(http.StatusNotFound)
	}
}

// hold serves a layout's blobs, and a document under a repository's tag.
func (b *besieged) hold(repository, mediaType string, raw []byte, l *oci.Layout) {
	b.t.Helper()
	b.careless.mu.Lock()
	defer b.careless.mu.Unlock()
	for _, blob := range b.blobsOf(l) {
		data, err := os.ReadFile(blob)
		if err != nil {
			b.t.Fatal(err)
		}
		b.careless.held["sha256:"+filepath.Base(blob)] = served{"application/octet-stream", data}
	}
	document := served{mediaType, raw}
	b.careless.held[repository], b.careless.held[digest.FromBytes(raw).String()] = document, document
}

func newBesieged(t *testing.T) *besieged {
	t.Helper()
	b := &besieged{guarded: newGuarded(t)}
	b.vault = testpki.New(t, testpki.OtherRoot(t), testpki.AgentKey(testpki.RSA(t, "vault agent", 2048)))
	b.tsa = testpki.NewTSA(t, "time", testpki.Now)
	b.careless = newCareless(t)
	now, long := testpki.Now, testpki.KeepsExpired(testpki.Now.AddDate(-1, 0, 0))
	withdrawn := digest.FromBytes(assemble(t, guestMarker(withdrawnSalt)))
	releases, err := verifier.SignReleases(verifier.Releases{
		Number: 1, NextUpdate: now.Add(48 * time.Hour).Format("2006-01-02T15:04:05Z"), DeniedModules: []digest.Digest{withdrawn},
	}, b.pki.LeafKey, b.pki.Chain(), now.Add(-time.Hour))
	slow, forged := b.issuer(slowIssuer), b.issuer(forgedIssuer)
	file := func(name string, data []byte) error {
		return os.WriteFile(filepath.Join(b.Etc, name), data, 0o600)
	}
	err = errors.Join(err,
		b.Trust("vault", "root.pem", testpki.PEM(b.vault.Root)),
		b.Trust("time", "root.pem", testpki.PEM(b.tsa.Root)),
		file("agent.crl", b.pki.AgentCRL(revoking(revokedLeaf), long)),
		file("root.crl", b.pki.RootCRL(revoking(revokedIssuer))),
		file("time.crl", b.tsa.CRL(revoking(revokedStamp), long)),
		file("slow.crl", slow.AgentCRL(testpki.Until(now.AddDate(0, 0, -10)))),
		file("forged.crl", testpki.CRL(t, forged.Agent, testpki.RSA(t, "mallory", 2048))),
		file("releases.json", releases),
	)
	if err != nil {
		t.Fatal(err)
	}
	b.siegePolicy("")
	return b
}

// issuer is the PKI with another name for the agent CA, which revokes nothing.
func (b *besieged) issuer(name string) *testpki.PKI {
	return testpki.New(b.t, func(r *testpki.Recipe) {
		r.Agent.Subject, r.Agent.SerialNumber = testpki.Name(name), big.NewInt(int64(0x30+len(name)))
	})
}

func revoking(serial int64) testpki.CRLKnob {
	return testpki.Revoking(&x509.Certificate{SerialNumber: big.NewInt(serial)})
}

func (b *besieged) siegePolicy(extra string) {
	b.t.Helper()
	scope := func(name, stores, rest string) string {
		return fmt.Sprintf("  - name: %[1]s\n    match: [\"%[2]s/%[1]s/**\", \"%[6]s/%[1]s/**\"]\n    stores: [%[3]s]\n    identities: [\"email:%[4]s\"]\n    unsigned_containers: deny\n%[5]s",
			name, b.registry.Host, stores, testpki.Email, rest, b.careless.host)
	}
	crl := func(issuer pkix.Name, name string) string {
		return fmt.Sprintf("    - {issuer: %q, file: %s}\n", issuer.String(), name)
	}
	text := "version: 1\nscopes:\n" +
		scope("agents", "agents", "    timestamp_stores: [time]\n") +
		scope("stamped", "agents", "    timestamp_stores: [time]\n    timestamp: required\n") +
		scope("vault", "vault", "") +
		"outside: {ordinary_images: allow}\n" +
		"minimum_versions: {below-the-minimum-version: 2.0.0}\n" +
		fmt.Sprintf("releases: [{name: own, file: releases.json, stores: [agents], identities: [\"email:%s\"]}]\n", testpki.Email) +
		"revocation:\n  crls:\n" +
		crl(b.pki.Root.Subject, "root.crl") + crl(b.pki.Agent.Subject, "agent.crl") + crl(b.tsa.Root.Subject, "time.crl") +
		crl(testpki.Name(slowIssuer), "slow.crl") + crl(testpki.Name(forgedIssuer), "forged.crl") + extra
	if err := b.WritePolicy(text); err != nil {
		b.t.Fatal(err)
	}
}

// in is the node for another test, which may run beside others.
func (b *besieged) in(t *testing.T) *besieged {
	w, g, own := *b.world, *b.guarded, *b
	w.t = t
	g.world = &w
	own.guarded = &g
	return &own
}

// offer is an artifact as a registry serves it.
type offer struct {
	ref    string // empty: the vector's name among the agents
	layout *oci.Layout
	// raw is the root's document, exactly; nil is the layout's own.
	raw   []byte
	index bool
	// children are in the registry before an index.
	children []*oci.Layout
	args     []string
	// careless is set for what a good registry would not take, barred is what
	// containerd says where it imports it as little as it pulls it.
	careless bool
	barred   string
}

func (b *besieged) plain(name string, salt int) *oci.Layout {
	b.t.Helper()
	l, _ := b.build(name, assemble(b.t, guestMarker(salt)), "")
	return l
}

// signing is how an artifact is attested. The zero value does it as it should be
// done, with code of its own beside the product's.
type signing struct {
	pki   *testpki.PKI
	key   crypto.Signer
	chain []*x509.Certificate
	host  string // of the registry
	// block changes what will be signed, payload how, later what is not signed.
	block   func(block map[string]any)
	payload func(body []byte) []byte
	opts    crypto.SignerOpts
	later   func(block map[string]any, signature []byte)
}

func (b *besieged) attest(name string, raw []byte, s signing) []byte {
	b.t.Helper()
	if s.pki == nil {
		s.pki = b.pki
	}
	if s.chain == nil {
		s.chain = s.pki.Chain()
	}
	if s.key == nil {
		s.key = s.pki.LeafKey
	}
	if s.opts == nil {
		s.opts = crypto.SHA256
	}
	if s.host == "" {
		s.host = b.registry.Host
	}
	leaf := s.chain[0]
	algorithm := "SHA256withRSA"
	if _, ok := s.key.(*ecdsa.PrivateKey); ok {
		algorithm = "SHA256withECDSA"
	}
	chain := []any{}
	for _, c := range s.chain {
		chain = append(chain, string(testpki.PEM(c)))
	}
	block := map[string]any{
		"version": "1.0", "timestamp": moment(within(leaf, testpki.Now)), "algorithm": algorithm, "certificate_chain": chain,
		"signer":  map[string]any{"subject": leaf.Subject.String(), "issuer": leaf.Issuer.String()},
		"subject": map[string]any{"id": name, "version": "1.0.0", "repository": s.host + "/agents/" + name},
	}
	if s.block != nil {
		s.block(block)
	}
	body := b.attach(raw, block)
	payload := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(verifier.PayloadType), verifier.PayloadType, len(body), body)
	if s.payload != nil {
		payload = s.payload(body)
	}
	sum := sha256.Sum256(payload)
	signature, err := s.key.Sign(rand.Reader, sum[:], s.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	block["signature"] = base64.StdEncoding.EncodeToString(signature)
	if s.later != nil {
		s.later(block, signature)
	}
	return b.attach(raw, block)
}

// within moves a time into a certificate's validity.
func within(c *x509.Certificate, at time.Time) time.Time {
	switch {
	case at.After(c.NotAfter):
		return c.NotAfter.Add(-time.Hour)
	case at.Before(c.NotBefore):
		return c.NotBefore.Add(time.Hour)
	}
	return at
}

func moment(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05Z") }

// attach puts a block into a manifest, in canonical form.
func (b *besieged) attach(raw []byte, block map[string]any) []byte {
	b.t.Helper()
	text, err := canonical.Marshal(block)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.changed(raw, func(m map[string]any) { annotate(m)[oci.AnnotationAttestation] = string(text) })
}

func annotate(m map[string]any) map[string]any { return m["annotations"].(map[string]any) }

// changed is a manifest after a change, in canonical form.
func (b *besieged) changed(raw []byte, change func(m map[string]any)) []byte {
	b.t.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		b.t.Fatal(err)
	}
	change(m)
	out, err := canonical.Marshal(m)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// recipe makes a vector's artifact.
type recipe func(b *besieged, name string) offer

func signedAs(s signing) recipe {
	return func(b *besieged, name string) offer {
		l := b.plain(name, 1)
		_, raw := b.raw(l)
		return offer{layout: l, raw: b.attest(name, raw, s)}
	}
}

// by is an agent of another PKI; all share the root and, unless a knob says
// otherwise, the agent CA.
func by(knobs ...testpki.Knob) recipe {
	return func(b *besieged, name string) offer {
		return signedAs(signing{pki: testpki.New(b.t, knobs...)})(b, name)
	}
}

// saying is an agent whose block was changed before it was signed.
func saying(change func(block map[string]any)) recipe { return signedAs(signing{block: change}) }

// then changes a signed manifest.
func then(change func(m map[string]any)) recipe {
	return func(b *besieged, name string) offer {
		o := signedAs(signing{})(b, name)
		o.raw = b.changed(o.raw, change)
		return o
	}
}

// blockThen changes the text of a signed manifest's block.
func blockThen(change func(text string) string) recipe {
	return then(func(m map[string]any) {
		a := annotate(m)
		a[oci.AnnotationAttestation] = change(a[oci.AnnotationAttestation].(string))
	})
}

// rewritten changes the bytes of a signed manifest.
func rewritten(from, to string) recipe {
	return func(b *besieged, name string) offer {
		o := signedAs(signing{})(b, name)
		was := o.raw
		if o.raw = bytes.Replace(was, []byte(from), []byte(to), 1); bytes.Equal(o.raw, was) {
			b.t.Fatal("the recipe changes nothing")
		}
		return o
	}
}

// swapped has the signed manifest of one agent with parts of an evil one.
func swapped(parts ...string) recipe {
	return func(b *besieged, name string) offer {
		o, evil := signedAs(signing{})(b, name), b.plain(name, 666)
		_, raw := b.raw(evil)
		for _, blob := range b.blobsOf(evil) {
			data, err := os.ReadFile(blob)
			if err != nil {
				b.t.Fatal(err)
			}
			if _, err := o.layout.PushBytes(b.t.Context(), "application/octet-stream", data); err != nil {
				b.t.Fatal(err)
			}
		}
		var other map[string]any
		if err := json.Unmarshal(raw, &other); err != nil {
			b.t.Fatal(err)
		}
		o.raw = b.changed(o.raw, func(m map[string]any) {
			for _, part := range parts {
				m[part] = other[part]
			}
		})
		o.children = []*oci.Layout{evil} // its blobs must be in the registry
		return o
	}
}

// stamped is an agent whose signer's certificate has expired since, with a time
// stamp.
func stamped(token func(b *besieged, p *testpki.PKI, signature []byte) []byte) recipe {
	return func(b *besieged, name string) offer {
		p := testpki.New(b.t, testpki.LeafExpired)
		return signedAs(signing{
			pki:   p,
			block: func(block map[string]any) { block["timestamp"] = moment(signedThen) },
			later: func(block map[string]any, signature []byte) {
				block["timestamp_token"] = base64.StdEncoding.EncodeToString(token(b, p, signature))
			},
		})(b, name)
	}
}

// signedThen is before testpki.LeafExpired's end, stampedThen is a moment later.
var signedThen, stampedThen time.Time

func rightlyStamped(b *besieged, _ *testpki.PKI, signature []byte) []byte {
	return b.tsa.Token(signature, stampedThen)
}

// over is an index over agents, the first of which is for this machine.
func over(annotations map[string]string, children ...ocispec.Descriptor) func(b *besieged) []byte {
	return func(b *besieged) []byte {
		b.t.Helper()
		raw, err := json.Marshal(ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children, Annotations: annotations,
		})
		if err != nil {
			b.t.Fatal(err)
		}
		return raw
	}
}

// child puts a manifest of a layout's blobs where an index may name it.
func (b *besieged) child(l *oci.Layout, raw []byte, arch string) ocispec.Descriptor {
	b.t.Helper()
	root, _ := b.raw(l)
	d, err := l.ReplaceManifest(b.t.Context(), root, raw)
	if err != nil {
		b.t.Fatal(err)
	}
	d.MediaType, d.Annotations = ocispec.MediaTypeImageManifest, nil
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

// unservable is for a registry that takes anything.
func unservable(r recipe) recipe {
	return func(b *besieged, name string) offer {
		o := r(b, name)
		o.careless = true
		return o
	}
}

// module is an artifact with other bytes than a module's, signed all the same.
func module(data func(b *besieged) []byte) recipe {
	return func(b *besieged, name string) offer {
		l, raw := b.forge(name, data(b))
		return offer{layout: l, raw: b.attest(name, raw, signing{host: b.careless.host}), careless: true}
	}
}

var recipes = map[string]recipe{
	"unsigned": func(b *besieged, name string) offer { return offer{layout: b.plain(name, 1)} },
	"unsigned-container": func(b *besieged, name string) offer {
		return offer{layout: b.busyboxWith("/etc/" + name), args: []string{"/bin/echo", marker}}
	},
	"attestation-on-a-layer": then(func(m map[string]any) {
		a := annotate(m)
		m["layers"].([]any)[0].(map[string]any)["annotations"] = map[string]any{oci.AnnotationAttestation: a[oci.AnnotationAttestation]}
		delete(a, oci.AnnotationAttestation)
	}),
	"agent-of-no-scope": func(b *besieged, name string) offer {
		o := saying(func(block map[string]any) {
			block["subject"].(map[string]any)["repository"] = b.registry.Host + "/elsewhere/" + name
		})(b, name)
		o.ref = b.registry.Host + "/elsewhere/" + name + ":1.0.0"
		return o
	},

	"empty-attestation":          blockThen(func(string) string { return "" }),
	"attestation-without-fields": blockThen(func(string) string { return "{}" }),
	"attestation-null":           blockThen(func(string) string { return "null" }),
	"no-certificate":             signedAs(signing{later: func(block map[string]any, _ []byte) { block["certificate_chain"] = []any{} }}),
	"no-signature":               signedAs(signing{later: func(block map[string]any, _ []byte) { delete(block, "signature") }}),
	"no-subject":                 saying(func(block map[string]any) { block["subject"] = map[string]any{"id": "", "version": ""} }),

	"attestation-twice":         rewritten(`"`+oci.AnnotationAttestation+`":`, `"`+oci.AnnotationAttestation+`":"","`+oci.AnnotationAttestation+`":`),
	"attestation-twice-escaped": rewritten(`"annotations":{`, `"annotations":{"\u0064`+oci.AnnotationAttestation[1:]+`":"",`),
	"layers-twice":              rewritten(`{`, `{"layers":[],`),
	"layers-in-capitals":        rewritten(`{`, `{"Layers":[],`),
	// To Go's reader of JSON, and so to containerd, this is the key "layers".
	"layers-with-a-long-s":               rewritten(`{`, `{"layerſ":[],`),
	"number-that-is-rounded":             rewritten(`"schemaVersion":2`, `"schemaVersion":2,"a":9007199254740993`),
	"key-twice-in-the-attestation":       blockThen(func(text string) string { return `{"algorithm":"none",` + text[1:] }),
	"key-in-capitals-in-the-attestation": blockThen(func(text string) string { return `{"Algorithm":"none",` + text[1:] }),
	"re-spaced-attestation":              blockThen(func(text string) string { return strings.Replace(text, `{`, `{ `, 1) }),
	"re-spaced-manifest":                 rewritten(`{`, `{ `),
	"signature-with-a-line-break": signedAs(signing{later: func(block map[string]any, _ []byte) {
		s := block["signature"].(string)
		block["signature"] = s[:76] + "\n" + s[76:]
	}}),

	"attestation-of-an-unknown-version": saying(func(block map[string]any) { block["version"] = "9.9" }),
	"annotation-of-the-next-version": then(func(m map[string]any) {
		a := annotate(m)
		a[strings.TrimSuffix(oci.AnnotationAttestation, "1")+"2"] = a[oci.AnnotationAttestation]
		delete(a, oci.AnnotationAttestation)
	}),
	"unknown-key-in-the-attestation": saying(func(block map[string]any) { block["admin"] = true }),

	"swapped-module": swapped("layers", "config"),
	"swapped-config": swapped("config"),
	"changed-annotation": func(b *besieged, name string) offer { // by the product's own signer
		l := b.plain(name, 1)
		b.sign(l, b.pki, name, b.registry.Host+"/agents/"+name, nil)
		b.edit(l, func(m map[string]any) { annotate(m)["org.opencontainers.image.description"] = "changed after signing" })
		return offer{layout: l}
	},
	"annotation-added": then(func(m map[string]any) { annotate(m)["a"] = "b" }),

	"attestation-of-another-agent": saying(func(block map[string]any) { block["subject"].(map[string]any)["id"] = "somebody-else" }),
	"another-repository": saying(func(block map[string]any) {
		subject := block["subject"].(map[string]any)
		subject["repository"] = subject["repository"].(string) + "-2"
	}),
	"another-version": saying(func(block map[string]any) { block["subject"].(map[string]any)["version"] = "1.0.1" }),
	"no-repository":   saying(func(block map[string]any) { delete(block["subject"].(map[string]any), "repository") }),
	"block-of-another-artifact": func(b *besieged, name string) offer {
		other := signedAs(signing{})(b, name)
		var m ocispec.Manifest
		if err := json.Unmarshal(other.raw, &m); err != nil {
			b.t.Fatal(err)
		}
		l := b.plain(name, 666)
		_, raw := b.raw(l)
		return offer{layout: l, raw: b.changed(raw, func(to map[string]any) {
			annotate(to)[oci.AnnotationAttestation] = m.Annotations[oci.AnnotationAttestation]
		})}
	},

	"signed-as-something-else": signedAs(signing{payload: func(body []byte) []byte {
		const other = "application/vnd.in-toto+json"
		return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(other), other, len(body), body)
	}}),
	"signed-without-a-type": signedAs(signing{payload: func(body []byte) []byte { return body }}),
	"stamp-of-another-signature": stamped(func(b *besieged, _ *testpki.PKI, signature []byte) []byte {
		return b.tsa.Token(append(slices.Clone(signature), 0), stampedThen)
	}),

	"below-the-minimum-version": signedAs(signing{}),
	"withdrawn-module": func(b *besieged, name string) offer {
		l := b.plain(name, withdrawnSalt)
		_, raw := b.raw(l)
		return offer{layout: l, raw: b.attest(name, raw, signing{})}
	},

	"expired-certificate":       by(testpki.LeafExpired),
	"certificate-not-yet-valid": by(testpki.LeafNotYetValid),
	"attestation-that-ended": saying(func(block map[string]any) {
		block["timestamp"], block["not_after"] = moment(signedThen), moment(stampedThen)
	}),

	"made-before-its-certificate": saying(func(block map[string]any) { block["timestamp"] = "2020-01-01T00:00:00Z" }),
	"made-in-the-future":          saying(func(block map[string]any) { block["timestamp"] = moment(testpki.Now.Add(24 * time.Hour)) }),
	"time-changed": signedAs(signing{later: func(block map[string]any, _ []byte) {
		block["timestamp"] = moment(testpki.Now.Add(-time.Hour))
	}}),
	"stamp-by-the-signer": stamped(func(b *besieged, p *testpki.PKI, signature []byte) []byte {
		// An authority below the root that the signers share.
		template, key := *b.tsa.Cert, testpki.RSA(b.t, "own time", 2048)
		usage := slices.IndexFunc(template.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.37" })
		template.ExtKeyUsage, template.ExtraExtensions = nil, []pkix.Extension{template.Extensions[usage]} // critical
		own := testpki.Issue(b.t, &template, p.Root, key.Public(), p.RootKey)
		return b.tsa.Token(signature, stampedThen, func(s *testpki.Stamp) { s.Cert, s.Key, s.Certs = own, key, []*x509.Certificate{own} })
	}),
	"stamp-by-a-stranger": stamped(func(b *besieged, _ *testpki.PKI, signature []byte) []byte {
		return testpki.NewTSA(b.t, "strange time", testpki.Now).Token(signature, stampedThen)
	}),
	"stamp-after-the-end": stamped(func(b *besieged, _ *testpki.PKI, signature []byte) []byte {
		return b.tsa.Token(signature, testpki.Now.Add(-time.Hour))
	}),
	"no-stamp-where-one-is-required": func(b *besieged, name string) offer {
		repository := b.registry.Host + "/stamped/" + name
		o := saying(func(block map[string]any) { block["subject"].(map[string]any)["repository"] = repository })(b, name)
		o.ref = repository + ":1.0.0"
		return o
	},

	"algorithm-none":           saying(func(block map[string]any) { block["algorithm"] = "none" }),
	"algorithm-of-another-key": saying(func(block map[string]any) { block["algorithm"] = "SHA256withECDSA" }),
	"algorithm-with-sha1":      saying(func(block map[string]any) { block["algorithm"] = "SHA1withRSA" }),
	"padding-of-another-name":  signedAs(signing{opts: &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}}),
	"signed-by-another-key": func(b *besieged, name string) offer {
		return signedAs(signing{key: testpki.RSA(b.t, "mallory", 2048)})(b, name)
	},
	"weak-key": func(b *besieged, name string) offer {
		return by(testpki.LeafKey(testpki.RSA(b.t, "weak", 1024)))(b, name)
	},
	"weak-curve": func(b *besieged, name string) offer {
		return by(testpki.LeafKey(testpki.EC(b.t, "weak", elliptic.P224())))(b, name)
	},

	"unknown-root": func(b *besieged, name string) offer { return by(testpki.OtherRoot(b.t))(b, name) },
	"chain-with-its-root": func(b *besieged, name string) offer {
		return signedAs(signing{chain: append(b.pki.Chain(), b.pki.Root)})(b, name)
	},
	"self-signed": func(b *besieged, name string) offer {
		return signedAs(signing{key: b.pki.RootKey, chain: []*x509.Certificate{b.pki.Root}})(b, name)
	},
	"another-issuer-of-the-same-name": func(b *besieged, name string) offer {
		other := testpki.New(b.t, testpki.AgentKey(testpki.RSA(b.t, "other agent", 2048)))
		return signedAs(signing{chain: []*x509.Certificate{b.pki.Leaf, other.Agent}})(b, name)
	},
	"without-its-issuer": func(b *besieged, name string) offer {
		return signedAs(signing{chain: b.pki.Chain()[:1]})(b, name)
	},
	"certificate-beside-the-path": func(b *besieged, name string) offer {
		return signedAs(signing{chain: append(b.pki.Chain(), testpki.New(b.t, testpki.LeafSerial(9)).Leaf)})(b, name)
	},
	"authority-below-the-last-one": func(b *besieged, name string) offer {
		// The agent CA's path length allows no authority below it.
		key, leafKey := testpki.RSA(b.t, "below", 2048), testpki.RSA(b.t, "leaf below", 2048)
		below, leaf := *b.pki.Agent, *b.pki.Leaf
		below.Subject, below.RawSubject, below.SubjectKeyId = testpki.Name("Below"), nil, []byte("below")
		authority := testpki.Issue(b.t, &below, b.pki.Agent, key.Public(), b.pki.AgentKey)
		c := testpki.Issue(b.t, &leaf, authority, leafKey.Public(), key)
		return signedAs(signing{key: leafKey, chain: []*x509.Certificate{c, authority, b.pki.Agent}})(b, name)
	},
	"issuer-that-is-no-authority": by(testpki.AgentNotCA),
	"leaf-that-is-an-authority":   by(testpki.LeafIsCA),
	"signed-by-the-authority-itself": func(b *besieged, name string) offer {
		return signedAs(signing{key: b.pki.AgentKey, chain: []*x509.Certificate{b.pki.Agent}})(b, name)
	},
	"leaf-for-servers":            by(testpki.LeafForTLS),
	"leaf-for-everything":         by(testpki.LeafForEverything),
	"leaf-without-usage":          by(testpki.LeafWithoutUsage),
	"outside-the-name-constraint": by(testpki.AgentForOthers),
	"unknown-critical-extension":  by(testpki.LeafCritical),
	"signer-of-another-scope":     func(b *besieged, name string) offer { return signedAs(signing{pki: b.vault})(b, name) },

	"another-signer":             by(testpki.LeafEmails("mallory@example.com")),
	"address-that-begins-alike":  by(testpki.LeafEmails(testpki.Email + ".evil.example")),
	"address-in-other-case":      by(testpki.LeafEmails("Dev@example.com")),
	"address-in-the-common-name": by(testpki.LeafEmails()),
	"two-addresses":              by(testpki.LeafEmails(testpki.Email, "dev@example.org")),
	"signer-that-is-not-the-leaf": saying(func(block map[string]any) {
		block["signer"].(map[string]any)["subject"] = "CN=ceo@example.com,O=MentatLab,C=US"
	}),

	"expired-issuer":      by(testpki.AgentExpired),
	"revoked-certificate": by(testpki.LeafSerial(revokedLeaf)),
	"revoked-issuer":      by(func(r *testpki.Recipe) { r.Agent.SerialNumber = big.NewInt(revokedIssuer) }),
	"stamp-by-a-revoked-authority": stamped(func(b *besieged, _ *testpki.PKI, signature []byte) []byte {
		gone := testpki.NewTSA(b.t, "time", testpki.Now, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(revokedStamp) })
		return gone.Token(signature, stampedThen)
	}),
	"issuer-without-a-list": func(b *besieged, name string) offer {
		return signedAs(signing{pki: testpki.New(b.t, testpki.LeafWithoutCRL, func(r *testpki.Recipe) { r.Agent.Subject = testpki.Name(quietIssuer) })})(b, name)
	},
	"issuer-with-an-old-list":   func(b *besieged, name string) offer { return signedAs(signing{pki: b.issuer(slowIssuer)})(b, name) },
	"issuer-with-a-forged-list": func(b *besieged, name string) offer { return signedAs(signing{pki: b.issuer(forgedIssuer)})(b, name) },

	"oversized-attestation": saying(func(block map[string]any) {
		block["subject"].(map[string]any)["id"] = strings.Repeat("x", limits.AttestationBytes)
	}),
	"certificate-with-an-endless-name": by(func(r *testpki.Recipe) {
		r.Leaf.Subject.Organization = []string{strings.Repeat("x", limits.CertificatePEMBytes)}
	}),
	"key-beyond-measure": func(b *besieged, name string) offer {
		// Nobody needs to have made such a key to show one.
		n := new(big.Int).SetBit(big.NewInt(1), 16_383, 1)
		template := *b.pki.Leaf
		huge := testpki.Issue(b.t, &template, b.pki.Agent, &rsa.PublicKey{N: n, E: 65537}, b.pki.AgentKey)
		return signedAs(signing{chain: []*x509.Certificate{huge, b.pki.Agent}})(b, name)
	},
	"stamp-without-end": signedAs(signing{later: func(block map[string]any, _ []byte) {
		block["timestamp_token"] = base64.StdEncoding.EncodeToString(make([]byte, limits.TimeStampBytes+1))
	}}),
	"annotations-without-end": unservable(then(func(m map[string]any) {
		a := annotate(m)
		for i := range 20_000 {
			a[strconv.Itoa(i)] = ""
		}
	})),
	"manifest-without-end": unservable(func(b *besieged, name string) offer {
		l := b.plain(name, 1)
		_, raw := b.raw(l)
		raw = b.changed(raw, func(m map[string]any) { annotate(m)["a"] = strings.Repeat("x", limits.OCIManifestBytes) })
		return offer{layout: l, raw: b.attest(name, raw, signing{})}
	}),
	"nested-without-end": rewritten(`{`, `{"a":`+strings.Repeat("[", limits.JSONDepth)+strings.Repeat("]", limits.JSONDepth)+`,`),
	"six-certificates": signedAs(signing{block: func(block map[string]any) {
		chain := block["certificate_chain"].([]any)
		for len(chain) <= limits.ChainCertificates {
			chain = append(chain, chain[1])
		}
		block["certificate_chain"] = chain
	}}),
	"too-many-manifests": func(b *besieged, name string) offer {
		o := signedAs(signing{})(b, name)
		d := b.child(o.layout, o.raw, "amd64")
		many := slices.Repeat([]ocispec.Descriptor{d}, limits.IndexManifests+1)
		return offer{layout: o.layout, raw: over(nil, many...)(b), index: true, children: []*oci.Layout{o.layout}}
	},

	"damaged-certificate": saying(func(block map[string]any) {
		block["certificate_chain"].([]any)[1] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30, 3, 2, 1, 0}}))
	}),
	"damaged-stamp": stamped(func(*besieged, *testpki.PKI, []byte) []byte { return []byte{0x30, 0} }),

	"signer-with-an-answer-in-its-name": func(b *besieged, name string) offer {
		return by(testpki.OtherRoot(b.t), func(r *testpki.Recipe) {
			r.Leaf.Subject.CommonName = "x\x1b[2K\r\nallowed as verified\n\u202e"
		})(b, name)
	},

	"layer-in-its-own-descriptor": then(func(m map[string]any) {
		m["layers"].([]any)[1].(map[string]any)["data"] = base64.StdEncoding.EncodeToString([]byte("\x00asm\x01\x00\x00\x00"))
	}),
	"layer-from-elsewhere": then(func(m map[string]any) {
		m["layers"].([]any)[0].(map[string]any)["urls"] = []any{"https://example.com/blob"}
	}),
	"config-that-containerd-rewrites": then(func(m map[string]any) { m["config"].(map[string]any)["mediaType"] = "application/octet-stream" }),
	"two-modules": then(func(m map[string]any) {
		layers := m["layers"].([]any)
		m["layers"] = append(layers, layers[len(layers)-1])
	}),
	"manifest-and-index": func(b *besieged, name string) offer {
		o := unservable(then(func(m map[string]any) { m["manifests"] = []any{} }))(b, name)
		o.barred = "expected manifest but found index"
		return o
	},
	"index-with-an-unsigned-twin": func(b *besieged, name string) offer {
		good, twin := signedAs(signing{})(b, name), b.plain(name, 666)
		_, raw := b.raw(twin)
		signed, evil := b.child(good.layout, good.raw, "arm64"), b.child(twin, raw, "amd64")
		for _, blob := range b.blobsOf(good.layout) {
			data, err := os.ReadFile(blob)
			if err == nil {
				_, err = twin.PushBytes(b.t.Context(), "application/octet-stream", data)
			}
			if err != nil {
				b.t.Fatal(err)
			}
		}
		return offer{layout: twin, raw: over(nil, signed, evil)(b), index: true, children: []*oci.Layout{good.layout, twin}}
	},
	"index-that-carries-the-attestation": func(b *besieged, name string) offer {
		var m ocispec.Manifest
		if err := json.Unmarshal(signedAs(signing{})(b, name).raw, &m); err != nil {
			b.t.Fatal(err)
		}
		l := b.plain(name, 1)
		_, raw := b.raw(l)
		d := b.child(l, raw, "amd64")
		text := map[string]string{oci.AnnotationAttestation: m.Annotations[oci.AnnotationAttestation]}
		d.Annotations = text
		return offer{layout: l, raw: over(text, d)(b), index: true, children: []*oci.Layout{l}}
	},

	"signed-machine-code": module(func(b *besieged) []byte {
		native, err := os.ReadFile(busybox)
		if err != nil {
			b.t.Fatal(err)
		}
		return native
	}),
	"signed-script": module(func(*besieged) []byte { return []byte("#!/bin/sh\necho " + marker + "\n") }),
}

// publish puts an offer into the registry, byte by byte as it is.
func (b *besieged) publish(name string, o *offer) {
	b.t.Helper()
	mediaType := ocispec.MediaTypeImageManifest
	if o.index {
		mediaType = ocispec.MediaTypeImageIndex
	}
	if o.careless {
		repository := "agents/" + name
		o.ref = b.careless.host + "/" + repository + ":1.0.0"
		b.hold(repository, mediaType, o.raw, o.layout)
		return
	}
	if o.ref == "" {
		o.ref = b.ref(name)
	}
	children := o.children
	if children == nil {
		children = []*oci.Layout{o.layout}
	} else if !o.index {
		children = append(children, o.layout)
	}
	for _, l := range children {
		b.push(l, o.ref)
	}
	if o.raw == nil {
		_, o.raw = b.raw(o.layout)
	} else {
		b.put(o.ref, mediaType, o.raw)
	}
}

// importOffer imports an offer past the verifier.
func (b *besieged) importOffer(o *offer) error {
	b.t.Helper()
	mediaType := ocispec.MediaTypeImageManifest
	if o.index {
		mediaType = ocispec.MediaTypeImageIndex
	}
	return b.importAs(o.layout, mediaType, o.raw, o.ref)
}

// byCommand is what mentatctl says, by the node's policy: exit code, reasons and all
// that it prints.
func (b *besieged) byCommand(ref string) (code int, reasons []fault.Reason, text string) {
	b.t.Helper()
	cmd := b.Command(b.t.Context(), "mentatctl", "verify", "--output", "json", ref)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	var result struct {
		By      string `json:"by"`
		Targets []struct {
			Allowed bool `json:"allowed"`
			Error   *struct {
				Reason fault.Reason `json:"reason"`
			} `json:"error"`
		} `json:"targets"`
	}
	if err := json.Unmarshal(out, &result); err != nil || result.By == "" || len(result.Targets) == 0 {
		b.t.Fatalf("mentatctl verify: %v: %s", err, out)
	}
	for _, t := range result.Targets {
		if t.Allowed != (t.Error == nil) {
			b.t.Errorf("mentatctl verify contradicts itself: %s", out)
		}
		if t.Error != nil {
			reasons = append(reasons, t.Error.Reason)
		}
	}
	return cmd.ProcessState.ExitCode(), reasons, strings.ReplaceAll(string(out), `\"`, `"`)
}

// byVerifier is what the verifier's binary says when it is called as containerd does.
func (b *besieged) byVerifier(o *offer) (code int, text string) {
	b.t.Helper()
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(o.raw), Size: int64(len(o.raw))}
	if o.index {
		d.MediaType = ocispec.MediaTypeImageIndex
	}
	stdin, err := json.Marshal(d)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := b.Command(b.t.Context(), "mentat-verifier", "-name", o.ref, "-digest", d.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	cmd.Stdin = bytes.NewReader(append(stdin, '\n'))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Every vector is refused by the tool, by the verifier's binary, at pull and, imported
// past the verifier, at run by the shim, and one of each class by mentat as runc's binary.
// Each says why, and the guest's marker is absent.
func TestWhatIsRefusedNeverRuns(t *testing.T) {
	classes, vectors := testcorpus.Read(t, "..")
	b := newBesieged(t)
	signedThen, stampedThen = testpki.Now.AddDate(0, 0, -2), testpki.Now.AddDate(0, 0, -2).Add(time.Minute)
	for name, r := range map[string]recipe{"control": signedAs(signing{}), "stamped-control": stamped(rightlyStamped)} {
		o := r(b, name)
		b.publish(name, &o)
		if code, _, text := b.byCommand(o.ref); code != 0 {
			t.Fatalf("%s: the tool: %s", name, text)
		}
		if code, text := b.byVerifier(&o); code != 0 {
			t.Fatalf("%s: the verifier: %s", name, text)
		}
		if err := b.pull(o.ref); err != nil {
			t.Fatal(name, err)
		}
		for _, way := range ways() {
			if got := b.runWith("", append(way, o.ref, b.id())...); got.code != 0 || got.stdout != marker+"\n" {
				t.Fatalf("%s: the control does not run, so the absence of its marker would prove nothing: %q", name, got.stderr)
			}
		}
	}
	if len(recipes) != len(vectors) {
		t.Fatalf("%d recipes for %d vectors of %d classes", len(recipes), len(vectors), len(classes))
	}
	seen := map[string]bool{}
	t.Run("vectors", func(t *testing.T) {
		for _, v := range vectors {
			// mentat and the shim judge with the same code: one of each class shows that
			// mentat asks it.
			runs := ways()
			if seen[v.Class] {
				runs = runs[:1]
			}
			seen[v.Class] = true
			t.Run(v.Class+"/"+v.Name, func(t *testing.T) {
				t.Parallel()
				if recipes[v.Name] == nil {
					t.Fatal("nobody knows how to make it")
				}
				b.in(t).refuses(v, runs)
			})
		}
	})
	b.recorded(vectors)
}

// recorded holds what the run gate wrote down to the vectors: the typed reason, for each
// that was run.
func (b *besieged) recorded(vectors []testcorpus.Vector) {
	b.t.Helper()
	reasons := map[string][]string{}
	for _, r := range b.records() {
		var typed struct{ Reason string }
		if err := json.Unmarshal(r.Record, &typed); err != nil {
			b.t.Fatal(err)
		}
		reasons[r.Container] = append(reasons[r.Container], r.Result+" "+typed.Reason)
	}
	for _, v := range vectors {
		want := []string{"denied " + string(v.Reason)}
		if slices.Contains(beforeTheGate, v.Name) {
			want = nil
		}
		if got := reasons[v.Name+"-0"]; !slices.Equal(got, want) {
			b.t.Errorf("%s: recorded is %q, want %q", v.Name, got, want)
		}
	}
}

// ways are the flags of ctr for each way into the run gate.
func ways() [][]string {
	return [][]string{{"--runtime", mentatRuntime}, {"--runc-binary", filepath.Join(binDir(), "mentat")}}
}

func (b *besieged) refuses(v testcorpus.Vector, runs [][]string) {
	b.t.Helper()
	o := recipes[v.Name](b, v.Name)
	b.publish(v.Name, &o)
	b.refusesBefore(v, &o)
	if err := b.importOffer(&o); o.barred != "" {
		if err == nil || !strings.Contains(err.Error(), o.barred) {
			b.t.Errorf("containerd does not bar it: %v", err)
		}
	} else if err != nil {
		b.t.Fatal(err)
	}
	for i, way := range runs {
		got := b.runWith("", append(append(way, o.ref, fmt.Sprint(v.Name, "-", i)), o.args...)...)
		if got.stderr = strings.TrimSuffix(got.stderr, "\n"); got.stderr != fault.OneLine(got.stderr) {
			b.t.Errorf("at run with %s: its words are not one plain line: %q", way[0], got.stderr)
		}
		if got.code == 0 || strings.Contains(got.stdout+got.stderr, marker) || o.barred == "" && !strings.Contains(strings.ToLower(got.stderr), v.Say) {
			b.t.Errorf("at run with %s: status %d, stdout %q, stderr %q\nwant %q", way[0], got.code, got.stdout, got.stderr, v.Say)
		}
	}
}

// refusesBefore holds what judges before a run to a vector.
func (b *besieged) refusesBefore(v testcorpus.Vector, o *offer) {
	b.t.Helper()
	code, reasons, text := b.byCommand(o.ref)
	verdict, line := b.byVerifier(o)
	b.t.Log(line)
	if v.Run {
		if code != 0 || verdict != 0 {
			b.t.Errorf("it is not well signed: %s, %s", text, line)
		}
		return
	}
	if code != fault.RowOf(v.Reason).CLI || !slices.Contains(reasons, v.Reason) || !strings.Contains(strings.ToLower(text), v.Say) {
		b.t.Errorf("the tool: status %d, %s\nwant %d, %s, %q", code, text, fault.RowOf(v.Reason).CLI, v.Reason, v.Say)
	}
	if plain := strings.TrimSuffix(line, "\n"); plain != fault.OneLine(plain) {
		b.t.Errorf("the verifier's words are not one plain line: %q", line)
	}
	typed := "(" + string(v.Reason) + ")"
	if verdict == 0 || !strings.Contains(line, typed) || !strings.Contains(strings.ToLower(line), v.Say) {
		b.t.Errorf("the verifier: status %d, %s\nwant %s, %q", verdict, line, typed, v.Say)
	}
	if err := b.pull(o.ref); err == nil || !strings.Contains(err.Error(), typed) || !strings.Contains(strings.ToLower(err.Error()), v.Say) {
		b.t.Errorf("at pull: %v\nwant %s, %q", err, typed, v.Say)
	}
	if out := b.ctr("images", "ls", "-q"); strings.Contains(out, o.ref) {
		b.t.Errorf("after a refused pull the image is there: %s", out)
	}
}

// A certificate that has expired since is no end to what it signed, if an authority
// stamped the signature in time; and it is one without that stamp, the rest being the
// same bytes.
func TestAnExpiredSignersAgentRunsByItsTimeStampAlone(t *testing.T) {
	b := newBesieged(t)
	p := testpki.New(t, testpki.LeafExpired)
	then := testpki.Now.AddDate(0, 0, -2)
	l := b.plain("stamped", 1)
	_, raw := b.raw(l)
	var without map[string]any
	with := b.attest("stamped", raw, signing{
		pki:   p,
		block: func(block map[string]any) { block["timestamp"] = moment(then) },
		later: func(block map[string]any, signature []byte) {
			without = maps.Clone(block)
			block["timestamp_token"] = base64.StdEncoding.EncodeToString(b.tsa.Token(signature, then.Add(time.Minute)))
		},
	})
	for _, c := range []struct {
		raw []byte
		ok  bool
	}{{with, true}, {b.attach(raw, without), false}, {with, true}} {
		o := offer{layout: l, raw: c.raw}
		b.publish("stamped", &o)
		if err := b.pull(o.ref); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "("+string(fault.OutsideValidity)+")") {
			t.Errorf("at pull, with a stamp %v: %v", c.ok, err)
		}
		if err := b.importOffer(&o); err != nil {
			t.Fatal(err)
		}
		for _, way := range ways() {
			got := b.runWith("", append(way, o.ref, b.id())...)
			if c.ok && (got.code != 0 || got.stdout != marker+"\n") {
				t.Errorf("with a stamp: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
			if !c.ok && (got.code == 0 || strings.Contains(got.stdout, marker) || !strings.Contains(got.stderr, "expired")) {
				t.Errorf("without: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
			}
		}
	}
}
