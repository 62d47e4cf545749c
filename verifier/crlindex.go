package verifier

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/big"
	"sort"

	"github.com/mentatlab/mentat/internal/fault"
)

// An index file is the magic, length and text of the head, the table of blocks,
// the SHA-256 of all that, and the blocks of entries. The table has each block's
// first serial number and SHA-256: a look-up reads and checks one block, however
// long the list is, and nothing that was not checked is believed.
const (
	crlMagic        = "MENTATCRL2\n"
	crlIndexVersion = 2
	// crlBlockEntries makes blocks of a few KiB: as many as a disk reads anyway.
	crlBlockEntries = 128
	crlBlockBytes   = crlBlockEntries * crlEntryBytes
	crlTableBytes   = maxSerialBytes + sha256.Size
)

type crlBlock struct {
	first [maxSerialBytes]byte
	sum   [sha256.Size]byte
}

// hold takes sorted entries over.
func (ix *CRLIndex) hold(entries []byte) {
	ix.head.Count = len(entries) / crlEntryBytes
	ix.entries = bytes.NewReader(entries)
	ix.blocks = nil
	for rest := entries; len(rest) > 0; {
		n := min(len(rest), crlBlockBytes)
		b := crlBlock{sum: sha256.Sum256(rest[:n])}
		copy(b.first[:], rest)
		ix.blocks = append(ix.blocks, b)
		rest = rest[n:]
	}
}

// block reads a block of entries and holds it to the table.
func (ix *CRLIndex) block(i int) ([]byte, error) {
	n := min(crlBlockEntries, ix.head.Count-i*crlBlockEntries)
	data := make([]byte, n*crlEntryBytes)
	if _, err := ix.entries.ReadAt(data, int64(i)*crlBlockBytes); err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, "revocation index", "cannot read it")
	}
	if sha256.Sum256(data) != ix.blocks[i].sum || !bytes.Equal(data[:maxSerialBytes], ix.blocks[i].first[:]) {
		return nil, fault.New(fault.RevocationUnknown, "revocation index", "is damaged")
	}
	for j := 1; j < n; j++ {
		if bytes.Compare(serialAt(data, j-1), serialAt(data, j)) >= 0 {
			return nil, fault.New(fault.RevocationUnknown, "revocation index", "is not sorted")
		}
	}
	if i+1 < len(ix.blocks) && bytes.Compare(serialAt(data, n-1), ix.blocks[i+1].first[:]) >= 0 {
		return nil, fault.New(fault.RevocationUnknown, "revocation index", "is not sorted")
	}
	return data, nil
}

func serialAt(block []byte, i int) []byte {
	return block[i*crlEntryBytes : i*crlEntryBytes+maxSerialBytes]
}

// lookup finds a serial number. Reason of its error: [fault.RevocationUnknown].
func (ix *CRLIndex) lookup(serial *big.Int) (revocation, bool, error) {
	if serial.Sign() <= 0 || len(serial.Bytes()) > maxSerialBytes {
		return revocation{}, false, nil
	}
	var want [maxSerialBytes]byte
	serial.FillBytes(want[:])
	at := sort.Search(len(ix.blocks), func(i int) bool { return bytes.Compare(ix.blocks[i].first[:], want[:]) > 0 }) - 1
	if at < 0 {
		return revocation{}, false, nil
	}
	block, err := ix.block(at)
	if err != nil {
		return revocation{}, false, err
	}
	n := len(block) / crlEntryBytes
	i := sort.Search(n, func(i int) bool { return bytes.Compare(serialAt(block, i), want[:]) >= 0 })
	if i == n || !bytes.Equal(serialAt(block, i), want[:]) {
		return revocation{}, false, nil
	}
	row := block[i*crlEntryBytes : (i+1)*crlEntryBytes]
	r := revocation{at: entryTime(row[maxSerialBytes:]), reason: int(row[crlReasonAt])}
	if binary.BigEndian.Uint64(row[crlInvalidAt:]) != 0 {
		r.invalid = entryTime(row[crlInvalidAt:])
	}
	return r, true, nil
}

// front is all of the file form that is before the entries.
func (ix *CRLIndex) front() ([]byte, error) {
	head, err := json.Marshal(ix.head)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "revocation index", "cannot encode")
	}
	if len(head) > maxHeadBytes {
		return nil, fault.New(fault.RevocationUnknown, "revocation index", "its head is over %d bytes", maxHeadBytes)
	}
	b := bytes.NewBufferString(crlMagic)
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(head))))
	b.Write(head)
	for _, block := range ix.blocks {
		b.Write(block.first[:])
		b.Write(block.sum[:])
	}
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	return b.Bytes(), nil
}

// encode gives the file form.
func (ix *CRLIndex) encode() ([]byte, error) {
	out, err := ix.front()
	if err != nil {
		return nil, err
	}
	for i := range ix.blocks {
		block, err := ix.block(i)
		if err != nil {
			return nil, err
		}
		out = append(out, block...)
	}
	return out, nil
}

// openIndex reads a file's front and leaves the entries where they are: what is
// looked up is checked then. f must stay as it is.
func openIndex(f io.ReaderAt, size int64) (*CRLIndex, error) {
	bad := func(format string, args ...any) (*CRLIndex, error) {
		return nil, fault.New(fault.RevocationUnknown, "revocation index", format, args...)
	}
	start := make([]byte, len(crlMagic)+4)
	if _, err := f.ReadAt(start, 0); err != nil || string(start[:len(crlMagic)]) != crlMagic {
		return bad("is not one, or of another version")
	}
	n := int64(binary.BigEndian.Uint32(start[len(crlMagic):]))
	if n > maxHeadBytes || int64(len(start))+n > size {
		return bad("is damaged: its head is cut off")
	}
	text := make([]byte, n)
	if _, err := f.ReadAt(text, int64(len(start))); err != nil {
		return bad("is damaged: its head is cut off")
	}
	ix := &CRLIndex{}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&ix.head); err != nil {
		return bad("its head is malformed: %v", err)
	}
	number, ok := new(big.Int).SetString(ix.head.Number, 10)
	count := ix.head.Count
	if !ok || number.Sign() < 0 || ix.head.Version != crlIndexVersion || count < 0 || count > maxCRLEntries {
		return bad("its head contradicts itself")
	}
	ix.number = number
	blocks := (count + crlBlockEntries - 1) / crlBlockEntries
	front := int64(len(start)) + n + int64(blocks)*crlTableBytes + sha256.Size
	if size != front+int64(count)*crlEntryBytes {
		return bad("is damaged: it has another length than its head says")
	}
	data := make([]byte, front)
	if _, err := f.ReadAt(data, 0); err != nil {
		return bad("is damaged: its table is cut off")
	}
	if err := ix.readTable(data[int64(len(start))+n:front-sha256.Size], blocks); err != nil {
		return nil, err
	}
	// One form only: the sum is in it.
	if again, err := ix.front(); err != nil || !bytes.Equal(again, data) {
		return bad("is damaged")
	}
	ix.entries = io.NewSectionReader(f, front, int64(count)*crlEntryBytes)
	return ix, nil
}

func (ix *CRLIndex) readTable(table []byte, blocks int) error {
	ix.blocks = make([]crlBlock, blocks)
	for i := range ix.blocks {
		row := table[i*crlTableBytes:]
		copy(ix.blocks[i].first[:], row)
		copy(ix.blocks[i].sum[:], row[maxSerialBytes:crlTableBytes])
		if i > 0 && bytes.Compare(ix.blocks[i-1].first[:], ix.blocks[i].first[:]) >= 0 {
			return fault.New(fault.RevocationUnknown, "revocation index", "is not sorted")
		}
	}
	return nil
}
