package aot

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// TestMain makes the test binary play two more parts: the compiler, and another
// process that uses the same cache.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == compileVerb:
		os.Exit(fakeCompiler())
	case len(os.Args) == 3 && os.Args[1] == "linger":
		time.Sleep(time.Minute)
		os.Exit(0)
	case os.Getenv("AOT_TEST_MEMBER") != "":
		os.Exit(member())
	}
	os.Exit(m.Run())
}

// fakeCompiler does what the module says.
func fakeCompiler() int {
	out := os.NewFile(3, "result")
	module, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1
	}
	verb, rest, _ := strings.Cut(string(module), " ")
	switch verb {
	case "slow":
		time.Sleep(200 * time.Millisecond)
	case "invalid":
		fmt.Fprintln(os.Stderr, rest)
		return exitInvalid
	case "fail":
		fmt.Fprintln(os.Stderr, rest+"\nand a second line")
		return 22
	case "crash":
		panic(rest)
	case "nothing":
		return 0
	case "half":
		fmt.Fprint(out, "half of the code")
		return 22
	case "linger":
		child := exec.Command("/proc/self/exe", "linger", rest)
		child.Stderr, child.ExtraFiles = os.Stderr, []*os.File{out}
		if err := child.Start(); err != nil {
			return 1
		}
		return 22
	case "hang":
		time.Sleep(time.Minute)
	case "burn":
		for {
			module[0]++
		}
	case "eat":
		for b := []byte("x"); ; b = append(b, b...) {
			_ = b
		}
	case "spew":
		for {
			if _, err := out.Write(make([]byte, 1<<16)); err != nil {
				return 1
			}
		}
	}
	fmt.Fprintf(out, "code of %s with %d variables", digest.FromBytes(module), len(os.Environ()))
	return 0
}

// member is another process: it asks for one module and prints what it got.
func member() int {
	if size := os.Getenv("AOT_TEST_FSIZE"); size != "" {
		signal.Ignore(unix.SIGXFSZ)
		bound, err := strconv.ParseUint(size, 10, 64)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bound, Max: bound}); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	dir := os.Getenv("AOT_TEST_MEMBER")
	self, err := os.Executable()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := Open(Options{Dir: filepath.Join(dir, "cache"), Memory: filepath.Join(dir, "memory"), HostBinary: self})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	module := []byte(os.Getenv("AOT_TEST_MODULE"))
	e, err := c.Module(context.Background(), digest.FromBytes(module), opener(module))
	if err != nil {
		fmt.Printf("%s|%v\n", fault.ReasonOf(err), err)
		return 1
	}
	fmt.Printf("hit=%v\n", e.Hit)
	return 0
}

func opener(module []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(module)), nil }
}

// fixture is a cache that counts its compilations and keeps what it reports.
type fixture struct {
	*Cache
	dir      string
	compiles *atomic.Int32
	mu       sync.Mutex
	reports  []string
}

func newFixture(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{dir: t.TempDir(), compiles: new(atomic.Int32)}
	opts := Options{Dir: filepath.Join(f.dir, "cache"), Memory: filepath.Join(f.dir, "memory"), HostBinary: self}
	opts.Start = func(cmd *exec.Cmd) (func() error, error) {
		err := cmd.Start()
		if err == nil {
			f.compiles.Add(1)
		}
		return cmd.Wait, err
	}
	opts.Report = func(line string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if strings.Contains(line, "removed") {
			f.reports = append(f.reports, line)
		}
	}
	for _, c := range change {
		c(&opts)
	}
	if f.Cache, err = Open(opts); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) get(t testing.TB, module string) (Entry, error) {
	t.Helper()
	return f.Module(t.Context(), digest.FromString(module), opener([]byte(module)))
}

func (f *fixture) mustGet(t testing.TB, module string) Entry {
	t.Helper()
	e, err := f.get(t, module)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("code of %s with 0 variables", digest.FromString(module))
	if got, err := os.ReadFile(e.Path); err != nil || string(got) != want {
		t.Fatalf("entry holds %q (%v), want %q", got, err, want)
	}
	return e
}

// leftovers are the files that no finished cache has.
func (f *fixture) leftovers(t testing.TB) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{"cache/" + tempPrefix + "*", "memory/" + tempPrefix + "*"} {
		found, err := filepath.Glob(filepath.Join(f.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

func (f *fixture) entries(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(f.dir, "cache", "*"+moduleSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestModuleIsCompiledOnceThenHit(t *testing.T) {
	f := newFixture(t)
	first := f.mustGet(t, "ok")
	if first.Hit || first.CompileTime <= 0 || first.Size == 0 {
		t.Errorf("first: %+v", first)
	}
	never := func() (io.ReadCloser, error) { return nil, errors.New("a hit must not read the module") }
	second, err := f.Module(t.Context(), digest.FromString("ok"), never)
	if err != nil || !second.Hit || second.CompileTime != 0 || second.Path != first.Path || second.Size != first.Size {
		t.Errorf("second: %+v, %v", second, err)
	}
	if n := f.compiles.Load(); n != 1 {
		t.Errorf("%d compilations", n)
	}
	for path, want := range map[string]os.FileMode{
		first.Path: 0o444, filepath.Dir(first.Path): 0o700 | os.ModeDir, filepath.Join(f.dir, "memory"): 0o700 | os.ModeDir,
		filepath.Join(f.dir, "cache", keyName): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if left := f.leftovers(t); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestAHitWithoutMemoryIsCheckedInFull(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Memory = "" })
	f.mustGet(t, "ok")
	if e := f.mustGet(t, "ok"); !e.Hit || f.compiles.Load() != 1 {
		t.Errorf("%+v after %d compilations", e, f.compiles.Load())
	}
}

func TestTwentyGoroutinesOfTheirOwnCachesCompileOnce(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := Open(f.opts)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := c.Module(t.Context(), digest.FromString("slow"), opener([]byte("slow"))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.compiles.Load(); n != 1 {
		t.Errorf("%d compilations", n)
	}
}

func memberCommand(dir, module string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "AOT_TEST_MEMBER="+dir, "AOT_TEST_MODULE="+module)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func TestTwentyProcessesInAnEmptyCacheCompileOnce(t *testing.T) {
	dir := t.TempDir()
	var misses atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			out, err := memberCommand(dir, "slow").CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("%v: %s", err, out)
			case string(out) == "hit=false\n":
				misses.Add(1)
			case string(out) != "hit=true\n":
				t.Errorf("said %s", out)
			}
		})
	}
	wg.Wait()
	if n := misses.Load(); n != 1 {
		t.Errorf("%d compilations", n)
	}
}

func TestAnEntryThatIsNotWhatItWasIsCompiledAgainAndReported(t *testing.T) {
	replace := func(t *testing.T, path string, data []byte) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func(t *testing.T, f *fixture, e Entry){
		"truncated": func(t *testing.T, _ *fixture, e Entry) {
			data, err := os.ReadFile(e.Path)
			if err != nil {
				t.Fatal(err)
			}
			replace(t, e.Path, data[:len(data)/2])
		},
		"empty": func(t *testing.T, _ *fixture, e Entry) { replace(t, e.Path, nil) },
		"one byte changed in place, times put back": func(t *testing.T, _ *fixture, e Entry) {
			info, err := os.Stat(e.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(e.Path, 0o600); err != nil {
				t.Fatal(err)
			}
			w, err := os.OpenFile(e.Path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.WriteAt([]byte("X"), 0)
			if err = errors.Join(err, w.Close(), os.Chmod(e.Path, 0o444), os.Chtimes(e.Path, info.ModTime(), info.ModTime())); err != nil {
				t.Fatal(err)
			}
		},
		"other bytes": func(t *testing.T, _ *fixture, e Entry) { replace(t, e.Path, []byte("code of another compiler")) },
		"another module's, with its code": func(t *testing.T, f *fixture, e Entry) {
			other := f.mustGet(t, "other")
			for _, suffix := range []string{moduleSuffix, macSuffix} {
				data, err := os.ReadFile(strings.TrimSuffix(other.Path, moduleSuffix) + suffix)
				if err != nil {
					t.Fatal(err)
				}
				replace(t, strings.TrimSuffix(e.Path, moduleSuffix)+suffix, data)
			}
		},
		"without its code": func(t *testing.T, f *fixture, e Entry) {
			if err := errors.Join(os.Remove(strings.TrimSuffix(e.Path, moduleSuffix)+macSuffix), os.RemoveAll(f.opts.Memory), os.Mkdir(f.opts.Memory, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T, f *fixture, e Entry) {
			elsewhere := filepath.Join(f.dir, "elsewhere")
			if err := errors.Join(os.Rename(e.Path, elsewhere), os.Symlink(elsewhere, e.Path)); err != nil {
				t.Fatal(err)
			}
		},
		"writable": func(t *testing.T, _ *fixture, e Entry) {
			if err := os.Chmod(e.Path, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"a pipe": func(t *testing.T, _ *fixture, e Entry) {
			if err := errors.Join(os.Remove(e.Path), unix.Mkfifo(e.Path, 0o444)); err != nil {
				t.Fatal(err)
			}
		},
		"made under another key of the node": func(t *testing.T, f *fixture, _ Entry) {
			f.secret = bytes.Repeat([]byte{1}, 32)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			e := f.mustGet(t, "ok")
			damage(t, f, e)
			before := f.compiles.Load()
			if again := f.mustGet(t, "ok"); again.Hit || f.compiles.Load() != before+1 {
				t.Errorf("%+v, %d compilations more", again, f.compiles.Load()-before)
			}
			if len(f.reports) != 1 || !strings.Contains(f.reports[0], digest.FromString("ok").String()) {
				t.Errorf("reports: %q", f.reports)
			}
			if e := f.mustGet(t, "ok"); !e.Hit {
				t.Error("the new entry is not used")
			}
		})
	}
}

func TestAForgedMemoryIsNotBelieved(t *testing.T) {
	f := newFixture(t)
	e := f.mustGet(t, "ok")
	if err := os.Chmod(e.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.Path, []byte("native code of somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(e.Path, 0o444); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	// Everything right but for the node's key.
	forger := &Cache{opts: f.opts, secret: make([]byte, 32)}
	forger.remember(strings.TrimSuffix(filepath.Base(e.Path), moduleSuffix), info, "checked")
	if again := f.mustGet(t, "ok"); again.Hit {
		t.Error("a forged entry was used")
	}
}

func TestEveryInputOfTheKeyChangesIt(t *testing.T) {
	f := newFixture(t)
	a, b := digest.FromString("a"), digest.FromString("b")
	keys := map[string]string{"base": f.key(a, "host"), "module": f.key(b, "host"), "host": f.key(a, "another")}
	f.features += " avx1024"
	keys["processor"] = f.key(a, "host")
	seen := map[string]string{}
	for name, key := range keys {
		if before, ok := seen[key]; ok {
			t.Errorf("%s and %s share a key", name, before)
		}
		seen[key] = name
		if raw, err := hex.DecodeString(key); err != nil || len(raw) != 32 {
			t.Errorf("%s: key %q", name, key)
		}
	}
}

func TestAnotherBuildOfTheHostCompilesAgain(t *testing.T) {
	f := newFixture(t)
	f.mustGet(t, "ok")
	data, err := os.ReadFile(f.opts.HostBinary)
	if err != nil {
		t.Fatal(err)
	}
	f.opts.HostBinary = filepath.Join(f.dir, "host")
	for i := range 2 {
		if err := os.WriteFile(f.opts.HostBinary, append(data, make([]byte, i)...), 0o755); err != nil {
			t.Fatal(err)
		}
		// The same bytes at another path are the same build.
		if e := f.mustGet(t, "ok"); e.Hit != (i == 0) {
			t.Errorf("build %d: %+v", i, e)
		}
	}
}

func TestWrongContentIsRefusedAndNeverCompiled(t *testing.T) {
	f := newFixture(t)
	_, err := f.Module(t.Context(), digest.FromString("ok"), opener([]byte("other")))
	if fault.ReasonOf(err) != fault.DigestMismatch {
		t.Errorf("error %v", err)
	}
	// The child would have answered with another error, had it seen the end.
	_, err = f.Module(t.Context(), digest.FromString("ok"), opener([]byte("invalid module")))
	if fault.ReasonOf(err) != fault.DigestMismatch {
		t.Errorf("error %v", err)
	}
	if n, left := f.entries(t), f.leftovers(t); len(n)+len(left) != 0 {
		t.Errorf("stored: %v %v", n, left)
	}
}

// zeros is an endless module.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
func (zeros) Close() error               { return nil }

func TestAnEndlessModuleIsRefused(t *testing.T) {
	f := newFixture(t)
	_, err := f.Module(t.Context(), digest.FromString("ok"), func() (io.ReadCloser, error) { return zeros{}, nil })
	if fault.ReasonOf(err) != fault.ModuleInvalid || !strings.Contains(err.Error(), "over 64 MiB") {
		t.Errorf("error %v", err)
	}
}

func TestAModuleThatCannotBeReadKeepsItsReason(t *testing.T) {
	f := newFixture(t)
	missing := fault.New(fault.NotFound, "sha256:…", "no such blob")
	_, err := f.Module(t.Context(), digest.FromString("ok"), func() (io.ReadCloser, error) { return nil, missing })
	if fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("open: %v", err)
	}
	_, err = f.Module(t.Context(), digest.FromString("ok"), func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("ok"), failingReader{missing})), nil
	})
	if fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("read: %v", err)
	}
	if _, err := f.Module(t.Context(), "sha256:nonsense", opener(nil)); err == nil {
		t.Error("nonsense is a digest")
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

func TestAFailedCompilationSaysWhyInOneLineAndStoresNothing(t *testing.T) {
	for module, want := range map[string]struct {
		reason fault.Reason
		text   string
	}{
		"invalid unknown import: env.nope": {fault.ModuleInvalid, "unknown import: env.nope"},
		"fail no code for you":             {fault.CompileFailed, "(exit status 22): no code for you"},
		"crash engine":                     {fault.CompileFailed, "(exit status 2): panic: engine"},
		"nothing":                          {fault.CompileFailed, "the compiler returned nothing"},
		"half":                             {fault.CompileFailed, "(exit status 22)"},
		"spew":                             {fault.CompileFailed, "the compiled module is over 1 MiB"},
		"hang":                             {fault.CompileFailed, "took longer than 2s"},
		"burn":                             {fault.CompileFailed, "took longer than 2s"},
	} {
		t.Run(module, func(t *testing.T) {
			f := newFixture(t, func(o *Options) { o.CompileWall = 2 * time.Second })
			f.maxCompiled = limits.MiB
			start := time.Now()
			_, err := f.get(t, module)
			if fault.ReasonOf(err) != want.reason || !strings.Contains(err.Error(), want.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %s %q", err, want.reason, want.text)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if n, left := f.entries(t), f.leftovers(t); len(n)+len(left) != 0 {
				t.Errorf("stored: %v %v", n, left)
			}
		})
	}
}

func TestTheCompilersMemoryIsLimited(t *testing.T) {
	f := newFixture(t)
	f.maxMemory = 128 * limits.MiB
	_, err := f.get(t, "eat")
	// Without a group the child meets the limit itself, and says so as it likes.
	if fault.ReasonOf(err) != fault.CompileFailed || os.Geteuid() == 0 && !strings.Contains(err.Error(), "memory") {
		t.Errorf("error %v", err)
	}
}

func TestNothingOfTheCompilerOutlivesIt(t *testing.T) {
	f := newFixture(t)
	token := "token-" + filepath.Base(f.dir) + "-" + fmt.Sprint(os.Getpid())
	start := time.Now()
	_, err := f.get(t, "linger "+token)
	if fault.ReasonOf(err) != fault.CompileFailed {
		t.Errorf("error %v", err)
	}
	if took := time.Since(start); took > linger {
		t.Errorf("a grandchild held the result open for %v", took)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(token)) {
			t.Errorf("%s still runs", path)
		}
	}
}

func TestWaitersShareOneFailure(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.CompileWall = time.Second })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := f.get(t, "hang")
			if fault.ReasonOf(err) != fault.CompileFailed || !strings.Contains(err.Error(), "took longer") {
				t.Errorf("error %v", err)
			}
		})
	}
	wg.Wait()
	if n := f.compiles.Load(); n != 1 {
		t.Errorf("%d compilations", n)
	}
	// Who comes later tries again.
	if _, err := f.get(t, "hang"); err == nil || f.compiles.Load() != 2 {
		t.Errorf("%v after %d compilations", err, f.compiles.Load())
	}
}

func TestACancelledCallerGetsAnAnswerAtOnce(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	start := time.Now()
	for range 2 { // one compiles, one waits
		wg.Go(func() {
			_, err := f.Module(ctx, digest.FromString("hang"), opener([]byte("hang")))
			if fault.ReasonOf(err) != fault.Canceled || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if left := f.leftovers(t); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f := &fixture{dir: dir}
	// The code is over 100 bytes, the cache's own small files are not.
	out, err := memberCommand(dir, "ok", "AOT_TEST_FSIZE=64").CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), string(fault.ResourceLimit)+"|") || !strings.Contains(string(out), "disk is full") ||
		!strings.Contains(string(out), filepath.Join(dir, "cache")) {
		t.Errorf("%v: %s", err, out)
	}
	if n, left := f.entries(t), f.leftovers(t); len(n)+len(left) != 0 {
		t.Errorf("stored: %v %v", n, left)
	}
	if out, err := memberCommand(dir, "ok").CombinedOutput(); err != nil || string(out) != "hit=false\n" {
		t.Errorf("with space again: %v: %s", err, out)
	}
}

func TestANoexecFileSystemIsRefusedByName(t *testing.T) {
	err := execError("/the/cache", unix.ST_NOEXEC|unix.ST_NOSUID)
	if fault.ReasonOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "/the/cache: the file system is mounted noexec") {
		t.Errorf("error %v", err)
	}
	if err := execError("/the/cache", unix.ST_NOSUID); err != nil {
		t.Errorf("exec: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/proc", &st); err != nil {
		t.Fatal(err)
	}
	if got, want := checkExec("/proc") != nil, st.Flags&unix.ST_NOEXEC != 0; got != want {
		t.Errorf("/proc: refused %v, want %v", got, want)
	}
}

func TestOnlyAPrivateDirectoryIsUsed(t *testing.T) {
	open := func(dir string) error {
		_, err := Open(Options{Dir: dir, HostBinary: os.Args[0]})
		return err
	}
	loose := filepath.Join(t.TempDir(), "cache")
	if err := os.Mkdir(loose, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := open(loose); err == nil || !strings.Contains(err.Error(), "mode 0755 lets others in (run: chmod 700 "+loose+")") {
		t.Errorf("loose: %v", err)
	}
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(file); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("file: %v", err)
	}
	if err := open(""); err == nil {
		t.Error("no directory is no error")
	}
}

func TestAMissingHostIsNamed(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.HostBinary = "/nowhere/mentat-host" })
	if _, err := f.get(t, "ok"); fault.ReasonOf(err) != fault.NotFound || !strings.Contains(err.Error(), "/nowhere/mentat-host") {
		t.Errorf("error %v", err)
	}
}

func TestTheNodesKeyIsMadeOnceAndChecked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	var wg sync.WaitGroup
	keys := make([]string, 20)
	for i := range keys {
		wg.Go(func() {
			c, err := Open(Options{Dir: dir, HostBinary: os.Args[0]})
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(c.secret)
		})
	}
	wg.Wait()
	for _, key := range keys {
		if key != keys[0] || len(key) != 32 {
			t.Fatal("processes have different keys")
		}
	}
	path := filepath.Join(dir, keyName)
	for name, change := range map[string]func() error{
		"short":    func() error { return os.WriteFile(path, []byte("short"), 0o600) },
		"too open": func() error { return errors.Join(os.WriteFile(path, make([]byte, 32), 0o600), os.Chmod(path, 0o644)) },
		"a link":   func() error { return errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir, HostBinary: os.Args[0]}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestPruneRemovesWhatWasUsedLongestAgo(t *testing.T) {
	f := newFixture(t)
	paths := map[string]string{}
	var size int64
	for i, module := range []string{"oldest", "old", "used", "new"} {
		e := f.mustGet(t, module)
		paths[module], size = e.Path, e.Size
		age(t, e.Path, time.Duration(10-i)*time.Hour)
		age(t, filepath.Join(f.opts.Memory, strings.TrimSuffix(filepath.Base(e.Path), moduleSuffix)), time.Duration(10-i)*time.Hour)
	}
	// The hit is a use; its entry was made long ago.
	f.mustGet(t, "used")
	f.opts.MaxBytes = 2 * size
	running, crashed := f.key(digest.FromString("running"), "host"), f.key(digest.FromString("crashed"), "host")
	unlock, err := f.tryLock(running)
	if err != nil || unlock == nil {
		t.Fatal(err)
	}
	defer unlock()
	for name, old := range map[string]time.Duration{
		tempPrefix + "crashed": 10 * time.Minute, tempPrefix + "running": 0,
		tempPrefix + crashed + "-1": 0, tempPrefix + running + "-1": time.Hour,
	} {
		path := filepath.Join(f.opts.Dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		age(t, path, old)
	}
	if err := f.Prune(); err != nil {
		t.Fatal(err)
	}
	for module, want := range map[string]bool{"oldest": false, "old": false, "used": true, "new": true} {
		if _, err := os.Stat(paths[module]); (err == nil) != want {
			t.Errorf("%s: kept %v, want %v", module, err == nil, want)
		}
		if _, err := os.Stat(f.macPath(strings.TrimSuffix(filepath.Base(paths[module]), moduleSuffix))); (err == nil) != want {
			t.Errorf("%s: its code is not removed with it", module)
		}
	}
	// Who has the lock still compiles, however long ago it began.
	want := []string{filepath.Join(f.opts.Dir, tempPrefix+running+"-1"), filepath.Join(f.opts.Dir, tempPrefix+"running")}
	slices.Sort(want)
	if left := f.leftovers(t); !slices.Equal(left, want) {
		t.Errorf("left over: %v", left)
	}
}

func TestWhatAKilledCompilationLeftIsSwept(t *testing.T) {
	f := newFixture(t)
	key := f.key(digest.FromString("hang"), hostDigest(t, f))
	cmd := memberCommand(f.dir, "hang")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for len(f.leftovers(t)) == 0 || os.Geteuid() == 0 && len(leftGroups(f.groupName(key))) == 0 {
		if time.Now().After(deadline) {
			t.Log("no cgroup for the compiler here")
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := Sweep(f.opts.Dir); err != nil || len(f.leftovers(t)) == 0 {
		t.Errorf("what goes on was swept: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := Sweep(f.opts.Dir); err != nil {
		t.Error(err)
	}
	if left := append(f.leftovers(t), leftGroups(f.groupName("*"))...); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := Sweep(filepath.Join(f.dir, "never-made")); err != nil {
		t.Errorf("without a cache: %v", err)
	}
}

func hostDigest(t *testing.T, f *fixture) string {
	t.Helper()
	h, err := f.openHost()
	if err != nil {
		t.Fatal(err)
	}
	defer h.file.Close()
	return h.digest
}

func TestACacheOverItsBoundMakesRoomByItself(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxBytes = 1 })
	old := f.mustGet(t, "old")
	age(t, old.Path, time.Hour)
	age(t, filepath.Join(f.opts.Memory, strings.TrimSuffix(filepath.Base(old.Path), moduleSuffix)), time.Hour)
	f.mustGet(t, "new")
	if got := f.entries(t); len(got) != 1 || got[0] == old.Path {
		t.Errorf("entries %v", got)
	}
}

func age(t *testing.T, path string, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkWarmHit(b *testing.B) {
	f := newFixture(b)
	f.mustGet(b, "ok")
	d := digest.FromString("ok")
	for b.Loop() {
		// A shim opens the cache anew for each container.
		c, err := Open(f.opts)
		if err != nil {
			b.Fatal(err)
		}
		if e, err := c.Module(b.Context(), d, opener(nil)); err != nil || !e.Hit {
			b.Fatal(e, err)
		}
	}
}
