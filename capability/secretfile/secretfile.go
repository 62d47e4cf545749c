package secretfile

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Read reads a secret from a file of the node.
func Read(path string) (string, error) {
	data, err := limits.ReadFile(path, limits.SecretBytes)
	return value(path, data, err)
}

// ReadIn reads a secret from a file in a directory that somebody else made, such
// as a Kubernetes secret volume; no link leads out of it. Errors call the file on.
// With an empty name dir is the file itself.
func ReadIn(dir, name, on string) (string, error) {
	if name == "" {
		data, err := limits.ReadFile(dir, limits.SecretBytes)
		return value(on, data, err)
	}
	data, err := readIn(dir, name)
	return value(on, data, err)
}

func readIn(dir, name string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// A pipe is not waited for.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, err
	}
	return limits.Read(f, limits.SecretBytes)
}

// value checks what was read. A secret too short to be told from other text could
// not be kept out of logs and answers.
func value(on string, data []byte, err error) (string, error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fault.Wrap(err, fault.NotFound, on, "the secret that the policy names is not there")
	case err != nil:
		return "", fault.Wrap(err, fault.AccessDenied, on, "the secret that the policy names cannot be read")
	}
	v := strings.TrimRight(string(data), "\r\n")
	if len(v) < limits.ShortestSecret || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "", fault.New(fault.PolicyInvalid, on, "the secret is not one line of printable ASCII, %d to %d characters", limits.ShortestSecret, limits.SecretBytes)
	}
	return v, nil
}
