// title: looks for another agent's files, in its container and in the node's directories
// of: other agents' files
// status: 0
// reason: none
// says: nothing of the neighbour's
// args: OTHERS
// args: BUNDLE

//go:build wasip1

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/mentatlab/mentat/integration/testdata/escapes/raw"
)

func main() {
	others, bundle := os.Args[1], os.Args[2]
	places := []string{
		others, others + "/key", bundle + "/config.json", bundle + "/mentat/host.json", bundle + "/rootfs", filepath.Dir(bundle),
		"/run/containerd/containerd.sock", "/var/lib/mentat/modules", "/var/lib/containerd", "/etc/mentat/policy.yaml", "/run/mentat/media",
	}
	for pid := range 4096 {
		places = append(places, fmt.Sprintf("/proc/%d/root/data/key", pid), fmt.Sprintf("/proc/%d/cwd", pid))
	}
	for _, dir := range []string{"/data", "/vols", "/tmp"} {
		fd := raw.Preopened(dir)
		for _, place := range places {
			for _, way := range []string{place, place[1:], "../../../../../../../.." + place, "root" + place, "procroot" + place} {
				if got := raw.Open(fd, way, true, 0, raw.Read); got >= 0 {
					fmt.Printf("ESCAPE %s: %s holds %q\n", dir, way, raw.Content(got))
				}
			}
		}
	}
	// By the capability, too.
	for _, place := range places[:11] {
		if h := raw.Request("filesystem:read:" + place); h >= 0 {
			fmt.Println("ESCAPE the capability of", place)
		}
	}
	if h := raw.Request("filesystem:read:/data"); h < 0 {
		fmt.Println("the control failed:", h)
		os.Exit(70)
	} else {
		for _, place := range places[:11] {
			for _, op := range []string{"read", "list", "stat"} {
				if text, ok := raw.Invoke(h, op, fmt.Sprintf(`{"path":%q}`, place)); ok {
					fmt.Printf("ESCAPE %s of %s: %q\n", op, place, text)
				}
			}
		}
	}
	fmt.Println("nothing of the neighbour's")
}
