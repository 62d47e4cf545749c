package bundle

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mentatlab/mentat/internal/fault"
)

// contentServer serves blobs as containerd does; one that is nil breaks off.
type contentServer struct {
	contentapi.UnimplementedContentServer
	blobs map[string][]byte
	ended chan error // how each stream that was read to the end or cut off ended
}

const chunk = 32 << 10

func (s *contentServer) Read(r *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) (err error) {
	defer func() { s.ended <- err }()
	data, ok := s.blobs[r.Digest]
	if !ok {
		return status.Error(codes.NotFound, "content "+r.Digest+": not found")
	}
	if data == nil {
		if err := stream.Send(&contentapi.ReadContentResponse{Data: []byte("half")}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "going away")
	}
	for len(data) > 0 {
		n := min(len(data), chunk)
		if err := stream.Send(&contentapi.ReadContentResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func TestContentIsFetchedWholeOrWithAReason(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 3*chunk/16+1)
	endless := make([]byte, 64<<20)
	server := &contentServer{ended: make(chan error, 16), blobs: map[string][]byte{
		digestOf("large"): large, digestOf("empty"): {}, digestOf("broken"): nil, digestOf("endless"): endless,
	}}
	socket := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	contentapi.RegisterContentServer(g, server)
	go g.Serve(l) //nolint:errcheck // it ends with the test
	t.Cleanup(g.Stop)
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fetch := func(name string) (io.ReadCloser, error) {
		return c.Fetch(t.Context(), ocispec.Descriptor{Digest: digest.Digest(digestOf(name))})
	}

	for name, want := range map[string][]byte{"large": large, "empty": {}} {
		r, err := fetch(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, error %v", name, len(got), len(want), err)
		}
		if err := errors.Join(r.Close(), <-server.ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fetch("absent"); fault.ReasonOf(err) != fault.NotFound {
		t.Errorf("absent content: %v", err)
	}
	<-server.ended //nolint:errcheck // the client's side is what is tested
	r, err := fetch("broken")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err == nil || string(got) != "half" {
		t.Errorf("content that broke off reads as %q, error %v", got, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	<-server.ended //nolint:errcheck // the client's side is what is tested
	if r, err = fetch("endless"); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-server.ended; err == nil {
		t.Error("content that nobody read was sent to its end")
	}
}

func digestOf(s string) string { return digest.FromString(s).String() }
