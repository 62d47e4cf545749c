package bundle

import (
	"context"
	"encoding/json"
	"io"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
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
	content    content.Store
}

// Dial prepares a connection to containerd's socket; nothing is sent yet.
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
	return &Containerd{
		conn:       conn,
		containers: containersapi.NewContainersClient(conn),
		images:     imagesapi.NewImagesClient(conn),
		snapshots:  snapshotsapi.NewSnapshotsClient(conn),
		content:    contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
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
		var meta struct{ Metadata struct{ ImageDigest string } }
		if err := json.Unmarshal(ext.Value, &meta); err != nil {
			return Container{}, fault.Wrap(err, fault.Internal, id, "cannot read the container's CRI metadata")
		}
		found.Digest = digest.Digest(meta.Metadata.ImageDigest)
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
	info, err := c.content.Info(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	// The store keeps no type; manifest and index are told apart by content.
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: info.Digest, Size: info.Size}, nil
}

// Fetch implements oci.Fetcher over the content store.
func (c *Containerd) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := c.content.ReaderAt(ctx, desc)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, fault.Wrap(err, fault.NotFound, desc.Digest.String(), "not in containerd's content store").
				WithHint("pull the image again")
		}
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
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
