package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mentatlab/mentat/internal/fault"
)

// databaseWait bounds how long a database is waited for that a program other
// than ours holds open: ours take turns by [CA.lock].
const databaseWait = 10 * time.Second

// The buckets of the database. The log is what happened; the others say the same
// for looking up, and change in the transaction that appends to the log.
var (
	logBucket         = []byte("log")          // sequence number, 8 bytes -> entry
	certificateBucket = []byte("certificates") // serial -> certificate
	revokedBucket     = []byte("revoked")      // serial -> Record
	compromisedBucket = []byte("compromised")  // hash of a public key -> serial
	listBucket        = []byte("lists")        // file -> the list, DER
	tokenBucket       = []byte("tokens")       // hash of a token -> token
	buckets           = [][]byte{logBucket, certificateBucket, revokedBucket, compromisedBucket, listBucket, tokenBucket}
)

// entry is one event of the log with its place in the chain.
type entry struct {
	Sequence uint64 `json:"sequence"`
	// Previous is the hash of the entry before, as it is stored; of the first,
	// that of nothing.
	Previous string `json:"previous"`
	event
}

// certificate is what the database holds of one. Certificates from before the
// database have no DER.
type certificate struct {
	*Record
	DER []byte `json:"der,omitempty"`
}

// database is the CA's memory within one transaction.
type database struct{ tx *bbolt.Tx }

// update runs fn in a transaction that happens whole or not at all, on disk
// before update returns; whatever the process was killed in the middle of did not
// happen. Nobody else reads or writes meanwhile: keys are therefore had before.
func (ca *CA) update(fn func(database) error) error { return ca.transact(true, fn) }

// view is update for who only reads.
func (ca *CA) view(fn func(database) error) error { return ca.transact(false, fn) }

func (ca *CA) transact(write bool, fn func(database) error) error {
	ca.turn.Lock()
	defer ca.turn.Unlock()
	unlock, err := ca.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := ca.migrate(); err != nil {
		return err
	}
	if ca.broken == nil {
		err = transact(ca.path(databaseFile), write, fn)
		var d errDamaged
		if errors.As(err, &d) {
			ca.broken = d.error
		}
		return err
	}
	return ca.broken
}

// transact opens an existing database for one transaction. Holding it open only
// so long is what lets commands and a server share a CA.
func transact(path string, write bool, fn func(database) error) (err error) {
	// A damaged file makes the library panic, or read beyond the file's end.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = errDamaged{damaged(path, fmt.Errorf("%v", p))}
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: databaseWait, ReadOnly: !write, OpenFile: openExisting})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, path, "the CA's database is not there").
			WithHint("put it back from a backup: without it revocations would be forgotten")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(err, fault.AccessDenied, path, "cannot be opened")
	case err != nil && isTimeout(err):
		return fault.New(fault.Unavailable, path, "another program holds the CA's database open")
	case err != nil:
		return damaged(path, err)
	}
	run := db.View
	if write {
		run = db.Update
	}
	// Not deferred: what panicked holds the lock that Close waits for.
	err = run(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if tx.Bucket(b) == nil {
				return damaged(path, fmt.Errorf("it has no %s", b))
			}
		}
		return fn(database{tx})
	})
	return errors.Join(err, db.Close())
}

// errDamaged is an error after which the file stays mapped, hence locked, until
// the process ends.
type errDamaged struct{ error }

func (e errDamaged) Unwrap() error { return e.error }

func isTimeout(err error) bool {
	return err.Error() == "timeout" // bbolt's word; its error value moved between versions
}

func damaged(path string, err error) error {
	return fault.Wrap(err, fault.Internal, path, "the CA's database is damaged").WithHint("put it back from a backup")
}

// openExisting never makes a database: an empty one would repeat serials and
// forget revocations.
func openExisting(name string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Size() == 0 {
		return nil, errors.Join(fmt.Errorf("%s is empty", name), err, f.Close())
	}
	return f, nil
}

// createDatabase makes a database at path, which must not exist, and fills it.
func createDatabase(path string, fill func(database) error) (err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: databaseWait, OpenFile: func(name string, flag int, mode fs.FileMode) (*os.File, error) {
		return os.OpenFile(name, flag|os.O_EXCL, mode)
	}})
	if err != nil {
		return fault.Wrap(err, fault.AccessDenied, path, "cannot make the CA's database")
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucket(b); err != nil {
				return fault.Wrap(err, fault.Internal, path, "cannot make the CA's database")
			}
		}
		return fill(database{tx})
	})
}

func (d database) put(bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(err, fault.Internal, databaseFile, "cannot encode an entry of %s", bucket)
	}
	return d.putRaw(bucket, key, data)
}

func (d database) putRaw(bucket, key, data []byte) error {
	if err := d.tx.Bucket(bucket).Put(key, data); err != nil {
		return fault.Wrap(err, fault.Internal, databaseFile, "cannot write to %s", bucket)
	}
	return nil
}

// get reads key into v and tells whether it is there.
func (d database) get(bucket, key []byte, v any) (bool, error) {
	data := d.tx.Bucket(bucket).Get(key)
	if data == nil {
		return false, nil
	}
	return true, decodeEntry(bucket, data, v)
}

func decodeEntry(bucket, data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fault.Wrap(err, fault.Internal, databaseFile, "an entry of %s is malformed", bucket)
	}
	return nil
}

// append puts an event at the end of the log.
func (d database) append(e event) error {
	last, data := d.tx.Bucket(logBucket).Cursor().Last()
	var n uint64
	if last != nil {
		n = binary.BigEndian.Uint64(last)
	}
	e.Time = e.Time.UTC()
	return d.put(logBucket, binary.BigEndian.AppendUint64(nil, n+1), entry{Sequence: n + 1, Previous: hashOf(data), event: e})
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// add remembers a certificate that is about to be given out. Its serial must be
// new.
func (d database) add(c *x509.Certificate, from *Record, now time.Time) error {
	r := record(c)
	if from != nil {
		r.RenewedFrom = from.Serial
	}
	if d.tx.Bucket(certificateBucket).Get([]byte(r.Serial)) != nil {
		return fault.New(fault.Internal, "serial number "+r.Serial, "was given to another certificate already")
	}
	if err := d.append(event{Event: issued, Time: now, Record: r}); err != nil {
		return err
	}
	return d.put(certificateBucket, []byte(r.Serial), certificate{r, c.Raw})
}

// find looks a certificate up by its serial number, as it is now.
func (d database) find(serial string) (*certificate, error) {
	var c certificate
	if found, err := d.get(certificateBucket, []byte(serial), &c); err != nil || !found {
		return nil, err
	}
	if found, err := d.get(revokedBucket, []byte(serial), c.Record); err != nil || !found {
		return &c, err
	}
	return &c, nil
}

// revoke marks a certificate, for the first time or more strictly, as the event says.
func (d database) revoke(what string, r *Record, now time.Time) error {
	if err := d.append(event{Event: what, Time: now, Record: r}); err != nil {
		return err
	}
	if r.Reason == KeyCompromise.String() && r.Key != "" {
		if err := d.putRaw(compromisedBucket, []byte(r.Key), []byte(r.Serial)); err != nil {
			return err
		}
	}
	return d.put(revokedBucket, []byte(r.Serial), r)
}

// each calls fn with every entry of the log, oldest first, after it checked the
// entry's place in the chain.
func (d database) each(fn func(data []byte, e *entry) error) (Head, error) {
	head := Head{Hash: hashOf(nil)}
	c := d.tx.Bucket(logBucket).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		var e entry
		if err := decodeEntry(logBucket, v, &e); err != nil {
			return Head{}, err
		}
		if len(k) != 8 || binary.BigEndian.Uint64(k) != head.Entries+1 || e.Sequence != head.Entries+1 || e.Previous != head.Hash {
			return Head{}, fault.New(fault.DigestMismatch, databaseFile, "entry %d of the log does not follow from the one before: the log was changed", head.Entries+1)
		}
		head = Head{Entries: e.Sequence, Hash: hashOf(v)}
		if err := fn(v, &e); err != nil {
			return Head{}, err
		}
	}
	return head, nil
}

// Head says how far a log goes. Kept elsewhere, it proves later that nothing up
// to there was changed.
type Head struct {
	// Entries is how many there are.
	Entries uint64 `json:"entries"`
	// Hash covers the last entry and, through it, every one before.
	Hash string `json:"hash"`
}

// CheckLog walks the whole log: each entry must follow from the one before, and
// what the CA knows of its certificates must be what the log tells. A log that
// has no entry with the hash since, if there is one, is refused: it is not the
// log that since was taken from. Reason: [fault.DigestMismatch].
func (ca *CA) CheckLog(since string) (Head, error) { return ca.walkLog(since, io.Discard) }

// ExportLog is CheckLog that writes the entries, one JSON object a line. What it
// wrote counts only if there is no error.
func (ca *CA) ExportLog(w io.Writer) (Head, error) { return ca.walkLog("", w) }

func (ca *CA) walkLog(since string, w io.Writer) (head Head, err error) {
	err = ca.view(func(d database) error {
		given, taken, met := map[string]string{}, map[string]Record{}, since == ""
		head, err = d.each(func(data []byte, e *entry) error {
			met = met || hashOf(data) == since
			switch {
			case e.Record != nil && e.Event == issued:
				given[e.Serial] = e.Fingerprint
			case e.Record != nil && e.Event == revoked:
				taken[e.Serial] = *e.Record
			case e.Record != nil && e.Event == tightened:
				if _, ok := taken[e.Serial]; !ok {
					return fault.New(fault.DigestMismatch, databaseFile, "the log makes a revocation of %s stricter of which it does not tell", e.Serial)
				}
				taken[e.Serial] = *e.Record
			}
			if _, err := w.Write(append(bytes.Clone(data), '\n')); err != nil {
				return fault.Wrap(err, fault.Internal, "log", "cannot be written")
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !met {
			return fault.New(fault.DigestMismatch, databaseFile, "the log has no entry %s: it is not the one that this was taken from, or was cut and rewritten", since)
		}
		return d.agrees(given, taken)
	})
	return head, err
}

// agrees refuses a database whose certificates are not those of its log.
func (d database) agrees(given map[string]string, taken map[string]Record) error {
	count := 0
	err := d.tx.Bucket(certificateBucket).ForEach(func(k, v []byte) error {
		count++
		var c certificate
		if err := decodeEntry(certificateBucket, v, &c); err != nil {
			return err
		}
		if sum, ok := given[string(k)]; !ok || c.Record == nil || c.Serial != string(k) || c.Fingerprint != sum || (c.DER != nil && hashOf(c.DER) != sum) {
			return fault.New(fault.DigestMismatch, databaseFile, "certificate %s is not the one that the log tells of", k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	lost := 0
	err = d.tx.Bucket(revokedBucket).ForEach(func(k, v []byte) error {
		told, ok := taken[string(k)]
		if !ok {
			return fault.New(fault.DigestMismatch, databaseFile, "the log tells of no revocation of %s", k)
		}
		var r Record
		if err := decodeEntry(revokedBucket, v, &r); err != nil {
			return err
		}
		if r.Serial != told.Serial || r.Reason != told.Reason || !r.Revoked.Equal(told.Revoked) || !r.InvalidSince.Equal(told.InvalidSince) {
			return fault.New(fault.DigestMismatch, databaseFile, "the log tells of another revocation of %s", k)
		}
		lost++
		return nil
	})
	if err != nil {
		return err
	}
	if count != len(given) || lost != len(taken) {
		return fault.New(fault.DigestMismatch, databaseFile, "the log tells of %d certificates and %d revocations, there are %d and %d", len(given), len(taken), count, lost)
	}
	return nil
}
