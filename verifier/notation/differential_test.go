package notation_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/revocation"
	"github.com/notaryproject/notation-core-go/revocation/crl"
	"github.com/notaryproject/notation-core-go/revocation/purpose"
	"github.com/notaryproject/notation-core-go/revocation/result"
	"github.com/notaryproject/notation-core-go/signature"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// offline fetches revocation lists from memory.
type offline map[string]*x509.RevocationList

func (o offline) Fetch(_ context.Context, url string) (*crl.Bundle, error) {
	list, ok := o[url]
	if !ok {
		return nil, errors.New("no such list")
	}
	return &crl.Bundle{BaseCRL: list}, nil
}

// notationRevoked is notation-core-go's verdict on a chain, by lists in memory.
func notationRevoked(t *testing.T, chain []*x509.Certificate, signedAt time.Time, lists offline) result.Result {
	t.Helper()
	v, err := revocation.NewWithOptions(revocation.Options{CRLFetcher: lists, CertChainPurpose: purpose.CodeSigning})
	if err != nil {
		t.Fatal(err)
	}
	results, err := v.ValidateContext(t.Context(), revocation.ValidateContextOptions{CertChain: chain, AuthenticSigningTime: signedAt})
	if err != nil {
		t.Fatal(err)
	}
	// As notation takes them: revoked outweighs unknown, and what cannot be revoked is
	// not revoked.
	worst := result.ResultOK
	for _, r := range results {
		switch {
		case r.Result == result.ResultRevoked:
			return r.Result
		case r.Result == result.ResultUnknown:
			worst = r.Result
		}
	}
	return worst
}

// The two judge the same chains by the same lists. Where they do not agree, the row
// says why that is as it should be.
func TestOursAndNotationsRevocationDifferOnlyAsExpected(t *testing.T) {
	// notation's clock is the system's.
	present := time.Now().UTC().Truncate(time.Second)
	current := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = present.Add(-time.Hour), present.Add(24*time.Hour)
		for i := range l.RevokedCertificateEntries {
			l.RevokedCertificateEntries[i].RevocationTime = present.Add(-2 * time.Hour)
		}
	}
	over := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = present.Add(-48*time.Hour), present.Add(-time.Hour)
	}
	future := func(l *x509.RevocationList) { l.ThisUpdate = present.Add(12 * time.Hour) }
	plain := testpki.New(t, now)
	other := testpki.New(t, now, testpki.LeafSerial(9))
	for name, c := range map[string]struct {
		pki         *testpki.PKI
		agent, root []testpki.CRLKnob
		without     bool // the agent CA's list is not to be had
		theirs      result.Result
		ours        fault.Reason
		why         string
	}{
		"not revoked":            {pki: plain, theirs: result.ResultOK},
		"revoked":                {pki: plain, agent: []testpki.CRLKnob{testpki.Revoking(plain.Leaf), current}, theirs: result.ResultRevoked, ours: fault.Revoked},
		"another is revoked":     {pki: plain, agent: []testpki.CRLKnob{testpki.Revoking(other.Leaf), current}, theirs: result.ResultOK},
		"issuer revoked":         {pki: plain, root: []testpki.CRLKnob{testpki.Revoking(plain.Agent), current}, theirs: result.ResultRevoked, ours: fault.Revoked},
		"list out of date":       {pki: plain, agent: []testpki.CRLKnob{over}, theirs: result.ResultUnknown, ours: fault.RevocationUnknown},
		"list of another issuer": {pki: testpki.New(t, now, testpki.AgentKey(testpki.RSA(t, "other agent", 2048))), theirs: result.ResultUnknown, ours: fault.RevocationUnknown},
		"no list":                {pki: plain, without: true, theirs: result.ResultUnknown, ours: fault.RevocationUnknown},
		"list from the future": {pki: plain, agent: []testpki.CRLKnob{future}, theirs: result.ResultOK, ours: fault.RevocationUnknown,
			why: "notation asks a list's end only; a clock that is behind must not make a list of tomorrow count here"},
		"never revocable, and no list": {pki: testpki.New(t, now, testpki.LeafWithoutCRL), without: true, theirs: result.ResultOK, ours: fault.RevocationUnknown,
			why: "notation lets by what names no list; here what could never be revoked is no signer"},
		"never revocable, but the policy has a list": {pki: testpki.New(t, now, testpki.LeafWithoutCRL), theirs: result.ResultOK},
		"revoked without naming a list": {pki: testpki.New(t, now, testpki.LeafWithoutCRL), agent: []testpki.CRLKnob{testpki.Revoking(plain.Leaf), current}, theirs: result.ResultOK, ours: fault.Revoked,
			why: "notation asks the lists that a certificate names, we those of its issuer"},
		"key compromised after it signed, as the signer says": {pki: plain, agent: []testpki.CRLKnob{testpki.Revoking(plain.Leaf), current, testpki.InvalidSince(present.Add(-30 * time.Minute))}, theirs: result.ResultOK, ours: fault.Revoked,
			why: "notation believes the signer's own time here, which whoever has the key can set; we ask for a time stamp"},
	} {
		t.Run(name, func(t *testing.T) {
			// The lists are those of the plain authority, at the addresses in its certificates.
			parse := func(der []byte) *x509.RevocationList {
				list, err := x509.ParseRevocationList(der)
				if err != nil {
					t.Fatal(err)
				}
				return list
			}
			agentList := plain.AgentCRL(append([]testpki.CRLKnob{current}, c.agent...)...)
			rootList := plain.RootCRL(append([]testpki.CRLKnob{current}, c.root...)...)
			later := present.Add(13 * time.Hour) // else one from the future was never taken in
			lists := offline{"http://pki.example/crl/root.crl": parse(rootList)}
			indexes := verifier.Indexes{compiled(t, rootList, plain.Root, later)}
			if !c.without {
				lists["http://pki.example/crl/agent.crl"] = parse(agentList)
				indexes = append(indexes, compiled(t, agentList, plain.Agent, later))
			}
			signedAt := present.Add(-time.Hour)
			chain := append(c.pki.Chain(), c.pki.Root)
			theirs := notationRevoked(t, chain, signedAt, lists)

			a := agent(t)
			e := good(t, c.pki, a, func(o *signature.SignRequest) { o.SigningTime = signedAt })
			v := judges{pki: plain, clock: func() time.Time { return present }, config: func(cfg *verifier.Config) { cfg.Revocation = indexes }}
			ours := v.verifier(t).Verify(t.Context(), verifier.Input{Reference: agentRef, Artifact: a, Envelopes: []verifier.Envelope{e}})
			if theirs != c.theirs || ours.Reason != c.ours {
				t.Errorf("notation says %s, wanted is %s; ours %q, wanted is %q", theirs, c.theirs, ours.Line(), c.ours)
			}
			agree := theirs == result.ResultOK && ours.Allowed || theirs == result.ResultRevoked && ours.Reason == fault.Revoked ||
				theirs == result.ResultUnknown && ours.Reason == fault.RevocationUnknown
			if agree != (c.why == "") {
				t.Errorf("they agree: %t; the row says %q", agree, c.why)
			}
			if ours.Allowed && theirs != result.ResultOK {
				t.Error("we accept what notation does not")
			}
		})
	}
}

func compiled(t *testing.T, der []byte, issuer *x509.Certificate, at time.Time) *verifier.CRLIndex {
	t.Helper()
	ix, err := verifier.CompileCRL(der, issuer, verifier.CRLOrigin{}, at)
	if err != nil {
		t.Fatal(err)
	}
	return ix
}
