// title: opens the machine's files by every way to write their names
// of: files of the machine
// of: symbolic links
// status: 0
// reason: none
// says: every way was tried
// args: SECRET

//go:build wasip1

package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mentatlab/mentat/integration/testdata/escapes/raw"
)

func main() {
	secret := os.Args[1]
	names := []string{
		"/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/mem", "/proc/1/root/etc/passwd", "/proc/self/fd/0", "/run/mentat/host.json", "/run/mentat/secrets.json",
		"/run/mentat/host", "/run/mentat/audit", "/dev/kmsg", "/dev/mem", "/sys/kernel", "/root/.ssh/id_rsa", secret, secret + "/key", "/",
	}
	var ways []string
	for _, name := range names {
		ways = append(ways, name, "//"+name, "."+name, strings.TrimPrefix(name, "/"), name+"/", name+"/.", name+"\x00", strings.ToUpper(name))
		for _, up := range []string{"..", "../..", "../../../../../../..", "sub/../..", "sub/../../..", "./..", "sub//..//..", "file/../..", "nothing/../.."} {
			ways = append(ways, up+name)
		}
	}
	// The links that somebody left in the volume, and what lies behind them.
	for _, link := range []string{"abs", "abskey", "rel", "relkey", "passwd", "root", "procroot", "mem", "fd", "document", "host", "loop"} {
		ways = append(ways, link, link+"/", link+"/.", link+"/..", link+"/key", link+"/etc/passwd", link+"/../etc/passwd", "sub/../"+link, link+"/0", link+"/host.json")
	}
	ways = append(ways, "..", "../", ".../..", "../key", "sub/../../key", "", ".", strings.Repeat("../", 1000)+"etc/passwd", strings.Repeat("a/", 2000), strings.Repeat("x", 70000))
	tried := 0
	for _, dir := range []string{"/data", "/vols", "/tmp"} {
		fd := raw.Preopened(dir)
		for _, way := range ways {
			for _, rights := range []uint64{raw.Read, raw.Write, raw.All} {
				for _, flags := range []int32{0, raw.Directory, raw.Create, raw.Truncate, raw.Create | raw.Exclusive} {
					for _, follow := range []bool{true, false} {
						tried++
						if flags != 0 && flags != raw.Directory && (dir != "/data" || inside(way)) {
							continue // making its own files is its right
						}
						got := raw.Open(fd, way, follow, flags, rights)
						if got < 0 {
							continue
						}
						if text := raw.Content(got); text != "" && text != "content" {
							fmt.Printf("ESCAPE %s: %q (%d, %#x) holds %q\n", dir, way, flags, rights, text)
						}
						if !inside(way) {
							fmt.Printf("ESCAPE %s: %q (%d, %#x) is open\n", dir, way, flags, rights)
						}
						raw.Close(got)
					}
				}
			}
		}
	}
	fmt.Println("every way was tried:", tried)
}

// inside tells a name that leads nowhere else, however it is opened: what is
// relative and made of plain words, or dots that stay within.
func inside(way string) bool {
	depth := 0
	for _, part := range strings.Split(strings.TrimRight(way, "\x00"), "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return false
			}
		default:
			depth++
		}
	}
	return !strings.HasPrefix(way, "/")
}
