package manifest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/mentatlab/mentat/internal/fault"
)

const block = `{"algorithm":"SHA256withRSA","certificate_chain":["-----BEGIN CERTIFICATE-----\nMIID\n-----END CERTIFICATE-----\n","b\n\n","c"],"number":5,"ok":true,"signature":"MEUC/+=\n","signer":{"issuer":"CN=MentatLab Agent CA,O=MentatLab","subject":"CN=a@b"},"version":"1.0"}`

const blockYAML = `attestation:
  algorithm: "SHA256withRSA"
  certificate_chain:
    - |
      -----BEGIN CERTIFICATE-----
      MIID
      -----END CERTIFICATE-----
    - |+
      b

    - c
  number: 5
  ok: true
  signature: |
    MEUC/+=
  signer:
    issuer: "CN=MentatLab Agent CA,O=MentatLab"
    subject: "CN=a@b"
  version: "1.0"
`

const plainManifest = "# My agent.\nid: a # its name\nversion: 1.0.0\n\nimage: a:1\n"

func TestSetAttestationTouchesNothingElse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		blocks     []string
		want       string
	}{
		{"appends", plainManifest, []string{block}, plainManifest + blockYAML},
		{"appends a missing line end", strings.TrimSpace(plainManifest), []string{block}, plainManifest + blockYAML},
		{"replaces at the end", plainManifest + "attestation: {a: b}\n", []string{block}, plainManifest + blockYAML},
		{"replaces in the middle", "id: a\nattestation:\n  a: |\n    # not a comment\n\n  b: c\n\n# The version.\nversion: 1.0.0\nimage: a:1\n", []string{block},
			"id: a\n" + blockYAML + "\n# The version.\nversion: 1.0.0\nimage: a:1\n"},
		{"replaces at the start", "attestation:\n- a: b\n- c: d\nid: a\nversion: 1.0.0\nimage: a:1\n", []string{block}, blockYAML + "id: a\nversion: 1.0.0\nimage: a:1\n"},
		{"keeps a last comment", plainManifest + "attestation:\n  a: b\n# The end.\n", []string{block}, plainManifest + blockYAML + "# The end.\n"},
		{"writes a list", plainManifest, []string{`{"a":"b"}`, `{"a":"c"}`}, plainManifest + "attestation:\n  - a: b\n  - a: c\n"},
		{"removes", plainManifest + blockYAML, nil, plainManifest},
		{"removes nothing", plainManifest, nil, plainManifest},
		{"keeps a document's start", "---\n" + plainManifest, []string{`{"a":"b"}`}, "---\n" + plainManifest + "attestation:\n  a: b\n"},
		{"keeps Windows line ends", strings.ReplaceAll(plainManifest, "\n", "\r\n"), []string{block}, strings.ReplaceAll(plainManifest+blockYAML, "\n", "\r\n")},
		{"quotes what looks like something else", plainManifest, []string{`{"a":"true","b":"1.0","c":"null","d":"2026-01-15","e":" x ","f":"","g":"- a"}`},
			plainManifest + "attestation:\n  a: \"true\"\n  b: \"1.0\"\n  c: \"null\"\n  d: \"2026-01-15\"\n  e: \" x \"\n  f: \"\"\n  g: \"- a\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocks := make([][]byte, len(c.blocks))
			for i, b := range c.blocks {
				blocks[i] = []byte(b)
			}
			got, err := SetAttestation("m", []byte(c.text), blocks)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			m, err := Parse("m", got)
			if err != nil {
				t.Fatal(err)
			}
			for i := range blocks {
				if !bytes.Equal(m.Attestations[i], blocks[i]) {
					t.Errorf("reads back as %s", m.Attestations[i])
				}
			}
			again, err := SetAttestation("m", got, blocks)
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("done twice it gives\n%s\n%v", again, err)
			}
		})
	}
}

func TestSetAttestationRefusesWhatItCannotKeep(t *testing.T) {
	for name, c := range map[string]struct {
		text, block string
		reason      fault.Reason
		want        string
	}{
		"a flow mapping":  {"{id: a, version: 1.0.0, image: a:1}\n", `{}`, fault.ManifestInvalid, "cannot be put into this text"},
		"indentation":     {"  id: a\n  version: 1.0.0\n  image: a:1\n", `{}`, fault.ManifestInvalid, "cannot be put into this text"},
		"a document end":  {plainManifest + "...\n", `{"a":"b"}`, fault.ManifestInvalid, "cannot be put into this text"},
		"a bad manifest":  {"id: a\nimage: a:1\n", `{}`, fault.ManifestInvalid, "version is missing"},
		"a block of text": {plainManifest, `"x"`, fault.AttestationFormat, "must be a JSON object"},
		"no JSON":         {plainManifest, `{`, fault.AttestationFormat, "JSON ends"},
		"a null":          {plainManifest, `{"a":null}`, fault.AttestationFormat, "must be a JSON object"},
	} {
		got, err := SetAttestation("m", []byte(c.text), [][]byte{[]byte(c.block)})
		if got != nil || fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
