package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// At most so much is made where nothing holds it.
const (
	mostFiles = 4096
	mostTasks = 256
	mostBytes = 256 << 20
)

func main() {
	found := look() // before anything is opened
	if len(os.Args) == 2 && os.Args[1] == "compile" {
		if err := compile(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "the probe is started as a host is")
		os.Exit(1)
	}
	doc, err := hostdoc.Read(os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := json.NewEncoder(os.Stdout)
	for _, do := range doc.Args[1:] {
		var got any = found
		if do != "facts" {
			got = try(do)
		}
		if err := out.Encode(map[string]any{"do": do, "got": got}); err != nil {
			os.Exit(1)
		}
	}
}

// compile gives something that is not empty: no engine will see it.
func compile() error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	_, err := os.NewFile(3, "result").WriteString("nothing")
	return err
}

func try(do string) any {
	name, arg, _ := strings.Cut(do, ":")
	f, ok := tries[name]
	if !ok {
		return "there is no such thing to do"
	}
	return f(arg)
}

// answer is "ok" or an errno's name.
func answer(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// count is how often something went well, and the answer when it did not.
type count struct {
	N      int64  `json:"n"`
	Answer string `json:"answer"`
}

func open(flags int) func(string) any {
	return func(path string) any {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		return answer(err)
	}
}

var tries = map[string]func(string) any{
	"read":   open(unix.O_RDONLY),
	"write":  open(unix.O_WRONLY),
	"create": open(unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL),
	"list": func(path string) any {
		entries, err := os.ReadDir(path)
		if err != nil {
			return answer(err)
		}
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	},
	"device":    func(path string) any { return answer(unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))) },
	"mount":     func(path string) any { return answer(unix.Mount("none", path, "tmpfs", 0, "")) },
	"remount":   func(path string) any { return answer(unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, "")) },
	"become":    func(id string) any { n, _ := strconv.Atoi(id); return answer(unix.Setresuid(n, n, n)) },
	"chown":     func(path string) any { return answer(unix.Chown(path, 1, 1)) },
	"raise":     raise,
	"kill":      func(pid string) any { n, _ := strconv.Atoi(pid); return answer(unix.Kill(n, 0)) },
	"processes": processes,
	"connect": func(address string) any {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err == nil {
			err = c.Close()
		}
		return answer(err)
	},
	"files":  files,
	"tasks":  tasks,
	"fill":   fill,
	"litter": litter,
	"spin":   spin,
	"touch":  touch,
}

// raise asks for more open files than the hard limit is.
func raise(string) any {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return answer(err)
	}
	l.Max++
	return answer(unix.Setrlimit(unix.RLIMIT_NOFILE, &l))
}

// processes are those that can be seen, this one among them.
func processes(string) any {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return answer(err)
	}
	seen := []int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			seen = append(seen, pid)
		}
	}
	return seen
}

// files opens until that fails; n is the highest descriptor and one.
func files(string) any {
	var opened []int
	defer func() {
		for _, fd := range opened {
			_ = unix.Close(fd)
		}
	}()
	c := count{}
	for len(opened) < mostFiles {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			c.Answer = answer(err)
			return c
		}
		opened = append(opened, fd)
		c.N = max(c.N, int64(fd)+1)
	}
	c.Answer = "no end"
	return c
}

// tasks makes processes until that fails; n counts the threads that there were,
// too.
func tasks(string) any {
	var made []int
	defer func() {
		for _, pid := range made {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	for len(made) < mostTasks {
		pid, _, e := unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)
		if e != 0 {
			threads, err := os.ReadDir("/proc/self/task")
			if err != nil {
				return answer(err)
			}
			return count{int64(len(made) + len(threads)), answer(e)}
		}
		if pid == 0 {
			for {
				_, _, _ = unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
		made = append(made, int(pid))
	}
	return count{int64(len(made)), "no end"}
}

// fill writes to a file in a directory until that fails.
func fill(dir string) any {
	f, err := os.OpenFile(dir+"/filler", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return answer(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 64<<10)
	c := count{Answer: "no end"}
	for c.N < mostBytes {
		n, err := f.Write(block)
		c.N += int64(n)
		if err != nil {
			c.Answer = answer(err)
			break
		}
	}
	return c
}

// litter makes empty files in a directory until that fails.
func litter(dir string) any {
	c := count{Answer: "no end"}
	var made []string
	for c.N < mostFiles {
		name := fmt.Sprintf("%s/empty-%d", dir, c.N)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			c.Answer = answer(err)
			break
		}
		made = append(made, name)
		c.N++
	}
	for _, name := range made {
		_ = os.Remove(name)
	}
	return c
}

// spin uses the processor for so many milliseconds; n is the milliseconds of
// processor time that it got.
func spin(wall string) any {
	n, err := strconv.Atoi(wall)
	if err != nil {
		return err.Error()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Timespec
	began := time.Now()
	err = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before)
	for time.Since(began) < time.Duration(n)*time.Millisecond {
		for range 100_000 {
		}
	}
	err = errors.Join(err, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after))
	return count{(after.Nano() - before.Nano()) / 1e6, answer(err)}
}

// touch uses so many megabytes of memory.
func touch(mb string) any {
	n, err := strconv.Atoi(mb)
	if err != nil {
		return err.Error()
	}
	b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return answer(err)
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	return answer(unix.Munmap(b))
}
