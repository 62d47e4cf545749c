package host

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// withMedia grants media in a store of the test's own.
func withMedia(dir string, grants ...string) func(*hostdoc.Document) {
	return func(d *hostdoc.Document) {
		for _, g := range grants {
			d.Grants = append(d.Grants, hostdoc.Grant{Capability: g, Rule: "store"})
		}
		d.Media = &hostdoc.Media{Dir: dir, ItemBytes: 1000, TotalBytes: 2500}
	}
}

func files(t testing.TB, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestMediaThatARunWroteItCanRead(t *testing.T) {
	dir := t.TempDir()
	var d data
	kind, body := d.at(0, "text/plain"), d.at(100, "hello media")
	ref := media.Sum([]byte("hello media"))
	r := &records{}
	out := setup{o: Options{Recorder: r}, edit: withMedia(dir, "media:read", "media:write"), wat: agent(`
    (local.set $h (call $upload_media `+kind+` `+body+`))`+
		expect(1, `(i32.wrap_i64 (call $size (local.get $h)))`, len(ref.String()))+
		expect(2, `(call $read (local.get $h) (i32.const 1000) (i32.const 200))`, len(ref.String()))+
		expect(3, `(call $close (local.get $h))`, 0)+
		`(local.set $h (call $download_media (i32.const 1000) (i32.const `+fmt.Sprint(len(ref.String()))+`)))`+
		expect(4, `(i32.wrap_i64 (call $size (local.get $h)))`, 11)+`
    (call $write_output_void (i32.const 1000) (i32.const `+fmt.Sprint(len(ref.String()))+`))
    (call $drain (local.get $h))
    (call $read (local.get $h) (i32.const 1000) (i32.const 200))`, d.segments.String())}.run(t)
	out.wants(t, 0, "").output(t, ref.String()+"hello media")
	var got []string
	for _, d := range r.decisions {
		got = append(got, fmt.Sprint(d.Capability, " ", d.Operation, " ", d.Allowed, " ", d.Rule))
	}
	if strings.Join(got, ", ") != "media:write upload true store, media:read download true store" {
		t.Errorf("decisions %q", got)
	}
	store, err := media.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	rc, info, err := store.Open(t.Context(), ref, 100)
	if err != nil || info.Type != "text/plain" || info.Size != 11 {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
}

// download is a guest that reads a reference and ends with the code.
func download(ref string) string {
	var d data
	span := d.at(0, ref)
	return agent(`
    (local.set $h (call $download_media `+span+`))
    (if (i32.ge_s (local.get $h) (i32.const 0)) (then
      (loop $again
        (local.set $n (call $read (local.get $h) (i32.const 1000) (i32.const 1000)))
        (if (i32.gt_s (local.get $n) (i32.const 0)) (then
          (call $write_output_void (i32.const 1000) (local.get $n))
          (br $again))))
      (return (i32.sub (i32.const 0) (local.get $n)))))
    (i32.sub (i32.const 0) (local.get $h))`, d.segments.String())
}

func TestKnowingADigestIsNoRight(t *testing.T) {
	dir := t.TempDir()
	store, err := media.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	there, err := store.Put(t.Context(), "text/plain", strings.NewReader("secret"), 6)
	if err != nil {
		t.Fatal(err)
	}
	absent := media.Sum([]byte("absent"))
	give := func(refs ...media.Ref) func(*hostdoc.Document) {
		return func(d *hostdoc.Document) {
			withMedia(dir, "media:read")(d)
			for _, r := range refs {
				d.Media.Given = append(d.Media.Given, r.String())
			}
		}
	}
	// Whether it exists is not told either.
	for _, ref := range []media.Ref{there, absent} {
		o := setup{wat: download(ref.String()), edit: give()}.run(t).wants(t, -codeDenied, "").output(t, "")
		if o.stderr != "" {
			t.Errorf("logged %q", o.stderr)
		}
	}
	setup{wat: download(there.String()), edit: give(there)}.run(t).wants(t, 0, "").output(t, "secret")
	setup{wat: download(absent.String()), edit: give(absent)}.run(t).wants(t, -codeNotFound, "")
	// What one run is given is no other's.
	doc := document(t, download(there.String()))
	give()(doc)
	p := load1(t, doc, Options{})
	for _, c := range []struct {
		given  []media.Ref
		status int
	}{{[]media.Ref{there}, 0}, {nil, -codeDenied}, {[]media.Ref{absent}, -codeDenied}} {
		if exit, _ := p.Run(t.Context(), IO{Sink: output.NewRaw(discard{}), Media: c.given}); exit.Status != c.status {
			t.Errorf("given %v: %+v", c.given, exit)
		}
	}
	// Nor is what one run wrote.
	var d data
	body := d.at(0, "secret")
	setup{wat: agent(`(i32.lt_s (call $upload_media (i32.const 0) (i32.const 0) `+body+`) (i32.const 0))`, d.segments.String()), edit: withMedia(dir, "media:write")}.run(t).wants(t, 0, "")
	setup{wat: download(there.String()), edit: give()}.run(t).wants(t, -codeDenied, "").output(t, "")
}

func TestMediaNeedTheirGrants(t *testing.T) {
	dir := t.TempDir()
	ref := media.Sum(nil).String()
	upload := agent(`(i32.sub (i32.const 0) (call $upload_media (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5)))`)
	for _, grants := range [][]string{nil, {"media:read"}, {"env:X"}} {
		setup{wat: upload, edit: withMedia(dir, grants...)}.run(t).wants(t, -codeDenied, "")
	}
	for _, grants := range [][]string{nil, {"media:write"}} {
		setup{wat: download(ref), edit: withMedia(dir, grants...)}.run(t).wants(t, -codeDenied, "")
	}
	if n := files(t, dir); n > 0 {
		t.Errorf("%d files were stored", n)
	}
	code, got := lastError(t, withMedia(dir), `(call $upload_media (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5))`)
	if code != codeDenied || got.Capability != "media:write" || !strings.Contains(got.Hint, "- media:write") {
		t.Errorf("%d, %+v", code, got)
	}
	// Granted, but there is no store.
	for _, text := range []string{upload} {
		setup{wat: text, edit: func(d *hostdoc.Document) {
			withMedia(dir, "media:read", "media:write")(d)
			d.Media = nil
		}}.run(t).wants(t, -codeUnsupported, "")
	}
}

func TestMediaByTheWrongArguments(t *testing.T) {
	edit := withMedia(t.TempDir(), "media:read", "media:write")
	for _, ref := range []string{"", "media:sha256:", "/etc/passwd", "media:sha256:" + strings.Repeat("../", 21) + "x", "\xff"} {
		setup{wat: download(ref), edit: edit}.run(t).wants(t, -codeInvalid, "")
	}
	for _, kind := range []string{"text", "a/b\n", "\xff/x", strings.Repeat("x", 200) + "/y"} {
		var d data
		span := d.at(0, kind)
		setup{wat: agent(`(i32.sub (i32.const 0) (call $upload_media `+span+` (i32.const 0) (i32.const 1)))`, d.segments.String()), edit: edit}.run(t)
	}
}

func TestMediaAreBounded(t *testing.T) {
	dir := t.TempDir()
	upload := func(n int) string {
		return fmt.Sprintf(`(call $upload_media (i32.const 0) (i32.const 0) (i32.const 0) (i32.const %d))`, n)
	}
	// 1000 bytes an object, 2500 a run.
	setup{edit: withMedia(dir, "media:write"), wat: agent(
		expect(1, upload(1001), codeLimit) +
			expect(2, `(i32.lt_s `+upload(1000)+` (i32.const 0))`, 0) +
			expect(3, `(i32.lt_s `+upload(999)+` (i32.const 0))`, 0) +
			expect(4, upload(502), codeLimit) +
			expect(5, `(i32.lt_s `+upload(501)+` (i32.const 0))`, 0) +
			expect(6, upload(1), codeLimit) +
			`(i32.const 0)`)}.run(t).wants(t, 0, "")
	if n := files(t, dir); n != 6 {
		t.Errorf("%d files", n)
	}
	store, err := media.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	long := strings.Repeat("x", 1001)
	ref, err := store.Put(t.Context(), "text/plain", strings.NewReader(long), 1001)
	if err != nil {
		t.Fatal(err)
	}
	setup{wat: download(ref.String()), edit: func(d *hostdoc.Document) {
		withMedia(dir, "media:read")(d)
		d.Media.Given = []string{ref.String()}
	}}.run(t).wants(t, -codeLimit, "").output(t, "")
}

func TestTamperedMediaNeverEndWell(t *testing.T) {
	dir := t.TempDir()
	store, err := media.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ref, err := store.Put(t.Context(), "text/plain", strings.NewReader("genuine"), 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ref.Hex()), []byte("forged!"), 0o600); err != nil {
		t.Fatal(err)
	}
	setup{wat: download(ref.String()), edit: func(d *hostdoc.Document) {
		withMedia(dir, "media:read")(d)
		d.Media.Given = []string{ref.String()}
	}}.run(t).wants(t, -codeUnavailable, "")
}

// stuckStore waits for its context.
type stuckStore struct{ media.Store }

func (stuckStore) Open(ctx context.Context, ref media.Ref, _ int64) (io.ReadCloser, media.Info, error) {
	<-ctx.Done()
	return nil, media.Info{}, fault.Wrap(ctx.Err(), fault.Unavailable, ref.String(), "stuck")
}

func (stuckStore) Put(ctx context.Context, _ string, _ io.Reader, _ int64) (media.Ref, error) {
	<-ctx.Done()
	return media.Ref{}, fault.Wrap(ctx.Err(), fault.Unavailable, "", "stuck")
}

func TestAStoreThatHangsHoldsNoRun(t *testing.T) {
	ref := media.Sum(nil)
	edit := func(d *hostdoc.Document) {
		withMedia("/unused", "media:read", "media:write")(d)
		d.Media.Given = []string{ref.String()}
	}
	upload := agent(`(i32.sub (i32.const 0) (call $upload_media (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5)))`)
	for _, text := range []string{upload, download(ref.String())} {
		setup{wat: text, o: Options{Media: stuckStore{}}, edit: func(d *hostdoc.Document) {
			edit(d)
			brief(d)
		}}.run(t).wants(t, fault.ExitDeadline, fault.Deadline)
		setup{wat: text, o: Options{Media: stuckStore{}}, edit: edit, cause: errBroken}.run(t).wants(t, -codeCanceled, "")
	}
}
