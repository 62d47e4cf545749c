package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	renewHint = "mentatctl pki services --renew makes a new one; then start the server again"
	// timeLeft is how long before its end a time stamp authority is warned of.
	timeLeft = 30 * day
)

// RenewServices gives the time stamp authority a new key and a new certificate by
// its root, which stays: whoever trusts it has nothing to do. The old certificate
// stays what it is, good until its end or revoked; its key's file is removed. What
// was stamped before counts as it did. Of the options those about the root say
// nothing here and are refused. A server has to be started again. Nobody else may
// use ca meanwhile, other processes may. Reasons: [fault.NotFound] without an
// authority or its root's key, [fault.Usage] for a key that is the old one, or would
// be kept less well, [fault.Revoked] for one that was compromised.
func (ca *CA) RenewServices(o ServiceOptions) error {
	return ca.changeServices(func() error { return ca.renewServices(o) })
}

func (ca *CA) renewServices(o ServiceOptions) error {
	i, err := ca.checkRenewal(o)
	if err != nil {
		return err
	}
	rootKey, err := ca.timeRootKey()
	if fault.ReasonOf(err) == fault.NotFound {
		return fault.New(fault.NotFound, ca.path(TimeRootKey), "is not there: only the root's key makes a new certificate").WithHint("put it back for as long as this takes")
	}
	if err != nil {
		return err
	}
	own := o.Key == nil
	if own {
		if o.Key, err = newKey(agentBits); err != nil {
			return err
		}
	}
	s := &services{root: ca.services.root}
	if s.keyFile, err = renewedKeyFile(o.Key.Public()); err != nil {
		return err
	}
	if own {
		if err := writeKey(ca.path(s.keyFile), o.Key, o.KeyPassphrase); err != nil {
			return err
		}
	}
	ca.reached("key")
	if err := ca.certifyRenewal(s, rootKey, o); err != nil {
		if own {
			err = errors.Join(err, os.Remove(ca.path(s.keyFile)))
		}
		return err
	}
	ca.reached("database")
	return ca.replaceTime(s, i, o)
}

// checkRenewal returns what ca.json says in the end, but for names of keys.
func (ca *CA) checkRenewal(o ServiceOptions) (info, error) {
	i := ca.info.withOCSP(o.OCSPURL)
	if o.TimePolicy != "" {
		i.TimePolicy = o.TimePolicy
	}
	if ca.services == nil {
		return i, fault.New(fault.NotFound, ca.dir, "has no time stamp authority").WithHint("make one with mentatctl pki services")
	}
	if o.RootKey != nil || o.RootKeyName != "" || len(o.Passphrase) > 0 || o.UnencryptedRoot {
		return i, fault.New(fault.Usage, "time stamp authority", "its root stays what it is: a renewal makes no key for it")
	}
	if err := i.check(); err != nil {
		return i, err
	}
	if o.Key == nil {
		return i, ca.keptAsWell(o)
	}
	if pub, ok := o.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || pub.Equal(ca.services.cert.PublicKey) {
		return i, fault.New(fault.Usage, "time stamp authority", "the key is the old one, a renewal is by a new one")
	}
	return i, nil
}

// keptAsWell refuses to write the new key into an open file when the old one was
// encrypted, or in a token.
func (ca *CA) keptAsWell(o ServiceOptions) error {
	file := ca.services.keyFile
	if name := ca.info.Keys[file]; name != "" {
		return fault.New(fault.Usage, name, "is in a token, where the new key would not be").WithHint("name it with --time-key")
	}
	if len(o.KeyPassphrase) > 0 {
		return nil
	}
	data, err := ca.read(file, limits.CertificatePEMBytes)
	if fault.ReasonOf(err) == fault.NotFound {
		return nil // it is lost: that is what a renewal is for
	}
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(data); block != nil && block.Type == pemEncryptedKey {
		return fault.New(fault.Usage, ca.path(file), "is encrypted, and the new key would not be").WithHint("name the passphrase's file with --agent-passphrase-file")
	}
	return nil
}

// certifyRenewal makes the new certificate and remembers it.
func (ca *CA) certifyRenewal(s *services, rootKey crypto.Signer, o ServiceOptions) (err error) {
	if s.cert, err = ca.certifyTime(s.root, rootKey, o.Key.Public(), o.Now); err != nil {
		return err
	}
	return ca.update(func(d database) error {
		if d.tx.Bucket(compromisedBucket).Get([]byte(hashOf(s.cert.RawSubjectPublicKeyInfo))) != nil {
			return fault.New(fault.Revoked, "time stamp authority", "its key was revoked as compromised").WithHint("make a new key")
		}
		return d.add(s.cert, nil, o.Now)
	})
}

// replaceTime puts the new certificate in the old one's place: with this step, and
// with nothing before it, the new key counts, which is found by the certificate.
func (ca *CA) replaceTime(s *services, last info, o ServiceOptions) error {
	if o.KeyName != "" {
		if err := ca.writeInfo(ca.info.withKeys(map[string]string{s.keyFile: o.KeyName})); err != nil {
			return err
		}
	}
	ca.reached("names")
	if err := ReplaceCert(ca.path(TimeCert), []*x509.Certificate{s.cert}); err != nil {
		return err
	}
	ca.reached("place")
	ca.services = s
	ca.mu.Lock()
	ca.keys.TimeKey = o.Key
	ca.mu.Unlock()
	last = last.withoutTimeKeys(func(file string) bool { return file == TimeRootKey || file == s.keyFile }).withKeys(map[string]string{s.keyFile: o.KeyName})
	if err := ca.writeInfo(last); err != nil {
		return err
	}
	ca.info = last
	return ca.removeStale()
}

// TimeWarnings are what the keeper of the time stamp authority should do about its
// certificate, one line each: it ends soon, has ended, is revoked, or was renewed
// after ca was opened.
func (ca *CA) TimeWarnings(now time.Time) ([]string, error) {
	if ca.services == nil {
		return nil, nil
	}
	cert := ca.services.cert
	there, err := ca.readCert(TimeCert)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(there.Raw, cert.Raw) {
		return []string{"the time stamp authority was renewed: start the server again"}, nil
	}
	var c *certificate
	if err := ca.view(func(d database) (err error) {
		c, err = d.find(serialText(cert.SerialNumber))
		return err
	}); err != nil {
		return nil, err
	}
	until := cert.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case c == nil || !c.Revoked.IsZero():
		return []string{"the time stamp authority's certificate is revoked or unknown: " + renewHint}, nil
	case now.After(cert.NotAfter):
		return []string{"the time stamp authority's certificate ended at " + until + ": " + renewHint}, nil
	case !now.Add(timeLeft).Before(cert.NotAfter):
		return []string{"the time stamp authority's certificate ends at " + until + ": " + renewHint}, nil
	}
	return nil, nil
}

// ClockReset tells of a reset of the time stamp authority's clock.
type ClockReset struct {
	// From is the time of the last stamp, To that from which stamps are made again.
	From, To time.Time
	// Stamps is how many were made so far, whenever.
	Stamps uint64
}

// ResetClock has stamps be made from now on, though the last one is of a later
// time: the clock was wrong then. The log tells of it. What was stamped in between
// stays stamped for a time that had not come; revoking the authority's certificate
// is what takes it back. Reasons: [fault.NotFound] without an authority,
// [fault.Usage] when the last stamp is of no later time.
func (ca *CA) ResetClock(now time.Time) (reset ClockReset, err error) {
	if ca.services == nil {
		return reset, fault.New(fault.NotFound, ca.dir, "has no time stamp authority").WithHint("make one with mentatctl pki services")
	}
	err = ca.update(func(d database) error {
		var last stampState
		if d.tx.Bucket(stampBucket) != nil {
			if _, err := d.get(stampBucket, lastStamp, &last); err != nil {
				return err
			}
		}
		if !last.Time.After(now) {
			return fault.New(fault.Usage, "clock", "no time stamp is of a later time than now, %s: there is nothing to reset", now.UTC().Format(time.RFC3339))
		}
		reset = ClockReset{From: last.Time, To: now.UTC(), Stamps: last.Count}
		last.Time = reset.To
		if err := d.append(event{Event: clockReset, Time: now, LastStamp: reset.From, Stamps: reset.Stamps}); err != nil {
			return err
		}
		return d.put(stampBucket, lastStamp, last)
	})
	return reset, err
}
