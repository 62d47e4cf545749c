package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// writerEnv makes the test binary a writer of records: "shared" or "alone".
const writerEnv = "AUDIT_TEST_WRITER"

func TestMain(m *testing.M) {
	if how := os.Getenv(writerEnv); how != "" {
		os.Exit(writer(how, os.Args[1], os.Args[2]))
	}
	os.Exit(m.Run())
}

// writer appends records until it is killed and says which were acknowledged.
func writer(how, dir, name string) int {
	spool := OpenSpool(dir, 1<<30)
	if how == "shared" {
		spool = OpenShared(dir, 1<<30)
	}
	for i := 0; ; i++ {
		if err := spool.Append(record(name, i)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if _, err := fmt.Printf("%s %d\n", name, i); err != nil {
			return 0 // nobody listens any more
		}
	}
}

func record(name string, i int) []byte {
	return fmt.Appendf(nil, `{"name":%q,"n":%d,"pad":%q}`, name, i, strings.Repeat("x", i%200))
}

func none(string) (int64, bool) { return 0, false }

// waiting reads all that waits in a spool.
func waiting(t testing.TB, dir string) Batch {
	t.Helper()
	b, err := NewSource(dir).Next(1<<30, none)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func texts(b Batch) []string {
	var list []string
	for _, l := range b.Lines {
		list = append(list, string(l.Data))
	}
	return list
}

func TestWhatIsAppendedIsReadOnce(t *testing.T) {
	for name, open := range map[string]func(string, int64) *Spool{"alone": OpenSpool, "shared": OpenShared} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(dir, limits.AuditRunBytes)
			source := NewSource(dir)
			var got []string
			taken := map[string]int64{}
			know := func(file string) (int64, bool) { n, ok := taken[file]; return n, ok }
			for i := range 300 {
				lines := [][]byte{record("a", 2*i), record("a", 2*i+1)}
				if err := s.Append(lines...); err != nil {
					t.Fatal(err)
				}
				if i%7 != 0 {
					continue
				}
				if i%70 == 0 {
					source = NewSource(dir) // as after a restart: what was taken is known, how far it read is not
				}
				b, err := source.Next(5+i, know)
				if err != nil || len(b.Anomalies) > 0 || len(b.Lost) > 0 {
					t.Fatalf("%+v, %v", b, err)
				}
				for _, l := range b.Lines {
					taken[l.File] = l.Number
				}
				got = append(got, texts(b)...)
				if empty, err := source.Trim(false); empty || err != nil {
					t.Fatalf("%v, %v", empty, err)
				}
			}
			b, err := source.Next(1<<20, know)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, texts(b)...)
			var want []string
			for i := range 600 {
				want = append(want, string(record("a", i)))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d records of %d, %q", len(got), len(want), got[:min(3, len(got))])
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if empty, err := source.Trim(true); !empty || err != nil {
				t.Errorf("left over: %v, %v", empty, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v, %v", left, err)
			}
		})
	}
}

func TestWhatDoesNotFitIsDroppedAndCounted(t *testing.T) {
	for name, open := range map[string]func(string, int64) *Spool{"alone": OpenSpool, "shared": OpenShared} {
		t.Run(name, func(t *testing.T) {
			const bound = 64 * limits.KiB
			dir := t.TempDir()
			s := open(dir, bound)
			defer s.Close()
			const all = 3000
			for i := range all {
				if err := s.Append(record("a", i)); err != nil {
					t.Fatal(err)
				}
				if i%100 != 0 {
					continue
				}
				var total int64
				files, err := spoolFiles(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					total += f.size
				}
				if total > bound+limits.AuditLineBytes {
					t.Fatalf("%d bytes wait, the bound is %d", total, bound)
				}
			}
			// Only the newest files are there; the oldest of them tells of the last loss
			// that is not told of yet.
			b := waiting(t, dir)
			if len(b.Lines) == 0 || len(b.Lost) == 0 || len(b.Lines) >= all {
				t.Fatalf("%d lines, lost %+v", len(b.Lines), b.Lost)
			}
			if last := string(b.Lines[len(b.Lines)-1].Data); last != string(record("a", all-1)) {
				t.Errorf("the last is %s", last)
			}
			total := int64(len(b.Lines))
			for i, l := range b.Lost {
				total += l.Lines
				if l.Lines < 10 || l.File == "" && i > 0 || l.In == l.File {
					t.Errorf("%+v", l)
				}
			}
			if total != all {
				t.Errorf("%d read or lost of %d: %+v", total, all, b.Lost)
			}
		})
	}
}

// A reader that keeps up learns of every record or of its loss.
func TestRecordsAndLossesAddUp(t *testing.T) {
	dir := t.TempDir()
	s := OpenSpool(dir, 64*limits.KiB)
	source := NewSource(dir)
	taken := map[string]int64{}
	know := func(file string) (int64, bool) { n, ok := taken[file]; return n, ok }
	random := rand.New(rand.NewPCG(5, 6))
	const all = 20000
	read, lost := 0, int64(0)
	collect := func(most int) {
		b, err := source.Next(most, know)
		if err != nil || len(b.Anomalies) > 0 {
			t.Fatalf("%+v, %v", b, err)
		}
		for _, l := range b.Lost {
			lost += l.Lines - taken[l.File]
			taken[l.In] += 0
		}
		for _, l := range b.Lines {
			taken[l.File] = l.Number
			read++
		}
		if _, err := source.Trim(false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range all {
		if err := s.Append(record("a", i)); err != nil {
			t.Fatal(err)
		}
		if random.IntN(400) == 0 {
			collect(random.IntN(300))
		}
		if random.IntN(4000) == 0 {
			source = NewSource(dir)
		}
	}
	collect(1 << 30)
	if int64(read)+lost != all || lost == 0 || read < 1000 {
		t.Errorf("%d read and %d lost of %d", read, lost, all)
	}
}

// children starts writers, kills each at a random time, and returns what they
// said was acknowledged.
func children(t *testing.T, how, dir string, names ...string) map[string]bool {
	t.Helper()
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var wg sync.WaitGroup
	for _, name := range names {
		cmd := exec.Command(os.Args[0], dir, name)
		cmd.Env = append(os.Environ(), writerEnv+"="+how)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			lines := bufio.NewReader(out)
			stop := 20 + rand.IntN(300)
			for i := 0; ; i++ {
				line, err := lines.ReadString('\n')
				if err != nil {
					break // the rest of a line is no word
				}
				mu.Lock()
				acknowledged[strings.TrimSpace(line)] = true
				mu.Unlock()
				if i == stop {
					_ = cmd.Process.Kill()
				}
			}
			_ = cmd.Wait()
		})
	}
	wg.Wait()
	return acknowledged
}

func TestNoAcknowledgedRecordIsLostWhenWritersAreKilled(t *testing.T) {
	for how, writers := range map[string]int{"alone": 1, "shared": 4} {
		t.Run(how, func(t *testing.T) {
			for range 3 {
				dir := t.TempDir()
				acknowledged := map[string]bool{}
				// A second generation goes on where the first was killed.
				for generation := range 2 {
					var names []string
					for i := range writers {
						names = append(names, fmt.Sprintf("w%d-%d", generation, i))
					}
					for word := range children(t, how, dir, names...) {
						acknowledged[word] = true
					}
				}
				found := map[string]bool{}
				for _, l := range waiting(t, dir).Lines {
					var r struct {
						Name string
						N    int
					}
					if json.Unmarshal(l.Data, &r) == nil {
						found[r.Name+" "+strconv.Itoa(r.N)] = true
					}
				}
				for word := range acknowledged {
					if !found[word] {
						t.Errorf("%s was acknowledged and is not there", word)
					}
				}
				if len(acknowledged) < 20*writers {
					t.Errorf("only %d records were acknowledged", len(acknowledged))
				}
			}
		})
	}
}

func TestATornLineIsNone(t *testing.T) {
	dir := t.TempDir()
	s := OpenShared(dir, limits.AuditRunBytes)
	if err := s.Append(record("a", 1)); err != nil {
		t.Fatal(err)
	}
	// A writer was killed in the middle of a line.
	name := filepath.Join(dir, "00000001.jsonl")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"name":"b","n`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	source := NewSource(dir)
	if b, err := source.Next(10, none); err != nil || len(b.Lines) != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	if empty, err := source.Trim(false); empty || err != nil {
		t.Errorf("%v, %v", empty, err)
	}
	if err := s.Append(record("a", 2)); err != nil {
		t.Fatal(err)
	}
	b, err := source.Next(10, none)
	if err != nil || len(b.Lines) != 2 || string(b.Lines[1].Data) != string(record("a", 2)) || json.Valid(b.Lines[0].Data) {
		t.Errorf("%q, %v", texts(b), err)
	}
	if empty, err := source.Trim(true); !empty || err != nil {
		t.Errorf("%v, %v", empty, err)
	}
}

func TestAnAbandonedFileIsFinishedByTheNextWriter(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "00000001.jsonl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := OpenShared(dir, limits.AuditRunBytes)
	if err := s.Append(record("a", 1)); err != nil {
		t.Fatal(err)
	}
	if got := texts(waiting(t, dir)); !slices.Equal(got, []string{string(record("a", 1))}) {
		t.Errorf("%q", got)
	}
}

func TestNobodyWaitsForALockForEver(t *testing.T) {
	dir := t.TempDir()
	s := OpenShared(dir, limits.AuditRunBytes)
	if err := s.Append(record("a", 1)); err != nil {
		t.Fatal(err)
	}
	release := hold(t, filepath.Join(dir, "00000001.jsonl"))
	err := s.Append(record("a", 2))
	if fault.ReasonOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "locked") {
		t.Errorf("%v", err)
	}
	release()
	if err := s.Append(record("a", 3)); err != nil {
		t.Error(err)
	}
	if got := texts(waiting(t, dir)); !slices.Equal(got, []string{string(record("a", 1)), string(record("a", 3))}) {
		t.Errorf("%q", got)
	}
}

func TestWhatIsNoRecordIsRefused(t *testing.T) {
	s := OpenSpool(t.TempDir(), limits.AuditRunBytes)
	for name, line := range map[string][]byte{"two lines": []byte("{}\n{}"), "too long": make([]byte, limits.AuditLineBytes+1)} {
		if err := s.Append(line); fault.ReasonOf(err) != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := OpenSpool(filepath.Join(t.TempDir(), "gone"), 1).Append([]byte("{}")); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	if err := OpenShared(filepath.Join(t.TempDir(), "gone"), 1).Append([]byte("{}")); fault.ReasonOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
}

// A directory that a host took over holds anything; nothing of it stops a reader
// or leads it elsewhere.
func TestAHostileDirectoryIsReadSafely(t *testing.T) {
	good := `{"spool":1,"id":"a"}` + "\n" + `{"n":1}` + "\n"
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(good+`{"secret":1}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		make      func(dir string)
		lines     int
		anomalies int
	}{
		"a link":       {func(dir string) { _ = os.Symlink(secret, filepath.Join(dir, "00000001.jsonl")) }, 0, 0},
		"a directory":  {func(dir string) { _ = os.Mkdir(filepath.Join(dir, "00000001.jsonl"), 0o700) }, 0, 0},
		"a pipe":       {func(dir string) { pipe(t, filepath.Join(dir, "00000001.jsonl")) }, 0, 0},
		"another name": {func(dir string) { put(t, dir, "1.jsonl", good) }, 0, 0},
		"no header":    {func(dir string) { put(t, dir, "00000001.jsonl", `{"n":1}`+"\n"+`{"n":2}`+"\n") }, 0, 1},
		"a header of hours": {func(dir string) {
			put(t, dir, "00000001.jsonl", `{"spool":1,"id":"a","dropped":[`+strings.Repeat(`{"id":"b","lines":9},`, 50)+`{"id":"b","lines":-1}]}`+"\n")
		}, 0, 0},
		"an endless line": {func(dir string) { put(t, dir, "00000001.jsonl", good+strings.Repeat("x", 2*chunk)) }, 1, 1},
		"a long line": {func(dir string) {
			put(t, dir, "00000001.jsonl", good+strings.Repeat("x", limits.AuditLineBytes+1)+"\n"+`{"n":2}`+"\n")
		}, 2, 1},
		"many files":         {func(dir string) { many(t, dir, good) }, maxFiles, 0},
		"lines of no record": {func(dir string) { put(t, dir, "00000001.jsonl", good+"\n\n\x00\n") }, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(dir)
			b := waiting(t, dir)
			if len(b.Lines) != c.lines || len(b.Anomalies) != c.anomalies || len(b.Lost) > maxDropped {
				t.Errorf("%d lines, anomalies %q, lost %d", len(b.Lines), b.Anomalies, len(b.Lost))
			}
			if strings.Contains(strings.Join(texts(b), ""), "secret") {
				t.Error("a link was followed")
			}
		})
	}
}

func TestAFileThatBecomesShorterIsReported(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "00000001.jsonl", `{"spool":1,"id":"a"}`+"\n"+`{"n":1}`+"\n")
	source := NewSource(dir)
	if b, err := source.Next(10, none); err != nil || len(b.Lines) != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	put(t, dir, "00000001.jsonl", `{"spool":1,"id":"a"}`+"\n")
	b, err := source.Next(10, none)
	if err != nil || len(b.Anomalies) != 1 || !strings.Contains(b.Anomalies[0], "became shorter") {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err = source.Next(10, none); err != nil || len(b.Anomalies) != 0 {
		t.Errorf("reported twice: %+v, %v", b, err)
	}
}

func put(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func many(t testing.TB, dir, text string) {
	t.Helper()
	for i := range 3 * maxFiles {
		put(t, dir, spoolFile{number: i + 1}.name(), strings.Replace(text, `"a"`, fmt.Sprintf(`"f%d"`, i), 1))
	}
}

func FuzzSource(f *testing.F) {
	f.Add([]byte(`{"spool":1,"id":"a"}`+"\n"+`{"n":1}`+"\n"), int64(0))
	f.Add([]byte(`{"spool":1,"id":"a","dropped":[{"id":"b","lines":3}]}`+"\n"+`{"n":1}`+"\n{torn"), int64(1))
	f.Add([]byte("{}\n\n\n"), int64(3))
	f.Fuzz(func(t *testing.T, data []byte, known int64) {
		taken := func(string) (int64, bool) { return known, known > 0 }
		file := spoolFile{number: 1, size: int64(len(data))}
		var p position
		var b, again Batch
		if err := p.read(bytes.NewReader(data), file, 1<<20, taken, &b); err != nil {
			t.Fatal(err)
		}
		for _, l := range b.Lines {
			if len(l.Data) == 0 || len(l.Data) > limits.AuditLineBytes || l.Number <= known && known > 0 || bytes.ContainsRune(l.Data, '\n') {
				t.Fatalf("%+v", l)
			}
		}
		if p.bad {
			return
		}
		if err := p.read(bytes.NewReader(data), file, 1<<20, taken, &again); err != nil || len(again.Lines) > 0 || len(again.Lost) > 0 {
			t.Fatalf("read twice: %+v, %v", again, err)
		}
		if p.offset != file.size && p.drained != file.size {
			t.Fatalf("read up to %d of %d bytes, and not to the end", p.offset, file.size)
		}
	})
}

func TestRecordersOfADeadSpoolCountWhatIsLost(t *testing.T) {
	dir := t.TempDir()
	s := OpenSpool(dir, limits.AuditRunBytes)
	if err := s.Begin(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.f.Close()
	s.mu.Unlock()
	if err := s.Append([]byte("{}")); fault.ReasonOf(err) != fault.Unavailable || !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}
