package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/manifest/strictyaml"
)

const (
	policyVersion  = 1
	levelUntrusted = "untrusted"
	networkFull    = "full"
	// maxAgentPattern bounds the text of an agent pattern, as an id is bounded.
	maxAgentPattern = 128
)

// policyFile is the policy as it is written.
type policyFile struct {
	Version    int64           `yaml:"version"`
	Rules      []ruleFile      `yaml:"rules"`
	Network    networkFile     `yaml:"network"`
	LLM        llmFile         `yaml:"llm"`
	Media      mediaFile       `yaml:"media"`
	Extensions []extensionFile `yaml:"extensions"`
	Sandbox    sandboxFile     `yaml:"sandbox"`
}

type ruleFile struct {
	Name    string                `yaml:"name"`
	Agents  []string              `yaml:"agents"`
	Trust   []string              `yaml:"trust" allowed:"signed|community|verified"`
	Scopes  []string              `yaml:"scopes"`
	Allow   []manifest.Capability `yaml:"allow"`
	Deny    []manifest.Capability `yaml:"deny"`
	DryRun  bool                  `yaml:"dry_run"`
	Network string                `yaml:"network" allowed:"full"`
	Private []string              `yaml:"private"`
	Inject  []injectFile          `yaml:"inject"`
}

type injectFile struct {
	Capability manifest.Capability `yaml:"capability"`
	Header     string              `yaml:"header"`
	Query      string              `yaml:"query"`
	Prefix     string              `yaml:"prefix"`
	Secret     secretFile          `yaml:"secret"`
}

type secretFile struct {
	File  string `yaml:"file"`
	Mount string `yaml:"mount"`
}

type networkFile struct {
	BlockedPorts []int             `yaml:"blocked_ports"`
	CA           string            `yaml:"ca"`
	Concurrent   int               `yaml:"concurrent"`
	Request      manifest.Size     `yaml:"request"`
	Response     manifest.Size     `yaml:"response"`
	Timeout      manifest.Duration `yaml:"timeout"`
}

type llmFile struct {
	Tokens    int64          `yaml:"tokens"`
	Providers []providerFile `yaml:"providers"`
}

type providerFile struct {
	Name   string     `yaml:"name"`
	URL    string     `yaml:"url"`
	Models []string   `yaml:"models"`
	Secret secretFile `yaml:"secret"`
}

type mediaFile struct {
	Dir      string        `yaml:"dir"`
	S3       *s3File       `yaml:"s3"`
	Item     manifest.Size `yaml:"item"`
	Total    manifest.Size `yaml:"total"`
	KeepDays int64         `yaml:"keep_days"`
}

type s3File struct {
	Endpoint  string     `yaml:"endpoint"`
	Region    string     `yaml:"region"`
	Bucket    string     `yaml:"bucket"`
	Prefix    string     `yaml:"prefix"`
	AccessKey secretFile `yaml:"access_key"`
	SecretKey secretFile `yaml:"secret_key"`
}

type extensionFile struct {
	Name    string   `yaml:"name"`
	Command []string `yaml:"command"`
}

type sandboxFile struct {
	Memory   manifest.Size     `yaml:"memory"`
	Deadline manifest.Duration `yaml:"deadline"`
}

// Parse reads a policy strictly. Relative paths in it are relative to file's
// directory. All errors have the reason [fault.PolicyInvalid] and name file and
// line.
func Parse(file string, data []byte) (*Policy, error) {
	if len(data) > limits.PolicyBytes {
		return nil, fault.New(fault.PolicyInvalid, file, "is over %d bytes", limits.PolicyBytes)
	}
	var f policyFile
	lines, err := strictyaml.Decoder{Reason: fault.PolicyInvalid}.Decode(file, data, &f)
	if err != nil {
		return nil, err
	}
	c := &compiler{file: file, lines: lines}
	p := c.compile(&f)
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return p, nil
}

// compiler collects problems, so that compile reads like the policy.
type compiler struct {
	file     string
	lines    strictyaml.Lines
	problems []error
}

func (c *compiler) fail(path, format string, args ...any) {
	at := strictyaml.Position(c.file, c.lines.Of(path))
	c.problems = append(c.problems, fault.New(fault.PolicyInvalid, at, "%s: %s", path, fmt.Sprintf(format, args...)))
}

func (c *compiler) said(path string) bool {
	_, ok := c.lines[path]
	return ok
}

func (c *compiler) compile(f *policyFile) *Policy {
	if f.Version != policyVersion {
		c.fail("version", "is %d, this program knows %d", f.Version, policyVersion)
	}
	if len(f.Rules) > limits.PolicyRules {
		c.fail("rules", "%d rules, at most %d are allowed", len(f.Rules), limits.PolicyRules)
		return nil
	}
	p := &Policy{file: c.file, serving: capability.Defaults()}
	names := map[string]bool{}
	for i := range f.Rules {
		at := strictyaml.Index("rules", i)
		r := c.rule(at, &f.Rules[i])
		if names[r.Name] {
			c.fail(strictyaml.Key(at, "name"), "there are two rules %q", r.Name)
		}
		names[r.Name] = true
		p.rules = append(p.rules, r)
	}
	c.network(&p.serving, &f.Network)
	c.llm(&p.serving, &f.LLM)
	c.media(&p.serving, &f.Media)
	c.extensions(&p.serving, f.Extensions)
	c.sandbox(&p.serving, &f.Sandbox)
	return p
}

// Patterns are compiled when they are first asked: a shim reads a policy at every
// start, and most say nothing of what is rare.
var ruleName = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func pattern(text string) func(string) bool {
	compiled := sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
	return func(s string) bool { return compiled().MatchString(s) }
}

func (c *compiler) rule(at string, f *ruleFile) rule {
	key := func(k string) string { return strictyaml.Key(at, k) }
	r := rule{line: c.lines.Of(at), agents: f.Agents, trust: f.Trust, Rule: capability.Rule{
		Name: f.Name, Allow: f.Allow, Deny: f.Deny, DryRun: f.DryRun, FullNetwork: f.Network == networkFull,
	}}
	switch {
	case !ruleName(f.Name):
		c.fail(key("name"), "%q is no name: up to 64 letters, digits, '.', '_' and '-', by which decisions are reported", f.Name)
	case slices.Contains(capability.Reserved, f.Name):
		c.fail(key("name"), "%q is what decisions are called that no rule made; choose another name", f.Name)
	}
	for _, list := range []struct {
		key    string
		length int
	}{{"agents", len(f.Agents)}, {"trust", len(f.Trust)}, {"scopes", len(f.Scopes)}, {"allow", len(f.Allow)}, {"deny", len(f.Deny)}, {"private", len(f.Private)}, {"inject", len(f.Inject)}} {
		switch {
		case list.length == 0 && c.said(key(list.key)):
			c.fail(key(list.key), "is empty; give it entries, or leave the key out")
		case list.length > limits.RuleCapabilities:
			c.fail(key(list.key), "%d entries, at most %d are allowed", list.length, limits.RuleCapabilities)
		}
	}
	for i, pattern := range f.Agents {
		if len(pattern) > maxAgentPattern || strings.ContainsFunc(pattern, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789._-*", r) }) {
			c.fail(strictyaml.Index(key("agents"), i), "%q is no agent id: a-z, 0-9, '.', '_' and '-', and '*' for any text", pattern)
		}
	}
	for i, text := range f.Scopes {
		p, ok := imageref.ParsePattern(text)
		if !ok {
			c.fail(strictyaml.Index(key("scopes"), i), "%q is none of %s", text, imageref.PatternForm)
		}
		r.scopes = append(r.scopes, p)
	}
	c.effect(at, f)
	r.Private = c.private(key("private"), f.Private)
	for i := range f.Inject {
		r.Inject = append(r.Inject, c.injection(strictyaml.Index(key("inject"), i), &f.Inject[i], f))
	}
	return r
}

// effect refuses what a rule says without effect.
func (c *compiler) effect(at string, f *ruleFile) {
	key := func(k string) string { return strictyaml.Key(at, k) }
	if len(f.Allow) == 0 && len(f.Deny) == 0 && f.Network == "" {
		c.fail(at, "the rule does nothing: it has none of allow, deny and network")
	}
	if f.DryRun {
		for _, k := range []string{"allow", "network", "private", "inject"} {
			if c.said(key(k)) {
				c.fail(key(k), "has no effect in a dry run, which only counts denials; write a rule of its own for it")
			}
		}
	}
	reaches := f.Network != "" || slices.ContainsFunc(f.Allow, func(a manifest.Capability) bool { return a.Kind == manifest.KindNetwork })
	if len(f.Private) > 0 && !reaches {
		c.fail(key("private"), "has no effect: the rule allows no network capability")
	}
}

func (c *compiler) private(at string, list []string) []string {
	var found []string
	for i, text := range list {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			c.fail(strictyaml.Index(at, i), "%q is no address range such as 10.0.0.0/8", text)
		case p.Masked() != p || p.Addr().Is4In6():
			c.fail(strictyaml.Index(at, i), "%q is not in its one spelling; write %s", text, p.Masked())
		case slices.Contains(found, p.String()):
			c.fail(strictyaml.Index(at, i), "%q is there twice", text)
		default:
			found = append(found, p.String())
		}
	}
	return found
}

var (
	headerName = pattern("^[a-z0-9!#$%&'*+.^_`|~-]{1,128}$")
	queryName  = pattern(`^[A-Za-z0-9._~-]{1,128}$`)
)

// framing are headers that belong to the connection and not to a request.
var framing = []string{"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

func (c *compiler) injection(at string, f *injectFile, r *ruleFile) capability.Injection {
	key := func(k string) string { return strictyaml.Key(at, k) }
	in := capability.Injection{Capability: f.Capability, Header: strings.ToLower(f.Header), Query: f.Query, Prefix: f.Prefix}
	switch {
	case f.Capability.Kind != manifest.KindNetwork:
		c.fail(key("capability"), "is required, and must be of the network")
	case r.Network == "" && !slices.ContainsFunc(r.Allow, func(a manifest.Capability) bool { return a.Allows(f.Capability) }):
		c.fail(key("capability"), "the rule does not allow all of %s, so the secret would go where the rule does not", f.Capability)
	case f.Capability.Scheme != manifest.SchemeHTTPS && !loopback(f.Capability):
		c.fail(key("capability"), "a secret is only sent by https, or to the loopback addresses")
	}
	switch {
	case (f.Header == "") == (f.Query == ""):
		c.fail(at, "exactly one of header and query is required")
	case f.Query != "" && !queryName(f.Query):
		c.fail(key("query"), "%q is no name of a query value", f.Query)
	case f.Query != "" && f.Prefix != "":
		c.fail(key("prefix"), "goes with a header only")
	case f.Header != "" && !headerName(in.Header):
		c.fail(key("header"), "%q is no name of a header", f.Header)
	case slices.Contains(framing, in.Header) || strings.HasPrefix(in.Header, "proxy-"):
		c.fail(key("header"), "%q belongs to the connection and cannot be injected", f.Header)
	case len(f.Prefix) > 64 || strings.ContainsFunc(f.Prefix, func(r rune) bool { return r < ' ' || r > '~' }):
		c.fail(key("prefix"), "must be printable ASCII, up to 64 characters")
	}
	in.Secret = c.secret(key("secret"), f.Secret)
	return in
}

// loopback reports whether a capability names nothing but this machine.
func loopback(c manifest.Capability) bool {
	if c.Host == "localhost" {
		return true
	}
	p, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(c.Host))
	return err == nil && (netip.MustParsePrefix("127.0.0.0/8").Contains(p.Addr()) && p.Bits() >= 8 || p == netip.MustParsePrefix("::1/128"))
}

func (c *compiler) secret(at string, f secretFile) capability.Secret {
	switch {
	case (f.File == "") == (f.Mount == ""):
		c.fail(at, "exactly one of file (of the node) and mount (a path in the container) is required")
	case f.Mount != "" && (!path.IsAbs(f.Mount) || path.Clean(f.Mount) != f.Mount || f.Mount == "/"):
		c.fail(strictyaml.Key(at, "mount"), "%q is no absolute, clean path of a file in the container", f.Mount)
	}
	return capability.Secret{File: c.path(f.File), Mount: f.Mount}
}

func (c *compiler) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(c.file), p)
}

// number takes a number where one was written.
func number[T int | int64](c *compiler, at string, value, most T, to *T) {
	if !c.said(at) {
		return
	}
	if value < 1 || value > most {
		c.fail(at, "is %d, allowed is 1 to %d", value, most)
		return
	}
	*to = value
}

const (
	maxConcurrent  = 1024
	maxTransfer    = 4096 * limits.MiB
	maxTimeout     = 15 * time.Minute
	maxTokens      = 1 << 40
	maxMedia       = 1 << 40
	minGuestMemory = 64 * limits.KiB
	maxGuestMemory = 4096 * limits.MiB
	maxItem        = 4096 * limits.MiB
	maxKeepDays    = 3660
)

func (c *compiler) size(at string, value manifest.Size, least, most int64, to *int64) {
	if !c.said(at) {
		return
	}
	if int64(value) < least || int64(value) > most {
		c.fail(at, "is %s, allowed is %s to %s", value, manifest.Size(least), manifest.Size(most))
		return
	}
	*to = int64(value)
}

func (c *compiler) network(s *capability.Serving, f *networkFile) {
	if c.said("network.blocked_ports") {
		s.BlockedPorts = f.BlockedPorts
	}
	for i, port := range f.BlockedPorts {
		at := strictyaml.Index("network.blocked_ports", i)
		if port < 1 || port > 65535 {
			c.fail(at, "%d is no port, allowed is 1 to 65535", port)
		}
		if slices.Index(f.BlockedPorts, port) != i {
			c.fail(at, "%d is there twice", port)
		}
	}
	s.CAFile = c.path(f.CA)
	number(c, "network.concurrent", f.Concurrent, maxConcurrent, &s.Limits.Concurrent)
	c.size("network.request", f.Request, 1, maxTransfer, &s.Limits.RequestBytes)
	c.size("network.response", f.Response, 1, maxTransfer, &s.Limits.ResponseBytes)
	c.duration("network.timeout", f.Timeout, maxTimeout, &s.Limits.TimeoutMillis)
}

func (c *compiler) duration(at string, value manifest.Duration, most time.Duration, to *int64) {
	if !c.said(at) {
		return
	}
	if time.Duration(value) > most {
		c.fail(at, "is %s, allowed is at most %s", value, most)
		return
	}
	*to = time.Duration(value).Milliseconds()
}

func (c *compiler) llm(s *capability.Serving, f *llmFile) {
	number(c, "llm.tokens", f.Tokens, maxTokens, &s.Tokens)
	if c.said("llm.tokens") && len(f.Providers) == 0 {
		c.fail("llm.tokens", "has no effect without providers")
	}
	for i, pf := range f.Providers {
		at := strictyaml.Index("llm.providers", i)
		key := func(k string) string { return strictyaml.Key(at, k) }
		p := capability.Provider{Name: pf.Name, URL: strings.TrimSuffix(pf.URL, "/")}
		if !ruleName(pf.Name) {
			c.fail(key("name"), "%q is no name: up to 64 letters, digits, '.', '_' and '-'", pf.Name)
		}
		if slices.ContainsFunc(s.Providers, func(o capability.Provider) bool { return o.Name == pf.Name }) {
			c.fail(key("name"), "there are two providers %q", pf.Name)
		}
		u := c.url(key("url"), pf.URL)
		if len(pf.Models) == 0 {
			c.fail(key("models"), "is required: names of models, or beginnings of names followed by '*'")
		}
		for j, m := range pf.Models {
			model, err := manifest.ParseCapability(manifest.KindLLM + ":" + m)
			if err != nil {
				c.fail(strictyaml.Index(key("models"), j), "%q is no model, nor the beginning of one followed by '*'", m)
			}
			p.Models = append(p.Models, model)
		}
		if c.said(key("secret")) {
			p.Secret = c.secret(key("secret"), pf.Secret)
			if u != nil && u.Scheme == manifest.SchemeHTTP && !loopbackHost(u.Hostname()) {
				c.fail(key("url"), "a secret is only sent by https, or to the loopback addresses")
			}
		}
		s.Providers = append(s.Providers, p)
	}
}

func loopbackHost(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// url reads a base address; nil means that it was refused.
func (c *compiler) url(at, text string) *url.URL {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != manifest.SchemeHTTP && u.Scheme != manifest.SchemeHTTPS || u.Hostname() == "":
		c.fail(at, "%q is no http or https address", text)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		c.fail(at, "must not have a user, a query or a fragment")
	default:
		return u
	}
	return nil
}

var bucketName = pattern(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func (c *compiler) media(s *capability.Serving, f *mediaFile) {
	c.size("media.item", f.Item, 1, maxItem, &s.MediaItemBytes)
	c.size("media.total", f.Total, 1, maxMedia, &s.MediaTotalBytes)
	if s.MediaItemBytes > s.MediaTotalBytes {
		c.fail("media", "one item may have %d bytes and all together %d", s.MediaItemBytes, s.MediaTotalBytes)
	}
	if f.Dir != "" && f.S3 != nil {
		c.fail("media", "dir and s3 exclude each other")
	}
	number(c, "media.keep_days", f.KeepDays, maxKeepDays, &s.MediaKeepDays)
	if c.said("media.keep_days") && f.S3 != nil {
		c.fail("media.keep_days", "is for a directory: how long a bucket's objects stay is set at the bucket")
	}
	s.MediaDir = c.path(f.Dir)
	if f.S3 == nil {
		return
	}
	c.url("media.s3.endpoint", f.S3.Endpoint)
	if !bucketName(f.S3.Bucket) {
		c.fail("media.s3.bucket", "%q is no name of a bucket", f.S3.Bucket)
	}
	if strings.HasPrefix(f.S3.Prefix, "/") || strings.ContainsFunc(f.S3.Prefix, func(r rune) bool { return r < ' ' || r > '~' }) || len(f.S3.Prefix) > 512 {
		c.fail("media.s3.prefix", "must be printable ASCII and not begin with a slash")
	}
	s.MediaS3 = &capability.MediaS3{
		Endpoint: strings.TrimSuffix(f.S3.Endpoint, "/"), Region: f.S3.Region, Bucket: f.S3.Bucket, Prefix: f.S3.Prefix,
		AccessKey: c.secret("media.s3.access_key", f.S3.AccessKey), SecretKey: c.secret("media.s3.secret_key", f.S3.SecretKey),
	}
}

func (c *compiler) extensions(s *capability.Serving, list []extensionFile) {
	for i, f := range list {
		at := strictyaml.Index("extensions", i)
		if _, err := manifest.ParseCapability(manifest.KindExtension + ":" + f.Name); err != nil {
			c.fail(strictyaml.Key(at, "name"), "%q is no name: words of a-z and 0-9, joined by '.', '_' or '-'", f.Name)
		}
		if slices.ContainsFunc(s.Extensions, func(o hostdoc.Extension) bool { return o.Name == f.Name }) {
			c.fail(strictyaml.Key(at, "name"), "there are two extensions %q", f.Name)
		}
		if len(f.Command) == 0 || !filepath.IsAbs(f.Command[0]) || slices.ContainsFunc(f.Command, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			c.fail(strictyaml.Key(at, "command"), "is required: the absolute path of a static program, and its arguments")
		}
		s.Extensions = append(s.Extensions, hostdoc.Extension{Name: f.Name, Command: f.Command})
	}
}

func (c *compiler) sandbox(s *capability.Serving, f *sandboxFile) {
	c.size("sandbox.memory", f.Memory, minGuestMemory, maxGuestMemory, &s.MemoryBytes)
	c.duration("sandbox.deadline", f.Deadline, 24*time.Hour, &s.DeadlineMillis)
}
