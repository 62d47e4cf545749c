package verifier

import "time"

// ReleaseList is how one of the policy's release lists stands.
type ReleaseList struct {
	Name string
	// Number and NextUpdate are of the list that counts.
	Number     int64
	NextUpdate time.Time
	// Warnings tell why it is not the one that the policy names, or that it is due.
	Warnings []string
	// Err is why none counts; then everything that is attested is refused.
	Err error
}

// ReleaseLists says how the release lists of the policy stand at the verifier's time.
// It remembers none of them.
func (v *Verifier) ReleaseLists() []ReleaseList {
	if v.policy == nil {
		return nil
	}
	looking := v.At(v.clock())
	var out []ReleaseList
	for _, s := range v.policy.releases {
		j := judge{Verifier: looking, now: v.clock(), data: v.clock(), verdict: &Verdict{}}
		l, err := j.list(s)
		status := ReleaseList{Name: s.name, Warnings: j.verdict.Warnings, Err: err}
		if l != nil {
			status.Number, status.NextUpdate = l.Number, l.next
		}
		out = append(out, status)
	}
	return out
}
