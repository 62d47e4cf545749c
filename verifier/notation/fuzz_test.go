package notation_test

import (
	"encoding/json"
	"testing"

	"github.com/notaryproject/notation-core-go/signature"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/notation"
)

// What is accepted is what notation-core-go verifies, is about the target, and means
// nothing that nobody here knows.
func FuzzReadEnvelope(f *testing.F) {
	p, a := testpki.New(f), agent(f)
	target := verifier.Target(a)
	for _, mediaType := range []string{notation.MediaType, notation.MediaTypeCOSE} {
		f.Add(mediaType, signed(f, mediaType, order(f, p, target)).Data)
	}
	for _, c := range hostile(f, p, a) {
		if len(c.Data) <= limits.EnvelopeBytes {
			f.Add(c.MediaType, c.Data)
		}
	}
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		content, err := notation.Reader{}.ReadEnvelope(verifier.Envelope{MediaType: mediaType, Data: data}, target)
		if err != nil {
			if content != nil {
				t.Error("there is content beside an error")
			}
			return
		}
		if len(data) > limits.EnvelopeBytes || len(content.Chain) == 0 || len(content.Chain) > limits.ChainCertificates+1 {
			t.Errorf("%d bytes, %d certificates", len(data), len(content.Chain))
		}
		read, err := signature.ParseEnvelope(mediaType, data)
		if err != nil {
			t.Fatal(err)
		}
		core, err := read.Verify()
		if err != nil {
			t.Fatalf("notation-core-go refuses it: %v", err)
		}
		var said struct {
			Target ocispec.Descriptor `json:"targetArtifact"`
		}
		if err := json.Unmarshal(core.Payload.Content, &said); err != nil {
			t.Fatal(err)
		}
		if d := said.Target; d.Digest != target.Digest || d.Size != target.Size || d.MediaType != target.MediaType || core.Payload.ContentType != payloadType {
			t.Errorf("it is about %+v, a %s", d, core.Payload.ContentType)
		}
		if core.SignerInfo.SignedAttributes.SigningScheme != signature.SigningSchemeX509 {
			t.Errorf("it is of the scheme %s", core.SignerInfo.SignedAttributes.SigningScheme)
		}
	})
}
