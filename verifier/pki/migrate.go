package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"os"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Names that a CA from before the database has, or had.
const (
	oldInfoVersion = 1
	oldLogFile     = "log.jsonl"
	keptLogFile    = "log.jsonl.migrated"
)

// migrate makes the database of a CA from before it out of its log. The caller
// holds the lock. A process that is killed in between leaves a directory that is
// still of the old version, or one that is of the new and whole: the version is
// written last, and until then the old log counts.
func (ca *CA) migrate() error {
	text, err := ca.read(infoFile, limits.PolicyBytes)
	if err != nil {
		return err
	}
	var i info
	if err := i.parse(ca.path(infoFile), text); err != nil {
		return err
	}
	if i.Version == infoVersion {
		return nil
	}
	events, err := ca.readOldLog()
	if err != nil {
		return err
	}
	temp := ca.path("." + databaseFile + ".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.AccessDenied, temp, "cannot be removed")
	}
	if err := createDatabase(temp, func(d database) error { return ca.fill(d, events) }); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, ca.path(databaseFile)); err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(databaseFile), "cannot be put in its place")
	}
	i.Version = infoVersion
	if err := ca.writeInfo(i); err != nil {
		return err
	}
	if err := os.Rename(ca.path(oldLogFile), ca.path(keptLogFile)); err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(oldLogFile), "cannot be renamed")
	}
	return nil
}

func (ca *CA) writeInfo(i info) error {
	text, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fault.Wrap(err, fault.Internal, infoFile, "cannot encode")
	}
	if err := atomicfile.Write(ca.path(infoFile), append(text, '\n'), 0o644); err != nil {
		return fault.Wrap(err, fault.AccessDenied, ca.path(infoFile), "cannot be written")
	}
	return nil
}

func (ca *CA) readOldLog() ([]event, error) {
	data, err := ca.read(oldLogFile, maxLogBytes)
	if err != nil {
		return nil, err
	}
	var events []event
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	for dec.More() {
		var e event
		if err := dec.Decode(&e); err != nil {
			return nil, fault.Wrap(err, fault.Internal, ca.path(oldLogFile), "entry %d is malformed", len(events)+1)
		}
		events = append(events, e)
	}
	return events, nil
}

// fill repeats the old log's events in the database.
func (ca *CA) fill(d database, events []event) error {
	for n, e := range events {
		if err := d.append(e); err != nil {
			return err
		}
		var err error
		switch {
		case e.Event == listed:
			continue
		case e.Record == nil || e.Serial == "":
			err = fault.New(fault.Internal, ca.path(oldLogFile), "entry %d names no certificate", n+1)
		case e.Event == issued:
			if d.tx.Bucket(certificateBucket).Get([]byte(e.Serial)) != nil {
				err = fault.New(fault.Internal, ca.path(oldLogFile), "entry %d issues the serial number %s again", n+1, e.Serial)
				break
			}
			err = d.put(certificateBucket, []byte(e.Serial), certificate{Record: e.Record})
		case e.Event == revoked:
			err = d.put(revokedBucket, []byte(e.Serial), e.Record)
		default:
			err = fault.New(fault.Internal, ca.path(oldLogFile), "entry %d is of the unknown kind %q", n+1, e.Event)
		}
		if err != nil {
			return err
		}
	}
	for _, file := range []string{RootCRL, AgentCRL} {
		if err := ca.fillList(d, file, events); err != nil {
			return err
		}
	}
	return nil
}

// fillList takes a list over, with the highest number that it ever had.
func (ca *CA) fillList(d database, file string, events []event) error {
	l := list{Number: new(big.Int)}
	for _, e := range events {
		if e.Event == listed && e.List == file && e.Number != nil && e.Number.Cmp(l.Number) > 0 {
			l.Number.Set(e.Number)
		}
	}
	der, err := ca.read(file, limits.CRLBytes)
	switch {
	case fault.ReasonOf(err) == fault.NotFound:
		return d.put(listBucket, []byte(file), l)
	case err != nil:
		return err
	}
	published, err := x509.ParseRevocationList(der)
	if err != nil || published.Number == nil {
		return fault.New(fault.Internal, ca.path(file), "is malformed")
	}
	if l.DER = der; published.Number.Cmp(l.Number) > 0 {
		l.Number = published.Number
	}
	return d.put(listBucket, []byte(file), l)
}
