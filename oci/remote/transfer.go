package remote

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/registry"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/oci"
)

const (
	// transfers is how many blobs move at once.
	transfers = 3
	// progressStep is how many bytes pass between two progress events.
	progressStep = 256 << 10
)

// try runs do with the reference's endpoints in their order until one
// succeeds. If none does, the registry's own answer counts, which comes last.
func (c *Client) try(ctx context.Context, ref registry.Reference, need capability, doing string, do func(*orasremote.Repository) error) error {
	eps, err := c.endpoints(ctx, ref.Registry)
	if err != nil {
		return err
	}
	err = fault.New(fault.Unavailable, ref.String(), "%s: %s says of no server that it may be used for this", doing, hostsName)
	for _, ep := range eps {
		if ep.can&need != need {
			continue
		}
		derr := do(ep.repository(ref))
		if derr == nil {
			return nil
		}
		err = ep.fail(derr, ref.String(), doing)
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

// fetchDocument gets the manifest or index that ref.Reference, a tag or a
// digest, means, and checks its bytes.
func (c *Client) fetchDocument(ctx context.Context, ref registry.Reference) (raw []byte, desc ocispec.Descriptor, err error) {
	need := canPull
	if ref.ValidateReferenceAsDigest() != nil {
		need |= canResolve
	}
	err = c.try(ctx, ref, need, "cannot fetch the manifest", func(repo *orasremote.Repository) error {
		told, rc, err := repo.Manifests().FetchReference(ctx, ref.Reference)
		if err != nil {
			return err
		}
		defer rc.Close()
		raw, err = limits.Read(rc, limits.OCIManifestBytes)
		if errors.Is(err, limits.ErrExceeded) {
			return fault.Wrap(err, fault.ArtifactInvalid, string(told.Digest), "the manifest is refused")
		}
		if err != nil {
			return err
		}
		desc, err = judge(raw, told, ref)
		return err
	})
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	return raw, desc, nil
}

// judge compares a document with what was asked for and with what the server
// said about it.
func judge(raw []byte, told ocispec.Descriptor, ref registry.Reference) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	on := string(told.Digest)
	if !oci.IsManifest(told.MediaType) && !oci.IsIndex(told.MediaType) {
		return none, fault.New(fault.Unavailable, on, "the answer is of type %q, which is not a manifest's", told.MediaType)
	}
	want := told.Digest
	if d, err := ref.Digest(); err == nil {
		want = d
	}
	if want.Algorithm().FromBytes(raw) != want {
		return none, fault.New(fault.DigestMismatch, string(want), "the manifest is not what its digest says")
	}
	mediaType, err := oci.DetectMediaType(raw)
	if err != nil {
		return none, err
	}
	if mediaType != told.MediaType {
		return none, fault.New(fault.ArtifactInvalid, on, "the registry calls it %q, but it says %q of itself", told.MediaType, mediaType)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(raw))}, nil
}

// Resolve finds out what ref means now. The manifest's bytes were fetched and
// checked for it. Errors: Usage for a malformed reference, NotFound,
// AccessDenied, Unavailable, DigestMismatch, ArtifactInvalid.
func (c *Client) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	r, err := pointer(ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_, desc, err := c.fetchDocument(ctx, r)
	return desc, err
}

// pointer parses a reference that must have a tag or a digest.
func pointer(ref string) (registry.Reference, error) {
	r, err := parseReference(ref)
	if err == nil && r.Reference == "" {
		err = fault.New(fault.Usage, ref, "has neither a tag nor a digest").WithHint("write %s:TAG", ref)
	}
	return r, err
}

// Manifest gets the manifest or index d from ref's repository; what else ref
// says is ignored. Errors: as [Client.Resolve].
func (c *Client) Manifest(ctx context.Context, ref string, d digest.Digest) ([]byte, ocispec.Descriptor, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	r.Reference = string(d)
	if err := r.ValidateReferenceAsDigest(); err != nil {
		return nil, ocispec.Descriptor{}, fault.Wrap(err, fault.Usage, ref, "%q is not a digest", d)
	}
	return c.fetchDocument(ctx, r)
}

// Fetcher reads blobs and manifests of ref's repository by digest. What it
// returns is to be checked, see [oci.ReadBlob]; its errors are those of
// [Client.Resolve], while reading as well.
func (c *Client) Fetcher(ref string) (oci.Fetcher, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	return fetcher{c: c, ref: r}, nil
}

type fetcher struct {
	c   *Client
	ref registry.Reference
}

func (f fetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ref := f.ref
	ref.Reference = string(desc.Digest)
	if err := ref.ValidateReferenceAsDigest(); err != nil {
		return nil, fault.New(fault.ArtifactInvalid, string(desc.Digest), "is not a digest")
	}
	var body io.ReadCloser
	err := f.c.try(ctx, ref, canPull, "cannot fetch", func(repo *orasremote.Repository) (err error) {
		body, err = repo.Fetch(ctx, desc)
		return err
	})
	if err != nil {
		return nil, err
	}
	return failingBody{body, ref}, nil
}

// failingBody gives errors in the middle of a transfer their reason.
type failingBody struct {
	io.ReadCloser
	ref registry.Reference
}

func (b failingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a reader's contract is the bare value
		ep := endpoint{server: b.ref.Registry}
		err = ep.fail(err, b.ref.String(), "cannot fetch")
	}
	return n, err
}

// Image loads the container image ref for a platform ("" is linux/amd64). Its
// layers are fetched when they are read. Errors: as [Client.Resolve] and
// [oci.LoadImage].
func (c *Client) Image(ctx context.Context, ref, platform string) (*oci.ContainerImage, error) {
	p, err := oci.ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	root, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	f, err := c.Fetcher(ref)
	if err != nil {
		return nil, err
	}
	return oci.LoadImage(ctx, progressFetcher{f, c}, root, p)
}

// progressFetcher reports what a build fetches.
type progressFetcher struct {
	oci.Fetcher
	c *Client
}

func (f progressFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := f.Fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	return f.c.tracked(rc, OpPull, desc), nil
}

// Pull copies everything that ref means into layout, names it ref there, and
// returns it. An index is copied with all its manifests. Nothing is named
// before everything is there and was checked. Errors: as [Client.Resolve].
func (c *Client) Pull(ctx context.Context, ref string, layout *oci.Layout) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	r, err := pointer(ref)
	if err != nil {
		return none, err
	}
	raw, root, err := c.fetchDocument(ctx, r)
	if err != nil {
		return none, err
	}
	src := fetcher{c: c, ref: r}
	g, err := oci.Walk(ctx, withRoot{src, root.Digest, raw}, root)
	if err != nil {
		return none, err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(transfers)
	for _, d := range g.Blobs {
		group.Go(func() error { return c.pullBlob(gctx, src, layout, d) })
	}
	if err := group.Wait(); err != nil {
		return none, err
	}
	for _, doc := range g.Documents {
		if err := layout.Push(ctx, doc.Desc, bytes.NewReader(doc.Raw)); err != nil {
			return none, err
		}
	}
	if r.ValidateReferenceAsDigest() == nil {
		return root, layout.Add(ctx, root)
	}
	return root, layout.Tag(ctx, root, ref)
}

// withRoot has the root document at hand already.
type withRoot struct {
	oci.Fetcher
	digest digest.Digest
	raw    []byte
}

func (f withRoot) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Digest == f.digest {
		return io.NopCloser(bytes.NewReader(f.raw)), nil
	}
	return f.Fetcher.Fetch(ctx, desc)
}

func (c *Client) pullBlob(ctx context.Context, src oci.Fetcher, layout *oci.Layout, d ocispec.Descriptor) error {
	have, err := layout.Exists(ctx, d)
	if err != nil {
		return err
	}
	if have {
		c.report(Event{Op: OpSkip, Digest: d.Digest, MediaType: d.MediaType, Done: d.Size, Total: d.Size})
		return nil
	}
	rc, err := src.Fetch(ctx, d)
	if err != nil {
		return err
	}
	body := c.tracked(rc, OpPull, d)
	defer body.Close()
	return layout.Push(ctx, d, body)
}

// Push copies an image of layout, the one named ref or else the only one, to
// the registry, byte for byte, and lets ref's tag point to it. The tag moves
// last. Errors: Usage for a reference without a tag, AccessDenied, Unavailable,
// Exists when the registry keeps its tags.
func (c *Client) Push(ctx context.Context, layout *oci.Layout, ref string) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	r, err := pointer(ref)
	if err != nil {
		return none, err
	}
	root, err := layout.Resolve(ctx, ref)
	if fault.ReasonOf(err) == fault.NotFound {
		root, err = layout.Root()
	}
	if err != nil {
		return none, err
	}
	if d, derr := r.Digest(); derr == nil && d != root.Digest {
		return none, fault.New(fault.Usage, ref, "names another digest than the image to push, %s", root.Digest)
	}
	g, err := oci.Walk(ctx, layout, root)
	if err != nil {
		return none, err
	}
	// A registry notices damage, too, but says so in words of its own, and by
	// then half the image is there.
	if err := layout.Verify(ctx); err != nil {
		return none, err
	}
	ep, err := c.pushEndpoint(ctx, r)
	if err != nil {
		return none, err
	}
	repo := ep.repository(r)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(transfers)
	for _, d := range g.Blobs {
		group.Go(func() error {
			if err := c.pushBlob(gctx, layout, repo, d); err != nil {
				return ep.fail(err, ref, "cannot push")
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return none, err
	}
	for _, doc := range g.Documents {
		name := string(doc.Desc.Digest)
		if doc.Desc.Digest == root.Digest {
			name = r.Reference
		}
		if err := repo.Manifests().PushReference(ctx, doc.Desc, bytes.NewReader(doc.Raw), name); err != nil {
			return none, ep.fail(err, ref, "cannot push the manifest")
		}
	}
	return root, nil
}

// pushEndpoint is the first server that takes pushes. There is no second try:
// a tag that went to another server than the one before would be lost.
func (c *Client) pushEndpoint(ctx context.Context, ref registry.Reference) (*endpoint, error) {
	eps, err := c.endpoints(ctx, ref.Registry)
	if err != nil {
		return nil, err
	}
	for _, ep := range eps {
		if ep.can&canPush != 0 {
			return ep, nil
		}
	}
	return nil, fault.New(fault.Unavailable, ref.String(), "%s says of no server that it may be pushed to", hostsName)
}

func (c *Client) pushBlob(ctx context.Context, layout *oci.Layout, repo *orasremote.Repository, d ocispec.Descriptor) error {
	have, err := repo.Blobs().Exists(ctx, d)
	if err != nil {
		return err
	}
	if have {
		c.report(Event{Op: OpSkip, Digest: d.Digest, MediaType: d.MediaType, Done: d.Size, Total: d.Size})
		return nil
	}
	rc, err := layout.Fetch(ctx, d)
	if err != nil {
		return err
	}
	body := c.tracked(rc, OpPush, d)
	defer body.Close()
	return repo.Blobs().Push(ctx, d, struct {
		io.Reader
		io.Closer
	}{oci.Verified(body, d), body})
}

func (c *Client) report(e Event) {
	if c.opts.Progress == nil {
		return
	}
	c.progress.Lock()
	defer c.progress.Unlock()
	c.opts.Progress(e)
}

// tracked reports what is read from rc.
func (c *Client) tracked(rc io.ReadCloser, op string, d ocispec.Descriptor) io.ReadCloser {
	if c.opts.Progress == nil {
		return rc
	}
	t := &trackedBody{ReadCloser: rc, c: c, event: Event{Op: op, Digest: d.Digest, MediaType: d.MediaType, Total: d.Size}}
	c.report(t.event)
	return t
}

type trackedBody struct {
	io.ReadCloser
	c        *Client
	event    Event
	reported int64
}

func (t *trackedBody) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.event.Done += int64(n)
	// A peer that sends too much is refused elsewhere; it does not show here.
	t.event.Done = min(t.event.Done, t.event.Total)
	if n > 0 && t.event.Done != t.reported && (t.event.Done-t.reported >= progressStep || t.event.Done == t.event.Total) {
		t.reported = t.event.Done
		t.c.report(t.event)
	}
	return n, err
}
