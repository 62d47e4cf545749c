package verifier

import (
	"maps"
	"slices"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/manifest"
	"github.com/mentatlab/mentat/manifest/imageref"
	"github.com/mentatlab/mentat/manifest/strictyaml"
	"github.com/mentatlab/mentat/oci"
)

// remapFile is one of a scope's remap.
type remapFile struct {
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

// remapping says what the attestations of artifacts that are found in one place
// name as theirs.
type remapping struct{ from, to imageref.Pattern }

func (c *policyCompiler) remap(path, binding string, list []remapFile, covers []imageref.Pattern) []remapping {
	switch {
	case binding == bindRemap && len(list) == 0:
		c.fail(path, "is required: binding: remap needs the repositories to remap")
	case binding != bindRemap && len(list) > 0:
		c.fail(path, "has no effect without binding: remap")
	}
	var out []remapping
	for i, f := range list {
		at := strictyaml.Index(path, i)
		from, okFrom := imageref.ParsePattern(f.From)
		to, okTo := imageref.ParsePattern(f.To)
		switch {
		case !okFrom || !okTo || !from.CanMove(to):
			c.fail(at, "from and to are each HOST/REPOSITORY, or each HOST/PATH/**; names are in lower case, without tag")
		case slices.ContainsFunc(out, func(r remapping) bool { return r.from.String() == from.String() }):
			c.fail(strictyaml.Key(at, "from"), "%q is there twice", f.From)
		case !slices.ContainsFunc(covers, func(p imageref.Pattern) bool { return p.Covers(from) }):
			c.fail(strictyaml.Key(at, "from"), "%q is not within what the scope matches, so it has no effect", f.From)
		}
		out = append(out, remapping{from, to})
	}
	return out
}

// signedAs is the repository that an attestation must name for a reference of the
// scope: its own, unless the most specific remapping that covers it says another.
func (s *scope) signedAs(repository string) string {
	best, name := 0, repository
	for _, r := range s.remap {
		if moved, ok := r.from.Move(repository, r.to); ok && r.from.Specificity(repository) > best {
			best, name = r.from.Specificity(repository), moved
		}
	}
	return name
}

func (c *policyCompiler) minimumVersions(path string, list map[string]string) map[string]string {
	for _, id := range slices.Sorted(maps.Keys(list)) {
		if !manifest.ValidID(id) {
			c.fail(strictyaml.Key(path, id), "%q is no agent's id", id)
		}
		if !manifest.ValidVersion(list[id]) {
			c.fail(strictyaml.Key(path, id), "%q is not a semantic version like 1.2.0", list[id])
		}
	}
	return list
}

// release is what an artifact says it is a release of. The attestation's word and
// the agent manifest's are the same, where there are both; of an unsigned agent there
// is the manifest's only.
func release(att *Attestation, a *oci.Artifact) (id, version string) {
	switch {
	case att != nil:
		return att.Subject.ID, att.Subject.Version
	case a.Agent != nil:
		return a.Agent.ID, a.Agent.Version
	}
	return "", ""
}

// tooLow refuses a release below a minimum; by says whose.
func tooLow(id, version string, minimum map[string]string, by string) error {
	least, ok := minimum[id]
	if !ok || manifest.CompareVersions(version, least) >= 0 {
		return nil
	}
	return fault.New(fault.VersionTooLow, id+" "+version, "is below %s, the minimum version in %s", least, by).
		WithHint("use a newer release")
}

// withdrawn tells whether the artifact is a release that nobody shall run any more,
// whoever signed it.
func (j *judge) withdrawn(att *Attestation, a *oci.Artifact) error {
	id, version := release(att, a)
	if least, ok := j.policy.minimum[id]; ok {
		j.trace.note("minimum version", "%s", least)
	}
	if err := tooLow(id, version, j.policy.minimum, "the policy"); err != nil {
		return err
	}
	if len(j.policy.releases) > 0 {
		if _, err := j.roots(); err != nil {
			return err
		}
	}
	for _, s := range j.policy.releases {
		l, err := j.list(s)
		if err != nil {
			return err
		}
		if err := l.denies("release list "+s.name, id, version, att, a); err != nil {
			return err
		}
	}
	return nil
}

// releases is the step that withdrawn decides.
func (j *judge) releases(att *Attestation, a *oci.Artifact) error {
	if att == nil && a.Agent == nil && !isWASM(a) {
		return nil
	}
	err := j.withdrawn(att, a)
	if err == nil && att == nil {
		return nil // what has no attestation is decided before, as far as steps go
	}
	return j.check(StepReleases, err, "nothing withdraws it")
}
