package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/mentatlab/mentat/bundle"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/nodeconfig"
)

// run handles one command line and returns an exit code; a command that passes
// the gate does not return, the process becomes runc.
func run(ctx context.Context, args []string, stdin *os.File, stderr io.Writer) int {
	line, err := parse(args)
	if err == nil {
		err = handle(ctx, line, stdin)
	}
	if err == nil {
		return 0
	}
	report(line, err, stderr)
	return 1
}

// handle makes a bundle ready where the command wants one and becomes runc.
func handle(ctx context.Context, line commandLine, stdin *os.File) error {
	config, err := nodeconfig.Load("")
	if err != nil {
		return err
	}
	runc, err := findRunc(config.Runtime.Binary)
	if err != nil {
		return err
	}
	switch line.command {
	case "create", "run", "restore":
		if err := prepare(ctx, line, config, stdin); err != nil {
			return err
		}
	case "exec":
		if err := refuseExec(ctx, runc, line); err != nil {
			return err
		}
	}
	err = syscall.Exec(runc, append([]string{filepath.Base(runc)}, line.args...), os.Environ())
	return fault.Wrap(err, fault.Internal, runc, "cannot hand over")
}

// findRunc resolves the runtime under us, which must not be us.
func findRunc(name string) (string, error) {
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fault.Wrap(err, fault.NotFound, name, "no OCI runtime to hand over to").
			WithHint("install runc or name it in config.toml, [runtime] binary")
	}
	self, err := os.Executable()
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, "mentat", "cannot find the path of this program")
	}
	a, errA := os.Stat(found)
	b, errB := os.Stat(self)
	if err := errors.Join(errA, errB); err != nil {
		return "", fault.Wrap(err, fault.Internal, found, "cannot inspect the runtime")
	}
	if os.SameFile(a, b) {
		return "", fault.New(fault.Usage, found, "the runtime to hand over to is mentat itself").
			WithHint("name runc in config.toml, [runtime] binary")
	}
	return found, nil
}

func prepare(ctx context.Context, line commandLine, config *nodeconfig.Config, stdin *os.File) error {
	ns, address := os.Getenv("NAMESPACE"), os.Getenv("GRPC_ADDRESS")
	if ns == "" || address == "" {
		return fault.New(fault.Usage, line.id, "NAMESPACE and GRPC_ADDRESS are not set, so the container's image cannot be found and verified").
			WithHint("run it through containerd, e.g. nerdctl run --runtime mentat or ctr run --runc-binary mentat")
	}
	node, err := bundle.Dial(address)
	if err != nil {
		return err
	}
	defer node.Close()
	p, err := bundle.New(bundle.Options{Config: config, Node: node, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = p.Prepare(namespaces.WithNamespace(ctx, ns), bundle.Request{
		ID: line.id, Dir: line.bundle, Stdin: line.terminal || !isNull(stdin), Closed: isNull(os.Stdout) || isNull(os.Stderr), Checkpoint: line.command == "restore",
	})
	return err
}

// isNull tells whether a file is /dev/null, which is what a container manager
// gives a container without a standard input.
func isNull(f *os.File) bool {
	var st, null syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return true
	}
	if err := syscall.Stat(os.DevNull, &null); err != nil {
		return false
	}
	return st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == null.Rdev
}

func refuseExec(ctx context.Context, runc string, line commandLine) error {
	out, err := exec.CommandContext(ctx, runc, append(line.global, "state", line.id)...).Output()
	if err != nil {
		return nil //nolint:nilerr // runc's own exec says better what is wrong
	}
	var state struct {
		Bundle string `json:"bundle"`
	}
	if err := json.Unmarshal(out, &state); err != nil {
		return fault.Wrap(err, fault.Internal, line.id, "cannot read runc's state")
	}
	if bundle.Prepared(state.Bundle) {
		return fault.New(fault.Unsupported, line.id, "exec is not possible: a WASM agent has no shell and no second process").
			WithHint("read its logs, or run the agent's container form with the runc runtime to look around")
	}
	return nil
}

// report writes an error as runc does: to the log that --log names, where
// containerd reads it, and to stderr.
func report(line commandLine, err error, stderr io.Writer) {
	msg := fault.OneLine(err.Error())
	fmt.Fprintf(stderr, "mentat: %s\n", msg)
	if line.log == "" {
		return
	}
	f, openErr := os.OpenFile(line.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if openErr != nil {
		fmt.Fprintf(stderr, "mentat: cannot write the log: %v\n", openErr)
		return
	}
	text := fmt.Sprintf("time=%q level=error msg=%q\n", time.Now().Format(time.RFC3339Nano), msg)
	if line.logFormat == "json" {
		data, jsonErr := json.Marshal(map[string]string{"level": "error", "msg": msg, "time": time.Now().Format(time.RFC3339Nano)})
		if jsonErr != nil {
			data = []byte(`{"level":"error","msg":"the error cannot be encoded"}`)
		}
		text = string(data) + "\n"
	}
	_, writeErr := f.WriteString(text)
	if err := errors.Join(writeErr, f.Close()); err != nil {
		fmt.Fprintf(stderr, "mentat: cannot write the log: %v\n", err)
	}
}

// commandLine is what mentat must know of a runc command line.
type commandLine struct {
	// args is what runc gets.
	args           []string
	global         []string
	log, logFormat string
	command        string
	bundle, id     string
	terminal       bool
}

// The flags of runc 1.5 that take a value; every other flag of a command is a
// switch. criu is one of runc 1.1.
var (
	globalValues   = []string{"log", "log-format", "root", "criu", "rootless"}
	globalSwitches = []string{"debug", "systemd-cgroup", "help", "h", "version", "v"}
	commandValues  = map[string][]string{
		"create":  {"bundle", "b", "console-socket", "pidfd-socket", "pid-file", "preserve-fds"},
		"run":     {"bundle", "b", "console-socket", "pidfd-socket", "pid-file", "preserve-fds"},
		"restore": {"console-socket", "image-path", "work-path", "manage-cgroups-mode", "bundle", "b", "pid-file", "empty-ns", "lsm-profile", "lsm-mount-context"},
		"exec": {
			"console-socket", "pidfd-socket", "cwd", "env", "e", "user", "u", "additional-gids", "g", "process", "p",
			"pid-file", "process-label", "apparmor", "cap", "c", "preserve-fds", "cgroup",
		},
	}
)

func parse(args []string) (commandLine, error) {
	line := commandLine{args: args}
	rest := args
	for len(rest) > 0 {
		f, tail, err := nextFlag(rest, globalValues)
		if err != nil {
			return line, err
		}
		if f == nil {
			break
		}
		// A flag that takes a value unknown to us would make its value look like
		// the command, and the command would pass unseen.
		if !slices.Contains(globalValues, f.name) && !slices.Contains(globalSwitches, f.name) {
			return line, fault.New(fault.Usage, "--"+f.name, "unknown global flag")
		}
		switch f.name {
		case "log":
			line.log = f.value
		case "log-format":
			line.logFormat = f.value
		}
		rest = tail
	}
	line.global = slices.Clip(args[:len(args)-len(rest)])
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return line, nil
	}
	line.command, rest = rest[0], rest[1:]
	if asksForHelp(rest) {
		line.command = "help"
		return line, nil
	}
	switch line.command {
	case "create", "run", "restore":
		return line, line.parseGated(rest)
	case "exec":
		return line, line.parseExec(rest)
	}
	return line, nil
}

// asksForHelp is strict on purpose: among other flags, help may be overruled.
func asksForHelp(args []string) bool {
	return len(args) == 1 && (args[0] == "--help" || args[0] == "-h")
}

// parseGated reads a command that brings a bundle. runc takes its flags behind
// the id, too. What runc gets is therefore written anew, so that it can only
// mean the bundle that was made ready.
func (line *commandLine) parseGated(rest []string) error {
	var flags, ids []string
	for len(rest) > 0 {
		f, tail, err := nextFlag(rest, commandValues[line.command])
		switch {
		case err != nil:
			return err
		case f != nil:
			flags = append(flags, f.text)
			switch f.name {
			case "bundle", "b":
				line.bundle = f.value
			case "console-socket":
				line.terminal = f.value != ""
			}
			rest = tail
		case rest[0] == "--":
			ids, rest = append(ids, rest[1:]...), nil
		default:
			ids, rest = append(ids, rest[0]), rest[1:]
		}
	}
	if len(ids) != 1 || ids[0] == "" {
		return fault.New(fault.Usage, line.command, "exactly one container id is required")
	}
	line.id = ids[0]
	line.args = slices.Concat(line.global, []string{line.command}, flags, []string{"--", line.id})
	var err error
	line.bundle, err = filepath.Abs(line.bundle)
	return err
}

// parseExec finds the container's id; here flags end with it.
func (line *commandLine) parseExec(rest []string) error {
	for len(rest) > 0 {
		f, tail, err := nextFlag(rest, commandValues[line.command])
		if err != nil {
			return err
		}
		if f == nil {
			break
		}
		rest = tail
	}
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if len(rest) == 0 || rest[0] == "" {
		return fault.New(fault.Usage, line.command, "a container id is required")
	}
	line.id = rest[0]
	return nil
}

// flag is one flag; text is the same flag as a single argument.
type flag struct {
	name, value, text string
}

// nextFlag reads one flag as runc's parser does: one dash or two, a value after
// "=" or as the next argument. It returns nil at "--" and at any argument that
// is no flag.
func nextFlag(args, withValue []string) (*flag, []string, error) {
	first, rest := args[0], args[1:]
	if !strings.HasPrefix(first, "-") || first == "-" || first == "--" {
		return nil, args, nil
	}
	name, value, joined := strings.Cut(strings.TrimPrefix(first[1:], "-"), "=")
	if joined || !slices.Contains(withValue, name) {
		return &flag{name: name, value: value, text: first}, rest, nil
	}
	if len(rest) == 0 {
		return nil, nil, fault.New(fault.Usage, "--"+name, "a value is required")
	}
	return &flag{name: name, value: rest[0], text: "--" + name + "=" + rest[0]}, rest[1:], nil
}
