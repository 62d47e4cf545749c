package bundle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/oci"
)

// Container is what containerd knows of a container that matters here.
type Container struct {
	// Image is the reference it was created from, "" without an image.
	Image string
	// Asked is what the pod called the image, "" without CRI. CRI makes the
	// container from the image's first name, which can be another one.
	Asked string
	// Digest is the image's digest as CRI recorded it at creation, or "".
	Digest digest.Digest
	// Held is the manifest digest that an earlier preparation labelled.
	Held digest.Digest
	// Snapshotter and SnapshotKey name its root filesystem, "" without one.
	Snapshotter, SnapshotKey string
}

// Node is the part of containerd that a preparation asks. Calls are made in
// the namespace that the context carries.
type Node interface {
	oci.Fetcher
	// Container finds a container by id; errdefs.IsNotFound when there is none.
	Container(ctx context.Context, id string) (Container, error)
	// Image resolves a reference; errdefs.IsNotFound when there is none.
	Image(ctx context.Context, ref string) (ocispec.Descriptor, error)
	// Blob describes content by digest; errdefs.IsNotFound when it is absent.
	Blob(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error)
	// SnapshotParent is the parent of a snapshot, "" for none.
	SnapshotParent(ctx context.Context, snapshotter, key string) (string, error)
	// Hold labels the container so that garbage collection keeps the content.
	Hold(ctx context.Context, id string, d digest.Digest) error
}

const (
	// holdLabel makes containerd's garbage collector keep the manifest, and by
	// the manifest's own labels all that it names.
	holdLabel = "containerd.io/gc.ref.content.mentatlab"
	// criMetadata is the extension in which CRI keeps a container's metadata.
	criMetadata = "io.cri-containerd.container.metadata"
)

// Containerd is a [Node] over containerd's gRPC services.
type Containerd struct {
	conn       *grpc.ClientConn
	containers containersapi.ContainersClient
	images     imagesapi.ImagesClient
	snapshots  snapshotsapi.SnapshotsClient
	content    contentapi.ContentClient
}

// Dial begins to connect to containerd's socket; whether containerd answers is
// told by the first call.
func Dial(address string) (*Containerd, error) {
	if address == "" {
		return nil, fault.New(fault.Internal, "containerd", "no address is known").WithHint("GRPC_ADDRESS names it to what containerd starts")
	}
	conn, err := grpc.NewClient(dialer.DialAddress(address),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, address, "cannot reach containerd")
	}
	conn.Connect()
	return &Containerd{
		conn:       conn,
		containers: containersapi.NewContainersClient(conn),
		images:     imagesapi.NewImagesClient(conn),
		snapshots:  snapshotsapi.NewSnapshotsClient(conn),
		content:    contentapi.NewContentClient(conn),
	}, nil
}

// Close ends the connection.
func (c *Containerd) Close() error { return c.conn.Close() }

// Container implements [Node].
func (c *Containerd) Container(ctx context.Context, id string) (Container, error) {
	r, err := c.containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return Container{}, errgrpc.ToNative(err)
	}
	found := Container{
		Image:       r.Container.Image,
		Snapshotter: r.Container.Snapshotter,
		SnapshotKey: r.Container.SnapshotKey,
		Held:        digest.Digest(r.Container.Labels[holdLabel]),
	}
	if ext := r.Container.Extensions[criMetadata]; ext != nil {
		var meta struct {
			Metadata struct {
				ImageDigest string
				Config      struct {
					Image struct {
						Image     string `json:"image"`
						Specified string `json:"user_specified_image"`
					} `json:"image"`
				}
			}
		}
		if err := json.Unmarshal(ext.Value, &meta); err != nil {
			return Container{}, fault.Wrap(err, fault.Internal, id, "cannot read the container's CRI metadata")
		}
		found.Digest = digest.Digest(meta.Metadata.ImageDigest)
		asked := meta.Metadata.Config.Image
		found.Asked = cmp.Or(asked.Specified, asked.Image)
	}
	return found, nil
}

// Image implements [Node].
func (c *Containerd) Image(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	r, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: ref})
	if err != nil {
		return ocispec.Descriptor{}, errgrpc.ToNative(err)
	}
	t := r.Image.Target
	return ocispec.Descriptor{MediaType: t.MediaType, Digest: digest.Digest(t.Digest), Size: t.Size}, nil
}

// Blob implements [Node].
func (c *Containerd) Blob(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	r, err := c.content.Info(ctx, &contentapi.InfoRequest{Digest: d.String()})
	if err != nil {
		return ocispec.Descriptor{}, errgrpc.ToNative(err)
	}
	// The store keeps no type; manifest and index are told apart by content.
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(r.Info.Digest), Size: r.Info.Size}, nil
}

// Fetch implements oci.Fetcher over the content store, with one call where the
// library's reader makes two.
func (c *Containerd) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.content.Read(ctx, &contentapi.ReadContentRequest{Digest: desc.Digest.String()})
	if err != nil {
		cancel()
		return nil, errgrpc.ToNative(err)
	}
	b := &blob{stream: stream, cancel: cancel}
	// Whether it is there is told by the first answer.
	if err = b.next(); err == nil || errors.Is(err, io.EOF) {
		return b, nil
	}
	cancel()
	if errdefs.IsNotFound(err) {
		return nil, fault.Wrap(err, fault.NotFound, desc.Digest.String(), "not in containerd's content store").
			WithHint("pull the image again")
	}
	return nil, err
}

// blob is content as it arrives: data is what came and was not yet read, err
// how the stream ended.
type blob struct {
	stream contentapi.Content_ReadClient
	cancel context.CancelFunc
	data   []byte
	err    error
}

func (b *blob) next() error {
	answer, err := b.stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		err = errgrpc.ToNative(err)
	}
	b.data, b.err = answer.GetData(), err
	return err
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for len(b.data) == 0 {
		if b.err != nil || b.next() != nil {
			return 0, b.err
		}
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

// Close implements io.Closer: it ends the stream, read or not.
func (b *blob) Close() error {
	b.cancel()
	return nil
}

// SnapshotParent implements [Node].
func (c *Containerd) SnapshotParent(ctx context.Context, snapshotter, key string) (string, error) {
	r, err := c.snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: key})
	if err != nil {
		return "", errgrpc.ToNative(err)
	}
	return r.Info.Parent, nil
}

// Hold implements [Node].
func (c *Containerd) Hold(ctx context.Context, id string, d digest.Digest) error {
	_, err := c.containers.Update(ctx, &containersapi.UpdateContainerRequest{
		Container:  &containersapi.Container{ID: id, Labels: map[string]string{holdLabel: d.String()}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + holdLabel}},
	})
	return errgrpc.ToNative(err)
}
