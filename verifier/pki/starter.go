package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Names inside a node's configuration directory.
const (
	trustDir   = "trust"
	issuersDir = "issuers"
	policyFile = "policy.yaml"
	// capabilityFile is the capability policy beside it.
	capabilityFile = "capabilities.yaml"
)

// PolicyOptions say what a starter policy holds. The zero values of all but
// Match and Emails are useful.
type PolicyOptions struct {
	// Store names the trust store and the scope; default "agents".
	Store string
	// Match are the scope's references, such as "127.0.0.1:5000/agents/**".
	Match []string
	// Emails are the signers that the scope trusts.
	Emails []string
	// Publishers are the signers that are VERIFIED.
	Publishers []string
	// AllowUnsignedContainers lets ordinary images in the scope run unsigned.
	AllowUnsignedContainers bool
	// DenyOutside refuses ordinary images outside the scope.
	DenyOutside bool
	// Allow are the capabilities that signed agents of the scope may be granted.
	Allow []string
	// Grace is how long a revocation list counts past its end; default 0.
	Grace string
	// Carry names the lists by files beside the policy, and asks no responder: for
	// nodes without a network.
	Carry bool
}

func (o PolicyOptions) store() string {
	if o.Store == "" {
		return "agents"
	}
	return o.Store
}

// timeStore is the trust store of time stamp authorities beside one of signers:
// policies refuse one that is both.
func timeStore(store string) string { return store + "-time" }

// WriteTrustStore puts the root into configDir/trust/STORE and the agent CA's
// certificate, which revocation lists are checked with, into
// configDir/issuers; the root of the time stamp authority, if there is one, into
// configDir/trust/STORE-time. Files that hold the same already are left alone;
// others are not overwritten ([fault.Exists]).
func (ca *CA) WriteTrustStore(configDir, store string) error {
	files := map[string][]byte{
		rootFile(configDir, store):                  encodeCert(ca.root),
		filepath.Join(configDir, issuerFile(store)): encodeCert(ca.agent),
	}
	if ca.services != nil {
		files[rootFile(configDir, timeStore(store))] = encodeCert(ca.services.root)
	}
	return place(files)
}

// copyLists puts the revocation lists of now below configDir, where a policy that is
// carried names them.
func (ca *CA) copyLists(configDir string) error {
	files := map[string][]byte{}
	for _, name := range ca.ListFiles() {
		data, err := limits.ReadFile(ca.path(name), limits.CRLBytes)
		if err != nil {
			return fault.Wrap(err, fault.NotFound, ca.path(name), "cannot read the revocation list")
		}
		files[filepath.Join(configDir, filepath.FromSlash(name))] = data
	}
	return place(files)
}

// place writes files, each where nothing is or the same already.
func place(files map[string][]byte) error {
	for path, data := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fault.Wrap(err, fault.AccessDenied, path, "cannot make its directory")
		}
		err := createFile(path, data, 0o644)
		if fault.ReasonOf(err) == fault.Exists {
			old, rerr := os.ReadFile(path)
			if rerr == nil && bytes.Equal(old, data) {
				continue
			}
			return errors.Join(err, rerr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func rootFile(configDir, store string) string {
	return filepath.Join(configDir, trustDir, store, "root.pem")
}

func issuerFile(store string) string { return filepath.Join(issuersDir, store+"-agent-ca.pem") }

// Starter is what [CA.StarterPolicy] will be for the CA that [Init] makes in dir, so
// that it can be judged before there is one. It refuses a configDir in which [CA.WriteStarter] would
// then have to overwrite something ([fault.Exists]).
func (o InitOptions) Starter(dir, configDir string, p PolicyOptions) ([]byte, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Usage, dir, "cannot be used for a CA")
	}
	files := []string{
		filepath.Join(configDir, policyFile), filepath.Join(configDir, capabilityFile),
		rootFile(configDir, p.store()), filepath.Join(configDir, issuerFile(p.store())),
	}
	i := o.info()
	if err := i.check(); err != nil {
		return nil, err
	}
	ca := &CA{dir: dir, info: i, root: &x509.Certificate{Subject: i.rootName()}, agent: &x509.Certificate{Subject: i.agentName()}}
	if o.Services != nil {
		ca.services = &services{root: &x509.Certificate{Subject: i.timeRootName()}}
		files = append(files, rootFile(configDir, timeStore(p.store())))
	}
	for _, file := range files {
		if _, err := os.Lstat(file); err == nil {
			return nil, fault.New(fault.Exists, file, "is there already and is not overwritten")
		}
	}
	return ca.StarterPolicy(p), nil
}

// WriteStarter writes the trust store, [CA.StarterPolicy] and
// [StarterCapabilities] into configDir and returns the policies' paths. Existing
// ones are not overwritten. The policy comes last: without it nothing is granted
// to anybody.
func (ca *CA) WriteStarter(configDir string, o PolicyOptions) (policy, capabilities string, err error) {
	policy, capabilities = filepath.Join(configDir, policyFile), filepath.Join(configDir, capabilityFile)
	for _, path := range []string{policy, capabilities} {
		if _, err := os.Lstat(path); err == nil {
			return "", "", fault.New(fault.Exists, path, "is there already and is not overwritten")
		}
	}
	if err := ca.WriteTrustStore(configDir, o.store()); err != nil {
		return "", "", err
	}
	if o.Carry {
		if err := ca.copyLists(configDir); err != nil {
			return "", "", err
		}
	}
	if err := createFile(capabilities, StarterCapabilities(o), 0o644); err != nil {
		return "", "", err
	}
	return policy, capabilities, createFile(policy, ca.StarterPolicy(o), 0o644)
}

// StarterCapabilities is a capability policy with one rule for the scope of the
// starter policy, or with none where nothing is to be allowed.
func StarterCapabilities(o PolicyOptions) []byte {
	var b strings.Builder
	b.WriteString(`# What agents may do on this node, beside what their trust level gives everyone.
# No rule grants what no manifest asks for; a denial wins wherever it stands.
# Unknown keys are refused: mentatctl policy check FILE.
version: 1
`)
	if len(o.Allow) == 0 {
		b.WriteString(`rules: []
# A rule looks like this:
#  - name: web
#    agents: ["example.*"]
#    trust: [signed, community, verified]
#    allow: ["network:https:api.example.com"]
#    deny: ["network:https:api.example.com/admin"]
`)
		return []byte(b.String())
	}
	fmt.Fprintf(&b, `rules:
  - name: %s
    trust: [signed, community, verified]
    scopes: %s
    allow: %s
`, quote(o.store()), quoteList("", o.Match), quoteList("", o.Allow))
	return []byte(b.String())
}

// StarterPolicy is a policy that enforces one scope against this CA. It is
// meant to stand in the directory that [CA.WriteTrustStore] filled. The lists
// are named by URL if the CA publishes them, else as the CA's own files; with
// [PolicyOptions.Carry] as files beside the policy.
func (ca *CA) StarterPolicy(o PolicyOptions) []byte {
	containers, outside, grace := "deny", "allow", o.Grace
	if o.AllowUnsignedContainers {
		containers = "allow"
	}
	if o.DenyOutside {
		outside = "deny"
	}
	if grace == "" {
		grace = "0s"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# What this node runs. Unknown keys are refused.
version: 1
scopes:
  - name: %[1]s
    match: %[2]s
    stores: [%[1]s]
%[13]s    identities: %[3]s
    unsigned_containers: %[4]s
    unsigned_agents: deny
    binding: repository
outside:
  ordinary_images: %[5]s
exempt: []
trust:
  community: []
  publishers: %[6]s
revocation:
  grace: %[7]s
  crls:
    - issuer: %[8]s
      %[9]s
    - issuer: %[10]s
      certificate: %[11]s
      %[12]s
%[14]son_unfetchable: defer
`,
		quote(o.store()), quoteList("", o.Match), quoteList("email:", o.Emails), containers, outside,
		quoteList("email:", o.Publishers), grace,
		quote(ca.root.Subject.String()), ca.source(o, RootCRL),
		quote(ca.agent.Subject.String()), quote(issuerFile(o.store())), ca.source(o, AgentCRL),
		ca.starterStores(o), ca.starterServices(o))
	return []byte(b.String())
}

// starterStores is what a scope says of time stamps.
func (ca *CA) starterStores(o PolicyOptions) string {
	if ca.services == nil {
		return ""
	}
	return "    timestamp_stores: [" + quote(timeStore(o.store())) + "]\n"
}

// starterServices is the list of the time stamp authority's root, and the
// responder that certificates name.
func (ca *CA) starterServices(o PolicyOptions) string {
	text := ""
	if ca.services != nil {
		text = fmt.Sprintf("    - issuer: %s\n      %s\n", quote(ca.services.root.Subject.String()), ca.source(o, TimeCRL))
	}
	if ca.info.OCSPURL != "" && !o.Carry {
		text += fmt.Sprintf("  ocsp:\n    - issuer: %s\n      url: %s\n", quote(ca.agent.Subject.String()), quote(ca.info.OCSPURL))
	}
	return text
}

// source says where a policy finds a list.
func (ca *CA) source(o PolicyOptions, file string) string {
	if o.Carry {
		return "file: " + quote(file)
	}
	if urls := ca.info.crlURL(file); len(urls) > 0 {
		return "url: " + quote(urls[0])
	}
	return "file: " + quote(ca.path(file))
}

// quote writes a YAML string: a JSON string is one.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""` // a string always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func quoteList(prefix string, list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(prefix + s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
