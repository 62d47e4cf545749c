package limits

import "testing"

func TestHostHeadroomIsAtLeastSixteenMiBAndATenth(t *testing.T) {
	for guest, want := range map[int64]int64{0: 16 * MiB, 64 * KiB: 16 * MiB, 160 * MiB: 16 * MiB, 320 * MiB: 32 * MiB, 4096 * MiB: 4096 * MiB / 10} {
		if got := HostHeadroom(guest); got != want {
			t.Errorf("HostHeadroom(%d) = %d, want %d", guest, got, want)
		}
	}
}

// The limits of a whole must hold the limits of its parts, or a part that
// passes its own check fails later with an error that names something else.
func TestLimitsFitIntoEachOther(t *testing.T) {
	for _, c := range []struct {
		name        string
		part, whole int64
	}{
		{"an attestation in an OCI manifest", AttestationBytes, OCIManifestBytes},
		{"a chain in an attestation", ChainCertificates * 8 * KiB, AttestationBytes},
		{"one certificate in an attestation", CertificatePEMBytes, AttestationBytes},
		{"an attestation in manifest.yaml", AttestationBytes, ManifestYAMLBytes},
		{"an agent manifest in manifest.yaml", AgentManifestBytes, ManifestYAMLBytes},
		{"a function in a module", FunctionBodyBytes, ModuleBytes},
		{"the agent manifest's settings in a host document", AgentManifestBytes, HostDocumentBytes},
		{"a log line in the output", LogLineBytes, OutputBytes},
		{"a body in the bodies", DefaultServeBody, ServeBuffers},
		{"a body in an input", DefaultServeBody, InputBytes},
		{"what is held back in a request's share", ServeHeld, ServeShare},
		{"the default instances", DefaultServeConcurrent, ServeConcurrent},
		{"the default queue", DefaultServeQueue, ServeQueue},
	} {
		if c.part <= 0 || c.part > c.whole {
			t.Errorf("%s: %d does not fit into %d", c.name, c.part, c.whole)
		}
	}
}

func TestTheVerifierEndsBeforeContainerdKillsIt(t *testing.T) {
	if s := VerifierBudget.Seconds(); s <= 0 || s >= 10 {
		t.Errorf("%v s", s)
	}
}

func TestADrainEndsBeforeKubernetesKills(t *testing.T) {
	if d := DefaultServeDrain + DrainGrace + StopGrace; ServeNotice >= DefaultServeDrain || d.Seconds() >= 29 {
		t.Errorf("%v", d)
	}
}
