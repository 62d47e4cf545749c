package capability

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// serves reports whether the node has something to serve a capability with.
func (s *Serving) serves(c manifest.Capability) bool {
	switch c.Kind {
	case manifest.KindLLM:
		return slices.ContainsFunc(s.Providers, func(p Provider) bool { return p.offers(c) })
	case manifest.KindMedia:
		return s.MediaDir != "" || s.MediaS3 != nil
	case manifest.KindExtension:
		return slices.ContainsFunc(s.Extensions, func(e hostdoc.Extension) bool { return e.Name == c.Name })
	}
	return true
}

func (p *Provider) offers(c manifest.Capability) bool {
	return slices.ContainsFunc(p.Models, c.Overlaps)
}

// serve fills in how what was granted is served. Secrets and providers that no
// grant reaches stay out: an agent's host holds nothing that is not the agent's.
func (g *Grant) serve(r *Request, granted []manifest.Capability) {
	names := secretNames{}
	g.serveNetwork(r, granted, names)
	g.serveLLM(r, granted, names)
	g.serveMedia(r, granted, names)
	for _, e := range r.Serving.Extensions {
		if slices.Contains(granted, manifest.Capability{Kind: manifest.KindExtension, Name: e.Name}) {
			g.Extensions = append(g.Extensions, hostdoc.Extension{Name: e.Name, Command: slices.Clone(e.Command)})
		}
	}
	g.Secrets = names
}

// secretNames gives every secret that is needed one name.
type secretNames map[string]Secret

func (n secretNames) of(s Secret) string {
	for name, have := range n {
		if have == s {
			return name
		}
	}
	name := fmt.Sprintf("secret-%d", len(n)+1)
	n[name] = s
	return name
}

func ofKind(kind string, list []manifest.Capability) []manifest.Capability {
	var found []manifest.Capability
	for _, c := range list {
		if c.Kind == kind {
			found = append(found, c)
		}
	}
	return found
}

func (g *Grant) serveNetwork(r *Request, granted []manifest.Capability, names secretNames) {
	network := ofKind(manifest.KindNetwork, granted)
	if len(network) == 0 && g.full == "" {
		return
	}
	n := &hostdoc.Network{Mode: hostdoc.NetworkRestricted, BlockedPorts: slices.Clone(r.Serving.BlockedPorts), CAFile: r.Serving.CAFile, Limits: r.Serving.Limits}
	if g.full != "" {
		n.Mode, n.FullRule = hostdoc.NetworkFull, g.full
	}
	if said := sandboxNetwork(r.Manifest); said != nil {
		n.BlockedPorts = append(n.BlockedPorts, said.BlockedPorts...)
	}
	slices.Sort(n.BlockedPorts)
	n.BlockedPorts = slices.Compact(n.BlockedPorts)
	for _, rule := range r.Rules {
		if rule.DryRun {
			continue
		}
		if rule.FullNetwork && g.full != "" || slices.ContainsFunc(rule.Allow, func(c manifest.Capability) bool { return slices.ContainsFunc(network, c.Overlaps) }) {
			n.AllowPrivate = append(n.AllowPrivate, rule.Private...)
		}
		for _, in := range rule.Inject {
			if slices.ContainsFunc(network, in.Capability.Overlaps) || g.full != "" {
				n.Inject = append(n.Inject, hostdoc.Injection{
					Capability: in.Capability.String(), Header: in.Header, Query: in.Query, Prefix: in.Prefix, Secret: names.of(in.Secret),
				})
			}
		}
	}
	slices.Sort(n.AllowPrivate)
	n.AllowPrivate = slices.Compact(n.AllowPrivate)
	g.Network = n
}

func (g *Grant) serveLLM(r *Request, granted []manifest.Capability, names secretNames) {
	models := ofKind(manifest.KindLLM, granted)
	var found []hostdoc.LLMProvider
	for _, p := range r.Serving.Providers {
		if !slices.ContainsFunc(models, p.offers) {
			continue
		}
		one := hostdoc.LLMProvider{Name: p.Name, URL: p.URL}
		for _, m := range p.Models {
			one.Models = append(one.Models, m.Name)
		}
		if p.Secret != (Secret{}) {
			one.Secret = names.of(p.Secret)
		}
		found = append(found, one)
	}
	if len(found) > 0 {
		g.LLM = &hostdoc.LLM{Providers: found, Tokens: r.Serving.Tokens, CAFile: r.Serving.CAFile}
	}
}

func (g *Grant) serveMedia(r *Request, granted []manifest.Capability, names secretNames) {
	if len(ofKind(manifest.KindMedia, granted)) == 0 {
		return
	}
	g.Media = &hostdoc.Media{Dir: r.Serving.MediaDir, ItemBytes: r.Serving.MediaItemBytes, TotalBytes: r.Serving.MediaTotalBytes}
	if s3 := r.Serving.MediaS3; s3 != nil {
		g.Media.Dir = ""
		g.Media.S3 = &hostdoc.MediaS3{
			Endpoint: s3.Endpoint, Region: s3.Region, Bucket: s3.Bucket, Prefix: s3.Prefix,
			AccessKey: names.of(s3.AccessKey), SecretKey: names.of(s3.SecretKey), CAFile: r.Serving.CAFile,
		}
	}
}

// Within reports whether a path is a mount's destination or lies beneath it.
func Within(name, destination string) bool {
	name, destination = path.Clean(name), path.Clean(destination)
	return name == destination || strings.HasPrefix(name, strings.TrimSuffix(destination, "/")+"/")
}

// holdsSecret reports whether a mount holds a secret that the host reads.
func (g *Grant) holdsSecret(destination string) bool {
	for _, s := range g.Secrets {
		if s.Mount != "" && Within(s.Mount, destination) {
			return true
		}
	}
	return false
}
