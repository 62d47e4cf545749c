package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/mentatlab/mentat/capability"
	"github.com/mentatlab/mentat/capability/policy"
	"github.com/mentatlab/mentat/capability/secretfile"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/verifier"
)

// operatorGrant is what the flags of a run, and the rules that they name, grant.
func (a *app) operatorGrant(r *runnable, o *runOptions, given capability.Given) (*capability.Grant, error) {
	allow, err := allowed(o.allow)
	if err != nil {
		return nil, err
	}
	media, err := cacheDir("media")
	if err != nil {
		return nil, err
	}
	rules, err := policy.Open(nodeconfig.Capability{Policy: o.capabilities, Media: media})
	if err != nil {
		return nil, err
	}
	req := capability.Request{
		Manifest: r.agent, Trust: string(r.verdict.Trust), Serving: rules.Serving(),
		Given: given, Operator: true, Allow: allow,
	}
	if r.own {
		req.Trust = string(verifier.Verified)
	}
	if r.agent != nil {
		req.Rules = rules.Rules(policy.Subject{Agent: r.agent.ID, Trust: req.Trust, Reference: r.ref})
		if o.capabilities != "" && req.Trust == string(verifier.Untrusted) {
			a.printer().Note("warning: %s is untrusted, so the rules of %s grant it nothing", r.agent.ID, o.capabilities)
		}
	}
	g := capability.Effective(req)
	for _, d := range g.Decisions {
		for i, c := range allow {
			if !d.Allowed && d.Capability == c.String() {
				return nil, fault.New(fault.PolicyDenied, "--allow "+o.allow[i], "cannot be given: %s", d.Reason)
			}
		}
	}
	return &g, nil
}

// allowed reads the capabilities of --allow.
func allowed(list []string) ([]manifest.Capability, error) {
	var caps []manifest.Capability
	for _, s := range list {
		c, err := manifest.ParseCapability(s)
		switch {
		case err != nil:
			return nil, fault.Wrap(err, fault.Usage, "--allow", "")
		case c.Kind == manifest.KindFilesystem:
			return nil, fault.New(fault.Usage, "--allow "+s, "names no directory of this machine").WithHint("give one: --dir HOST::%s", c.Path)
		case c.Kind == manifest.KindEnv:
			return nil, fault.New(fault.Usage, "--allow "+s, "gives the variable no value").WithHint("give it: --env %s=VALUE", c.Name)
		}
		caps = append(caps, c)
	}
	return caps, nil
}

// readSecrets reads what the host needs and the agent must not see.
func readSecrets(g *capability.Grant, given capability.Given) (hostdoc.Secrets, error) {
	values := hostdoc.Secrets{}
	for name, s := range g.Secrets {
		value, err := readSecret(s, given)
		if err != nil {
			return nil, err
		}
		values[name] = value
	}
	return values, nil
}

// readSecret reads one secret. What stands in a container's mount is looked for
// in the directories that flags give.
func readSecret(s capability.Secret, given capability.Given) (string, error) {
	if s.Mount == "" {
		return secretfile.Read(s.File)
	}
	for _, m := range given.Mounts {
		if capability.Within(s.Mount, m.Destination) {
			rest := strings.TrimPrefix(strings.TrimPrefix(s.Mount, filepath.ToSlash(filepath.Clean(m.Destination))), "/")
			return secretfile.ReadIn(m.Source, filepath.FromSlash(rest), s.Mount)
		}
	}
	return "", fault.New(fault.NotFound, s.Mount, "the rules inject a secret from there, and the agent is given no such directory").
		WithHint("give it: --dir HOST::%s::ro", filepath.ToSlash(filepath.Dir(s.Mount)))
}

// exists tells what is wrong with a file that a policy names; "" is nothing.
func exists(r policy.Reference) string {
	info, err := os.Stat(r.Path)
	switch {
	case err != nil:
		return "is not there, or cannot be looked at"
	case !info.Mode().IsRegular():
		return "is not a file"
	case r.Secret && info.Mode().Perm()&0o077 != 0:
		return "can be read by others than its owner"
	case r.Program && info.Mode().Perm()&0o111 == 0:
		return "cannot be executed"
	case r.Program && dynamic(r.Path):
		return "needs a loader that a container does not have; link it statically"
	}
	return ""
}
