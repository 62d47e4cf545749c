package launch

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// Program is the serving program; it lies beside this one.
	Program = "mentat-shim"
	// defaultSocketDir is where containerd expects sockets when it says nothing.
	defaultSocketDir = "/run/containerd/s"
	// socketDirLink tells the serving process where the sockets are, by the name
	// that containerd's shim package looks for.
	socketDirLink = "s"
	// maxSocketPath is what the kernel allows.
	maxSocketPath = 107
	// maxThreads is what containerd's shims set as GOMAXPROCS.
	maxThreads = 4
)

// groupLabels are annotations whose value names a group of containers with one
// shim, in containerd's order.
var groupLabels = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

// Main does what the arguments say and returns the exit code. argv[0] is kept
// for the serving process, so that it is found in a list of processes by the
// name of the shim.
func Main(argv []string, stdin *os.File, stdout io.Writer) int {
	if err := run(argv, stdin, stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", filepath.Base(argv[0]), err)
		return 1
	}
	return 0
}

func run(argv []string, stdin *os.File, stdout io.Writer) error {
	program, err := beside(Program)
	if err != nil {
		return err
	}
	call := ParseCall(argv[1:])
	if call.Action != "start" {
		return become(program, argv)
	}
	input, err := limits.Read(stdin, limits.ShimInputBytes)
	if err != nil {
		return fmt.Errorf("cannot read the bootstrap parameters: %w", err)
	}
	b := parseBootstrap(input, call)
	if call.Debug || b.unusual || os.Getenv("SCHED_CORE") != "" {
		if err := replay(input); err != nil {
			return err
		}
		return become(program, argv)
	}
	s, err := start(program, argv[0], call, b.socketDir)
	if err != nil {
		return err
	}
	// Every containerd reads this form.
	return json.NewEncoder(stdout).Encode(map[string]any{"version": 3, "address": s, "protocol": "ttrpc"})
}

// beside is a program in the directory of this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find the directory of this program: %w", err)
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

// become runs the serving program in this process's place.
func become(program string, argv []string) error {
	err := unix.Exec(program, argv, os.Environ())
	return fmt.Errorf("cannot run %s, which must lie beside this program: %w", program, err)
}

// replay makes what was read from standard input readable from it again.
func replay(input []byte) error {
	fd, err := unix.MemfdCreate("bootstrap", 0)
	if err == nil {
		f := os.NewFile(uintptr(fd), "bootstrap")
		_, err = f.Write(input)
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err == nil {
			err = unix.Dup3(int(f.Fd()), 0, 0)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot pass the bootstrap parameters on: %w", err)
	}
	return nil
}

// start makes the socket and the process that serves on it, unless there is one
// that serves the group. It returns the socket's address.
func start(program, name string, call Call, socketDir string) (address string, err error) {
	group, err := groupOf("config.json", call.ID)
	if err != nil {
		return "", err
	}
	if socketDir == "" {
		socketDir = defaultSocketDir
	} else if err := linkSocketDir(socketDir); err != nil {
		return "", err
	}
	path := filepath.Join(socketDir, fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(call.Address, call.Namespace, group)))))
	address = "unix://" + path
	listener, err := listen(path)
	if errors.Is(err, errServed) {
		return address, nil
	}
	if err != nil {
		return "", err
	}
	pid, err := serve(program, name, call, listener)
	if err = errors.Join(err, listener.Close()); err == nil {
		err = adjustOOMScore(pid)
	}
	if err != nil {
		if pid > 0 {
			err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
		}
		return "", errors.Join(err, os.Remove(path))
	}
	return address, nil
}

// groupOf reads only the annotations of a bundle's specification.
func groupOf(config, id string) (string, error) {
	f, err := os.Open(config)
	if err != nil {
		return "", fmt.Errorf("the bundle has no readable specification: %w", err)
	}
	defer f.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return "", fmt.Errorf("the bundle's specification is not valid: %w", err)
	}
	for _, label := range groupLabels {
		if group, ok := spec.Annotations[label]; ok {
			return group, nil
		}
	}
	return id, nil
}

func linkSocketDir(dir string) error {
	if err := os.Remove(socketDirLink); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot replace the link to the sockets: %w", err)
	}
	return os.Symlink(dir, socketDirLink)
}

// errServed means that a process serves on the socket already.
var errServed = errors.New("served already")

// listen makes a socket that only its owner can reach. One that is there and
// that nobody serves was left by a shim that was killed.
func listen(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("cannot make the socket %s: its path is over %d bytes", path, maxSocketPath)
	}
	f, err := bind(path)
	if errors.Is(err, unix.EADDRINUSE) {
		if served(path) {
			return nil, errServed
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("cannot remove the socket that a shim left: %w", err)
		}
		f, err = bind(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the socket %s: %w", path, err)
	}
	return f, nil
}

func bind(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err = os.Chmod(path, 0o600); err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd), os.Remove(path))
	}
	return os.NewFile(uintptr(fd), path), nil
}

func served(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was sent
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == nil
}

// serve starts the process that serves; the socket is its descriptor 3.
func serve(program, name string, call Call, listener *os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	p, err := os.StartProcess(program, []string{name, "-namespace", call.Namespace, "-id", call.ID, "-address", call.Address}, &os.ProcAttr{
		Dir:   dir,
		Env:   append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(min(maxThreads, runtime.NumCPU())), "OTEL_SERVICE_NAME=containerd-shim-"+call.ID),
		Files: []*os.File{null, null, null, listener},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("cannot run %s, which must lie beside this program: %w", program, err)
	}
	return p.Pid, nil
}

// adjustOOMScore makes the serving process a little likelier to be killed than
// containerd.
func adjustOOMScore(pid int) error {
	const most = 1000
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", os.Getppid()))
	if err != nil {
		return fmt.Errorf("cannot read containerd's OOM score: %w", err)
	}
	score, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil {
		return fmt.Errorf("cannot read containerd's OOM score: %w", err)
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(min(score+1, most))), 0)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("cannot set the shim's OOM score: %w", err)
	}
	return nil
}

// Call is the shim's command line as containerd gives it.
type Call struct {
	Action, ID, Namespace, Address string
	Debug                          bool
}

// ParseCall reads what matters of the command line; the shim's own flags are
// parsed by containerd's shim package later.
func ParseCall(args []string) Call {
	var c Call
	for i := 0; i < len(args); i++ {
		name, value, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !strings.HasPrefix(args[i], "-") {
			c.Action = args[i]
			break
		}
		next := func() string {
			if !hasValue && i+1 < len(args) {
				i++
				value = args[i]
			}
			return value
		}
		switch name {
		case "id":
			c.ID = next()
		case "namespace":
			c.Namespace = next()
		case "address":
			c.Address = next()
		case "debug":
			c.Debug = value != "false"
		case "publish-binary", "bundle", "socket", "debug-socket":
			next()
		}
	}
	return c
}
