// title: asks for the metadata service and for this machine's own servers by every name and number
// of: metadata address
// of: rebinding
// status: 0
// reason: none
// says: every address was tried
// says: the host metadata.escape.test leads to a metadata service's address
// says: the host rebind.escape.test leads to a loopback address
// says: "http://rebind.escape.test:
// says: the host closed the connection before its answer was complete
// args: PORT

//go:build wasip1

package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mentatlab/mentat/integration/testdata/escapes/raw"
)

func main() {
	port := os.Args[1]
	// Not granted at all: numbers in all their spellings, and other names.
	for _, host := range []string{
		"169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "127.0.0.1", "127.0.0.1:" + port, "localhost:" + port, "0x7f000001:" + port, "2130706433:" + port,
		"0177.0.0.1:" + port, "127.1:" + port, "[::1]:" + port, "[::ffff:127.0.0.1]:" + port, "0.0.0.0:" + port, "*", "0.0.0.0/0", "escape.test", "10.0.0.1",
	} {
		for _, scheme := range []string{"http", "https", "*"} {
			if h := raw.Request("network:" + scheme + ":" + host); h >= 0 {
				fmt.Println("ESCAPE the capability of", scheme, host)
			}
		}
	}
	// Granted by name, but of names that lead to what nobody was granted.
	granted := raw.Request("network:http:*.escape.test:" + port)
	web := raw.Request("network:http:*.escape.test")
	if granted < 0 || web < 0 {
		fmt.Println("the control failed:", granted, web, raw.Detail())
		os.Exit(70)
	}
	fetch := func(cap int32, url string, more string) {
		answer, ok := raw.Invoke(cap, "fetch", fmt.Sprintf(`{"method":"GET","url":%q,"headers":[],"timeout_ms":5000%s}`, url, more))
		if ok {
			fmt.Printf("ESCAPE %s: %q\n", url, answer)
			return
		}
		fmt.Printf("%q: %s\n", strings.ToLower(url), answer)
	}
	for _, name := range []string{"loopback", "zero", "six", "mapped", "nat64", "mixed", "absent"} {
		fetch(granted, "http://"+name+".escape.test:"+port+"/", "")
	}
	for _, name := range []string{"metadata", "metadata6"} {
		fetch(web, "http://"+name+".escape.test/latest/meta-data/iam/security-credentials/", "")
	}
	// A name that is one address when it is judged and another one when it is used.
	for range 6 {
		fetch(granted, "http://rebind.escape.test:"+port+"/", `,"redirects":5`)
	}
	// A URL that reads as another host than it was granted for.
	for _, url := range []string{
		"http://loopback.escape.test:" + port + "@127.0.0.1:" + port + "/", "http://127.0.0.1:" + port + "/.escape.test", "http://127.0.0.1:" + port + "#.escape.test:" + port,
		"http://x.escape.test:" + port + "\\@127.0.0.1:" + port + "/", "http://127.0.0.1:" + port + "/", "http://[::ffff:7f00:1]:" + port + "/", "http://x.escape.test:" + port + "\r\nHost: a\r\n/",
		"//127.0.0.1:" + port + "/", "file:///etc/passwd", "http://169.254.169.254/", "http://x.escape.test.:" + port + "/", "gopher://x.escape.test:" + port + "/",
	} {
		fetch(granted, url, "")
		fetch(granted, strings.ToUpper(url), "")
	}
	fmt.Println("every address was tried")
}
