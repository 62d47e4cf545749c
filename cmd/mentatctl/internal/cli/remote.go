package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/cmd/mentatctl/internal/agentdir"
	"github.com/mentatlab/mentat/cmd/mentatctl/internal/display"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
)

// remoteFlags say how registries are reached.
type remoteFlags struct {
	caFile       string
	plainHTTP    bool
	dockerConfig string
	hostsDir     string
}

func (f *remoteFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.caFile, "ca-file", "", "trust the certificate authorities in this PEM `FILE` for registries too")
	cmd.Flags().BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP without TLS; loopback addresses need no flag")
	cmd.Flags().StringVar(&f.dockerConfig, "docker-config", "", "docker's `FILE` with credentials (default: $DOCKER_CONFIG/config.json or ~/.docker/config.json)")
	cmd.Flags().StringVar(&f.hostsDir, "hosts-dir", "", "containerd's registry `DIR` with hosts.toml files")
}

// transferred says what became of a blob.
var transferred = map[string]string{remote.OpPull: "pulled", remote.OpPush: "pushed", remote.OpSkip: "there already:"}

func (a *app) client(f *remoteFlags, p *display.Progress) (*remote.Client, error) {
	return remote.New(remote.Options{
		CAFile: f.caFile, PlainHTTP: f.plainHTTP, DockerConfig: f.dockerConfig, HostsDir: f.hostsDir,
		UserAgent: "mentatctl/" + version().Version,
		Progress:  func(e remote.Event) { p.Transfer(transferred[e.Op], e.Digest.String(), e.Done, e.Total) },
	})
}

// repositoryOf is the repository of a reference, host/path, as the verifier
// compares it.
func repositoryOf(ref string) (string, error) {
	named, ok := imageref.ParseReference(ref)
	if !ok {
		return "", fault.New(fault.Usage, ref, "not an image reference")
	}
	return named.Name, nil
}

// linux is what container images are for: agents run on Linux x86-64.
var linux = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// container finds the container image of an agent that is one: a layout or
// archive beside the manifest, or an image in a registry, whose tag is resolved
// once and then pinned by the lock file. The closer is for when the image was
// read; both are nil for an agent that is WASM only.
func (a *app) container(ctx context.Context, d *agentdir.Dir, o *buildOptions, p *display.Progress) (*oci.ContainerImage, *agentdir.Pin, io.Closer, error) {
	nothing := io.NopCloser(nil)
	ref := d.ContainerReference()
	if ref == "" {
		return nil, nil, nothing, nil
	}
	if d.Manifest.Container != "" {
		local := filepath.FromSlash(ref)
		if !filepath.IsAbs(local) {
			local = filepath.Join(d.Path, local)
		}
		_, err := os.Stat(local)
		if err == nil {
			image, closer, err := oci.OpenImage(ctx, local, "", linux)
			return image, nil, closer, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil, fault.Wrap(err, fault.Internal, local, "cannot read the container image")
		}
	}
	image, pin, err := a.pinned(ctx, d, ref, o, p)
	return image, pin, nothing, err
}

// pinned reads a container image from a registry.
func (a *app) pinned(ctx context.Context, d *agentdir.Dir, ref string, o *buildOptions, p *display.Progress) (*oci.ContainerImage, *agentdir.Pin, error) {
	lock, err := d.ReadLock()
	if err != nil {
		return nil, nil, err
	}
	named, ok := imageref.ParseReference(ref)
	if !ok {
		return nil, nil, fault.New(fault.ManifestInvalid, d.ManifestPath(), "container image %q is neither a file nor a reference", ref)
	}
	pin := &agentdir.Pin{Reference: ref}
	if lock != nil && lock.Container != nil && lock.Container.Reference == ref && !o.update {
		pin.Digest = lock.Container.Digest
	}
	if pin.Digest == "" && o.offline {
		return nil, nil, fault.New(fault.Usage, d.ManifestPath(), "the container image %s is not pinned yet and --offline forbids to ask for it", ref)
	}
	client, err := a.client(&o.remote, p)
	if err != nil {
		return nil, nil, err
	}
	if pin.Digest == "" {
		done := p.Step("resolving %s", ref)
		desc, err := client.Resolve(ctx, ref)
		done()
		if err != nil {
			return nil, nil, err
		}
		pin.Digest = desc.Digest
	}
	image, err := client.Image(ctx, named.Name+"@"+pin.Digest.String(), "")
	return image, pin, err
}

// target is something that has an artifact: an agent's directory, an OCI layout
// or a reference.
type target struct {
	name string // as it was given
	// reference is "" for what is not in a registry.
	reference string
	dir       *agentdir.Dir
	root      ocispec.Descriptor
	fetcher   oci.Fetcher
	client    *remote.Client // nil for what is not in a registry
}

// isLocal tells whether a name means something on disk. A name that is a path
// by its form never falls through to a registry.
func isLocal(name string) bool {
	if name == "." || name == ".." || filepath.IsAbs(name) || filepath.Ext(name) == ".yaml" || filepath.Ext(name) == ".wasm" ||
		hasPathPrefix(name) {
		return true
	}
	_, err := os.Stat(name)
	return err == nil
}

func hasPathPrefix(name string) bool {
	for _, p := range []string{"./", "../", `.\`, `..\`} {
		if len(name) > len(p) && name[:len(p)] == p {
			return true
		}
	}
	return len(name) > 0 && (name[len(name)-1] == '/' || name[len(name)-1] == filepath.Separator)
}

// open finds the artifact that a name means.
func (a *app) open(ctx context.Context, name string, f *remoteFlags, p *display.Progress) (*target, error) {
	if isLocal(name) {
		return a.openLocal(ctx, name)
	}
	return a.openRemote(ctx, name, f, p)
}

// openRemote resolves a reference.
func (a *app) openRemote(ctx context.Context, name string, f *remoteFlags, p *display.Progress) (*target, error) {
	if host, _, ok := strings.Cut(name, "/"); !ok || !(strings.ContainsAny(host, ".:") || host == "localhost") {
		return nil, fault.New(fault.NotFound, name, "there is no such file or directory").
			WithHint("an image reference begins with its registry's host")
	}
	client, err := a.client(f, p)
	if err != nil {
		return nil, err
	}
	done := p.Step("resolving %s", name)
	root, err := client.Resolve(ctx, name)
	done()
	if err != nil {
		return nil, err
	}
	fetcher, err := client.Fetcher(name)
	if err != nil {
		return nil, err
	}
	return &target{name: name, reference: name, root: root, fetcher: fetcher, client: client}, nil
}

func (a *app) openLocal(ctx context.Context, name string) (*target, error) {
	if isLayout(name) {
		layout, err := oci.OpenLayout(name)
		if err != nil {
			return nil, err
		}
		root, err := layout.Root()
		if err != nil {
			return nil, err
		}
		return &target{name: name, root: root, fetcher: layout}, nil
	}
	d, err := agentdir.Open(name)
	if err != nil {
		return nil, err
	}
	layout, root, _, err := d.Layout(ctx)
	if err != nil {
		return nil, err
	}
	return &target{name: name, dir: d, root: root, fetcher: layout}, nil
}

// fetchedArtifact is one manifest of a target.
type fetchedArtifact struct {
	*oci.Artifact
	platform string
}

// artifacts reads the target's manifest, or all that its index names.
func (t *target) artifacts(ctx context.Context) ([]fetchedArtifact, error) {
	g, err := oci.Walk(ctx, t.fetcher, t.root)
	if err != nil {
		return nil, err
	}
	var all []fetchedArtifact
	for _, doc := range g.Documents {
		if oci.IsIndex(doc.Desc.MediaType) {
			continue
		}
		read, err := oci.Read(ctx, t.fetcher, doc.Raw)
		if err != nil {
			return nil, err
		}
		if read.Form == oci.FormOther && len(g.Documents) > 1 {
			continue // build provenance and the like stand beside images
		}
		platform := ""
		if read.Config != nil {
			platform = read.Config.OS + "/" + read.Config.Architecture
		}
		all = append(all, fetchedArtifact{read, platform})
	}
	if len(all) == 0 {
		return nil, fault.New(fault.ArtifactInvalid, t.root.Digest.String(), "the index names no image")
	}
	return all, nil
}
