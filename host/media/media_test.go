package media

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
)

var _ Store = (*Dir)(nil)

func openDir(t testing.TB) (*Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, path
}

func put(t testing.TB, s Store, mediaType, data string) Ref {
	t.Helper()
	ref, err := s.Put(t.Context(), mediaType, strings.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func get(t testing.TB, s Store, ref Ref) (string, Info, error) {
	t.Helper()
	r, info, err := s.Open(t.Context(), ref, 1<<20)
	if err != nil {
		return "", Info{}, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), info, err
}

func entries(t testing.TB, path string) []string {
	t.Helper()
	list, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestWhatWasStoredComesBack(t *testing.T) {
	d, path := openDir(t)
	for _, data := range []string{"", "hello", strings.Repeat("x", 300_000)} {
		ref := put(t, d, "text/plain", data)
		if ref != Sum([]byte(data)) {
			t.Errorf("stored as %v", ref)
		}
		got, info, err := get(t, d, ref)
		if err != nil || got != data || info != (Info{int64(len(data)), "text/plain"}) {
			t.Errorf("%d bytes came back as %d, %+v, %v", len(data), len(got), info, err)
		}
	}
	if names := entries(t, path); len(names) != 6 {
		t.Errorf("files %v", names)
	}
}

func TestTheFirstTypeOfAnObjectStays(t *testing.T) {
	d, _ := openDir(t)
	ref := put(t, d, "image/png", "x")
	put(t, d, "text/html", "x")
	if _, info, err := get(t, d, ref); err != nil || info.Type != "image/png" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestAnObjectThatIsNotThereIsNotFound(t *testing.T) {
	d, _ := openDir(t)
	if _, _, err := get(t, d, Sum([]byte("x"))); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

func TestAnObjectOverTheLimitIsRefusedBeforeItsFirstByte(t *testing.T) {
	d, _ := openDir(t)
	ref := put(t, d, "text/plain", "12345")
	if r, _, err := d.Open(t.Context(), ref, 4); fault.ReasonOf(err) != fault.ResourceLimit || r != nil {
		t.Errorf("%v", err)
	}
	if r, _, err := d.Open(t.Context(), ref, 5); err != nil || r.Close() != nil {
		t.Errorf("%v", err)
	}
}

func TestTamperedObjectsAreNeverWhole(t *testing.T) {
	d, path := openDir(t)
	ref := put(t, d, "text/plain", "genuine")
	file := filepath.Join(path, ref.Hex())
	for name, data := range map[string]string{"other": "forged!", "longer": "genuine and more", "shorter": "genu", "empty": ""} {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := get(t, d, ref); fault.ReasonOf(err) != fault.DigestMismatch {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
	}
	// Storing it again heals it.
	put(t, d, "text/plain", "genuine")
	if got, _, err := get(t, d, ref); err != nil || got != "genuine" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestOnlyFilesOfTheStoreAreObjects(t *testing.T) {
	d, path := openDir(t)
	ref := Sum([]byte("secret"))
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(path, ref.Hex())
	for name, make := range map[string]func() error{
		"link out":  func() error { return os.Symlink(outside, file) },
		"directory": func() error { return os.Mkdir(file, 0o700) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if got, _, err := get(t, d, ref); err == nil {
			t.Errorf("%s: read %q", name, got)
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatFailsHalfwayLeavesNothing(t *testing.T) {
	d, path := openDir(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context //nolint:containedctx // a row of the table
		r    io.Reader
		size int64
	}{
		"fails":    {t.Context(), iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc"))), 3},
		"shorter":  {t.Context(), strings.NewReader("ab"), 3},
		"longer":   {t.Context(), strings.NewReader("abcd"), 3},
		"canceled": {canceled, strings.NewReader("abc"), 3},
	} {
		if ref, err := d.Put(c.ctx, "text/plain", c.r, c.size); err == nil || ref != (Ref{}) {
			t.Errorf("%s: stored as %v, %v", name, ref, err)
		}
		if names := entries(t, path); len(names) > 0 {
			t.Errorf("%s: left %v", name, names)
		}
	}
}

func TestReadingEndsWithItsContext(t *testing.T) {
	d, _ := openDir(t)
	ref := put(t, d, "text/plain", "hello")
	ctx, cancel := context.WithCancel(t.Context())
	r, _, err := d.Open(ctx, ref, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	if n, err := r.Read(make([]byte, 10)); n > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestWritersOfOneObjectDoNotDisturbEachOther(t *testing.T) {
	d, path := openDir(t)
	data := strings.Repeat("x", 100_000)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				ref, err := d.Put(t.Context(), "text/plain", strings.NewReader(data), int64(len(data)))
				if err != nil {
					t.Error(err)
				}
				if got, _, err := get(t, d, ref); err != nil || got != data {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	all.Wait()
	if names := entries(t, path); len(names) != 2 {
		t.Errorf("left %v", names)
	}
}

func TestSweepRemovesWhatIsOld(t *testing.T) {
	d, path := openDir(t)
	old, fresh := put(t, d, "text/plain", "old"), put(t, d, "text/plain", "fresh")
	now := time.Now()
	for name, age := range map[string]time.Duration{old.Hex(): 2 * time.Hour, old.Hex() + typeSuffix: 2 * time.Hour, ".new-A": 25 * time.Hour, ".new-B": 23 * time.Hour, "README": 1000 * time.Hour} {
		file := filepath.Join(path, name)
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Close(), os.Chtimes(file, now.Add(-age), now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := d.Sweep(now, 0); err != nil || removed != 1 {
		t.Errorf("where objects stay for ever: removed %d, %v", removed, err)
	}
	removed, err := d.Sweep(now, time.Hour)
	if err != nil || removed != 2 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if got := strings.Join(entries(t, path), " "); got != strings.Join([]string{".new-B", fresh.Hex(), fresh.Hex() + typeSuffix, "README"}, " ") && len(entries(t, path)) != 4 {
		t.Errorf("left %s", got)
	}
	if _, _, err := get(t, d, old); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, _, err := get(t, d, fresh); err != nil {
		t.Error(err)
	}
}

func TestReferences(t *testing.T) {
	digits := strings.Repeat("0123456789abcdef", 4)
	if r, err := ParseRef("media:sha256:" + digits); err != nil || r.String() != "media:sha256:"+digits || r.Hex() != digits {
		t.Errorf("%v, %v", r, err)
	}
	for _, s := range []string{
		"", "media:", "media:sha256:", digits, "sha256:" + digits, "media:sha512:" + digits, "media:sha256:" + digits[1:], "media:sha256:" + digits + "0",
		"media:sha256:" + strings.ToUpper(digits), "media:sha256:" + digits[:63] + "g", "media:sha256:../" + digits[3:], " media:sha256:" + digits, "media:sha256:" + digits + "\n",
	} {
		if _, err := ParseRef(s); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	for in, want := range map[string]string{
		"": DefaultType, "image/png": "image/png", "Text/Plain; Charset=utf-8": "text/plain; charset=utf-8", "application/vnd.x+json": "application/vnd.x+json",
	} {
		if got, err := CheckType(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"png", "image/", "/png", "image/p ng", "a/b; c", "a/" + strings.Repeat("b", 200), "\xff/\xff"} {
		if got, err := CheckType(in); fault.ReasonOf(err) != fault.Usage {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// FuzzParseRef: what is read back is what was written, and is safe as a name.
func FuzzParseRef(f *testing.F) {
	f.Add("media:sha256:" + strings.Repeat("0", 64))
	f.Add("media:sha256:../../etc/passwd")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if r.String() != s || len(r.Hex()) != 64 || strings.ContainsAny(r.Hex(), "/.\x00") {
			t.Errorf("%q became %q, %q", s, r, r.Hex())
		}
	})
}

// FuzzCheckType: a type that is stored is its own spelling, and one line.
func FuzzCheckType(f *testing.F) {
	for _, s := range []string{"", "image/png", "text/plain; charset=utf-8", "a/b; c*=utf-8''%0a", `a/b; c="\""`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := CheckType(s)
		if err != nil {
			return
		}
		again, err := CheckType(got)
		if err != nil || again != got || strings.ContainsAny(got, "\r\n\x00") {
			t.Errorf("%q became %q, then %q, %v", s, got, again, err)
		}
	})
}

// FuzzVerify: however the bytes come, the end is an error unless they are the
// object.
func FuzzVerify(f *testing.F) {
	f.Add([]byte("hello"), []byte("hello"), int64(5))
	f.Add([]byte("hello"), []byte("hellx"), int64(5))
	f.Add([]byte("hello"), []byte("hello!"), int64(5))
	f.Add([]byte(""), []byte(""), int64(0))
	f.Fuzz(func(t *testing.T, object, stored []byte, size int64) {
		if size < 0 {
			return
		}
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stored), "by byte": iotest.OneByteReader(bytes.NewReader(stored)), "with its end": iotest.DataErrReader(bytes.NewReader(stored))} {
			got, err := io.ReadAll(Verify(io.NopCloser(r), Sum(object), size))
			want := bytes.Equal(object, stored) && int64(len(stored)) == size
			if (err == nil) != want || int64(len(got)) > size || want && !bytes.Equal(got, object) {
				t.Errorf("%s: object %q, stored %q of %d: read %q, %v", name, object, stored, size, got, err)
			}
		}
	})
}
