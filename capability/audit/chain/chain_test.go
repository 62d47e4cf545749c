package chain

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/internal/fault"
)

const keeperEnv = "CHAIN_TEST_KEEPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(keeperEnv); dir != "" {
		os.Exit(keeper(dir))
	}
	os.Exit(m.Run())
}

// keeper appends what a spool would give until it is killed, in batches, and says
// what was acknowledged. It goes on where the log says that it was.
func keeper(dir string) int {
	l, err := Open(dir, Options{Clock: time.Now, SegmentBytes: 8000})
	if err != nil {
		fmt.Println("cannot open:", err)
		return 1
	}
	line, _ := l.Taken("s")("f")
	for {
		var batch []Pending
		for range 1 + line%5 {
			line++
			batch = append(batch, from("f", line))
		}
		if err := l.Append(batch...); err != nil {
			fmt.Println("cannot append:", err)
			return 1
		}
		if _, err := fmt.Println(line); err != nil {
			return 0
		}
	}
}

func from(file string, line int64) Pending {
	return Pending{Source: &Source{"s", file, line}, Record: map[string]any{"event_type": "test", "n": line}}
}

var began = time.Date(2026, 1, 15, 10, 30, 45, 0, time.UTC)

func fixed() time.Time { return began }

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	if o.Clock == nil {
		o.Clock = fixed
	}
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// filled is a log of so many entries in several segments, closed.
func filled(t testing.TB, entries int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, Options{SegmentBytes: 2000, Anchor: filepath.Join(filepath.Dir(dir), "anchor")})
	var batch []Pending
	for i := range entries {
		batch = append(batch, from("f", int64(i+1)))
		if len(batch) < 4 && i != entries-1 {
			continue
		}
		if err := l.Append(batch...); err != nil {
			t.Fatal(err)
		}
		batch = nil
		if i < entries/2 {
			if err := l.Anchor(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Anchor(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func verified(t testing.TB, dir string) *Report {
	t.Helper()
	r, err := Verify(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func kinds(r *Report) string {
	var list []string
	for _, p := range r.Problems {
		list = append(list, p.Kind)
	}
	return strings.Join(list, " ")
}

func numbers(t testing.TB, dir string) []int64 {
	t.Helper()
	var list []int64
	if err := Read(dir, 0, func(e Entry) error {
		if e.Source != nil {
			list = append(list, e.Source.Line)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestALogThatWasOnlyAppendedToIsIntact(t *testing.T) {
	dir := filled(t, 40)
	r, err := Verify(dir, filepath.Join(filepath.Dir(dir), "anchor"))
	if err != nil || len(r.Problems) > 0 || r.Entries != 40 || r.First != 1 || r.Last != 40 || r.Segments < 3 || r.Anchors < 3 || r.Unfinished {
		t.Fatalf("%+v, %v", r, err)
	}
	// It goes on after a restart.
	l := open(t, dir, Options{SegmentBytes: 2000})
	if line, known := l.Taken("s")("f"); line != 40 || !known {
		t.Errorf("taken up to %d, %v", line, known)
	}
	if _, known := l.Taken("s")("g"); known {
		t.Error("a file that nobody saw is known")
	}
	if err := l.Append(from("f", 41)); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir); len(r.Problems) > 0 || r.Last != 41 || l.Head().Seq != 41 || l.Head().Hash != r.Hash {
		t.Errorf("%+v", r)
	}
	var seqs []int64
	if err := Read(dir, 39, func(e Entry) error { seqs = append(seqs, e.Seq); return nil }); err != nil || !slices.Equal(seqs, []int64{39, 40, 41}) {
		t.Errorf("%v, %v", seqs, err)
	}
}

func TestAnEntryIsHashedOverItsCanonicalForm(t *testing.T) {
	e := Entry{Seq: 7, Time: audit.At(began), Prev: Zero, Source: &Source{"run/k", "f", 3}, Record: json.RawMessage(`{"b": 1, "a":"é"}`)}
	line, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `,"prev":"` + Zero + `","record":{"a":"é","b":1},"seq":7,"source":{"file":"f","line":3,"spool":"run/k"},"time":"2026-01-15T10:30:45.000Z"}`
	if got := string(line); !strings.HasPrefix(got, `{"hash":"`+e.Hash+`"`) || !strings.HasSuffix(got, want) {
		t.Errorf("%s", got)
	}
	if e.Hash != "e4f1957ac3d84a78a9d80714e70361f360a3d41eaf35b5f4a3e5abbe8cd11eee" {
		t.Errorf("the hash is %s: another program would not verify this log any more", e.Hash)
	}
	again, intact, err := decode(line)
	if err != nil || !intact || again.Seq != 7 || again.Hash != e.Hash {
		t.Errorf("%+v, %v, %v", again, intact, err)
	}
}

// lines are a segment's lines; write puts them back.
func lines(t testing.TB, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(string(data), "\n")+"\n", "\n")[:bytes.Count(data, []byte("\n"))]
}

func write(t testing.TB, path string, list []string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(list, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEveryChangeShows(t *testing.T) {
	edit := func(i int, change func(list []string) []string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			list, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, list[(i+len(list))%len(list)].name)
			write(t, path, change(lines(t, path)))
		}
	}
	remove := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				found, err := filepath.Glob(filepath.Join(dir, name))
				if err != nil || len(found) == 0 {
					t.Fatalf("%s: %v", name, err)
				}
				for _, path := range found {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"nothing":                   {func(*testing.T, string) {}, ""},
		"a record is edited":        {edit(1, func(l []string) []string { l[1] = strings.Replace(l[1], `"n":`, `"n":1`, 1); return l }), Edited},
		"a time is edited":          {edit(0, func(l []string) []string { l[0] = strings.Replace(l[0], "10:30", "10:31", 1); return l }), Edited},
		"a source is edited":        {edit(0, func(l []string) []string { l[2] = strings.Replace(l[2], `"spool":"s"`, `"spool":"t"`, 1); return l }), Edited},
		"a hash is edited":          {edit(0, func(l []string) []string { l[1] = flip(l[1], len(hashKey)+3); return l }), Edited + " " + Replaced},
		"a line is removed":         {edit(1, func(l []string) []string { return slices.Delete(l, 1, 2) }), Missing},
		"the first line is removed": {edit(0, func(l []string) []string { return l[1:] }), Missing},
		"lines change places":       {edit(1, func(l []string) []string { l[0], l[1] = l[1], l[0]; return l }), Missing + " " + Disorder + " " + Missing},
		"a line is there twice":     {edit(0, func(l []string) []string { return slices.Insert(l, 1, l[0]) }), Disorder},
		"the last line is removed":  {edit(-1, func(l []string) []string { return l[:len(l)-1] }), Truncated},
		"half of the last line":     {edit(-1, func(l []string) []string { l[len(l)-1] = l[len(l)-1][:40]; return l }), Truncated},
		"a segment is cut off":      {edit(0, func(l []string) []string { return l[:len(l)-1] }), Missing},
		"a segment ends in a line":  {edit(0, func(l []string) []string { l[len(l)-1] = l[len(l)-1][:40]; return l }), Truncated + " " + Missing},
		"a line of nonsense":        {edit(1, func(l []string) []string { return slices.Insert(l, 1, "nonsense\n") }), Malformed},
		"an endless line":           {edit(1, func(l []string) []string { return slices.Insert(l, 1, strings.Repeat("x", 8*maxLine)) }), Malformed + " " + Missing},
		"the first segment":         {remove(segmentName(1)), Missing},
		"the head":                  {remove(headName), Truncated},
		"everything but the head":   {remove("0*"), Truncated},
		"the head is nonsense":      {func(t *testing.T, dir string) { write(t, filepath.Join(dir, headName), []string{"{"}) }, Malformed},
		"an unknown key in it": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, headName)
			l := lines(t, path)
			write(t, path, []string{strings.Replace(l[0], `{"version"`, `{"x":1,"version"`, 1)})
		}, Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 40)
			c.change(t, dir)
			r := verified(t, dir)
			if got := kinds(r); got != c.want {
				t.Errorf("found %q, want %q: %+v", got, c.want, r.Problems)
			}
			for _, p := range r.Problems {
				if p.Message == "" {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

func flip(s string, at int) string {
	c := byte('0')
	if s[at] == c {
		c = '1'
	}
	return s[:at] + string(c) + s[at+1:]
}

// forge writes the log anew from an entry on, as one who knows how it is made.
func forge(t *testing.T, dir string, seq int64, change func(record []byte) []byte) {
	t.Helper()
	h, err := ReadHead(dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	prev := ""
	for _, s := range list {
		path := filepath.Join(dir, s.name)
		all := lines(t, path)
		for i, text := range all {
			e, _, err := decode([]byte(strings.TrimSuffix(text, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			if e.Seq < seq {
				continue
			}
			if e.Seq == seq {
				e.Record = change(e.Record)
			} else {
				e.Prev = prev
			}
			line, err := e.encode()
			if err != nil {
				t.Fatal(err)
			}
			prev, all[i] = e.Hash, string(line)+"\n"
		}
		write(t, path, all)
	}
	h.Hash = prev
	data, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, headName), []string{string(data) + "\n"})
}

func TestAnAnchorFindsALogThatWasWrittenAnew(t *testing.T) {
	dir := filled(t, 40)
	forge(t, dir, 10, func([]byte) []byte { return []byte(`{"event_type":"test","n":99}`) })
	if r := verified(t, dir); len(r.Problems) > 0 {
		t.Errorf("without an anchor nothing can be told: %+v", r.Problems)
	}
	r, err := Verify(dir, filepath.Join(filepath.Dir(dir), "anchor"))
	if err != nil || !strings.HasPrefix(kinds(r), Replaced+" "+Replaced) || !strings.Contains(r.Problems[0].Message, "the anchor of") {
		t.Errorf("%+v, %v", r, err)
	}
	// Cut off and with another head, too.
	dir = filled(t, 40)
	list, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, list[len(list)-1].name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, headName)); err != nil {
		t.Fatal(err)
	}
	if r, err = Verify(dir, filepath.Join(filepath.Dir(dir), "anchor")); err != nil || !strings.Contains(kinds(r), Truncated) || !strings.Contains(fmt.Sprint(r.Problems), "the anchor of") {
		t.Errorf("%+v, %v", r, err)
	}
	for _, path := range []string{filepath.Join(dir, "gone"), dir} {
		if _, err := Verify(dir, path); fault.ReasonOf(err) != fault.NotFound {
			t.Errorf("%v", err)
		}
	}
	write(t, filepath.Join(dir, "nonsense"), []string{"nonsense\n"})
	if r, err = Verify(dir, filepath.Join(dir, "nonsense")); err != nil || !strings.Contains(kinds(r), Malformed) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhereThereIsNoLogNothingIsVerified(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "gone")} {
		if r, err := Verify(dir, ""); r != nil || fault.ReasonOf(err) != fault.NotFound {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func TestAChangedLogIsBegunAnewAndSaysSo(t *testing.T) {
	for name, change := range map[string]func(dir string){
		"cut off": func(dir string) {
			list, _ := segments(dir)
			_ = os.Truncate(filepath.Join(dir, list[len(list)-1].name), list[len(list)-1].size-100)
		},
		"the newest segment is gone": func(dir string) {
			list, _ := segments(dir)
			_ = os.Remove(filepath.Join(dir, list[len(list)-1].name))
		},
		"the last entry is another": func(dir string) {
			list, _ := segments(dir)
			path := filepath.Join(dir, list[len(list)-1].name)
			l := lines(t, path)
			l[len(l)-1] = flip(l[len(l)-1], 20)
			write(t, path, l)
		},
		"the head is gone":     func(dir string) { _ = os.Remove(filepath.Join(dir, headName)) },
		"the head is nonsense": func(dir string) { _ = os.WriteFile(filepath.Join(dir, headName), []byte("nonsense"), 0o600) },
		"something is behind it": func(dir string) {
			list, _ := segments(dir)
			path := filepath.Join(dir, list[len(list)-1].name)
			write(t, path, append(lines(t, path), "nonsense\n"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 40)
			change(dir)
			l := open(t, dir, Options{SegmentBytes: 2000})
			if err := l.Append(from("f", 41)); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			r := verified(t, dir)
			if !strings.Contains(kinds(r), Broken) {
				t.Errorf("the change does not show: %+v", r)
			}
			got := numbers(t, dir)
			if len(got) == 0 || got[len(got)-1] != 41 {
				t.Errorf("the log did not go on: %v", got)
			}
			// Once it goes on, it goes on without another complaint.
			before := len(r.Problems)
			l = open(t, dir, Options{SegmentBytes: 2000})
			if err := l.Append(from("f", 42)); err != nil {
				t.Fatal(err)
			}
			if r = verified(t, dir); len(r.Problems) != before {
				t.Errorf("before %d problems, now %+v", before, r.Problems)
			}
		})
	}
}

func TestNothingAcknowledgedIsLostAndNothingTwiceWhenTheKeeperIsKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	acknowledged := int64(0)
	for range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), keeperEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := 5 + rand.IntN(30)
		words := bufio.NewReader(out)
		for i := 0; ; i++ {
			word, err := words.ReadString('\n')
			if err != nil {
				break
			}
			if _, err := fmt.Sscan(word, &acknowledged); err != nil {
				t.Fatalf("it says %q", word)
			}
			if i == stop {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		got := numbers(t, dir)
		if int64(len(got)) < acknowledged {
			t.Fatalf("%d entries, %d were acknowledged", len(got), acknowledged)
		}
		for i, n := range got {
			if n != int64(i+1) {
				t.Fatalf("entry %d is number %d", i+1, n)
			}
		}
		if r := verified(t, dir); len(r.Problems) > 0 {
			t.Fatalf("%+v", r)
		}
	}
	if acknowledged < 20 {
		t.Errorf("only %d were acknowledged", acknowledged)
	}
}

func TestALineThatWasBegunIsTakenBack(t *testing.T) {
	dir := filled(t, 10)
	list, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, list[len(list)-1].name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"hash":"12`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if r := verified(t, dir); len(r.Problems) > 0 || !r.Unfinished {
		t.Errorf("%+v", r)
	}
	l := open(t, dir, Options{})
	if err := l.Append(from("f", 11)); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir); len(r.Problems) > 0 || r.Unfinished || r.Last != 11 {
		t.Errorf("%+v", r)
	}
}

func TestOnlyOneKeepsALog(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if other, err := Open(dir, Options{Clock: fixed}); other != nil || fault.ReasonOf(err) != fault.Exists {
		t.Errorf("%v, %v", other, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
}

func TestSegmentsTurnBySizeAndAgeAndTheOldestGo(t *testing.T) {
	dir := t.TempDir()
	now := began
	l := open(t, dir, Options{Clock: func() time.Time { return now }, SegmentBytes: 2000, SegmentAge: time.Hour, KeepBytes: 6000})
	for i := range 200 {
		if err := l.Append(from("f", int64(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	list, err := segments(dir)
	if err != nil || len(list) > 5 || list[0].first == 1 {
		t.Errorf("%+v, %v", list, err)
	}
	r := verified(t, dir)
	if len(r.Problems) > 0 || r.First == 1 || r.Last < 200 {
		t.Errorf("what was removed is not accounted for: %+v", r)
	}
	before := len(list)
	now = now.Add(2 * time.Hour)
	if err := l.Append(from("f", 201)); err != nil {
		t.Fatal(err)
	}
	if list, err = segments(dir); err != nil || list[len(list)-1].first != l.Head().Seq && before == len(list) {
		t.Errorf("an old segment did not turn: %+v, %v", list, err)
	}
	// One more at the beginning is missed.
	if err := os.Remove(filepath.Join(dir, list[0].name)); err != nil {
		t.Fatal(err)
	}
	if r = verified(t, dir); kinds(r) != Missing {
		t.Errorf("%+v", r)
	}
}

func TestWhatIsKnownOfASpoolIsBounded(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	for i := range 3 * maxMarks {
		if err := l.Append(Pending{Source: &Source{"s", fmt.Sprint(i), 1}, Record: map[string]any{}}); err != nil {
			t.Fatal(err)
		}
	}
	known := 0
	for i := range 3 * maxMarks {
		if _, ok := l.Taken("s")(fmt.Sprint(i)); ok {
			known++
		}
	}
	if known != maxMarks || len(l.Spools()) != 1 {
		t.Errorf("%d files are known, %v", known, l.Spools())
	}
	l.Forget("s")
	if len(l.Spools()) != 0 {
		t.Error("not forgotten")
	}
}

func TestAFailedWriteCountsForNothing(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if err := l.Append(from("f", 1)); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.file.Close()
	l.mu.Unlock()
	if err := l.Append(from("f", 2)); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	if line, _ := l.Taken("s")("f"); line != 1 {
		t.Errorf("taken up to %d", line)
	}
	if err := l.Append(from("f", 2)); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir); len(r.Problems) > 0 || r.Last != 2 {
		t.Errorf("%+v", r)
	}
	if err := l.Append(Pending{Record: strings.Repeat("x", maxLine)}); fault.ReasonOf(err) != fault.ResourceLimit {
		t.Errorf("%v", err)
	}
	if err := l.Append(Pending{Record: func() {}}); fault.ReasonOf(err) != fault.Internal {
		t.Errorf("%v", err)
	}
}

func FuzzVerify(f *testing.F) {
	dir := filled(f, 6)
	list, err := segments(dir)
	if err != nil {
		f.Fatal(err)
	}
	head, err := ReadHead(dir)
	if err != nil {
		f.Fatal(err)
	}
	whole := ""
	for _, s := range list {
		data, err := os.ReadFile(filepath.Join(dir, s.name))
		if err != nil {
			f.Fatal(err)
		}
		whole += string(data)
	}
	f.Add([]byte(whole))
	f.Add([]byte(whole[:len(whole)/2]))
	f.Add([]byte("{}\n"))
	f.Add([]byte(whole + whole))
	f.Add([]byte(strings.Replace(whole, `"n":3`, `"n":4`, 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newChecker(1)
		c.want[head.Seq] = []claim{{head.Hash, "the head"}}
		if err := c.ended(scanLines(bytes.NewReader(data), "log", 0, c.check), true); err != nil {
			t.Fatal(err)
		}
		c.end(nil)
		// Nothing but the log itself is intact, whatever may follow it.
		if len(c.Problems) == 0 && !strings.HasPrefix(string(data), whole) {
			t.Fatalf("%q is taken for the log", data)
		}
	})
}
