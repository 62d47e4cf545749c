package verifier

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// seenSuffix is of the files beside answers: whom the answer is about, and its
// issuer.
const seenSuffix = ".ocsp-of"

// rememberSeen writes down about which certificate an answer was kept, so that
// another can be asked for before a gate needs it.
func rememberSeen(state string, q Question) error {
	path := strings.TrimSuffix(ocspPath(state, q.Certificate, q.Issuer), ".ocsp") + seenSuffix
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	var b bytes.Buffer
	for _, der := range [][]byte{q.Certificate.Raw, q.Issuer.Raw} {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return fault.Wrap(err, fault.Internal, path, "cannot encode")
		}
	}
	if err := atomicfile.Write(path, b.Bytes(), 0o644); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot remember whom the OCSP answer is about")
	}
	return nil
}

// OCSPDue looks at the answers that are kept in the state directory: kept are those
// that the policy asks for, due those of them for which another should be had, which
// is when a third of their life is over: a gate asks when half of it is. Revoked
// certificates stay so and are due no more. An expired certificate may have made a
// signature that a time stamp keeps good: what is kept about it is removed once its
// responder has no current answer any more. So is what is kept about one whose issuer
// the policy asks no responder about.
func (v *Verifier) OCSPDue(state string) (due []Question, kept int, err error) {
	if v.policy == nil {
		return nil, 0, nil
	}
	entries, err := os.ReadDir(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fault.Wrap(err, fault.Internal, state, "cannot list the OCSP answers")
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), seenSuffix) {
			continue
		}
		q, wanted, err := v.seenOCSP(state, filepath.Join(state, e.Name()))
		switch {
		case err != nil:
			errs = append(errs, err)
		case !wanted:
		case kept >= limits.OCSPKept:
			return due, kept, errors.Join(append(errs, fault.New(fault.ResourceLimit, state, "over %d OCSP answers are kept: the others are asked for when they are needed", limits.OCSPKept))...)
		default:
			if kept++; q != nil {
				due = append(due, *q)
			}
		}
	}
	return due, kept, errors.Join(errs...)
}

// seenOCSP reads one of the files; q is nil when nothing is due.
func (v *Verifier) seenOCSP(state, path string) (q *Question, wanted bool, err error) {
	data, err := limits.ReadFile(path, 2*limits.CertificatePEMBytes)
	if err != nil {
		return nil, false, fault.Wrap(err, fault.Internal, path, "cannot be read")
	}
	chain, err := ParseChain(path, data)
	if err == nil && len(chain) != 2 {
		err = fault.New(fault.Internal, path, "holds %d certificates", len(chain))
	}
	if err != nil {
		return nil, false, errors.Join(err, os.Remove(path)) // the next gate that asks writes it anew
	}
	c, issuer, now := chain[0], chain[1], v.clock()
	src, asked := v.policy.ocspFor(issuer)
	var a *OCSPAnswer
	if der, err := LoadOCSP(state, c, issuer); err == nil && der != nil {
		if a, err = ReadOCSP(der, c, issuer, now); err != nil {
			a = nil // another replaces what cannot be read
		}
	}
	over := a == nil || now.After(a.Next.Add(v.policy.grace))
	if !asked || over && now.After(c.NotAfter) {
		return nil, false, errors.Join(remove(path), remove(ocspPath(state, c, issuer)))
	}
	if a != nil && (a.status == ocsp.Revoked || now.Before(a.This.Add(a.Next.Sub(a.This)/3))) {
		return nil, true, nil
	}
	return &Question{Certificate: c, Issuer: issuer, Source: src}, true, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Internal, path, "cannot be removed")
	}
	return nil
}
