package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testimage"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/pki"
)

const (
	registryHost = "bench.test"
	signerEmail  = "dev@example.com"
	// revoked is how many certificates the agent CA's list names: that of an
	// authority that has been at it for years.
	revoked = 1_000
	// manyRevoked is that of a very large one.
	manyRevoked = 100_000
)

// authority is a CA with key sizes as the product makes them, a developer's
// certificate and a long revocation list.
type authority struct {
	ca    *pki.CA
	key   crypto.Signer
	chain []*x509.Certificate
}

func newAuthority(dir string) (*authority, error) {
	now := time.Now()
	ca, err := pki.Init(filepath.Join(dir, "ca"), pki.InitOptions{UnencryptedRoot: true, Now: now})
	if err != nil {
		return nil, err
	}
	a := &authority{ca: ca}
	keyFile := filepath.Join(dir, "dev.key")
	a.chain, err = ca.RequestCert(pki.CertRequest{
		LeafOptions: pki.LeafOptions{Email: signerEmail, Now: now},
		CertFile:    filepath.Join(dir, "dev.crt"), KeyFile: keyFile,
	})
	if err != nil {
		return nil, err
	}
	if a.key, err = readKey(keyFile); err != nil {
		return nil, err
	}
	return a, a.revokeMany(now, revoked, 1000)
}

func readKey(name string) (crypto.Signer, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return pki.ParseKey(name, data, nil)
}

// revokeMany writes a list of count certificates with a number that follows the
// last one's; revoking one by one would sign as many lists.
func (a *authority) revokeMany(now time.Time, count int, number int64) error {
	key, err := readKey(filepath.Join(a.ca.Dir(), pki.AgentKey))
	if err != nil {
		return err
	}
	entries := make([]x509.RevocationListEntry, count)
	for i := range entries {
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		if err != nil {
			return err
		}
		entries[i] = x509.RevocationListEntry{SerialNumber: serial.Add(serial, big.NewInt(1)), RevocationTime: now}
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour),
		RevokedCertificateEntries: entries,
	}, a.ca.Agent(), key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.ca.Dir(), filepath.FromSlash(pki.AgentCRL)), der, 0o644)
}

// enforce writes policy and trust store into a node's configuration directory:
// agents must be signed, ordinary images need not.
func (a *authority) enforce(configDir string) error {
	_, _, err := a.ca.WriteStarter(configDir, pki.PolicyOptions{
		Match: []string{registryHost + "/**"}, Emails: []string{signerEmail}, AllowUnsignedContainers: true,
	})
	return err
}

// agent builds and signs a WASM agent into a new layout; it returns its
// reference too.
func (a *authority) agent(ctx context.Context, dir, name string, module []byte) (*oci.Layout, ocispec.Descriptor, string, error) {
	var none ocispec.Descriptor
	text := fmt.Sprintf("id: org.example.%s\nversion: 1.0.0\nruntime: wasm\nmodule: agent.wasm\n", name)
	m, err := manifest.Parse("manifest.yaml", []byte(text))
	if err != nil {
		return nil, none, "", err
	}
	l, err := oci.CreateLayout(filepath.Join(dir, name))
	if err != nil {
		return nil, none, "", err
	}
	desc, err := oci.Build(ctx, oci.BuildInput{Agent: m, Module: module}, l)
	if err != nil {
		return nil, none, "", err
	}
	raw, err := oci.ReadBlob(ctx, l, desc, limits.OCIManifestBytes)
	if err != nil {
		return nil, none, "", err
	}
	repository := registryHost + "/" + name
	signed, _, err := verifier.Sign(verifier.SignRequest{
		Raw: raw, Key: a.key, Chain: a.chain, Time: time.Now(),
		Subject: verifier.Subject{ID: m.ID, Version: m.Version, Repository: repository},
	})
	if err != nil {
		return nil, none, "", err
	}
	if desc, err = l.ReplaceManifest(ctx, desc, signed); err != nil {
		return nil, none, "", err
	}
	return l, desc, repository + ":1.0.0", nil
}

// loadImages puts the two images that are compared into the node's store: an
// agent and a container, each of which writes one line.
func loadImages(ctx context.Context, n *node.Node, a *authority) (agent, container string, err error) {
	l, _, agent, err := a.agent(ctx, n.Root, "first", guestFirst)
	if err != nil {
		return "", "", err
	}
	if err := load(ctx, n, l, agent); err != nil {
		return "", "", err
	}
	if l, err = oci.CreateLayout(filepath.Join(n.Root, "busybox")); err != nil {
		return "", "", err
	}
	if _, err := testimage.Busybox(busybox, testimage.Config{Entrypoint: []string{"/bin/echo", "x"}}, l); err != nil {
		return "", "", err
	}
	container = registryHost + "/busybox:1.0.0"
	return agent, container, load(ctx, n, l, container)
}

// load names a layout's one image and imports it, which no verifier sees.
func load(ctx context.Context, n *node.Node, l *oci.Layout, ref string) (err error) {
	root, err := l.Root()
	if err != nil {
		return err
	}
	if err := l.Tag(ctx, root, ref); err != nil {
		return err
	}
	f, err := os.CreateTemp(n.Root, "image-*.tar")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := errors.Join(l.ExportTar(f, ref), f.Close()); err != nil {
		return err
	}
	_, err = n.Ctr(ctx, "images", "import", "--all-platforms", "--local", f.Name())
	return err
}
