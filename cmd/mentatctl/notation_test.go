package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"

	notationgo "github.com/notaryproject/notation-go"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/signer"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"
	"github.com/rogpeppe/go-internal/testscript"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	orasremote "oras.land/oras-go/v2/registry/remote"
)

// roots is notation's trust store, in memory.
type roots []*x509.Certificate

func (r roots) GetCertificates(context.Context, truststore.Type, string) ([]*x509.Certificate, error) {
	return r, nil
}

// notationVerify is `notation REPOSITORY TAG ROOT`: notation's own client finds
// the signature in the registry and judges it.
func notationVerify(ts *testscript.TestScript, neg bool, args []string) {
	block, _ := pem.Decode([]byte(ts.ReadFile(args[2])))
	root, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	v, err := verifier.New(&trustpolicy.Document{
		Version: "1.0",
		TrustPolicies: []trustpolicy.TrustPolicy{{
			Name: "agents", RegistryScopes: []string{args[0]}, TrustStores: []string{"ca:agents"}, TrustedIdentities: []string{"*"},
			// The transcript's authority serves no lists.
			SignatureVerification: trustpolicy.SignatureVerification{
				VerificationLevel: "strict",
				Override:          map[trustpolicy.ValidationType]trustpolicy.ValidationAction{trustpolicy.TypeRevocation: trustpolicy.ActionSkip},
			},
		}},
	}, roots{root}, nil)
	ts.Check(err)
	repository := notationRepository(ts, args[0])
	ctx := context.Background()
	found, err := repository.Resolve(ctx, args[1])
	ts.Check(err)
	_, outcomes, err := notationgo.Verify(ctx, v, notationregistry.NewRepository(repository), notationgo.VerifyOptions{
		ArtifactReference: args[0] + "@" + found.Digest.String(), MaxSignatureAttempts: 10,
	})
	if neg != (err != nil) {
		ts.Fatalf("notation says %v, of %d signatures", err, len(outcomes))
	}
}

// notationSign is `notation-sign REPOSITORY TAG TYPE KEY CHAIN ROOT`: notation's own
// client signs what the tag means, with an envelope of the type, and attaches it.
func notationSign(ts *testscript.TestScript, _ bool, args []string) {
	block, _ := pem.Decode([]byte(ts.ReadFile(args[3])))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	var chain []*x509.Certificate
	for rest := []byte(ts.ReadFile(args[4]) + ts.ReadFile(args[5])); ; {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		ts.Check(err)
		chain = append(chain, c)
	}
	by, err := signer.NewGenericSigner(key, chain)
	ts.Check(err)
	repository := notationRepository(ts, args[0])
	ctx := context.Background()
	found, err := repository.Resolve(ctx, args[1])
	ts.Check(err)
	_, err = notationgo.Sign(ctx, by, notationregistry.NewRepository(repository), notationgo.SignOptions{
		ArtifactReference: args[0] + "@" + found.Digest.String(),
		SignerSignOptions: notationgo.SignerSignOptions{SignatureMediaType: args[2], SigningAgent: "test"},
		UserMetadata:      map[string]string{"build": "1"},
	})
	ts.Check(err)
}

func notationRepository(ts *testscript.TestScript, name string) *orasremote.Repository {
	repository, err := orasremote.NewRepository(name)
	ts.Check(err)
	repository.PlainHTTP = true
	return repository
}

// copyLayout is `oras-copy REPOSITORY TAG DIR`: a layout of what the tag means, with all
// that refers to it.
func copyLayout(ts *testscript.TestScript, _ bool, args []string) {
	store, err := oci.New(ts.MkAbs(args[2]))
	ts.Check(err)
	_, err = oras.ExtendedCopy(context.Background(), notationRepository(ts, args[0]), args[1], store, args[1], oras.DefaultExtendedCopyOptions)
	ts.Check(err)
}
