package hostdoc

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// full is a document with every field set.
func full() *Document {
	return &Document{
		Version:  Version,
		Agent:    Agent{ID: "org.example.a", Version: "1.0.0", Reference: "r:1", Manifest: "sha256:m", Module: "sha256:w", Trust: "signed", Signer: "a@b"},
		Instance: "c1",
		Entry:    EntryProcess,
		Module:   ModulePath,
		Input:    Input{Kind: InputText, Path: InputPath, Text: "<in> \u2028 \"put\" \\ufffd \\\\ufffd \uFFFD"},
		Args:     []string{"agent", "--flag", ""},
		Env:      []string{"A=B"},
		Preopens: []Preopen{{Host: "/run/mentat/fs/0", Guest: "/data", ReadOnly: true, Fresh: true}},
		Config:   map[string]string{"k": "v", "a": "b"},
		Grants:   []Grant{{Capability: "filesystem:read:/data", Rule: "r"}},
		Denials:  []Denial{{Capability: "env:X", Rule: "r", Reason: "why"}},
		Holes:    []Hole{{Capability: "network:https:b.example", Rule: "r", DryRun: true}},
		Network: &Network{
			Mode: NetworkRestricted, FullRule: "r", AllowPrivate: []string{"10.0.0.0/8"}, BlockedPorts: []int{22}, CAFile: CAPath,
			Inject: []Injection{{Capability: "network:https:a.example", Header: "authorization", Query: "key", Prefix: "Bearer ", Secret: "s"}},
			Limits: NetworkLimits{Concurrent: 1, RequestBytes: 2, ResponseBytes: 3, TimeoutMillis: 4},
		},
		LLM:         &LLM{Providers: []LLMProvider{{Name: "p", URL: "https://a.example/v1", Models: []string{"m*"}, Secret: "s"}}, Tokens: 1, CAFile: CAPath},
		Media:       &Media{S3: &MediaS3{Endpoint: "https://s3.example", Region: "r", Bucket: "b", Prefix: "p", AccessKey: "a", SecretKey: "s", CAFile: CAPath}, Given: []string{"media:sha256:0"}, ItemBytes: 1, TotalBytes: 2},
		Extensions:  []Extension{{Name: "x", Command: []string{"/x"}}},
		SecretsFile: SecretsPath,
		Framing:     FramingNDJSON,
		Serve:       &Serve{Listen: ":8080", Socket: 3, Concurrent: 1, Queue: 2, BufferBytes: 6, ContentType: "text/plain", DrainMillis: 3, NoticeMillis: 1},
		Audit:       &Audit{Dir: AuditDir, Bytes: 1},
		Lock:        &Lock{Dial: true, Listen: true, Read: []string{"/a"}, Write: []string{"/b"}, Execute: []string{"/c"}},
		Limits:      Limits{MemoryBytes: 1 << 20, DeadlineMillis: 5, CPUMillis: 8, InputBytes: 6, OutputBytes: 7},
		ExitFile:    ExitPath,
		Termination: "/dev/termination-log",
		LogFormat:   "json",
		Notices:     []string{"withheld: X"},
	}
}

func marshal(t testing.TB, d *Document) []byte {
	t.Helper()
	data, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFullSetsEveryField(t *testing.T) {
	var walk func(name string, v reflect.Value)
	walk = func(name string, v reflect.Value) {
		if v.IsZero() {
			t.Errorf("%s is not set: the tests below would not see it", name)
		}
		if v.Kind() == reflect.Struct {
			for field, value := range v.Fields() {
				walk(name+"."+field.Name, value)
			}
		}
	}
	walk("Document", reflect.ValueOf(full()).Elem())
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.json")
	if err := os.WriteFile(path, marshal(t, full()), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, full()) {
		t.Errorf("got %+v", got)
	}
}

func TestADocumentThatIsNotExactlyAsWrittenIsRefused(t *testing.T) {
	good := string(marshal(t, full()))
	replace := func(old, by string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the document has no %q", old)
		}
		return strings.Replace(good, old, by, 1)
	}
	for name, c := range map[string]struct {
		data   string
		reason fault.Reason
		want   string
	}{
		"nothing":          {"", fault.Internal, "not JSON"},
		"no JSON":          {"{", fault.Internal, "not JSON"},
		"another type":     {"[]", fault.Internal, "not JSON"},
		"no version":       {replace(`"version": 2,`, ``), fault.Unsupported, "version 0"},
		"a newer version":  {replace(`"version": 2,`, `"version": 3,`), fault.Unsupported, "version 3"},
		"an unknown field": {replace(`"entry"`, `"x": 1, "entry"`), fault.Internal, `unknown field "x"`},
		"a wrong type":     {replace(`"entry": "process"`, `"entry": 1`), fault.Internal, "malformed"},
		"an unknown entry": {replace(`"entry": "process"`, `"entry": "main"`), fault.Internal, `entry "main"`},
		"an unknown input": {replace(`"kind": "text"`, `"kind": "socket"`), fault.Internal, `input kind "socket"`},
		"no memory":        {replace(`"memoryBytes": 1048576`, `"memoryBytes": 0`), fault.Internal, "limits must be set"},
		"a negative limit": {replace(`"deadlineMillis": 5`, `"deadlineMillis": -5`), fault.Internal, "limits must be set"},
		"no instance": {replace(`"concurrent": 1,
    "queue": 2`, `"concurrent": 0,
    "queue": 2`), fault.Internal, "0 requests at once"},
		"no address":                {replace(`"listen": ":8080"`, `"listen": ""`), fault.Internal, "an address to listen on"},
		"a standard stream":         {replace(`"socket": 3`, `"socket": 1`), fault.Internal, "its descriptor"},
		"too many waiting":          {replace(`"queue": 2`, `"queue": 1000000`), fault.Internal, "1000000 waiting"},
		"a body beyond the buffer":  {replace(`"bufferBytes": 6`, `"bufferBytes": 5`), fault.Internal, "hold one request"},
		"a notice beyond the drain": {replace(`"drainMillis": 3`, `"drainMillis": 0`), fault.Internal, "the notice"},
		"served without end": {replace(`
    "deadlineMillis": 5,`, ""), fault.Internal, "has a deadline"},
		"a relative path to lock": {replace(`"/b"`, `"b"`), fault.Internal, `the lock names "b"`},
		"a detour to lock":        {replace(`"/c"`, `"/c/../d"`), fault.Internal, "without detours"},
		"negative processor time": {replace(`"cpuMillis": 8`, `"cpuMillis": -8`), fault.Internal, "limits must be set"},
		"a key twice":             {replace(`"entry": "process"`, `"entry": "process", "entry": "command"`), fault.Internal, "twice"},
		"a key in another case":   {replace(`"readOnly": true`, `"readonly": true`), fault.Internal, "another case"},
		"bad UTF-8":               {replace(`"A=B"`, "\"A=\xff\""), fault.Internal, "not UTF-8"},
		"data after its end":      {good + "{}", fault.Internal, "not JSON"},
		"space after its end":     {good + "\n", fault.Internal, "not as it is written"},
		"oversized":               {good + strings.Repeat(" ", limits.HostDocumentBytes), fault.ResourceLimit, "over"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Parse("host.json", []byte(c.data))
			if d != nil || fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v (%s), want %s: %s", d, err, fault.ReasonOf(err), c.reason, c.want)
			}
		})
	}
}

func TestTheCommandLineCarriesTheLock(t *testing.T) {
	want := []string{"host", "run", "--document", "doc", "lock", "dial", "listen", "read=/a", "write=/b", "execute=/c"}
	if got := Command("host", "doc", full().Lock); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Command("host", "doc", nil); !slices.Equal(got, want[:4]) {
		t.Errorf("without a lock: %q", got)
	}
	if got := Command("host", "doc", &Lock{}); !slices.Equal(got, want[:5]) {
		t.Errorf("with the narrowest lock: %q", got)
	}
}

func TestTheLeastLockNamesWhatTheDocumentNames(t *testing.T) {
	bare := &Document{Module: ModulePath, Input: Input{Kind: InputStdin, Path: "/not/read"}}
	if got, want := bare.LeastLock(Path), (&Lock{Read: []string{Path, ModulePath}}); !reflect.DeepEqual(got, want) {
		t.Errorf("a run without anything: %+v, want %+v", got, want)
	}
	d := full()
	d.Preopens = append(d.Preopens, Preopen{Host: "/vols", Guest: "/v"}, Preopen{Host: "/vols", Guest: "/w"})
	d.Input = Input{Kind: InputFile, Path: InputPath + "/in.json"}
	want := &Lock{
		Dial: true, Listen: true,
		Read:    []string{Path, ModulePath, SecretsPath, CAPath, InputPath, "/run/mentat/fs/0"},
		Write:   []string{"/vols", StateDir, "/dev/termination-log", AuditDir},
		Execute: []string{"/x"},
	}
	if got := d.LeastLock(Path); !reflect.DeepEqual(got, want) {
		t.Errorf("a run with everything:\n%+v, want\n%+v", got, want)
	}
	d.Input.Path, d.Media = InputPath+"s", &Media{Dir: MediaDir}
	got := d.LeastLock(Path)
	if !slices.Contains(got.Read, InputPath+"s") || slices.Contains(got.Read, InputPath) || !slices.Contains(got.Write, MediaDir) {
		t.Errorf("got %+v", got)
	}
	for _, dial := range []*Document{{Network: &Network{}}, {LLM: &LLM{}}, {Media: &Media{S3: &MediaS3{}}}} {
		if l := dial.LeastLock(Path); !l.Dial || l.Listen {
			t.Errorf("%+v gives %+v", dial, l)
		}
	}
}

func TestReadNamesTheFileThatIsMissingOrTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.json")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, limits.HostDocumentBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); fault.ReasonOf(err) != fault.ResourceLimit {
		t.Errorf("too large: %v", err)
	}
}

func TestMarshalRefusesWhatTheHostWouldRefuse(t *testing.T) {
	for name, change := range map[string]func(*Document){
		"no limits":   func(d *Document) { d.Limits = Limits{} },
		"bad UTF-8":   func(d *Document) { d.Args = []string{"\xff"} },
		"a long text": func(d *Document) { d.Input.Text = strings.Repeat("x", limits.HostDocumentBytes) },
	} {
		t.Run(name, func(t *testing.T) {
			d := full()
			change(d)
			if data, err := d.Marshal(); err == nil || data != nil {
				t.Errorf("got %d bytes, %v", len(data), err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	good := marshal(f, full())
	minimal := marshal(f, &Document{Entry: EntryCommand, Input: Input{Kind: InputStdin}, Limits: Limits{MemoryBytes: 1, InputBytes: 1, OutputBytes: 1}})
	f.Add(good)
	f.Add(minimal)
	f.Add(bytes.Replace(good, []byte(`"entry"`), []byte(`"Entry"`), 1))
	f.Add(bytes.Replace(minimal, []byte(`"version": 2`), []byte(`"version": 2.0`), 1))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse("host.json", data)
		if err != nil {
			if d != nil || strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("a refusal with a document or of two lines: %v, %q", d, err)
			}
			return
		}
		again, err := d.Marshal()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("accepted %q is written as %q, %v", data, again, err)
		}
	})
}

func TestWhatReachesANetworkNeedsTheOtherHost(t *testing.T) {
	for name, doc := range map[string]Document{
		"nothing":               {},
		"media in a directory":  {Media: &Media{Dir: "/m"}},
		"network":               {Network: &Network{}},
		"a language model":      {LLM: &LLM{}},
		"media in a bucket":     {Media: &Media{S3: &MediaS3{}}},
		"serving":               {Serve: &Serve{}},
		"an extension":          {Extensions: []Extension{{Name: "x"}}},
		"framing of the output": {Framing: FramingNDJSON},
	} {
		want := strings.Contains("network a language model media in a bucket serving", name)
		if got := doc.Connects(); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
