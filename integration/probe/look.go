package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// facts are what a process can read about itself and what is around it.
type facts struct {
	Args       []string          `json:"args"`
	Env        []string          `json:"env"`
	Dir        string            `json:"dir"`
	Host       string            `json:"host"`
	UID        int               `json:"uid"`
	GID        int               `json:"gid"`
	Groups     []int             `json:"groups"`
	Files      map[string]string `json:"files"`
	Status     map[string]string `json:"status"`
	Namespaces map[string]string `json:"namespaces"`
	Mounts     map[string]mount  `json:"mounts"`
	Limits     map[string]uint64 `json:"limits"`
	Problems   []string          `json:"problems"`
}

// mount is one line of the mount table.
type mount struct {
	Type    string   `json:"type"`
	Options []string `json:"options"`
}

func (f *facts) check(err error) {
	if err != nil {
		f.Problems = append(f.Problems, err.Error())
	}
}

func look() *facts {
	f := &facts{
		Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(),
		Files: map[string]string{}, Status: map[string]string{}, Namespaces: map[string]string{}, Mounts: map[string]mount{}, Limits: map[string]uint64{},
	}
	f.descriptors()
	var err error
	f.Dir, err = os.Getwd()
	f.check(err)
	f.Host, err = os.Hostname()
	f.check(err)
	f.Groups, err = os.Getgroups()
	f.check(err)
	f.status()
	f.namespaces()
	f.mounts()
	for name, resource := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "core": unix.RLIMIT_CORE} {
		var l unix.Rlimit
		f.check(unix.Getrlimit(resource, &l))
		f.Limits[name], f.Limits[name+" hard"] = l.Cur, l.Max
	}
	return f
}

// descriptors are those that were open when the program began, by their numbers.
func (f *facts) descriptors() {
	var l unix.Rlimit
	f.check(unix.Getrlimit(unix.RLIMIT_NOFILE, &l))
	for fd := range int(min(l.Cur, mostFiles)) {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			f.check(err)
			f.Files[fmt.Sprint(fd)] = where
		}
	}
}

func (f *facts) status() {
	data, err := os.ReadFile("/proc/self/status")
	f.check(err)
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			f.Status[name] = strings.TrimSpace(value)
		}
	}
}

func (f *facts) namespaces() {
	links, err := filepath.Glob("/proc/self/ns/*")
	f.check(err)
	for _, link := range links {
		where, err := os.Readlink(link)
		f.check(err)
		f.Namespaces[filepath.Base(link)] = where
	}
}

func (f *facts) mounts() {
	data, err := os.ReadFile("/proc/self/mountinfo")
	f.check(err)
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			f.Problems = append(f.Problems, "a line of the mount table is "+line)
			continue
		}
		f.Mounts[left[4]] = mount{Type: right[0], Options: append(strings.Split(left[5], ","), strings.Split(right[2], ",")...)}
	}
}
