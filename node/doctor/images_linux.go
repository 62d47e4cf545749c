package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
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
	"github.com/mentatlab/mentat/verifier/notation"
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
	client *http.Client // asks as the gates would

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
	i := &inventory{report: r, judge: g.judge, config: cfg, store: proxy.NewContentStore(contentapi.NewContentClient(conn)), client: clientOf(g.daemon.env), seen: map[judged]bool{}}
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
	if i.judge.AsksEnvelopes(in) {
		in.Envelopes = envelopes.In(i.config.State).Read(in.Artifact.Digest)
	}
	vd := fetch.Judge(ctx, i.judge, i.config, i.client, in, i.judge.Verify)
	switch {
	case !vd.Allowed:
		i.refused++
		i.tell(checkAgents, on, fmt.Sprintf("would be refused now: %s: %s", vd.Reason, vd.Message), "it does not start any more", "pull a release that the policy accepts, or remove it")
	case vd.Signer == nil: // nobody's certificate was believed
	case vd.Signature == verifier.NotationSignature:
		i.notations(ctx, on, in, vd)
	default:
		i.attestation(on, in, vd)
	}
}

// attestation tells of the certificates of all who signed and count, the first and the
// others. A time stamp that counts keeps a signature good past their end, its own one
// only.
func (i *inventory) attestation(on string, in verifier.Input, vd *verifier.Verdict) {
	att, err := verifier.ReadAttestation(in.Artifact.Raw)
	if err != nil {
		i.tell(checkCert, on, "its certificates cannot be read: "+err.Error(), "whether they end soon cannot be told", "look at it with mentatctl inspect")
		return
	}
	const again = ", with a time stamp (--timestamp URL), and pull it"
	if vd.Stamped.IsZero() {
		i.ends(ending{on, "signed by", cmp.Or(vd.Signer.Email, vd.Signer.Subject), att.Chain, i.afterwards(vd.Scope, ""), "have it signed anew" + again})
	}
	for n, c := range vd.Countersigners {
		if !c.Counts || !c.Stamped.IsZero() {
			continue
		}
		i.ends(ending{
			on, "countersigned by", c.Email, att.CountersignerChain(n),
			i.afterwards(vd.Scope, "this signature does not count after that: the agent does not start unless enough others of its scope's required_signers signed it"),
			"have " + c.Email + " countersign it anew (mentatctl countersign --replace)" + again,
		})
	}
}

// notations tells of Notary Project signatures. One that counts is enough, so that of
// the best of them matters.
func (i *inventory) notations(ctx context.Context, on string, in verifier.Input, vd *verifier.Verdict) {
	var best ending
	for _, e := range in.Envelopes {
		if e.Digest() == "" || !slices.Contains(vd.GoodEnvelopes, e.Digest()) {
			continue
		}
		alone := in
		alone.Envelopes = []verifier.Envelope{e}
		one := i.judge.Verify(ctx, alone)
		content, err := notation.Reader{}.ReadEnvelope(e, verifier.Target(in.Artifact))
		if err != nil || one.Signer == nil {
			continue // it changed between two looks, and so it is none to rely on
		}
		if !one.Stamped.IsZero() {
			return
		}
		chain := content.Chain[:len(content.Chain)-1] // roots are the trust store's
		if best.chain == nil || soonest(best.chain).NotAfter.Before(soonest(chain).NotAfter) {
			best = ending{
				on, "signed (Notary Project) by", cmp.Or(one.Signer.Email, one.Signer.Subject), chain, i.afterwards(vd.Scope, ""),
				"have it signed anew, with a time stamp (notation sign --timestamp-url URL), and pull it",
			}
		}
	}
	if best.chain != nil {
		i.ends(best)
	}
}

// ending is a signature that counts until one of its certificates ends.
type ending struct {
	on, how, who string
	chain        []*x509.Certificate // without the root
	why, do      string
}

// ends tells of a signature whose certificates end soon.
func (i *inventory) ends(e ending) {
	c := soonest(e.chain)
	whose := "whose certificate"
	if c != e.chain[0] {
		whose = "whose issuer's certificate"
	}
	switch left := c.NotAfter.Sub(i.judge.Now()); {
	case left < 0: // the scope's level lets it by
		i.tell(checkCert, e.on, fmt.Sprintf("was %s %s, %s %s ended at %s", e.how, e.who, whose, c.Subject, stamp(c.NotAfter)), "it runs only because its scope's level lets that by", e.do)
	case left < endsSoon:
		i.tell(checkCert, e.on, fmt.Sprintf("was %s %s, %s %s ends at %s, in %d days", e.how, e.who, whose, c.Subject, stamp(c.NotAfter), int(left/(24*time.Hour))), e.why, e.do)
	}
}

// soonest is the certificate that ends first.
func soonest(chain []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// afterwards is what follows for an agent from the end of a signature, in its scope;
// strict is what it is at the strict level, "" for not starting.
func (i *inventory) afterwards(scope, strict string) string {
	for _, s := range i.judge.Policy().Scopes() {
		countersigned := strict != ""
		if s.Name == scope && (s.Level == verifier.Audit || s.Level == verifier.Permissive && !countersigned) {
			return fmt.Sprintf("after that it runs only because its scope is at the level %s, and less trusted", s.Level)
		}
	}
	return cmp.Or(strict, "it does not start after that")
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
