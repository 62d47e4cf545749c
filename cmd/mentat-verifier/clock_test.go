package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
)

// The clock goes forward and back between pulls of one artifact: each is judged by the
// time that it is, and enforcement that has begun does not end again.
func TestThePullGateJudgesByTheTimeThatItIs(t *testing.T) {
	r, p := newRegistry(t), testpki.New(t)
	n := newNode(t, r, p, "defer")
	signed, unsigned := r.signed(t, p), r.add(ocispec.MediaTypeImageManifest, r.agent(t, "\x00asm\x01\x00\x00\x00"))
	text := strings.ReplaceAll(strings.ReplaceAll(policy, "REGISTRY", strings.TrimPrefix(r.URL, "http://")), "UNFETCHABLE", "defer")
	n.put("policy.yaml", []byte(text+"attestation_required: {enabled: true, enforcement_date: \"2026-01-16\"}\n"))
	for i, c := range []struct {
		at               time.Time
		signed, unsigned fault.Reason
	}{
		{testpki.Now, "", ""},
		{testpki.Now.Add(-2 * time.Hour), fault.OutsideValidity, ""},
		{testpki.Now.AddDate(0, -2, 0), fault.OutsideValidity, ""},
		{testpki.Now.Add(time.Minute), "", ""},
		{testpki.Now.Add(14 * time.Hour), "", fault.Unsigned}, // the date has come
		{testpki.Now.Add(time.Minute), "", fault.Unsigned},    // and does not go
		{testpki.Now.Add(48 * time.Hour), fault.RevocationUnknown, fault.Unsigned},
		{testpki.Now.AddDate(2, 0, 0), fault.OutsideValidity, fault.Unsigned},
		{testpki.Now.Add(2 * time.Minute), "", fault.Unsigned},
	} {
		for d, want := range map[*ocispec.Descriptor]fault.Reason{&signed: c.signed, &unsigned: c.unsigned} {
			stdin := append(marshal(t, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}), '\n')
			var out, log safeBuffer
			code := run(t.Context(), budget, []string{"-name", r.ref(), "-digest", string(d.Digest), "-stdin-media-type", ocispec.MediaTypeDescriptor},
				bytes.NewReader(stdin), &out, &log, func() time.Time { return c.at })
			if (code == 0) != (want == "") || want != "" && !strings.Contains(out.String(), "("+string(want)+")") {
				t.Errorf("%d, at %s: status %d, %s; want %q", i, c.at, code, out.String(), want)
			}
		}
	}
}
