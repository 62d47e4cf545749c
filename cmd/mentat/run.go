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
		err = handle(ctx, line, args, stdin)
	}
	if err == nil {
		return 0
	}
	report(line, err, stderr)
	return 1
}

// handle makes a bundle ready where the command wants one and becomes runc.
func handle(ctx context.Context, line commandLine, args []string, stdin *os.File) error {
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
	err = syscall.Exec(runc, append([]string{filepath.Base(runc)}, args...), os.Environ())
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
	_, err = p.Prepare(namespaces.WithNamespace(ctx, ns), bundle.Request{ID: line.id, Dir: line.bundle, Stdin: line.terminal || !isNull(stdin)})
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
		return nil // runc's own exec says better what is wrong
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
	global         []string
	log, logFormat string
	command        string
	bundle, id     string
	terminal       bool
}

// The flags of runc 1.5 that take a value; every other flag is a switch.
var (
	globalValues  = []string{"log", "log-format", "root", "criu", "rootless"}
	commandValues = map[string][]string{
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
	var line commandLine
	rest, err := flags(args, globalValues, func(name, value string) {
		switch name {
		case "log":
			line.log = value
		case "log-format":
			line.logFormat = value
		}
	})
	if err != nil {
		return line, err
	}
	line.global = args[:len(args)-len(rest)]
	if len(rest) == 0 {
		return line, nil
	}
	line.command = rest[0]
	values, ours := commandValues[line.command]
	if !ours {
		return line, nil
	}
	rest, err = flags(rest[1:], values, func(name, value string) {
		switch name {
		case "bundle", "b":
			line.bundle = value
		case "console-socket":
			line.terminal = value != ""
		}
	})
	if err != nil {
		return line, err
	}
	if len(rest) > 0 {
		line.id = rest[0]
	}
	if line.id == "" {
		return line, fault.New(fault.Usage, line.command, "a container id is required")
	}
	if line.bundle == "" {
		line.bundle = "."
	}
	line.bundle, err = filepath.Abs(line.bundle)
	return line, err
}

// flags reads leading flags as runc's parser does: one dash or two, a value
// after "=" or as the next argument, until "--" or the first other argument.
func flags(args, withValue []string, seen func(name, value string)) ([]string, error) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		if args[0] == "--" {
			return args[1:], nil
		}
		name, value, joined := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
		args = args[1:]
		if !joined && slices.Contains(withValue, name) {
			if len(args) == 0 {
				return nil, fault.New(fault.Usage, "--"+name, "a value is required")
			}
			value, args = args[0], args[1:]
		}
		seen(name, value)
	}
	return args, nil
}
