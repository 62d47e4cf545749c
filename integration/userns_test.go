package integration

import (
	"strings"
	"testing"

	"github.com/mentatlab/mentat/integration/node"
)

func TestAnAgentRunsInAUserNamespace(t *testing.T) {
	w := newWorld(t, node.Config{})
	flags := []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}
	got := w.run("", append(flags, w.agent("marker", guestMarker(8), ""), w.id())...)
	if got.code != 0 || got.stdout != marker+"\n" {
		t.Errorf("agent: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	got = w.run("", append(flags, w.container("busybox"), w.id(), "/bin/cat", "/proc/self/uid_map")...)
	if got.code != 0 || len(strings.Fields(got.stdout)) != 3 || strings.Fields(got.stdout)[1] != "100000" {
		t.Errorf("container: status %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}
