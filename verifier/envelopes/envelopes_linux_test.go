package envelopes

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier"
)

func TestWhatIsKeptIsReadBack(t *testing.T) {
	state := t.TempDir()
	d, m := In(state), digest.FromString("manifest")
	if all := d.Read(m); all != nil {
		t.Errorf("before: %v", all)
	}
	big := bytes.Repeat([]byte{0xff}, limits.EnvelopeBytes)
	all := []verifier.Envelope{{Err: fault.New(fault.Unavailable, "", "out of reach")}, {MediaType: "a", Data: append(big, 1)}}
	for range limits.Envelopes + 1 {
		all = append(all, verifier.Envelope{MediaType: "a", Data: big})
	}
	if err := d.Keep(m, all); err != nil {
		t.Fatal(err)
	}
	read := d.Read(m)
	if len(read) != limits.Envelopes || read[0].MediaType != "a" || !bytes.Equal(read[0].Data, big) || read[0].Err != nil {
		t.Errorf("%d envelopes, %v", len(read), read[0].Err)
	}
	info, err := os.Stat(filepath.Join(state, "notation"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if file, err := os.Stat(filepath.Join(state, "notation", m.Encoded()+".json")); err != nil || file.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", file, err)
	}
}

func TestWhatCannotBeReadIsAnEnvelopeThatDoesNotCount(t *testing.T) {
	m := digest.FromString("manifest")
	for name, plant := range map[string]func(path string) error{
		"rubbish":  func(p string) error { return os.WriteFile(p, []byte("yes"), 0o600) },
		"oversize": func(p string) error { return os.WriteFile(p, make([]byte, fileBytes+1), 0o600) },
		"a link": func(p string) error {
			return os.Symlink(filepath.Join(filepath.Dir(p), "..", "elsewhere"), p)
		},
		"a directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			d := In(state)
			if err := os.WriteFile(filepath.Join(state, "elsewhere"), []byte("[]"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := d.Keep(digest.FromString("another"), nil); err != nil {
				t.Fatal(err)
			}
			if err := plant(filepath.Join(state, "notation", m.Encoded()+".json")); err != nil {
				t.Fatal(err)
			}
			if all := d.Read(m); len(all) != 1 || fault.ReasonOf(all[0].Err) != fault.AttestationFormat {
				t.Errorf("%+v", all)
			}
		})
	}
	loose := t.TempDir()
	if err := os.Mkdir(filepath.Join(loose, "notation"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := In(loose).Keep(m, nil); fault.ReasonOf(err) != fault.Internal {
		t.Errorf("in a directory that others can enter: %v", err)
	}
	if err := In(loose).Keep("sha256:../../x", nil); fault.ReasonOf(err) != fault.Internal {
		t.Errorf("under a name that is a path: %v", err)
	}
}

func TestANodeKeepsABoundedNumber(t *testing.T) {
	d := In(t.TempDir())
	d.most = 3
	for i := range 5 {
		if err := d.Keep(digest.FromString(fmt.Sprint(i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(d.path)
	if err != nil || len(entries) != 3 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if d.Read(digest.FromString("4")) != nil {
		t.Error("something was made up")
	}
	if _, err := os.Stat(filepath.Join(d.path, digest.FromString("4").Encoded()+".json")); err != nil {
		t.Error(err)
	}
}
