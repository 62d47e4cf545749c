package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"

	notationgo "github.com/notaryproject/notation-go"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"
	"github.com/rogpeppe/go-internal/testscript"
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
	repository, err := orasremote.NewRepository(args[0])
	ts.Check(err)
	repository.PlainHTTP = true
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
