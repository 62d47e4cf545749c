package verifier

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/mentatlab/mentat/internal/atomicfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// RevocationSource finds the revocation list of an issuer.
type RevocationSource interface {
	// Index returns the newest index known for the issuer's name and key, nil
	// when there is none. An error says why a list that should be there cannot
	// be used; an index may come with an error that is then only a warning.
	// It is called from several goroutines.
	Index(issuer *x509.Certificate) (*CRLIndex, error)
}

// Indexes are revocation lists in memory, for tests and tools.
type Indexes []*CRLIndex

// Index implements [RevocationSource].
func (s Indexes) Index(issuer *x509.Certificate) (*CRLIndex, error) {
	key := issuerKey(issuer)
	var newest *CRLIndex
	for _, ix := range s {
		if ix.head.Key == key && (newest == nil || ix.follows(newest) == nil) {
			newest = ix
		}
	}
	return newest, nil
}

// indexPath is where the index of an issuer's list lives.
func indexPath(state, key string) string {
	return filepath.Join(state, key[:32]+".crlindex")
}

// LoadIndex reads the index of the issuer's list from the state directory; nil
// when there is none.
func LoadIndex(state string, issuer *x509.Certificate) (*CRLIndex, error) {
	key := issuerKey(issuer)
	path := indexPath(state, key)
	f, size, err := openFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot read the revocation index")
	}
	ix, err := openIndex(f, size)
	if err == nil && ix.head.Key != key {
		err = fault.New(fault.RevocationUnknown, "", "is the revocation index of another issuer")
	}
	if err != nil {
		if c, ok := f.(io.Closer); ok {
			_ = c.Close() // only read from
		}
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot use it")
	}
	return ix, nil
}

// openFile opens a file that another may be renamed over later: what is open stays
// as it is. It is closed with the last reference to it. Windows would not let the
// other file in its place, so there it is read whole.
func openFile(path string) (io.ReaderAt, int64, error) {
	if runtime.GOOS == "windows" {
		data, err := limits.ReadFile(path, 2*limits.CRLBytes)
		return bytes.NewReader(data), int64(len(data)), err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.RevocationUnknown, path, "is no regular file")
	}
	if err != nil {
		_ = f.Close() // only read from
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// StoreIndex writes the index into the state directory, unless a newer one is
// there already. The file appears whole or not at all, whoever else writes.
func StoreIndex(state string, issuer *x509.Certificate, ix *CRLIndex) error {
	if ix.head.Key != issuerKey(issuer) {
		return fault.New(fault.RevocationUnknown, "revocation list of "+ix.head.Issuer, "is not the one of %s", issuer.Subject)
	}
	// Not the directory's lock: a list is remembered also in the middle of what that is
	// held for. Nobody who holds this one waits for another.
	unlock, err := lockedfile.MutexAt(filepath.Join(state, ".crl.lock")).Lock()
	if err != nil {
		return fault.Wrap(err, fault.Internal, state, "cannot lock the revocation indexes")
	}
	defer unlock()
	// A damaged index is replaced: what it knew is lost either way.
	if known, err := LoadIndex(state, issuer); err == nil {
		if err := ix.follows(known); err != nil {
			return err
		}
	}
	data, err := ix.encode()
	if err != nil {
		return err
	}
	path := indexPath(state, ix.head.Key)
	if err := atomicfile.Write(path, data, 0o644); err != nil {
		return fault.Wrap(err, fault.Internal, path, "cannot write the revocation index")
	}
	return nil
}

// CompileFile compiles the revocation list in a file.
func CompileFile(path string, issuer *x509.Certificate, now time.Time) (*CRLIndex, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot read the revocation list")
	}
	data, err := limits.ReadFile(path, limits.CRLBytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot read the revocation list")
	}
	origin := CRLOrigin{File: path, Size: info.Size(), Modified: info.ModTime().UTC(), Fetched: now.UTC()}
	ix, err := CompileCRL(data, issuer, origin, now)
	if err != nil {
		return nil, fault.Wrap(err, fault.RevocationUnknown, path, "cannot use it")
	}
	return ix, nil
}

// Current tells whether the index was compiled from the file as it is now.
func (ix *CRLIndex) Current(path string) bool {
	info, err := os.Stat(path)
	src := ix.head.Source
	return err == nil && src.File == path && src.Size == info.Size() && src.Modified.Equal(info.ModTime())
}

// diskRevocation reads indexes from the state directory as they are needed, and
// again when they change. A list that the policy names by file counts as soon as
// it lies there: revoking must not wait for the next refresh.
type diskRevocation struct {
	state string
	files map[string]string // issuer's name -> file
	clock func() time.Time

	mu    sync.Mutex
	known map[string]cachedIndex // by issuer key; guarded by mu
}

type cachedIndex struct {
	ix    *CRLIndex
	err   error
	index string // the index file's stamp
	list  string // that of the list's file
}

func newDiskRevocation(state string, p *Policy, clock func() time.Time) *diskRevocation {
	r := &diskRevocation{state: state, files: map[string]string{}, clock: clock, known: map[string]cachedIndex{}}
	for _, src := range p.crls {
		if src.File != "" {
			r.files[src.Issuer] = src.File
		}
	}
	return r
}

// Index implements [RevocationSource].
func (r *diskRevocation) Index(issuer *x509.Certificate) (*CRLIndex, error) {
	ix, _, err := r.index(issuer)
	return ix, err
}

// index also returns the stamps of the files that were asked.
func (r *diskRevocation) index(issuer *x509.Certificate) (*CRLIndex, map[string]string, error) {
	key := issuerKey(issuer)
	index, list := indexPath(r.state, key), r.files[issuer.Subject.String()]
	stamps := map[string]string{index: Stamp(index)}
	if list != "" {
		stamps[list] = Stamp(list)
	}
	read := r.read(issuer, key, list, cachedIndex{index: stamps[index], list: stamps[list]})
	stamps[index] = read.index
	return read.ix, stamps, read.err
}

func (r *diskRevocation) read(issuer *x509.Certificate, key, file string, now cachedIndex) cachedIndex {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.known[key]; ok && c.index == now.index && c.list == now.list {
		return c
	}
	previous := r.known[key].ix
	now.ix, now.err = LoadIndex(r.state, issuer)
	if now.ix == nil || now.ix.follows(previous) != nil {
		now.ix = previous
	}
	if file != "" && (now.ix == nil || !now.ix.Current(file)) {
		fresh, err := CompileFile(file, issuer, r.clock())
		if err == nil {
			err = fresh.follows(now.ix)
		}
		now.err = err
		if err == nil {
			now.ix = fresh
			now = r.remember(issuer, now)
		}
	}
	r.known[key] = now
	return now
}

// remember writes a list of a file down as its index, so that no older one counts
// after it: the list of an issuer that only a chain shows is compiled by nobody else.
// Where it cannot be written the list counts all the same, with a warning, for it is the
// newest that is known; a tool whose user may not write there is no gate.
func (r *diskRevocation) remember(issuer *x509.Certificate, fresh cachedIndex) cachedIndex {
	path := indexPath(r.state, fresh.ix.head.Key)
	err := os.MkdirAll(r.state, 0o755)
	if err == nil {
		err = StoreIndex(r.state, issuer, fresh.ix)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fresh
	}
	if err != nil {
		fresh.err = fault.Wrap(err, fault.RevocationUnknown, path, "cannot remember the revocation list, without which an older one could come back")
		// Another gate may have remembered a newer one meanwhile.
		if known, lerr := LoadIndex(r.state, issuer); lerr == nil && known != nil && fresh.ix.follows(known) != nil {
			fresh.ix = known
		}
		return fresh
	}
	fresh.index = Stamp(path)
	return fresh
}

// Stamp tells one state of a file from another. A file that cannot be looked at
// has a stamp too.
func Stamp(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "absent"
	}
	return fmt.Sprintf("%d %d%s", info.Size(), info.ModTime().UnixNano(), inode(info))
}

// Issuers finds the certificates that may have signed the source's list: the
// one that the policy names, else the roots of that name. None, without an
// error, means that the chain under judgement brings the certificate. Reason:
// [fault.PolicyInvalid].
func (src CRLSource) Issuers(stores map[string]*Store) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	if src.Certificate != "" {
		data, err := limits.ReadFile(src.Certificate, limits.CertificatePEMBytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, src.Certificate, "cannot read the issuer's certificate")
		}
		if found, err = ParseChain(src.Certificate, data); err != nil {
			return nil, fault.Wrap(err, fault.PolicyInvalid, "", "policy")
		}
		if len(found) != 1 || found[0].Subject.String() != src.Issuer {
			return nil, fault.New(fault.PolicyInvalid, src.Certificate, "is not the one certificate of %q", src.Issuer)
		}
		return found, nil
	}
	for _, store := range stores {
		for _, root := range store.roots {
			if root.Subject.String() == src.Issuer && !slices.ContainsFunc(found, root.Equal) {
				found = append(found, root)
			}
		}
	}
	if len(found) == 0 && src.URL != "" {
		return nil, fault.New(fault.PolicyInvalid, "revocation list of "+src.Issuer, "its issuer is no root of a trust store, and the policy names no certificate to check it with").
			WithHint("add certificate: FILE beside the url")
	}
	return found, nil
}
