package timestamp_test

import (
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
)

// A time stamp of a countersignature means what one of the first signature does; one
// that is broken refuses the artifact, one that does not count makes the
// countersigner not count.
func TestTimeStampsOfCountersignaturesAreJudged(t *testing.T) {
	const bob = "bob@example.com"
	p := testpki.New(t)
	q := testpki.New(t, testpki.LeafEmails(bob), testpki.LeafSerial(77), testpki.LeafKey(testpki.RSA(t, bob, 2048)))
	raw, signature := testagent.Sign(t, p, signedAt)
	good, other := testpki.NewTSA(t, "stamp", testpki.Now), testpki.NewTSA(t, "other stamp", testpki.Now)
	stamped := with(t, raw, good.Token(signature, stampedAt)).Raw
	of := func(tsa *testpki.TSA, change func([]byte) []byte) func([]byte) ([]byte, *verifier.TimeStamp, error) {
		return func(s []byte) ([]byte, *verifier.TimeStamp, error) {
			return tsa.Token(change(s), stampedAt), &verifier.TimeStamp{Time: stampedAt}, nil
		}
	}
	same := func(s []byte) []byte { return s }
	for _, c := range []struct {
		name  string
		raw   []byte
		stamp func([]byte) ([]byte, *verifier.TimeStamp, error)
		knobs []func(*node)
		want  fault.Reason
	}{
		{"stamped", stamped, of(good, same), nil, ""},
		{"stamped, required", stamped, of(good, same), []func(*node){required}, ""},
		{"stamped, all expired since", stamped, of(good, same), []func(*node){later, kept}, ""},
		{"not stamped", stamped, nil, nil, ""},
		{"not stamped, required", stamped, nil, []func(*node){required}, fault.SignersMissing},
		{"not stamped, all expired since", stamped, nil, []func(*node){later, kept}, fault.SignersMissing},
		{"by an authority of nobody", stamped, of(other, same), nil, fault.SignersMissing},
		{"by a revoked authority", raw, of(good, same), []func(*node){func(n *node) { n.stamp = list(testpki.Revoking(good.Cert)) }}, fault.SignersMissing},
		{"invalid since after the stamp", stamped, of(good, same), []func(*node){func(n *node) {
			n.agent = list(testpki.Revoking(q.Leaf), testpki.InvalidSince(stampedAt.Add(time.Minute)))
		}}, ""},
		{"invalid since before the stamp", stamped, of(good, same), []func(*node){func(n *node) {
			n.agent = list(testpki.Revoking(q.Leaf), testpki.InvalidSince(stampedAt.Add(-time.Minute)))
		}}, fault.SignersMissing},
		{"of another signature", stamped, of(good, func([]byte) []byte { return signature }), nil, fault.SignatureInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: c.raw, Key: q.LeafKey, Chain: q.Chain(), Time: signedAt, Stamp: c.stamp})
			if err != nil {
				t.Fatal(err)
			}
			n := newNode(testpki.Now)
			for _, k := range c.knobs {
				k(n)
			}
			n.policy = strings.Replace(n.policy, "    unsigned_containers", `    required_signers: [{at_least: 2, of: ["email:dev@example.com", "email:`+bob+"\"]}]\n    unsigned_containers", 1)
			vd := judge(t, must[*verifier.Verifier](t)(n.verifier(t, p, good)), testagent.Read(t, out))
			expect(t, vd, c.want)
			if c.name == "not stamped, required" && !strings.Contains(vd.Message, "mentatctl countersign --replace --timestamp URL") {
				t.Errorf("%q does not say what the countersigner can do", vd.Message)
			}
			if vd.Allowed && vd.Countersigners[0].Stamped.IsZero() == (c.stamp != nil) {
				t.Errorf("%+v", vd.Countersigners)
			}
		})
	}
	// What the stamp's maker would not have counted is not written.
	_, _, err := verifier.Countersign(verifier.CountersignRequest{Raw: raw, Key: q.LeafKey, Chain: q.Chain(), Time: signedAt, Stamp: func(s []byte) ([]byte, *verifier.TimeStamp, error) {
		return good.Token(s, afterAll), &verifier.TimeStamp{Time: afterAll}, nil
	}})
	if fault.ReasonOf(err) != fault.OutsideValidity {
		t.Errorf("%v", err)
	}
}
