package chain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// Entry is one line of the log.
type Entry struct {
	// Seq counts from 1, without a gap over all segments.
	Seq int64 `json:"seq"`
	// Time is when the entry was made.
	Time audit.Time `json:"time"`
	// Prev is the hash of the entry before, [Zero] for the first.
	Prev string `json:"prev"`
	// Source says which waiting record it is; nil for one of the log's own.
	Source *Source         `json:"source,omitempty"`
	Record json.RawMessage `json:"record"`
	// Hash is the SHA-256, in hex, over the canonical JSON of all above.
	Hash string `json:"hash"`
}

// Source names a record of a spool for good. Line 0 tells of what a file's header
// says.
type Source struct {
	Spool string `json:"spool"`
	File  string `json:"file"`
	Line  int64  `json:"line"`
}

// Zero is what the first entry has for a hash before it.
var Zero = strings.Repeat("0", sha256.Size*2)

// The hash comes first in canonical JSON, so that a line is its hash and then
// what was hashed.
const hashKey = `{"hash":"`

// maxLine bounds a line of the log: a record and what is around it.
const maxLine = 2 * limits.AuditLineBytes

// encode sets the entry's hash and returns its line, without the line break.
func (e *Entry) encode() ([]byte, error) {
	body, err := canonical.Marshal(struct {
		Seq    int64           `json:"seq"`
		Time   audit.Time      `json:"time"`
		Prev   string          `json:"prev"`
		Source *Source         `json:"source,omitempty"`
		Record json.RawMessage `json:"record"`
	}{e.Seq, e.Time, e.Prev, e.Source, e.Record})
	if err != nil {
		return nil, err
	}
	if len(body) > maxLine {
		return nil, fault.New(fault.ResourceLimit, "audit log", "an entry has %d bytes, at most %d are allowed", len(body), maxLine)
	}
	sum := sha256.Sum256(body)
	e.Hash = hex.EncodeToString(sum[:])
	return fmt.Appendf(nil, `%s%s",%s`, hashKey, e.Hash, body[1:]), nil
}

// decode reads a line. intact is false when the line is not what its hash is of.
func decode(line []byte) (e Entry, intact bool, err error) {
	rest, ok := bytes.CutPrefix(line, []byte(hashKey))
	hashLen := sha256.Size * 2
	if !ok || len(rest) < hashLen+2 || string(rest[hashLen:hashLen+2]) != `",` {
		return e, false, fault.New(fault.ArtifactInvalid, "", "it does not begin with a hash")
	}
	body := append([]byte{'{'}, rest[hashLen+2:]...)
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return e, false, fault.Wrap(err, fault.ArtifactInvalid, "", "it is no entry")
	}
	sum := sha256.Sum256(body)
	return e, hex.EncodeToString(sum[:]) == string(rest[:hashLen]) && e.Hash == string(rest[:hashLen]), nil
}
