// title: makes links, renames and truncates to get at what may only be read, or what lies outside
// of: symbolic links
// of: hard links
// of: renaming
// of: trailing slashes
// of: truncation
// status: 0
// reason: none
// says: every trick was tried
// args: SECRET

//go:build wasip1

package main

import (
	"fmt"
	"os"

	"github.com/mentatlab/mentat/integration/testdata/escapes/raw"
)

var data, vols, temp int32

// may says that something is the guest's right, so that the rest means something.
func may(what string, errno int32) {
	if errno < 0 || errno > 0 {
		fmt.Printf("the control failed: %s: %d\n", what, errno)
		os.Exit(70)
	}
}

// mustNot reports what went through.
func mustNot(what string, errno int32) {
	if errno == 0 {
		fmt.Println("ESCAPE", what)
	}
}

// closed reports a path that can be opened through a link of the guest's own.
func closed(fd int32, path string) {
	for _, follow := range []bool{true, false} {
		for _, flags := range []int32{0, raw.Directory, raw.Truncate} {
			for _, rights := range []uint64{raw.Read, raw.Write} {
				if got := raw.Open(fd, path, follow, flags, rights); got >= 0 {
					fmt.Printf("ESCAPE %q is open and holds %q\n", path, raw.Content(got))
					raw.Close(got)
				}
			}
		}
	}
}

func main() {
	secret := os.Args[1]
	data, vols, temp = raw.Preopened("/data"), raw.Preopened("/vols"), raw.Preopened("/tmp")
	own := raw.Open(vols, "own", false, raw.Create, raw.Write)
	if own < 0 {
		may("creating a file", own)
	}
	may("writing it", raw.Put(own))
	may("a directory", raw.Mkdir(vols, "dir"))

	// Symbolic links, in every spelling and depth, and through one another.
	for i, target := range []string{
		"/etc/passwd", secret, secret + "/key", "../secret/key", "../../secret/key", "../key", "/proc/self/root/etc/passwd", "/proc/self/mem", "/run/mentat/host.json", "../..", "../../..", "/",
		"dir/../../secret/key", "./../secret/key", "..//secret//key",
	} {
		name := fmt.Sprintf("dir/link%d", i)
		if raw.Symlink(target, vols, name) != 0 {
			continue
		}
		closed(vols, name)
		closed(vols, name+"/")
		closed(vols, name+"/key")
		closed(vols, name+"/etc/passwd")
		second := fmt.Sprintf("second%d", i)
		if raw.Symlink(name, vols, second) == 0 {
			closed(vols, second)
			closed(vols, second+"/")
		}
		// A link that is renamed to where its target leads elsewhere.
		if raw.Rename(vols, name, vols, fmt.Sprintf("moved%d", i)) == 0 {
			closed(vols, fmt.Sprintf("moved%d", i))
			closed(vols, fmt.Sprintf("moved%d/key", i))
		}
	}

	// Names with slashes behind them (GHSA-vqjp, GHSA-m9f7).
	for _, to := range []string{"..", "../", "../x", "../x/", "dir/../../x", "dir/../../x/", "rel/x", "rel/x/", "abs/x", "abs/x/", "root/tmp/x/", "/x/", "host/x/"} {
		for _, from := range []string{"own", "own/", "dir", "dir/"} {
			mustNot("renaming "+from+" to "+to, raw.Rename(vols, from, vols, to))
			mustNot("linking "+from+" as "+to, raw.Link(vols, false, from, vols, to))
			mustNot("linking what "+from+" is as "+to, raw.Link(vols, true, from, vols, to))
		}
		mustNot("a directory "+to, raw.Mkdir(vols, to))
		mustNot("a link "+to, raw.Symlink("x", vols, to))
		if got := raw.Open(vols, to, true, raw.Create, raw.Write); got >= 0 {
			fmt.Println("ESCAPE creating", to)
		}
	}
	for _, from := range []string{"..", "../", "../key", "../secret/", "../secret/key/", "rel/", "rel/key/", "relkey/", "abs/key", "root/etc/passwd", "passwd/"} {
		mustNot("renaming "+from, raw.Rename(vols, from, vols, "taken"))
		mustNot("linking "+from, raw.Link(vols, false, from, vols, "taken"))
		mustNot("linking what "+from+" is", raw.Link(vols, true, from, vols, "taken"))
		if from != "relkey/" && from != "rel/" && from != "passwd/" {
			mustNot("removing "+from, raw.Unlink(vols, from))
		}
		mustNot("removing the directory "+from, raw.Rmdir(vols, from))
	}

	// What may only be read: no way to write, shorten, move, remove or date it.
	for _, flags := range []int32{raw.Truncate, raw.Create | raw.Truncate, raw.Create, raw.Create | raw.Exclusive} {
		for _, rights := range []uint64{raw.Read, raw.Write, raw.All, 0} {
			got := raw.Open(data, "file", true, flags, rights)
			if got >= 0 {
				mustNot("writing what may only be read", raw.Put(got))
				mustNot("shortening it", raw.SetSize(got, 0))
				raw.Close(got)
			}
			if got := raw.Open(data, "new", true, flags, rights); got >= 0 && flags != raw.Truncate {
				fmt.Println("ESCAPE creating what may only be read")
			}
		}
	}
	if got := raw.Open(data, "file", true, 0, raw.All); got >= 0 {
		mustNot("writing by a descriptor for everything", raw.Put(got))
		mustNot("shortening by it", raw.SetSize(got, 0))
		mustNot("dating by it", raw.SetTimes(got))
		raw.Close(got)
	}
	mustNot("dating it", raw.PathSetTimes(data, "file"))
	mustNot("removing it", raw.Unlink(data, "file"))
	mustNot("removing a directory of it", raw.Rmdir(data, "sub"))
	mustNot("a directory in it", raw.Mkdir(data, "new"))
	mustNot("a link in it", raw.Symlink("x", data, "new"))
	mustNot("renaming within it", raw.Rename(data, "file", data, "new"))
	// Hard links and renames into what may be written (GHSA-4ch3).
	for _, to := range []int32{vols, temp} {
		mustNot("moving it", raw.Rename(data, "file", to, "taken"))
		mustNot("moving a directory of it", raw.Rename(data, "sub", to, "taken"))
		mustNot("linking it", raw.Link(data, false, "file", to, "taken"))
		mustNot("linking it, following", raw.Link(data, true, "file", to, "taken"))
		mustNot("moving something over it", raw.Rename(vols, "own", data, "file"))
		mustNot("linking something into it", raw.Link(vols, false, "own", data, "taken"))
	}
	fmt.Println("every trick was tried")
}
