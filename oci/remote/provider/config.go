package provider

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

const (
	configVersion = "kubelet.config.k8s.io/v1"
	configKind    = "CredentialProviderConfig"
	// protocol is the only version that is spoken; those before it are gone from
	// the kubelet, too.
	protocol = "credentialprovider.kubelet.k8s.io/v1"
)

// configFile is the kubelet's CredentialProviderConfig. What it does not name is
// refused, service account tokens among it: a verifier has no pod to be one for.
type configFile struct {
	APIVersion string         `yaml:"apiVersion"`
	Kind       string         `yaml:"kind"`
	Providers  []providerFile `yaml:"providers"`
}

type providerFile struct {
	Name                 string    `yaml:"name"`
	MatchImages          []string  `yaml:"matchImages"`
	DefaultCacheDuration string    `yaml:"defaultCacheDuration"`
	APIVersion           string    `yaml:"apiVersion"`
	Args                 []string  `yaml:"args"`
	Env                  []envFile `yaml:"env"`
}

type envFile struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Open reads the kubelet's configuration of credential providers (the file of its
// flag image-credential-provider-config) and takes programs from dir (that of
// image-credential-provider-bin-dir). Nothing is run. Errors: PolicyInvalid.
func Open(file, dir string) (*Providers, error) {
	if dir == "" {
		return nil, fault.New(fault.PolicyInvalid, file, "no directory of credential provider programs is named").
			WithHint("set verify.credential_provider_dir")
	}
	data, err := limits.ReadFile(file, limits.PolicyBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.PolicyInvalid, file, "no such file of credential providers")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, file, "cannot read the credential providers")
	}
	var f configFile
	lines, err := strictyaml.Decoder{Reason: fault.PolicyInvalid}.Decode(file, data, &f)
	if err != nil {
		return nil, err
	}
	c := configReader{file: file, lines: lines}
	p := &Providers{now: time.Now, limit: limits.CredentialProviderTime, kept: map[string]kept{}}
	if p.programs, err = c.programs(&f, dir); err != nil {
		return nil, err
	}
	return p, nil
}

type configReader struct {
	file  string
	lines strictyaml.Lines
}

func (c configReader) fail(path, format string, args ...any) error {
	return fault.New(fault.PolicyInvalid, strictyaml.Position(c.file, c.lines.Of(path)), path+": "+format, args...)
}

func (c configReader) programs(f *configFile, dir string) ([]program, error) {
	if f.APIVersion != configVersion || f.Kind != configKind {
		return nil, c.fail("apiVersion", "is %q of kind %q, known is %s of kind %s", f.APIVersion, f.Kind, configVersion, configKind)
	}
	if len(f.Providers) == 0 {
		return nil, c.fail("providers", "names no provider")
	}
	var programs []program
	names := map[string]bool{}
	for i, entry := range f.Providers {
		path := strictyaml.Index("providers", i)
		if names[entry.Name] {
			return nil, c.fail(strictyaml.Key(path, "name"), "there are two providers %q", entry.Name)
		}
		names[entry.Name] = true
		p, err := c.program(path, entry, dir)
		if err != nil {
			return nil, err
		}
		programs = append(programs, p)
	}
	return programs, nil
}

func (c configReader) program(path string, f providerFile, dir string) (program, error) {
	key := func(k string) string { return strictyaml.Key(path, k) }
	p := program{name: f.Name, path: filepath.Join(dir, f.Name), args: f.Args}
	if f.Name == "" || f.Name == "." || f.Name == ".." || strings.ContainsAny(f.Name, "/\\ \x00") {
		return p, c.fail(key("name"), "%q is not the name of a program in %s", f.Name, dir)
	}
	if f.APIVersion != protocol {
		return p, c.fail(key("apiVersion"), "is %q, spoken is %s", f.APIVersion, protocol)
	}
	keep, err := time.ParseDuration(f.DefaultCacheDuration)
	if err != nil || keep < 0 {
		return p, c.fail(key("defaultCacheDuration"), "%q is not a duration such as 12h or 0s", f.DefaultCacheDuration)
	}
	p.keep = keep
	if len(f.MatchImages) == 0 {
		return p, c.fail(key("matchImages"), "names no image, so that the provider would never be asked")
	}
	for i, text := range f.MatchImages {
		m, err := parsePattern(text)
		if err != nil {
			return p, c.fail(strictyaml.Index(key("matchImages"), i), "%q: %v", text, err)
		}
		p.match = append(p.match, m)
	}
	for i, e := range f.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.Contains(e.Value, "\x00") {
			return p, c.fail(strictyaml.Index(key("env"), i), "%q is not a variable's name", e.Name)
		}
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	return p, nil
}
