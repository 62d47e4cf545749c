package verifier

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

func request(tb testing.TB, p *testpki.PKI) SignRequest {
	return SignRequest{Raw: wasmAgent(tb), Key: p.LeafKey, Chain: p.Chain(), Time: testpki.Now, Subject: subject()}
}

func TestSignedIsReadBackAsItWasAsked(t *testing.T) {
	end := testpki.Now.Add(time.Hour)
	for _, c := range []struct {
		key       crypto.Signer
		algorithm string
		want      string
	}{
		{testpki.RSA(t, "leaf", 2048), "", AlgorithmRSA},
		{testpki.RSA(t, "leaf", 2048), AlgorithmRSA, AlgorithmRSA},
		{testpki.RSA(t, "leaf", 2048), AlgorithmRSAPSS, AlgorithmRSAPSS},
		{testpki.EC(t, "leaf", elliptic.P256()), "", AlgorithmECDSA},
		{testpki.EC(t, "leaf", elliptic.P384()), AlgorithmECDSA, AlgorithmECDSA},
	} {
		p := testpki.New(t, testpki.LeafKey(c.key))
		req := request(t, p)
		req.Algorithm, req.NotAfter = c.algorithm, &end
		req.Chain = append(req.Chain, p.Root) // left out of the block
		signed, block, err := Sign(req)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ReadAttestation(signed)
		if err != nil {
			t.Fatal(err)
		}
		if a.Algorithm != c.want || a.Subject != subject() || a.Timestamp != "2026-01-15T10:30:00Z" || a.NotAfter != "2026-01-15T11:30:00Z" || len(a.Chain) != 2 {
			t.Errorf("%+v", a.Block)
		}
		if got := string(marshal(t, a.Block)); got != string(block) || !bytes.Contains(signed, []byte(strings.ReplaceAll(strings.ReplaceAll(got, `\`, `\\`), `"`, `\"`))) {
			t.Errorf("the block is not what is in the manifest: %s", got)
		}
		if err := a.CheckSignature(); err != nil {
			t.Error(err)
		}
	}
}

func TestSigningAgainReplaces(t *testing.T) {
	p := testpki.New(t)
	req := request(t, p)
	once, _, err := Sign(req)
	if err != nil {
		t.Fatal(err)
	}
	req.Raw = once
	twice, _, err := Sign(req)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(once, twice) {
		t.Error("signing what is signed gives something else")
	}
	if a, err := ReadAttestation(once); err != nil || a.SignedDigest == "" {
		t.Error(err)
	}
}

func TestSignRefuses(t *testing.T) {
	p := testpki.New(t)
	other := testpki.New(t, testpki.AgentKey(testpki.RSA(t, "other agent", 2048)))
	for name, c := range map[string]struct {
		edit func(*SignRequest)
		want fault.Reason
	}{
		"no key":               {func(r *SignRequest) { r.Key = nil }, fault.Usage},
		"no certificate":       {func(r *SignRequest) { r.Chain = nil }, fault.Usage},
		"a root only":          {func(r *SignRequest) { r.Chain = []*x509.Certificate{p.Root} }, fault.Usage},
		"another key":          {func(r *SignRequest) { r.Key = testpki.RSA(t, "mallory", 2048) }, fault.SignatureInvalid},
		"a broken key":         {func(r *SignRequest) { r.Key = brokenKey{r.Key} }, fault.Internal},
		"a lying key":          {func(r *SignRequest) { r.Key = lyingKey{r.Key} }, fault.SignatureInvalid},
		"wrong algorithm":      {func(r *SignRequest) { r.Algorithm = AlgorithmECDSA }, fault.SignatureInvalid},
		"expired":              {func(r *SignRequest) { r.Time = r.Time.AddDate(2, 0, 0) }, fault.OutsideValidity},
		"not yet valid":        {func(r *SignRequest) { r.Time = r.Time.AddDate(-2, 0, 0) }, fault.OutsideValidity},
		"ends before it began": {func(r *SignRequest) { r.NotAfter = &time.Time{} }, fault.AttestationFormat},
		"wrong usage":          {func(r *SignRequest) { r.Chain = testpki.New(t, testpki.LeafForTLS).Chain() }, fault.ChainUntrusted},
		"weak key": {func(r *SignRequest) {
			weak := testpki.New(t, testpki.LeafKey(testpki.RSA(t, "weak", 1024)))
			r.Key, r.Chain = weak.LeafKey, weak.Chain()
		}, fault.ChainUntrusted},
		"wrong chain":         {func(r *SignRequest) { r.Chain = []*x509.Certificate{p.Leaf, other.Agent} }, fault.ChainUntrusted},
		"chain out of order":  {func(r *SignRequest) { r.Chain = []*x509.Certificate{p.Agent, p.Leaf} }, fault.ChainUntrusted},
		"no subject":          {func(r *SignRequest) { r.Subject = Subject{} }, fault.AttestationFormat},
		"repository with tag": {func(r *SignRequest) { r.Subject.Repository = ref }, fault.AttestationFormat},
		"subject too long":    {func(r *SignRequest) { r.Subject.ID = strings.Repeat("x", 70000) }, fault.AttestationFormat},
		"not a manifest":      {func(r *SignRequest) { r.Raw = []byte("{}") }, fault.ArtifactInvalid},
		"an index": {func(r *SignRequest) {
			r.Raw = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
		}, fault.ArtifactInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, p)
			c.edit(&req)
			signed, block, err := Sign(req)
			if fault.ReasonOf(err) != c.want || signed != nil || block != nil {
				t.Errorf("got %v (%s), want %s", err, fault.ReasonOf(err), c.want)
			}
		})
	}
}

type brokenKey struct{ crypto.Signer }

func (brokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("token removed")
}

type lyingKey struct{ crypto.Signer }

func (lyingKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 256), nil
}

func TestSignedBytesAreDSSEs(t *testing.T) {
	if got := string(pae("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Errorf("%q", got)
	}
}

func TestParseChainReadsFilesStrictly(t *testing.T) {
	p := testpki.New(t)
	good := testpki.PEM(p.Chain()...)
	for name, c := range map[string]struct {
		data []byte
		n    int
	}{
		"two":        {good, 2},
		"with space": {append([]byte("\n\n"), append(good, "\n\n"...)...), 2},
		"empty":      {nil, 0},
		"key":        {append(bytes.Clone(good), testpki.KeyPEM(t, p.LeafKey)...), 0},
		"text":       {append([]byte("my chain\n"), good...), 0},
		"text after": {append(bytes.Clone(good), "the end"...), 0},
		"oversized":  {bytes.Repeat(good, 100), 0},
		"damaged":    {encodePEM([]byte("x")), 0},
	} {
		chain, err := ParseChain("file", c.data)
		if len(chain) != c.n || (err == nil) != (c.n > 0) || err != nil && fault.ReasonOf(err) != fault.ChainUntrusted {
			t.Errorf("%s: %d certificates, %v", name, len(chain), err)
		}
	}
}

// FuzzReadAttestation: of all manifests only what was signed verifies, and
// whatever else fuzzing makes of it has no effect on what that is.
func FuzzReadAttestation(f *testing.F) {
	v, _ := frozenNode(f)
	good, signed := map[string]bool{}, map[string]bool{}
	for _, vec := range frozen(f) {
		raw := vec.raw(f)
		f.Add(raw)
		a, err := ReadAttestation(raw)
		if err != nil || a.CheckSignature() != nil {
			continue
		}
		// Also those that are refused for another reason than their signature.
		signed[string(a.SignedBytes)] = true
		if vec.expect == "" {
			good[string(a.SignedBytes)] = true
		}
	}
	// Those of another authority, which this node does not know.
	for _, vec := range frozenIn(f, frozenCountersigned, countersignedVectors) {
		raw := vec.raw(f)
		f.Add(raw)
		if a, err := ReadAttestation(raw); err == nil && a.CheckSignature() == nil {
			signed[string(a.SignedBytes)] = true
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := ReadAttestation(raw)
		if err != nil {
			if a != nil {
				t.Fatal("an attestation beside an error")
			}
			return
		}
		// The one canonical form: it is rebuilt from what was understood.
		if again := annotate(t, raw, string(marshal(t, a.Block))); !bytes.Equal(again, raw) {
			t.Fatal("read something else than is there")
		}
		if a.CheckSignature() == nil && !signed[string(a.SignedBytes)] {
			t.Fatalf("a signature nobody made:\n%s", raw)
		}
		vd := judgeRaw(t, v, raw)
		if vd.Allowed && !good[string(a.SignedBytes)] {
			t.Fatalf("allowed: %s\n%s", vd.Line(), raw)
		}
	})
}

// FuzzPEMChain: what parses is PEM of itself, and only our own chain leads to
// our root.
func FuzzPEMChain(f *testing.F) {
	_, p := frozenNode(f)
	for _, vec := range frozen(f) {
		a, err := ReadAttestation(vec.raw(f))
		if err != nil {
			continue
		}
		f.Add(a.CertificateChain[0], strings.Join(a.CertificateChain[1:], ""))
		if vec.name == "good" {
			p.Leaf = a.Chain[0]
		}
	}
	f.Add(string(testpki.PEM(p.Root)), string(testpki.PEM(p.Root)))
	f.Add(string(testpki.PEM(p.Agent)), string(testpki.PEM(p.Leaf)))
	roots := x509.NewCertPool()
	roots.AddCert(p.Root)
	f.Fuzz(func(t *testing.T, first, second string) {
		texts := []string{first}
		if second != "" {
			texts = append(texts, second)
		}
		chain, err := parseBlockChain(texts)
		if err != nil {
			if chain != nil {
				t.Fatal("a chain beside an error")
			}
			return
		}
		for i, c := range chain {
			if string(testpki.PEM(c)) != texts[i] {
				t.Fatal("read something else than is there")
			}
		}
		path, err := verifyChain(chain, roots, testpki.Now, nil)
		if err == nil && (len(path) != 3 || !path[0].Equal(chain[0]) || !path[1].Equal(p.Agent) || !path[2].Equal(p.Root) || path[0].CheckSignatureFrom(p.Agent) != nil) {
			t.Fatalf("a path nobody issued: %v", path)
		}
		if fromFile, err := ParseChain("fuzz", []byte(first+second)); err != nil || len(fromFile) != len(chain) {
			t.Fatalf("a file of the same certificates reads otherwise: %v", err)
		}
	})
}
