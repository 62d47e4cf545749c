package doctor

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/envelopes"
	"github.com/mentatlab/mentat/verifier/fetch"
)

// imagesTold bounds the images that have a finding of their own.
const imagesTold = 20

// dial begins to connect to the daemon's socket; whether it answers is told by the
// first call.
func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(dialer.DialAddress(address),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer.ContextDialer))
}

// inventory judges the images that the daemon has, as the gate before a run would.
type inventory struct {
	report *Report
	judge  *verifier.Verifier
	config nodeconfig.Verify
	store  content.Provider

	images, agents, refused, told int
	seen                          map[judged]bool
}

// judged is what decides a judgement.
type judged struct {
	ref    string
	digest digest.Digest
}

// checkImages looks at what is on the node already: agents that would be refused if
// they started now, and those whose signers' certificates end soon. No pull happens
// for them, and no gate has seen some of them.
func checkImages(ctx context.Context, r *Report, g gates, cfg nodeconfig.Verify) {
	if g.daemon.PID == 0 || g.judge.Policy() == nil {
		return // which is told already
	}
	conn, err := dial(g.address)
	if err != nil {
		r.fail(checkAgents, g.address, err.Error(), "which agents would be refused cannot be told", "look at containerd's log")
		return
	}
	defer conn.Close()
	i := &inventory{report: r, judge: g.judge, config: cfg, store: proxy.NewContentStore(contentapi.NewContentClient(conn)), seen: map[judged]bool{}}
	if err := i.take(ctx, namespacesapi.NewNamespacesClient(conn), imagesapi.NewImagesClient(conn)); err != nil {
		r.fail(checkAgents, g.address, "does not say which images it has: "+err.Error(), "which agents would be refused cannot be told", "look at containerd's log")
		return
	}
	if more := i.told - imagesTold; more > 0 {
		r.note(checkAgents, g.address, fmt.Sprintf("%d more of that kind", more), "mentatctl verify tells of each")
	}
	r.ok(checkAgents, g.address, "%d images, %d of them agents or signed, of which %d would be refused", i.images, i.agents, i.refused)
}

func (i *inventory) take(ctx context.Context, spaces namespacesapi.NamespacesClient, images imagesapi.ImagesClient) error {
	all, err := spaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return err
	}
	for _, space := range all.Namespaces {
		ctx := namespaces.WithNamespace(ctx, space.Name)
		list, err := images.List(ctx, &imagesapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		for _, image := range list.Images {
			// CRI gives each image two more names, which no container is judged by.
			name := imageref.Parse(image.Name)
			if name.Repository == "" || strings.Contains(image.Name, "@") || strings.HasPrefix(image.Name, "sha256:") {
				continue
			}
			i.image(ctx, space.Name, image.Name, ocispec.Descriptor{
				MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size,
			})
		}
	}
	return ctx.Err()
}

func (i *inventory) image(ctx context.Context, space, ref string, target ocispec.Descriptor) {
	key := judged{ref, target.Digest}
	if i.seen[key] {
		return
	}
	i.seen[key] = true
	i.images++
	on := space + ": " + ref
	blobs := fetcher{i.store}
	raw, err := oci.ReadBlob(ctx, blobs, target, limits.OCIManifestBytes)
	if err != nil {
		i.unread(on, err)
		return
	}
	manifests, index, err := manifestsOf(ctx, blobs, target, raw)
	if err != nil {
		i.unread(on, err)
		return
	}
	for _, raw := range manifests {
		a, err := oci.Read(ctx, blobs, raw)
		if fault.ReasonOf(err) == fault.NotFound {
			continue // of another platform
		}
		if err != nil {
			i.unread(on, err)
			continue
		}
		if a.Agent != nil || a.Module != nil || a.Attested() {
			i.agents++
			i.agent(ctx, on, verifier.Input{Reference: ref, Artifact: a, Index: index})
		}
	}
}

// unread tells of an image whose manifest no gate would accept.
func (i *inventory) unread(on string, err error) {
	i.refused++
	i.tell(checkAgents, on, "cannot be read: "+err.Error(), "it does not start under "+mentatRuntime, "pull it again, or remove it")
}

func (i *inventory) agent(ctx context.Context, on string, in verifier.Input) {
	var trace verifier.Trace
	in.Trace = &trace
	if i.judge.AsksEnvelopes(in) {
		in.Envelopes = envelopes.In(i.config.State).Read(in.Artifact.Digest)
	}
	vd := fetch.Judge(ctx, i.judge, i.config, nil, in, i.judge.Verify)
	if !vd.Allowed {
		i.refused++
		i.tell(checkAgents, on, fmt.Sprintf("would be refused now: %s: %s", vd.Reason, vd.Message), "it does not start any more", "pull a release that the policy accepts, or remove it")
		return
	}
	if vd.Signer == nil {
		return
	}
	att, err := verifier.ReadAttestation(in.Artifact.Raw)
	if err != nil {
		return // it was not this program's own attestation that was believed
	}
	stamped := slices.ContainsFunc(trace.Steps, func(s verifier.Step) bool { return s.Name == verifier.StepTimestamp && s.Outcome == verifier.Passed })
	for _, c := range att.Chain {
		if left := c.NotAfter.Sub(i.judge.Now()); left < endsSoon && !stamped {
			i.tell(checkCert, on, fmt.Sprintf("was signed by %s, which ends at %s, in %d days", c.Subject, stamp(c.NotAfter), int(left/(24*time.Hour))),
				"it does not start after that", "have it signed anew, or with a time stamp, and pull it")
		}
	}
}

func (i *inventory) tell(check, on, what, why, do string) {
	if i.told++; i.told <= imagesTold {
		i.report.warn(check, on, what, why, do)
	}
}

// manifestsOf are the manifests that an image's target leads to, those of an index
// as far as they are on the node.
func manifestsOf(ctx context.Context, blobs oci.Fetcher, target ocispec.Descriptor, raw []byte) (manifests [][]byte, index digest.Digest, err error) {
	if !oci.LooksLikeIndex(raw) {
		return [][]byte{raw}, "", nil
	}
	parsed, err := oci.ParseIndex(raw)
	if err != nil {
		return nil, "", err
	}
	for _, d := range parsed.Manifests {
		raw, err := oci.ReadBlob(ctx, blobs, d, limits.OCIManifestBytes)
		if fault.ReasonOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		manifests = append(manifests, raw)
	}
	return manifests, target.Digest, nil
}

// fetcher is an [oci.Fetcher] over the daemon's content store.
type fetcher struct{ store content.Provider }

// Fetch implements [oci.Fetcher].
func (f fetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	at, err := f.store.ReaderAt(ctx, desc)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, fault.Wrap(err, fault.NotFound, desc.Digest.String(), "not in containerd's content store")
		}
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(at, 0, at.Size()), at}, nil
}
