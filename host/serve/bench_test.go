package serve

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// BenchmarkRequest is a request of an agent that costs nothing, on a connection
// that stays open.
func BenchmarkRequest(b *testing.B) {
	v := start(b, agent(echo), nil)
	conn, err := net.Dial("tcp", v.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	request := []byte(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody", ProcessPath))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			b.Fatal(answer.Status, err)
		}
		answer.Body.Close()
	}
}
