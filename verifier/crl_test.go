package verifier

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// issuingPoint makes a list speak for one distribution point only.
func issuingPoint(uri string) testpki.CRLKnob {
	der, err := asn1.Marshal(struct {
		Point struct {
			FullName []asn1.RawValue `asn1:"tag:0"`
		} `asn1:"tag:0"`
	}{struct {
		FullName []asn1.RawValue `asn1:"tag:0"`
	}{[]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}}}})
	if err != nil {
		panic(err)
	}
	return testpki.WithExtension(oidIssuingPoint, true, der)
}

func bigList(n int) testpki.CRLKnob {
	return func(l *x509.RevocationList) {
		for i := range n {
			serial := new(big.Int).Lsh(big.NewInt(int64(i*7919+1)), 64)
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: testpki.Now})
		}
	}
}

func compile(p *testpki.PKI, der []byte) (*CRLIndex, error) {
	return CompileCRL(der, p.Agent, CRLOrigin{URL: "http://pki.example/agent.crl", Fetched: testpki.Now}, testpki.Now)
}

func TestCompileCRLRefuses(t *testing.T) {
	p := testpki.New(t)
	other := testpki.New(t, testpki.AgentKey(testpki.RSA(t, "other agent", 2048)))
	noSign := testpki.New(t, func(r *testpki.Recipe) { r.Agent.KeyUsage = x509.KeyUsageCertSign })
	good := p.AgentCRL(testpki.Revoking(p.Leaf))
	flip := func(at int) []byte {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		return bad
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good})
	for _, c := range []struct {
		name   string
		der    []byte
		issuer *x509.Certificate
		says   string // "" for accepted
	}{
		{"good", good, p.Agent, ""},
		{"good in PEM", asPEM, p.Agent, ""},
		{"empty", nil, p.Agent, "malformed"},
		{"cut off", good[:len(good)-1], p.Agent, "malformed"},
		{"trailing", append(bytes.Clone(good), 0), p.Agent, "malformed"},
		{"two in PEM", append(bytes.Clone(asPEM), asPEM...), p.Agent, "not one PEM"},
		{"certificate in PEM", testpki.PEM(p.Root), p.Agent, "not one PEM"},
		{"signature damaged", flip(len(good) - 1), p.Agent, "not signed"},
		{"CRL from another issuer", p.RootCRL(), p.Agent, "was issued by"},
		{"CRL from another key of that name", other.AgentCRL(), p.Agent, "not signed"},
		{"issuer that may not sign lists", testpki.CRL(t, p.Agent, p.AgentKey), noSign.Agent, "not signed"},
		{"SHA-1", sha1List(t, p), p.Agent, "not allowed"},
		{"from the future", p.AgentCRL(testpki.Until(testpki.Now.Add(48 * time.Hour))), p.Agent, "from the future"},
		{"delta", p.AgentCRL(testpki.WithExtension(oidDeltaCRL, true, []byte{2, 1, 1})), p.Agent, "delta"},
		{"unknown critical extension", p.AgentCRL(testpki.WithExtension([]int{1, 2, 3}, true, []byte{5, 0})), p.Agent, "unknown critical"},
		{"unknown extension", p.AgentCRL(testpki.WithExtension([]int{1, 2, 3}, false, []byte{5, 0})), p.Agent, ""},
		{"issuing point", p.AgentCRL(issuingPoint("http://x/y")), p.Agent, ""},
		{"users only", p.AgentCRL(testpki.WithExtension(oidIssuingPoint, true, []byte{0x30, 3, 0x81, 1, 0xff})), p.Agent, "only a part"},
		{"indirect", p.AgentCRL(testpki.WithExtension(oidIssuingPoint, true, []byte{0x30, 3, 0x84, 1, 0xff})), p.Agent, "only a part"},
		{"empty issuing point", p.AgentCRL(testpki.WithExtension(oidIssuingPoint, true, []byte{0x30, 0})), p.Agent, "only a part"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ix, err := CompileCRL(c.der, c.issuer, CRLOrigin{}, testpki.Now)
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if ix != nil || fault.ReasonOf(err) != fault.RevocationUnknown || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// sha1List claims an algorithm that the standard library signs with no longer.
func sha1List(t *testing.T, p *testpki.PKI) []byte {
	t.Helper()
	oid := func(last byte) []byte { return []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last} }
	out := bytes.ReplaceAll(p.AgentCRL(), oid(11), oid(5))
	if !bytes.Contains(out, oid(5)) {
		t.Fatal("no algorithm replaced")
	}
	return out
}

// resum gives an index file the checksum that belongs to its front.
func resum(data []byte) []byte {
	if len(data) < len(crlMagic)+4 {
		return data
	}
	out := bytes.Clone(data)
	n := int(binary.BigEndian.Uint32(data[len(crlMagic):]))
	var head crlHead
	start := len(crlMagic) + 4
	if n > maxHeadBytes || start+n > len(data) || json.Unmarshal(data[start:start+n], &head) != nil || head.Count < 0 || head.Count > maxCRLEntries {
		return data
	}
	end := start + n + (head.Count+crlBlockEntries-1)/crlBlockEntries*crlTableBytes
	if end+sha256.Size > len(out) {
		return data
	}
	sum := sha256.Sum256(out[:end])
	copy(out[end:], sum[:])
	return out
}

func TestLookupFindsWhatTheListSays(t *testing.T) {
	p := testpki.New(t)
	der := p.AgentCRL(bigList(1000), testpki.Revoking(p.Leaf))
	ix, err := compile(p, der)
	if err != nil {
		t.Fatal(err)
	}
	if ix.head.Count != 1001 || ix.number.Int64() != 1 {
		t.Errorf("%d entries, number %s", ix.head.Count, ix.number)
	}
	for i := range 1000 {
		serial := new(big.Int).Lsh(big.NewInt(int64(i*7919+1)), 64)
		if _, ok, _ := ix.lookup(serial); !ok {
			t.Fatalf("%x is not found", serial)
		}
		if _, ok, _ := ix.lookup(serial.Add(serial, big.NewInt(1))); ok {
			t.Fatalf("%x is found", serial)
		}
	}
	e, ok, _ := ix.lookup(p.Leaf.SerialNumber)
	if !ok || e.reason != 1 || !e.at.Equal(testpki.Now.Add(-time.Hour)) {
		t.Errorf("%+v, %v", e, ok)
	}
	for _, n := range []*big.Int{big.NewInt(0), big.NewInt(-1), new(big.Int).Lsh(big.NewInt(1), 160)} {
		if _, ok, _ := ix.lookup(n); ok {
			t.Errorf("%s is found", n)
		}
	}
}

func TestALowerNumberIsRefused(t *testing.T) {
	p := testpki.New(t)
	dir := t.TempDir()
	store := func(knobs ...testpki.CRLKnob) error {
		ix, err := compile(p, p.AgentCRL(knobs...))
		if err != nil {
			t.Fatal(err)
		}
		return StoreIndex(dir, p.Agent, ix)
	}
	for _, c := range []struct {
		number int64
		until  time.Time
		ok     bool
	}{
		{5, testpki.Now.Add(10 * time.Hour), true},
		{5, testpki.Now.Add(10 * time.Hour), true},
		{5, testpki.Now.Add(11 * time.Hour), true},
		{5, testpki.Now.Add(9 * time.Hour), false},
		{4, testpki.Now.Add(20 * time.Hour), false},
		{6, testpki.Now.Add(1 * time.Hour), true},
	} {
		if err := store(testpki.Numbered(c.number), testpki.Until(c.until)); (err == nil) != c.ok {
			t.Errorf("number %d until %s: %v", c.number, c.until, err)
		}
	}
	got, err := LoadIndex(dir, p.Agent)
	if err != nil || got.Number().Int64() != 6 {
		t.Errorf("%v, %v", got, err)
	}
	if ix, err := LoadIndex(dir, p.Root); ix != nil || err != nil {
		t.Errorf("another issuer's index: %v, %v", ix, err)
	}
	if err := StoreIndex(dir, p.Root, got); err == nil {
		t.Error("stored under another issuer")
	}
}

func TestADamagedIndexIsAnErrorAndIsReplaced(t *testing.T) {
	p := testpki.New(t)
	dir := t.TempDir()
	ix, err := compile(p, p.AgentCRL())
	if err != nil {
		t.Fatal(err)
	}
	if err := StoreIndex(dir, p.Agent, ix); err != nil {
		t.Fatal(err)
	}
	path := indexPath(dir, issuerKey(p.Agent))
	good := mustRead(t, path)
	for _, bad := range [][]byte{{}, good[:10], good[:len(good)-1], append(bytes.Clone(good), 0), bytes.Replace(good, []byte("MENTATCRL2"), []byte("MENTATCRL1"), 1)} {
		if err := os.WriteFile(path, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadIndex(dir, p.Agent); got != nil || fault.ReasonOf(err) != fault.RevocationUnknown {
			t.Errorf("%v, %v", got, err)
		}
	}
	if err := StoreIndex(dir, p.Agent, ix); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadIndex(dir, p.Agent); err != nil || got == nil {
		t.Errorf("%v, %v", got, err)
	}
}

// A look-up reads one block. What is damaged there is no "not revoked", and what
// is damaged elsewhere is found when it is used.
func TestADamagedBlockIsNoAnswer(t *testing.T) {
	p := testpki.New(t)
	dir := t.TempDir()
	ix, err := compile(p, p.AgentCRL(bigList(1000), testpki.Revoking(p.Leaf)))
	if err != nil {
		t.Fatal(err)
	}
	if err := StoreIndex(dir, p.Agent, ix); err != nil {
		t.Fatal(err)
	}
	path := indexPath(dir, issuerKey(p.Agent))
	good := mustRead(t, path)
	front, err := ix.front()
	if err != nil {
		t.Fatal(err)
	}
	last := new(big.Int).Lsh(big.NewInt(999*7919+1), 64)
	for _, c := range []struct {
		name     string
		offset   int
		loads    bool
		leaf, it bool // look-ups that answer
	}{
		{"none", -1, true, true, true},
		{"the first block", len(front) + maxSerialBytes, true, false, true},
		{"the last block", len(good) - 1, true, true, false},
		{"the table", len(front) - sha256.Size - 1, false, false, false},
		{"the head", 40, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := bytes.Clone(good)
			if c.offset >= 0 {
				bad[c.offset] ^= 1
			}
			if err := os.WriteFile(path, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			ix, err := LoadIndex(dir, p.Agent)
			if (err == nil) != c.loads {
				t.Fatalf("%v", err)
			}
			if ix == nil {
				return
			}
			for serial, answers := range map[*big.Int]bool{p.Leaf.SerialNumber: c.leaf, last: c.it} {
				_, found, err := ix.lookup(serial)
				if found != answers || (err == nil) != answers || err != nil && fault.ReasonOf(err) != fault.RevocationUnknown {
					t.Errorf("%x: %v, %v", serial, found, err)
				}
			}
			a := read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))
			rootList, err := CompileCRL(p.RootCRL(), p.Root, CRLOrigin{}, testpki.Now)
			if err != nil {
				t.Fatal(err)
			}
			store, err := NewStore("agents", p.Root)
			if err != nil {
				t.Fatal(err)
			}
			v, err := New(Config{Policy: policy(t, testPolicy), Stores: map[string]*Store{"agents": store}, Revocation: Indexes{rootList, ix}, Clock: testpki.Clock})
			if err != nil {
				t.Fatal(err)
			}
			want := fault.RevocationUnknown
			if c.leaf {
				want = fault.Revoked
			}
			expect(t, v.Verify(t.Context(), Input{Reference: ref, Artifact: a}), want)
		})
	}
}

func TestAnECIssuersListCounts(t *testing.T) {
	key := testpki.EC(t, "agent", elliptic.P384())
	p := testpki.New(t, testpki.AgentKey(key))
	n := newNode(p)
	expect(t, n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))}), "")
	n.agent = p.AgentCRL(testpki.Revoking(p.Leaf))
	expect(t, n.verifier(t).Verify(t.Context(), Input{Reference: ref, Artifact: read(t, mustSign(t, wasmAgent(t), p.LeafKey, p.Chain()))}), fault.Revoked)
}

// FuzzCRLIndex: what decodes encodes to the same bytes and is in order, so that
// the binary search finds everything in it.
func FuzzCRLIndex(f *testing.F) {
	_, p := frozenNode(f)
	der := mustRead(f, filepath.Join(frozenDir, "agent.crl"))
	ix, err := compile(p, der)
	if err != nil {
		f.Fatal(err)
	}
	empty := &CRLIndex{head: ix.head, number: ix.number}
	empty.hold(nil)
	for _, ix := range []*CRLIndex{ix, empty} {
		data, err := ix.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(der)
	f.Add(mustRead(f, filepath.Join(frozenDir, "root.crl")))
	f.Fuzz(func(t *testing.T, data []byte) {
		// As a list: nothing that we did not sign compiles.
		if ix, err := compile(p, data); err == nil {
			list, perr := x509.ParseRevocationList(data)
			if perr != nil || list.CheckSignatureFrom(p.Agent) != nil {
				t.Fatal("an unsigned list compiled")
			}
			for _, e := range list.RevokedCertificateEntries {
				if _, ok, _ := ix.lookup(e.SerialNumber); !ok {
					t.Fatalf("%s is lost", e.SerialNumber)
				}
			}
		}
		// As an index, with the checksum made right, so that fuzzing gets past it.
		for _, in := range [][]byte{data, resum(data)} {
			ix, err := openIndex(bytes.NewReader(in), int64(len(in)))
			if err != nil {
				if ix != nil {
					t.Fatal("an index beside an error")
				}
				continue
			}
			again, err := ix.encode()
			if err != nil {
				continue // a block is damaged, and says so when it is used
			}
			if !bytes.Equal(again, in) {
				t.Fatal("another encoding")
			}
			for i := range ix.blocks {
				block, err := ix.block(i)
				if err != nil {
					t.Fatal(err)
				}
				for k := range len(block) / crlEntryBytes {
					serial := new(big.Int).SetBytes(serialAt(block, k))
					if _, ok, err := ix.lookup(serial); (!ok || err != nil) && serial.Sign() > 0 {
						t.Fatalf("entry %d of block %d is not found", k, i)
					}
				}
			}
		}
	})
}

func TestIndexesPickTheNewest(t *testing.T) {
	p := testpki.New(t)
	var lists Indexes
	for _, n := range []int64{3, 9, 4} {
		ix, err := compile(p, p.AgentCRL(testpki.Numbered(n)))
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, ix)
	}
	if ix, err := lists.Index(p.Agent); err != nil || ix.number.Int64() != 9 {
		t.Errorf("%v, %v", ix, err)
	}
	if ix, err := lists.Index(p.Root); ix != nil || err != nil {
		t.Errorf("%v, %v", ix, err)
	}
}
