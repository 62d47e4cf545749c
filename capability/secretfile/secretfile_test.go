package secretfile

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

func TestASecretIsOneLineOfText(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for text, want := range map[string]fault.Reason{
		"a-top-secret": "", "a-top-secret\n": "", "a top secret\r\n": "", strings.Repeat("s", limits.SecretBytes): "",
		"": fault.PolicyInvalid, "\n": fault.PolicyInvalid, "short": fault.PolicyInvalid, "a-top-secret\nof-two-lines": fault.PolicyInvalid,
		"a-top\x00secret": fault.PolicyInvalid, "a-töp-secret": fault.PolicyInvalid, strings.Repeat("s", limits.SecretBytes+1): fault.AccessDenied,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, read := range []func() (string, error){
			func() (string, error) { return Read(path) },
			func() (string, error) { return ReadIn(dir, "s", "/secret") },
			func() (string, error) { return ReadIn(path, "", "/secret") },
		} {
			got, err := read()
			if fault.ReasonOf(err) != want || err == nil && got != strings.TrimRight(text, "\r\n") || err != nil && got != "" {
				t.Errorf("%d bytes: %v", len(text), err)
			}
			if err != nil && (strings.Contains(err.Error(), "top") || strings.Contains(err.Error(), "sss")) {
				t.Errorf("the error says it: %v", err)
			}
		}
	}
}

func TestNoLinkLeadsOutOfADirectory(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	files := map[string]string{filepath.Join(outside, "s"): "an-outside-secret", filepath.Join(dir, "real"): "an-inside-secret"}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rel, err := filepath.Rel(dir, filepath.Join(outside, "s"))
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"absolute": filepath.Join(outside, "s"), "dots": rel, "dir": outside, "inside": "real", "loop": "loop", "dangling": "gone"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fault.Reason{
		"inside": "", "absolute": fault.AccessDenied, "dots": fault.AccessDenied, "dir/s": fault.AccessDenied, "../" + filepath.Base(outside) + "/s": fault.AccessDenied,
		"loop": fault.AccessDenied, "dangling": fault.NotFound, "gone": fault.NotFound, "pipe": fault.AccessDenied, ".": fault.AccessDenied,
	} {
		got, err := ReadIn(dir, name, "/secret")
		if fault.ReasonOf(err) != want || (err == nil) != (got == "an-inside-secret") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := ReadIn(filepath.Join(dir, "gone"), "s", "/secret"); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}
