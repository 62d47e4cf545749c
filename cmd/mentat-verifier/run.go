package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
	"github.com/mentatlab/mentat/oci/remote/provider"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/notation"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

const (
	exitAllow  = 0
	exitRefuse = 1

	descriptorBytes = 64 * limits.KiB
	// refreshBudget is the part of the time that fetching revocation lists may
	// take: old ones are better than no answer.
	refreshBudget = 3 * time.Second
	// parallel bounds how many manifests of an index are fetched at a time.
	parallel = 4
)

// request is what containerd asks about.
type request struct {
	name   string
	digest digest.Digest
}

// run answers one request. It never takes longer than budget: containerd kills a
// verifier that is late, with no word to the user.
func run(ctx context.Context, budget time.Duration, args []string, stdin io.Reader, stdout, stderr io.Writer, clock func() time.Time) int {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	answer := make(chan answer, 1)
	g := &gate{log: stderr, clock: clock}
	go func() { answer <- g.answer(ctx, args, stdin) }()
	select {
	case a := <-answer:
		return a.tell(stdout)
	case <-ctx.Done():
		// Something did not heed the context.
		return g.unfetchable(fault.New(fault.Unavailable, "", "no answer within %s", budget)).tell(stdout)
	}
}

// answer is what containerd is told.
type answer struct {
	allow bool
	line  string
}

func refuse(err error) answer {
	return answer{line: fmt.Sprintf("refused (%s): %v", fault.ReasonOf(err), err)}
}

func (a answer) tell(w io.Writer) int {
	if _, err := fmt.Fprintln(w, fault.OneLine(a.line)); err != nil || !a.allow {
		return exitRefuse
	}
	return exitAllow
}

type gate struct {
	log   io.Writer
	clock func() time.Time

	mu       sync.Mutex
	verifier *verifier.Verifier // guarded by mu: the answer that comes too late reads it
}

func (g *gate) answer(ctx context.Context, args []string, stdin io.Reader) answer {
	req, err := parseRequest(args, stdin, g.log)
	if err != nil {
		return refuse(err)
	}
	cfg, err := nodeconfig.Load("")
	if err != nil {
		return refuse(err)
	}
	v, err := verifier.Open(cfg.Verify, g.clock, timestamp.Reader{}, verifier.Reading(notation.Reader{}))
	if err != nil {
		return refuse(err)
	}
	g.mu.Lock()
	g.verifier = v
	g.mu.Unlock()
	g.refresh(ctx, v, cfg.Verify)
	client, err := newClient(cfg.Verify, req.name)
	if err != nil {
		return refuse(err)
	}
	c := &collector{client: client, ref: req.name, slots: make(chan struct{}, parallel)}
	found, err := c.collect(ctx, req.digest)
	if unfetchable(err) {
		return g.unfetchable(err)
	}
	if err != nil {
		return refuse(err)
	}
	inputs := signatures(ctx, v, c, req, found)
	// Everything is at hand: a deadline that passes now must not spoil it.
	return g.judge(context.WithoutCancel(ctx), v, cfg.Verify, req, inputs)
}

// newClient makes a client for one image, with the node's credentials.
func newClient(cfg nodeconfig.Verify, image string) (*remote.Client, error) {
	opts := remote.Options{HostsDir: cfg.HostsDir, DockerConfig: cfg.DockerConfig, UserAgent: "mentat-verifier"}
	if cfg.CredentialProviders == "" {
		return remote.New(opts)
	}
	// Read now: with a configuration that is broken nothing is pulled by luck.
	providers, err := provider.Open(cfg.CredentialProviders, cfg.CredentialProviderDir)
	if err != nil {
		return nil, err
	}
	named, ok := imageref.ParseReference(image)
	if !ok {
		return nil, fault.New(fault.Usage, image, "not an image reference")
	}
	opts.Provide = func(ctx context.Context) (user, secret string, ok bool, err error) {
		c, ok, err := providers.Credential(ctx, named.Name)
		return c.Username, c.Password, ok, err
	}
	return remote.New(opts)
}

// parseRequest reads containerd's flags and descriptor and holds one to the
// other.
func parseRequest(args []string, stdin io.Reader, log io.Writer) (request, error) {
	flags := flag.NewFlagSet("mentat-verifier", flag.ContinueOnError)
	flags.SetOutput(log)
	name := flags.String("name", "", "the image's reference")
	dgst := flags.String("digest", "", "the image's digest")
	mediaType := flags.String("stdin-media-type", "", "the type of what is on standard input")
	if err := flags.Parse(args); err != nil {
		return request{}, fault.Wrap(err, fault.Usage, "mentat-verifier", "cannot read the arguments")
	}
	if flags.NArg() > 0 {
		return request{}, fault.New(fault.Usage, "mentat-verifier", "does not know the argument %q", flags.Arg(0))
	}
	d, err := digest.Parse(*dgst)
	if err != nil || *name == "" {
		return request{}, fault.New(fault.Usage, "mentat-verifier", "wants -name and -digest of an image; containerd runs it, not people")
	}
	if *mediaType != ocispec.MediaTypeDescriptor {
		return request{}, fault.New(fault.Usage, *name, "standard input of type %q is not known", *mediaType)
	}
	data, err := limits.Read(stdin, descriptorBytes)
	if err != nil {
		return request{}, fault.Wrap(err, fault.Usage, *name, "cannot read the descriptor on standard input")
	}
	var desc ocispec.Descriptor
	if err := json.Unmarshal(data, &desc); err != nil {
		return request{}, fault.Wrap(err, fault.Usage, *name, "the descriptor on standard input is malformed")
	}
	if desc.Digest != d {
		return request{}, fault.New(fault.DigestMismatch, *name, "-digest is %s, the descriptor says %s", d, desc.Digest)
	}
	return request{name: *name, digest: d}, nil
}

// refresh fetches revocation lists that are due. It is best effort: with lists
// that are too old the verdict refuses by itself.
func (g *gate) refresh(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify) {
	ctx, cancel := context.WithTimeout(ctx, refreshBudget)
	defer cancel()
	if err := fetch.Refresh(ctx, v, cfg, nil, false); err != nil {
		fmt.Fprintln(g.log, fault.OneLine(fmt.Sprintf("mentat-verifier: revocation lists: %v", err)))
	}
}

// unfetchable answers for a manifest that is out of reach, as the policy says.
// Without a policy, or before one was read, nothing is lost by deferring: the
// gate before the start does not run what it cannot judge.
func (g *gate) unfetchable(err error) answer {
	g.mu.Lock()
	v := g.verifier
	g.mu.Unlock()
	if v == nil {
		return refuse(err)
	}
	if p := v.Policy(); p != nil && p.OnUnfetchable() == verifier.Deny {
		return refuse(err)
	}
	return answer{allow: true, line: fmt.Sprintf("deferred: not checked at pull, the node decides before it starts: %v", err)}
}

func unfetchable(err error) bool {
	switch fault.ReasonOf(err) {
	case fault.Unavailable, fault.AccessDenied, fault.NotFound, fault.Deadline, fault.Canceled:
		return true
	}
	return false
}

// judge refuses an image if any of its manifests is refused, and that outweighs one
// that could not be judged for want of its signatures. OCSP responders have
// one budget for all of them.
func (g *gate) judge(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify, req request, inputs []verifier.Input) answer {
	asking, cancel := context.WithTimeout(ctx, refreshBudget)
	defer cancel()
	verify := func(_ context.Context, in verifier.Input) *verifier.Verdict { return v.Verify(ctx, in) }
	var last *verifier.Verdict
	var missing error
	for _, in := range inputs {
		last = fetch.Judge(asking, v, cfg, nil, in, verify)
		for _, w := range last.Warnings {
			fmt.Fprintln(g.log, fault.OneLine("mentat-verifier: warning: "+w))
		}
		if !last.Allowed {
			err := outOfReach(in.Envelopes)
			if err == nil || last.Signature == "" { // no signature would have changed that
				return answer{line: last.Line()}
			}
			missing = err
			continue
		}
		g.keep(cfg, in, last)
	}
	if missing != nil {
		return g.unfetchable(missing)
	}
	if last == nil {
		return refuse(fault.New(fault.ArtifactInvalid, req.name, "the index holds no image that could be judged"))
	}
	line := last.Line()
	if len(inputs) > 1 {
		line += fmt.Sprintf(" (the last of %d images, all allowed)", len(inputs))
	}
	return answer{allow: true, line: line}
}

// collector reads an image's manifests from its registry.
type collector struct {
	client *remote.Client
	ref    string
	slots  chan struct{}

	mu    sync.Mutex
	count int // guarded by mu
}

// collect reads the manifest, or every image manifest of an index. Manifests
// that hold no image, such as a builder's provenance, are not ours to judge:
// no runtime starts them.
func (c *collector) collect(ctx context.Context, d digest.Digest) ([]*oci.Artifact, error) {
	return c.follow(ctx, d, limits.IndexDepth)
}

func (c *collector) follow(ctx context.Context, d digest.Digest, depth int) ([]*oci.Artifact, error) {
	raw, desc, err := c.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	if !oci.IsIndex(desc.MediaType) {
		a, err := c.read(ctx, raw)
		if err != nil {
			return nil, err
		}
		return []*oci.Artifact{a}, nil
	}
	if depth == 0 {
		return nil, fault.New(fault.ArtifactInvalid, c.ref, "holds indexes within indexes, over %d deep", limits.IndexDepth)
	}
	index, err := oci.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	found := make([][]*oci.Artifact, len(index.Manifests))
	errs := make([]error, len(index.Manifests))
	var wg sync.WaitGroup
	for i, m := range index.Manifests {
		if !isImage(m) {
			continue
		}
		wg.Go(func() { found[i], errs[i] = c.follow(ctx, m.Digest, depth-1) })
	}
	wg.Wait()
	return slices.Concat(found...), worst(errs)
}

// worst picks the error to answer with: a child that breaks a rule outweighs one
// that could not be fetched, or withholding a child would hide its sibling.
func worst(errs []error) error {
	for _, err := range errs {
		if err != nil && !unfetchable(err) {
			return err
		}
	}
	return errors.Join(errs...)
}

func isImage(m ocispec.Descriptor) bool {
	return m.Platform == nil || m.Platform.OS != "unknown" || m.Platform.Architecture != "unknown"
}

func (c *collector) manifest(ctx context.Context, d digest.Digest) ([]byte, ocispec.Descriptor, error) {
	c.mu.Lock()
	c.count++
	over := c.count > limits.IndexManifests+1
	c.mu.Unlock()
	if over {
		return nil, ocispec.Descriptor{}, fault.New(fault.ArtifactInvalid, c.ref, "holds over %d manifests", limits.IndexManifests)
	}
	release, err := c.slot(ctx)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	defer release()
	return c.client.Manifest(ctx, c.ref, d)
}

func (c *collector) read(ctx context.Context, raw []byte) (*oci.Artifact, error) {
	f, err := c.client.Fetcher(c.ref)
	if err != nil {
		return nil, err
	}
	release, err := c.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return oci.Read(ctx, f, raw)
}

func (c *collector) slot(ctx context.Context) (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
		return func() { <-c.slots }, nil
	case <-ctx.Done():
		return nil, fault.Wrap(ctx.Err(), fault.Unavailable, c.ref, "not fetched in time")
	}
}
