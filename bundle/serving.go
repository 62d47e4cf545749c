package bundle

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/capability"
	capolicy "github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/capability/secretfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// grant computes what the agent may do from its manifest, the node's policy
// and what the container was given.
func grant(rules *capolicy.Policy, verdict *verifier.Verdict, reference string, a *oci.Artifact, spec *specs.Spec) capability.Grant {
	r := capability.Request{
		Manifest: a.Agent,
		Trust:    string(verdict.Trust),
		Serving:  rules.Serving(),
		Given:    given(spec, a.Config, a.Agent),
	}
	if a.Agent != nil {
		r.Rules = rules.Rules(capolicy.Subject{Agent: a.Agent.ID, Trust: r.Trust, Reference: reference})
	}
	g := capability.Effective(r)
	g.Withheld = append(g.Withheld, foreign(spec)...)
	return g
}

// servingNode is what a run takes from the node's configuration.
type servingNode struct {
	// mediaDir is made if it is not there; one that the policy names is not.
	mediaDir string
	// memory and deadline are the most that the node gives; 0 is no bound.
	memory, deadline int64
}

func (p *Preparer) nodeOf(rules *capolicy.Policy) servingNode {
	s := rules.Serving()
	return servingNode{mediaDir: p.Config.Capability.Media, memory: s.MemoryBytes, deadline: s.DeadlineMillis}
}

// provision is what a run's capabilities are served with.
type provision struct {
	// secrets are what only the host reads, nil without any.
	secrets []byte
	mounts  []specs.Mount
	// files and dirs are the places in the private directory that mounts go onto.
	files, dirs []string
	// auditKey names the directory of the run's records, "" without one; auditMade
	// is the same where this preparation made it.
	auditKey, auditMade string
}

// provide adds to the document how capabilities are served, with paths as the
// container has them, and collects what must be mounted and written for that.
func (r *wasmRun) provide(spec *specs.Spec, doc *hostdoc.Document) error {
	if most := r.node.memory; most > 0 {
		doc.Limits.MemoryBytes = min(doc.Limits.MemoryBytes, most)
	}
	if most := r.node.deadline; most > 0 && (doc.Limits.DeadlineMillis == 0 || most < doc.Limits.DeadlineMillis) {
		doc.Limits.DeadlineMillis = most
	}
	doc.Network, doc.LLM, doc.Media = r.grant.Network, r.grant.LLM, r.grant.Media
	for _, step := range []func(*hostdoc.Document) error{r.provideCA, r.provideMedia, r.provideExtensions} {
		if err := step(doc); err != nil {
			return err
		}
	}
	if err := r.provideSecrets(spec, doc); err != nil {
		return err
	}
	return r.provideAudit(spec, doc)
}

func (p *provision) bindFile(source, destination string, options ...string) {
	p.files = append(p.files, inside(destination))
	p.mounts = append(p.mounts, bind(source, destination, options...))
}

// inside is a path of the container relative to the private directory.
func inside(name string) string { return strings.TrimPrefix(name, hostdoc.Dir+"/") }

// systemCAs are where distributions keep their certificate authorities.
var systemCAs = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem", "/etc/ssl/cert.pem",
}

// caPlaces are the fields of a document that name the certificate authorities.
func caPlaces(doc *hostdoc.Document) []*string {
	var places []*string
	if doc.Network != nil {
		places = append(places, &doc.Network.CAFile)
	}
	if doc.LLM != nil {
		places = append(places, &doc.LLM.CAFile)
	}
	if doc.Media != nil && doc.Media.S3 != nil {
		places = append(places, &doc.Media.S3.CAFile)
	}
	return places
}

// provideCA mounts the node's own certificate authorities: an image's would let
// its author decide whom the host believes.
func (r *wasmRun) provideCA(doc *hostdoc.Document) error {
	places := caPlaces(doc)
	if len(places) == 0 {
		return nil
	}
	file := *places[0]
	if file == "" {
		i := slices.IndexFunc(systemCAs, func(name string) bool {
			info, err := os.Stat(name)
			return err == nil && info.Mode().IsRegular()
		})
		if i < 0 {
			return fault.New(fault.NotFound, r.id, "the node has no certificate authorities to check servers by").
				WithHint("name them in capabilities.yaml, network.ca")
		}
		file = systemCAs[i]
	} else if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return fault.New(fault.NotFound, file, "the certificate authorities that network.ca names are not a file that is there")
	}
	for _, place := range places {
		*place = hostdoc.CAPath
	}
	r.provision.bindFile(file, hostdoc.CAPath, "ro", "noexec")
	return nil
}

// provideMedia mounts the media store. Agents of different users share it; what
// of it a run may read is the host's matter.
func (r *wasmRun) provideMedia(doc *hostdoc.Document) error {
	m := doc.Media
	if m == nil || m.Dir == "" {
		return nil
	}
	if m.Dir == r.node.mediaDir {
		if err := makeMediaDir(m.Dir); err != nil {
			return err
		}
	}
	if info, err := os.Stat(m.Dir); err != nil || !info.IsDir() {
		return fault.New(fault.NotFound, m.Dir, "the media store is not a directory that is there").
			WithHint("make it, or name another one in capabilities.yaml, media.dir")
	}
	r.provision.dirs = append(r.provision.dirs, inside(hostdoc.MediaDir))
	r.provision.mounts = append(r.provision.mounts, bind(m.Dir, hostdoc.MediaDir, "rw", "noexec"))
	m.Dir = hostdoc.MediaDir
	return nil
}

// makeMediaDir makes the default store: every container's user may add to it,
// and only remove what is its own. Users of the node do not get that far.
func makeMediaDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fault.Wrap(err, fault.Internal, dir, "cannot make the media store")
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o777|fs.ModeSticky)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, dir, "cannot make the media store")
	}
	return nil
}

func (r *wasmRun) provideExtensions(doc *hostdoc.Document) error {
	for _, e := range r.grant.Extensions {
		program := e.Command[0]
		if info, err := os.Stat(program); err != nil || !info.Mode().IsRegular() {
			return fault.New(fault.NotFound, program, "the program of the extension %s is not a file that is there", e.Name)
		}
		at := path.Join(hostdoc.ExtensionDir, e.Name)
		r.provision.bindFile(program, at, "ro")
		doc.Extensions = append(doc.Extensions, hostdoc.Extension{Name: e.Name, Command: append([]string{at}, e.Command[1:]...)})
	}
	if len(doc.Extensions) > 0 {
		r.provision.dirs = append(r.provision.dirs, inside(hostdoc.ExtensionDir))
	}
	return nil
}

func (r *wasmRun) provideSecrets(spec *specs.Spec, doc *hostdoc.Document) error {
	if len(r.grant.Secrets) == 0 {
		return nil
	}
	values := hostdoc.Secrets{}
	for _, name := range slices.Sorted(maps.Keys(r.grant.Secrets)) {
		value, err := r.secret(spec, r.grant.Secrets[name])
		if err != nil {
			return err
		}
		values[name] = value
	}
	var err error
	if r.provision.secrets, err = json.Marshal(values); err != nil {
		return fault.Wrap(err, fault.Internal, r.id, "cannot encode the secrets")
	}
	doc.SecretsFile = hostdoc.SecretsPath
	return nil
}

// secret reads one secret.
func (r *wasmRun) secret(spec *specs.Spec, s capability.Secret) (string, error) {
	if s.Mount == "" {
		return secretfile.Read(s.File)
	}
	m, rest, ok := mountOf(spec, s.Mount)
	if !ok || !isBind(m) {
		return "", fault.New(fault.NotFound, s.Mount, "the node's policy injects a secret from there, and the container has no such mount").
			WithHint("mount the secret there, e.g. a Kubernetes secret volume")
	}
	if !filepath.IsAbs(m.Source) {
		m.Source = filepath.Join(r.dir, m.Source) // as the runtime does
	}
	return secretfile.ReadIn(m.Source, rest, s.Mount)
}

// write makes what the provision needs in the private directory.
func (p *provision) write(dir string, o owners) error {
	for _, name := range p.dirs {
		if err := mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range p.files {
		if err := writeFile(filepath.Join(dir, name), nil, 0o444); err != nil {
			return err
		}
	}
	if p.auditKey != "" {
		if err := writeFile(filepath.Join(dir, auditMark), []byte(p.auditKey), 0o444); err != nil {
			return err
		}
	}
	if p.secrets == nil {
		return nil
	}
	// The host runs as the container's user. It alone may read them, and nobody
	// writes.
	secrets := filepath.Join(dir, inside(hostdoc.SecretsPath))
	if err := writeFile(secrets, p.secrets, 0o400); err != nil {
		return err
	}
	return os.Chown(secrets, o.uid, o.gid)
}
