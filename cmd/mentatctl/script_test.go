package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mentatlab/mentat/capability/audit"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/cli"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
)

// clockEnv shifts the clock of the mentatctl under test by a duration.
const clockEnv = "TEST_CLOCK"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mentatctl": func() {
			now := time.Now
			if shift, err := time.ParseDuration(os.Getenv(clockEnv)); err == nil {
				now = func() time.Time { return time.Now().Add(shift) }
			}
			os.Exit(cli.MainAt(context.Background(), now, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
		"ask":   ask,
		"lossy": lossy,
		// freeport prints an address of this machine that is free now.
		"freeport": func() {
			addresses, err := freePorts(1)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(addresses[0])
		},
	})
}

// ask is a program for transcripts: `ask METHOD URL [BODY]` prints the answer's
// status, content type and body.
func ask() {
	body := ""
	if len(os.Args) > 3 {
		body = os.Args[3]
	}
	r, err := http.NewRequestWithContext(context.Background(), os.Args[1], os.Args[2], strings.NewReader(body))
	var answer *http.Response
	if err == nil {
		answer, err = (&http.Client{Timeout: time.Minute}).Do(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	fmt.Println(answer.StatusCode, answer.Header.Get("Content-Type"), string(data))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestTranscripts runs the transcripts in testdata. They are what a person sees:
// commands, what they print and how they end.
func TestTranscripts(t *testing.T) {
	goEnv := goEnvironment(t)
	ca := sync.OnceValues(func() (string, error) {
		dir := filepath.Join(t.TempDir(), "ca")
		_, err := pki.Init(dir, pki.InitOptions{UnencryptedRoot: true, Now: time.Now()})
		return dir, err
	})
	host := sync.OnceValues(func() (string, error) {
		return buildHost(t.TempDir(), "mentat-host", "../mentat-host", "../mentat-host-net")
	})
	probe := sync.OnceValues(func() (string, error) { return buildHost(t.TempDir(), "probe", "../../host/lock/probe") })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: false,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			if err := os.MkdirAll(home, 0o700); err != nil {
				return err
			}
			e.Vars = append(e.Vars, goEnv...)
			e.Vars = append(e.Vars,
				"HOME="+home, "USERPROFILE="+home, "XDG_CACHE_HOME="+filepath.Join(home, ".cache"),
				// The node's own configuration is not this test's.
				"MENTAT_CONFIG="+filepath.Join(e.WorkDir, "node.toml"),
				"DOCKER_CONFIG="+filepath.Join(home, ".docker"),
			)
			return os.WriteFile(filepath.Join(e.WorkDir, "node.toml"), nil, 0o600)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "softhsm" {
				return haveSoftHSM(t), nil
			}
			if cond == "stepca" {
				return haveStepCA(t), nil
			}
			if cond != "host" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			path, err := host()
			if err != nil {
				t.Logf("agents are not run: %v", err)
			}
			return path != "", nil
		},
		Cmds: withCommands(stepCommands(t), map[string]func(*testscript.TestScript, bool, []string){
			"ca": func(ts *testscript.TestScript, _ bool, args []string) {
				dir, err := ca()
				ts.Check(err)
				ts.Check(os.CopyFS(ts.MkAbs(args[0]), os.DirFS(dir)))
			},
			"host": func(ts *testscript.TestScript, _ bool, _ []string) {
				path, err := host()
				ts.Check(err)
				ts.Setenv("MENTAT_HOST", path)
			},
			// probe stands in the host's place.
			"probe": func(ts *testscript.TestScript, _ bool, _ []string) {
				path, err := probe()
				ts.Check(err)
				ts.Setenv("MENTAT_HOST", path)
			},
			"softhsm": initSoftHSM(t),
			// timestamp-authority VARIABLE DIR: openssl's, with its address in the
			// variable, its root and its revocation list in the directory, and the
			// stores of a policy in etc/trust.
			"timestamp-authority": func(ts *testscript.TestScript, _ bool, args []string) {
				now := time.Now().UTC()
				tsa := testpki.NewTSA(t, "stamp", now)
				ts.Setenv(args[0], tsa.Serve())
				ca, err := ca()
				ts.Check(err)
				root, err := os.ReadFile(filepath.Join(ca, pki.RootCert))
				ts.Check(err)
				for name, data := range map[string][]byte{
					args[1] + "/root.pem":       testpki.PEM(tsa.Root),
					args[1] + "/time.crl":       tsa.CRL(testpki.KeepsExpired(now.AddDate(-1, 0, 0)), func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = now, now.AddDate(2, 0, 0) }),
					"etc/trust/time/root.pem":   testpki.PEM(tsa.Root),
					"etc/trust/agents/root.pem": root,
				} {
					path := ts.MkAbs(name)
					ts.Check(os.MkdirAll(filepath.Dir(path), 0o700))
					ts.Check(os.WriteFile(path, data, 0o600))
				}
			},
			"example":  writeExample,
			"records":  writeRecords,
			"wasm":     writeModule,
			"agent":    writeAgent,
			"registry": startRegistry,
			"notation": notationVerify,
			// notation's client signs; oras copies with signatures.
			"notation-sign": notationSign,
			"oras-copy":     copyLayout,
			"image":         writeImage,
			"flip":          flipByte,
			"exits":         exits,
			"jsonfield":     jsonField,
			"setenvfile": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv(args[0], ts.ReadFile(args[1]))
			},
		}),
	})
}

func withCommands(all ...map[string]func(*testscript.TestScript, bool, []string)) map[string]func(*testscript.TestScript, bool, []string) {
	for _, more := range all[1:] {
		maps.Copy(all[0], more)
	}
	return all[0]
}

// writeExample is `example PAGE KIND FILE`: the examples of a page of docs, as
// "<!-- example: KIND -->" marks them, one after the other.
func writeExample(ts *testscript.TestScript, _ bool, args []string) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", args[0]))
	ts.Check(err)
	var text []byte
	for _, m := range regexp.MustCompile("(?ms)^<!-- example: "+regexp.QuoteMeta(args[1])+" -->\n```[a-z]*\n(.*?)^```").FindAllSubmatch(page, -1) {
		text = append(text, m[1]...)
	}
	if len(text) == 0 {
		ts.Fatalf("%s has no example of kind %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), text, 0o600))
}

// writeRecords is `records DIR`: what a preparation leaves in a spool.
func writeRecords(ts *testscript.TestScript, _ bool, args []string) {
	at := audit.At(time.Date(2026, 1, 15, 10, 30, 45, 0, time.UTC))
	agent := audit.Agent{ID: "example.agent", Version: "1.0.0", Runtime: "wasm"}
	spools := audit.Spools(ts.MkAbs(args[0]))
	ts.Check(spools.Make())
	ts.Check(spools.Append(
		&audit.Admission{Timestamp: at, EventType: audit.EventAdmission, Agent: agent, InstanceID: "c1", Image: "registry.example/a:1", Policy: "agents", Result: audit.Allowed},
		&audit.Decision{Timestamp: at, EventType: audit.EventDecision, Agent: agent, InstanceID: "c1", Capability: "network:https:evil.example", Operation: "grant", Policy: "none", Result: audit.Denied, Reason: `the rule "none" denies it`},
		&audit.Decision{Timestamp: at, EventType: audit.EventDecision, Agent: agent, InstanceID: "c1", Capability: "env:A", Policy: "soon", Result: audit.DryRun, Count: 7},
	))
}

// goEnvironment lets the go command of a transcript use the caches that are
// there, and nothing else of this user's.
func goEnvironment(t *testing.T) []string {
	out, err := exec.Command("go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	var vars map[string]string
	if err := json.Unmarshal(out, &vars); err != nil {
		t.Fatal(err)
	}
	list := []string{"GOTOOLCHAIN=local"}
	for name, value := range vars {
		list = append(list, name+"="+value)
	}
	return list
}

// buildHost builds the two hosts, or what stands for them, which need a C
// compiler, and returns the path of the one by that name.
func buildHost(dir, name string, sources ...string) (string, error) {
	cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, sources...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w: %s", name, err, stderr.String())
	}
	return filepath.Join(dir, name), nil
}

// exits is `exits CODE COMMAND [ARGUMENT...]`.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("it ended with %d, not with %s", code, args[0])
	}
}

// flipByte changes a byte in the middle of every file that a pattern names.
func flipByte(ts *testscript.TestScript, _ bool, args []string) {
	paths, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(paths) == 0 {
		ts.Fatalf("no file is named %s", args[0])
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		ts.Check(err)
		data[len(data)/2] ^= 1
		ts.Check(os.WriteFile(path, data, 0o600))
	}
}

// jsonField checks that stdout is exactly one JSON document and that the value
// at a dotted path prints as the second argument.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: jsonfield path value")
	}
	var doc any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	ts.Check(dec.Decode(&doc))
	if dec.More() {
		ts.Fatalf("stdout has more than one JSON document")
	}
	value := doc
	for _, key := range strings.Split(args[0], ".") {
		switch at := value.(type) {
		case map[string]any:
			value = at[key]
		case []any:
			var i int
			if _, err := fmt.Sscan(key, &i); err != nil || i >= len(at) {
				ts.Fatalf("%s: no element %s", args[0], key)
			}
			value = at[i]
		default:
			ts.Fatalf("%s: nothing below %v", args[0], at)
		}
	}
	if got := fmt.Sprint(value); (got == args[1]) == neg {
		ts.Fatalf("%s is %q, unexpectedly", args[0], got)
	}
}
