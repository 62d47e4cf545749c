package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

// Bounds of a token's life.
const (
	DefaultTokenLife = day
	MaxTokenLife     = 30 * day
)

const (
	// tokenPrefix lets people and scanners of secrets tell what it is.
	tokenPrefix = "mentat-enrol-" // #nosec G101 -- what secrets begin with
	tokenBytes  = 32
	// maxTokens bounds those that wait: each is one line that somebody asked for.
	maxTokens = 100_000
)

// Token is what is kept of an enrolment token: all but the secret, of which only
// a hash is on disk.
type Token struct {
	// Email is whom it is for.
	Email   string    `json:"email"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// Serial and Key are what it was used for; empty until then.
	Serial string `json:"serial,omitempty"`
	Key    string `json:"key,omitempty"`
}

// NewToken makes a token with which whoever holds it gets one certificate for
// the address, and returns the secret, which cannot be had again. life is at most
// [MaxTokenLife], by default [DefaultTokenLife].
func (ca *CA) NewToken(email string, life time.Duration, now time.Time) (secret string, t *Token, err error) {
	if email, err = normalEmail(email); err != nil {
		return "", nil, err
	}
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < time.Minute || life > MaxTokenLife {
		return "", nil, fault.New(fault.Usage, "token", "its life of %s is not between a minute and %s", life, MaxTokenLife)
	}
	random := make([]byte, tokenBytes)
	if _, err := rand.Read(random); err != nil {
		return "", nil, fault.Wrap(err, fault.Internal, "token", "no randomness")
	}
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(random)
	t = &Token{Email: email, Created: now.UTC(), Expires: now.Add(life).UTC()}
	err = ca.update(func(d database) error {
		if err := d.forgetTokens(now); err != nil {
			return err
		}
		return d.put(tokenBucket, tokenKey(secret), t)
	})
	if err != nil {
		return "", nil, err
	}
	return secret, t, nil
}

func tokenKey(secret string) []byte { return []byte(hashOf([]byte(secret))) }

// forgetTokens removes what nobody will ask about any more.
func (d database) forgetTokens(now time.Time) error {
	var old [][]byte
	count := 0
	err := d.tx.Bucket(tokenBucket).ForEach(func(k, v []byte) error {
		var t Token
		if err := decodeEntry(tokenBucket, v, &t); err != nil {
			return err
		}
		if count++; now.After(t.Expires.Add(MaxTokenLife)) {
			old = append(old, bytes.Clone(k))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if count-len(old) >= maxTokens {
		return fault.New(fault.ResourceLimit, "token", "%d are known already", count)
	}
	return d.dropTokens(old)
}

// Enrol issues the certificate that a token is for. The token is used up in the
// transaction that remembers the certificate, so that neither happens without the
// other. Who presents it again with the same key, for want of an answer, gets the
// same certificate; with another key, nothing. Reasons: those of [CA.IssueLeaf],
// [fault.AccessDenied] for a token that is unknown, used, expired or for another
// address than o.Email.
func (ca *CA) Enrol(csr *x509.CertificateRequest, secret string, o LeafOptions) ([]*x509.Certificate, error) {
	email, err := normalEmail(o.Email)
	if err != nil {
		return nil, err
	}
	if err := CheckRequest(csr); err != nil {
		return nil, err
	}
	var t Token
	var again *x509.Certificate
	errAgain := fault.New(fault.Exists, "token", "was used for this key")
	chain, err := ca.issueLeaf(csr, o, func(d database) (*Record, error) {
		again = nil
		if err := d.redeem(secret, email, o.Now, &t); err != nil {
			return nil, err
		}
		if t.Serial == "" {
			return nil, nil
		}
		if again, err = d.given(&t, csr); err != nil {
			return nil, err
		}
		return nil, errAgain
	}, func(d database, c *x509.Certificate) error {
		t.Serial, t.Key = serialText(c.SerialNumber), hashOf(c.RawSubjectPublicKeyInfo)
		return d.put(tokenBucket, tokenKey(secret), t)
	})
	if again != nil {
		return []*x509.Certificate{again, ca.agent}, nil
	}
	return chain, err
}

// Tokens lists the tokens that are still good for something, the oldest first.
func (ca *CA) Tokens(now time.Time) ([]Token, error) {
	var open []Token
	err := ca.view(func(d database) error {
		return d.openTokens(now, func(_ []byte, t Token) { open = append(open, t) })
	})
	slices.SortFunc(open, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return open, err
}

// WithdrawTokens makes the address's tokens good for nothing and returns how many
// there were.
func (ca *CA) WithdrawTokens(email string, now time.Time) (int, error) {
	email, err := normalEmail(email)
	if err != nil {
		return 0, err
	}
	count := 0
	err = ca.update(func(d database) error {
		var keys [][]byte
		if err := d.openTokens(now, func(k []byte, t Token) {
			if t.Email == email {
				keys = append(keys, bytes.Clone(k))
			}
		}); err != nil {
			return err
		}
		count = len(keys)
		return d.dropTokens(keys)
	})
	return count, err
}

func (d database) openTokens(now time.Time, fn func(key []byte, t Token)) error {
	return d.tx.Bucket(tokenBucket).ForEach(func(k, v []byte) error {
		var t Token
		if err := decodeEntry(tokenBucket, v, &t); err != nil {
			return err
		}
		if t.Serial == "" && !now.After(t.Expires) {
			fn(k, t)
		}
		return nil
	})
}

func (d database) dropTokens(keys [][]byte) error {
	for _, k := range keys {
		if err := d.tx.Bucket(tokenBucket).Delete(k); err != nil {
			return fault.Wrap(err, fault.Internal, databaseFile, "cannot write to %s", tokenBucket)
		}
	}
	return nil
}

// redeem reads the token that the secret belongs to into t.
func (d database) redeem(secret, email string, now time.Time, t *Token) error {
	known := false
	if strings.HasPrefix(secret, tokenPrefix) {
		data := d.tx.Bucket(tokenBucket).Get(tokenKey(secret))
		if known = data != nil; known {
			*t = Token{}
			if err := json.Unmarshal(data, t); err != nil {
				return fault.Wrap(err, fault.Internal, databaseFile, "an entry of %s is malformed", tokenBucket)
			}
		}
	}
	switch {
	case !known:
		return tokenRefused("is none of this CA")
	case now.After(t.Expires):
		return tokenRefused("ended at %s", t.Expires.Format(time.RFC3339))
	case now.Before(t.Created.Add(-backdate)):
		return tokenRefused("is from the future: the clock was set back")
	case t.Email != email:
		return tokenRefused("is for another address than %s", email)
	}
	return nil
}

func tokenRefused(format string, args ...any) error {
	return fault.New(fault.AccessDenied, "token", format, args...).WithHint("ask the CA's keeper for a new one: mentatctl pki token")
}

// given returns the certificate that the token was used for, if it was used with
// the request's key.
func (d database) given(t *Token, csr *x509.CertificateRequest) (*x509.Certificate, error) {
	if t.Key != hashOf(csr.RawSubjectPublicKeyInfo) {
		return nil, tokenRefused("was used already")
	}
	c, err := d.find(t.Serial)
	if err != nil {
		return nil, err
	}
	if c == nil || !c.Revoked.IsZero() {
		return nil, tokenRefused("was used already, and its certificate is revoked")
	}
	leaf, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, databaseFile, "certificate %s is malformed", t.Serial)
	}
	return leaf, nil
}
