package fetch_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testagent"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
)

const filler = "filler"

// smallDisk puts a small file system at dir.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on a disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, filler), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// unchanged holds a directory's files to what they were.
func unchanged(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	after := files(t, dir)
	for _, all := range []map[string]string{before, after} {
		delete(all, filler)
		delete(all, ".lock")
		delete(all, ".crl.lock")
	}
	if !maps.Equal(before, after) {
		t.Errorf("the files changed: %d before, %d after", len(before), len(after))
	}
}

// A disk that is full while state is written: what was there stays, whole; nothing
// half-written is left; and where the answer depends on what could not be written, it
// is no.
func TestAFullDiskLeavesWhatWasThere(t *testing.T) {
	t.Run("revocation lists", func(t *testing.T) {
		n := newNode(t)
		smallDisk(t, n.cfg.State)
		n.serve(n.pki.AgentCRL(testpki.Numbered(5)))
		if err := n.refresh(false); err != nil {
			t.Fatal(err)
		}
		fill(t, n.cfg.State)
		before := files(t, n.cfg.State)
		n.serve(n.pki.AgentCRL(testpki.Numbered(6), testpki.Revoking(n.pki.Leaf)))
		if err := n.refresh(true); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), n.cfg.State) {
			t.Errorf("%v", err)
		}
		unchanged(t, n.cfg.State, before)
		if vd := n.says(n.now); !vd.Allowed {
			t.Errorf("by the list that was there: %s", vd.Line())
		}
		// A list in a file counts, whether its index can be written or not.
		n.put("root.crl", n.pki.RootCRL(testpki.Numbered(7), testpki.Revoking(n.pki.Agent)))
		if vd := n.says(n.now); vd.Reason != fault.Revoked {
			t.Errorf("by the list in the file: %s", vd.Line())
		}
		unchanged(t, n.cfg.State, before)
		if err := os.Remove(filepath.Join(n.cfg.State, filler)); err != nil {
			t.Fatal(err)
		}
		n.put("root.crl", n.pki.RootCRL(testpki.Numbered(8)))
		if err := n.refresh(true); err != nil {
			t.Fatal(err)
		}
		if vd := n.says(n.now); vd.Reason != fault.Revoked {
			t.Errorf("with room again: %s", vd.Line())
		}
	})
	t.Run("the first revocation list", func(t *testing.T) {
		n := newNode(t)
		smallDisk(t, n.cfg.State)
		fill(t, n.cfg.State)
		if err := n.refresh(false); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
		if vd := n.says(n.now); vd.Reason != fault.RevocationUnknown {
			t.Errorf("%s", vd.Line())
		}
		unchanged(t, n.cfg.State, map[string]string{})
	})
	t.Run("answers of a responder", func(t *testing.T) {
		n := newAsked(t)
		smallDisk(t, n.cfg.State)
		n.expect(n.judge(nil), "", "")
		n.now = n.now.Add(20 * time.Hour) // the answer is due, and still counts
		n.answer(n.pki.OCSP(func(r *ocsp.Response) {
			r.ThisUpdate, r.NextUpdate = n.now.Add(-time.Minute), n.now.Add(24*time.Hour)
		}))
		fill(t, n.cfg.State)
		before := files(t, n.cfg.State)
		n.expect(n.judge(nil), "", "")
		n.now = n.now.Add(10 * time.Hour) // it has ended
		n.expect(n.judge(nil), fault.RevocationUnknown, "no space left")
		unchanged(t, n.cfg.State, before)
	})
	t.Run("the latest time", func(t *testing.T) {
		n := newNode(t)
		text, err := os.ReadFile(n.cfg.Policy)
		if err != nil {
			t.Fatal(err)
		}
		n.put("policy.yaml", append(text, "attestation_required: {enabled: true, enforcement_date: \"2026-06-01\"}\n"...))
		smallDisk(t, n.cfg.State)
		fill(t, n.cfg.State)
		v, err := n.verifier(testpki.Clock)
		if err != nil {
			t.Fatal(err)
		}
		in := verifier.Input{Reference: testagent.Reference, Artifact: testagent.Read(t, testagent.Unsigned(t))}
		if vd := v.Verify(t.Context(), in); vd.Reason != fault.Unsigned {
			t.Errorf("%s", vd.Line())
		}
		unchanged(t, n.cfg.State, map[string]string{})
	})
	t.Run("release lists", func(t *testing.T) {
		n := newNode(t)
		text, err := os.ReadFile(n.cfg.Policy)
		if err != nil {
			t.Fatal(err)
		}
		n.put("policy.yaml", append(text, "releases: [{name: own, file: releases.json, stores: [agents], identities: [\"email:dev@example.com\"]}]\n"...))
		smallDisk(t, n.cfg.State)
		release := func(number int64) {
			data, err := verifier.SignReleases(verifier.Releases{Number: number, NextUpdate: "2026-02-01T00:00:00Z"}, n.pki.LeafKey, n.pki.Chain(), n.now.Add(-time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			n.put("releases.json", data)
		}
		release(1)
		if err := n.refresh(false); err != nil {
			t.Fatal(err)
		}
		if vd := n.says(n.now); !vd.Allowed {
			t.Fatal(vd.Line())
		}
		fill(t, n.cfg.State)
		before := files(t, n.cfg.State)
		release(2)
		if vd := n.says(n.now); vd.Reason != fault.RevocationUnknown || !strings.Contains(vd.Message, "cannot remember the release list") {
			t.Errorf("%s", vd.Line())
		}
		unchanged(t, n.cfg.State, before)
	})
}

// An answer or a list that is stored while many others are, on a disk that has room
// for some only, is there whole or not at all.
func TestManyWritersOnAFullDiskLeaveNothingHalfWritten(t *testing.T) {
	n := newNode(t)
	smallDisk(t, n.cfg.State)
	if err := n.refresh(false); err != nil {
		t.Fatal(err)
	}
	fill(t, n.cfg.State)
	before := files(t, n.cfg.State)
	errs := make(chan error, 16)
	for i := range cap(errs) {
		go func() {
			v, err := n.verifier(testpki.Clock)
			if err == nil {
				n.serve(n.pki.AgentCRL(testpki.Numbered(int64(100+i)), func(l *x509.RevocationList) { l.NextUpdate = l.NextUpdate.Add(time.Hour) }))
				err = fetch.Refresh(t.Context(), v, n.cfg, nil, true)
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, unix.ENOSPC) {
			t.Error(fmt.Errorf("no word of the disk: %w", err))
		}
	}
	unchanged(t, n.cfg.State, before)
}
