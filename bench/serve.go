package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

const (
	// serveRounds bounds the rounds, of so many requests one after the other on
	// each side.
	serveRounds   = 10
	serveRequests = 500
	// serveClients ask at once for as long when throughput is measured.
	serveClients = 8
	serveSpan    = time.Second
)

// plainHandler is the argument with which this program serves the other side.
const plainHandler = "plain-handler"

// requestBody is what both sides are sent: a kilobyte of text.
var requestBody = strings.Repeat("the words of a request ", 45)

// measureServe compares a served agent, in C, with a plain handler of Go's that
// does the same work, over loopback on connections that stay open.
func measureServe(ctx context.Context, m *machine, pairs int) (_ []Result, err error) {
	h, err := newHost(m, "serve", "mentat-host")
	if err != nil {
		return nil, err
	}
	bin, _ := node.Binaries()
	program := filepath.Join(bin, "mentat-host-net")
	c, err := newCompiler(h.dir)
	if err != nil {
		return nil, err
	}
	module, err := c.wasm(ctx, "request")
	if err != nil {
		return nil, err
	}
	words, err := h.command(ctx, program, "request", module, func(d *hostdoc.Document) {
		d.Serve = &hostdoc.Serve{Listen: "127.0.0.1:0", Socket: 3, Concurrent: serveClients, Queue: 64, BufferBytes: limits.ServeBuffers}
		d.Limits.DeadlineMillis, d.Limits.InputBytes, d.Limits.MemoryBytes = 10_000, limits.DefaultServeBody, limits.MiB
	})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ours, err := startServer(words[0], words[1:]...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	theirs, err := startServer(self, plainHandler)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.stop()) }()
	return compareServers(ctx, ours, theirs, min(pairs, serveRounds))
}

func compareServers(ctx context.Context, ours, theirs *httpServer, rounds int) ([]Result, error) {
	var one, other, rate, otherRate []float64
	for i := range rounds + 1 {
		sides := []struct {
			s          *httpServer
			took, rate *[]float64
		}{{ours, &one, &rate}, {theirs, &other, &otherRate}}
		for j := range sides {
			side := sides[(i+j)%2]
			took, err := side.s.inTurn(ctx, serveRequests)
			if err != nil {
				return nil, err
			}
			perSecond, err := side.s.atOnce(ctx, serveClients, serveSpan)
			if err != nil {
				return nil, err
			}
			if i > 0 { // the first warms everything
				*side.took, *side.rate = append(*side.took, took...), append(*side.rate, perSecond)
			}
		}
	}
	const against = "plain Go handler"
	return []Result{
		result("serve: a request, warm, over loopback", "µs", one).goal(median, 200).versus(against, one, other),
		result(fmt.Sprintf("serve: requests a second, %d clients", serveClients), "1/s", rate).versus(against, rate, otherRate),
	}, nil
}

// httpServer is a server's process and its address.
type httpServer struct {
	cmd    *exec.Cmd
	addr   string
	stderr *bytes.Buffer
}

// startServer starts a program with a listening socket as descriptor 3.
func startServer(program string, args ...string) (*httpServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	s := &httpServer{addr: l.Addr().String(), stderr: new(bytes.Buffer)}
	s.cmd = exec.Command(program, args...) //nolint:noctx // it ends by stop
	s.cmd.ExtraFiles = []*os.File{socket}
	s.cmd.Stderr = s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return s, s.cmd.Start()
}

func (s *httpServer) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && (exit.ExitCode() == 128+int(syscall.SIGTERM) || exit.ExitCode() == -1) {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", filepath.Base(s.cmd.Path), err, s.stderr)
}

// client is one connection.
type client struct {
	conn    net.Conn
	r       *bufio.Reader
	request []byte
}

func (s *httpServer) client(ctx context.Context) (*client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	request := fmt.Sprintf("POST /v1/process HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", s.addr, len(requestBody), requestBody)
	return &client{conn, bufio.NewReader(conn), []byte(request)}, conn.SetDeadline(time.Now().Add(time.Minute))
}

// ask sends one request and checks the answer.
func (c *client) ask() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if want := fmt.Sprintf("{\"words\":%d,\"bytes\":%d}\n", len(strings.Fields(requestBody)), len(requestBody)); err != nil || string(body) != want {
		return fmt.Errorf("%s, %q, %w", answer.Status, body, err)
	}
	return nil
}

// inTurn sends requests one after the other and returns how long each took, in
// microseconds.
func (s *httpServer) inTurn(ctx context.Context, n int) ([]float64, error) {
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	took := make([]float64, n)
	for i := range took {
		begin := time.Now()
		if err := c.ask(); err != nil {
			return nil, err
		}
		took[i] = float64(time.Since(begin)) / float64(time.Microsecond)
	}
	return took, nil
}

// atOnce has clients that ask without a pause and returns the requests a second.
func (s *httpServer) atOnce(ctx context.Context, clients int, span time.Duration) (float64, error) {
	var done atomic.Int64
	var all sync.WaitGroup
	failed := make([]error, clients)
	begin := time.Now()
	for i := range clients {
		all.Go(func() {
			c, err := s.client(ctx)
			if err != nil {
				failed[i] = err
				return
			}
			defer c.conn.Close()
			for time.Since(begin) < span {
				if failed[i] = c.ask(); failed[i] != nil {
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds(), errors.Join(failed...)
}

// servePlain is the other side: the same work, and what the server takes care
// of, in a handler of Go's.
func servePlain() error {
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/process", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limits.DefaultServeBody))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"words\":%d,\"bytes\":%d}\n", len(bytes.Fields(body)), len(body))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: limits.ServeHeaderTime}
	return server.Serve(l)
}
