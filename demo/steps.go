package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/testimage"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
)

const (
	runtimeName = "io.containerd.mentat.v1"
	// marker is what the guest prints that must never run.
	marker = "THE-GUEST-RAN"
)

// ref is a reference in the demo's registry.
func (d *demo) ref(name string) string { return d.registry + "/" + name }

// authority makes the PKI.
func (d *demo) authority() error {
	d.step("A certificate authority", "A root, its key under a passphrase; below it an agent CA that certifies developers, and one developer, Ada.")
	if _, err := d.run(`MENTAT_PASSPHRASE="correct horse" mentatctl pki init --org Example`, only("^made|root  |agent CA")); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl pki request-cert --email ada@example.com`, only("issued|issuer|expires")); err != nil {
		return err
	}
	d.done("Ada can sign")
	return nil
}

// agent writes and builds the agent.
func (d *demo) agent() error {
	d.step("An agent", "It counts the words of a text, JSON in and JSON out. The SDK comes inside mentatctl: nothing is fetched.")
	if _, err := d.run(`mentatctl init --id com.example.wordcount --image `+d.ref("agents/wordcount:0.1.0")+` wordcount`, only("^made|files|  [a-z]+[.][a-z]+$")); err != nil {
		return err
	}
	if _, err := d.run(`sed -n '/^func (w/,/^}/p' wordcount/main.go`); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl build wordcount`, only("built|module|artifact")); err != nil {
		return err
	}
	d.done("one WASM module, packed as an OCI image for every CPU")
	return nil
}

// publish signs and pushes.
func (d *demo) publish() error {
	d.step("Signed and published", "The signature covers the image's manifest, and so every byte. What was signed is pushed, never a rebuild.")
	if _, err := d.run(`mentatctl sign wordcount`, only("^signed|artifact|signer|bound")); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl publish wordcount`); err != nil {
		return err
	}
	d.done("any OCI registry will do")
	return nil
}

// trust makes the node enforce a policy.
func (d *demo) trust() error {
	d.step("A node that trusts Ada", "The node's owner says whose signatures count, and where. From here on nothing unsigned runs under agents/.")
	if _, err := d.run("mentatctl pki policy --scope '" + d.registry + "/agents/**' \\\n  --identity ada@example.com --identity eve@example.com $NODE"); err != nil {
		return err
	}
	if _, err := d.run(`cat $NODE/policy.yaml`, only("scopes|name|match|stores|identities|unsigned_|outside|ordinary")); err != nil {
		return err
	}
	d.done("in force; nothing was restarted")
	return nil
}

// pull pulls under the verifier's eyes.
func (d *demo) pull() error {
	d.step("Pulled by containerd", "containerd asks mentat-verifier before it fetches anything.")
	ref := d.ref("agents/wordcount:0.1.0")
	if _, err := d.run(`ctr images pull `+ref, summary); err != nil {
		return err
	}
	verdict, err := d.verdict(ref)
	if err != nil {
		return err
	}
	d.note("The verdict, from containerd's log:")
	d.said([]string{verdict}, 4)
	d.done("allowed")
	return nil
}

// runAgent runs the agent on the document and checks its answer.
func (d *demo) runAgent() error {
	d.step("Run by containerd", "Through our shim: runc makes the container, and mentat-host, its only process, runs the module.")
	if err := os.WriteFile(filepath.Join(d.dir, "document.json"), document, 0o644); err != nil {
		return err
	}
	if _, err := d.run(`wc -c document.json && cut -c -80 document.json`); err != nil {
		return err
	}
	// As a file, since ctr forgets to close an input that ends before the task
	// runs.
	if err := d.set("IN", "--mount type=bind,src=$PWD/document.json,dst=/in.json,options=rbind:ro --env MENTAT_INPUT=/in.json"); err != nil {
		return err
	}
	command := `ctr run --rm --runtime ` + runtimeName + ` $IN ` + d.ref("agents/wordcount:0.1.0") + ` wordcount`
	var times []string
	var words int
	for range 2 {
		begun := time.Now()
		r, err := d.run(command, first)
		if err != nil {
			return err
		}
		if words, err = countWords(r.stdout); err != nil {
			return &failure{err.Error(), r}
		}
		times = append(times, took(time.Since(begun)))
	}
	d.done("%d words; %s the first time, when the module is compiled, then %s", words, times[0], times[1])
	return nil
}

// countWords checks the agent's answer against our own count.
func countWords(answer string) (int, error) {
	var in struct{ Text string }
	if err := json.Unmarshal(document, &in); err != nil {
		return 0, err
	}
	var out struct {
		Count       int
		Frequencies map[string]int
	}
	if err := json.Unmarshal([]byte(answer), &out); err != nil {
		return 0, fmt.Errorf("the agent's answer is not the JSON we asked for: %w", err)
	}
	want := len(strings.Fields(in.Text))
	total := 0
	for _, n := range out.Frequencies {
		total += n
	}
	if out.Count != want || total != want || out.Frequencies["assent"] == 0 {
		return 0, fmt.Errorf("the agent counted %d words (%d by frequency), the text has %d", out.Count, total, want)
	}
	return want, nil
}

// runContainer runs an ordinary image through the same runtime.
func (d *demo) runContainer() error {
	d.step("An ordinary container, the same runtime", "Outside the policy's scope nothing changes: one runtime serves agents and what runs beside them.")
	err := d.image("library/sizer:1", testimage.Config{
		Entrypoint: []string{"/size"},
		Files:      map[string][]byte{"/size": []byte("#!/bin/sh\necho \"busybox in a container: $(wc -c <$MENTAT_INPUT) bytes\"\n")},
	})
	if err != nil {
		return err
	}
	ref := d.ref("library/sizer:1")
	if _, err := d.run(`ctr images pull `+ref, summary); err != nil {
		return err
	}
	if _, err := d.run(`ctr run --rm --runtime `+runtimeName+` $IN `+ref+` plain`, wants(d.sized())); err != nil {
		return err
	}
	d.done("an ordinary container")
	return nil
}

// sized is what the container says of the document.
func (d *demo) sized() string { return fmt.Sprintf("busybox in a container: %d bytes", len(document)) }

// image puts a container image into the registry.
func (d *demo) image(name string, cfg testimage.Config) error {
	dir := filepath.Join(d.node.Root, "images", strings.NewReplacer("/", "-", ":", "-").Replace(name))
	layout, err := oci.CreateLayout(dir)
	if err != nil {
		return err
	}
	if _, err := testimage.Busybox("/bin/busybox", cfg, layout); err != nil {
		return err
	}
	return d.push(layout, d.ref(name))
}

func (d *demo) client() (*remote.Client, error) {
	return remote.New(remote.Options{DockerConfig: filepath.Join(d.node.Etc, "docker", "config.json")})
}

func (d *demo) push(layout *oci.Layout, ref string) error {
	client, err := d.client()
	if err != nil {
		return err
	}
	_, err = client.Push(d.ctx, layout, ref)
	return err
}

// runBothWays runs one image as WASM and as a container.
func (d *demo) runBothWays() error {
	d.step("One image that is both", "The agent with a container beside its module: one digest, one signature. A node without our shim runs the container.")
	ref := d.ref("agents/both:0.1.0")
	if _, err := d.run("cp -r wordcount both && sed -i 's/wordcount/both/' both/manifest.yaml &&\n  echo 'container: " + d.ref("library/sizer:1") + "' >>both/manifest.yaml"); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl build both && mentatctl sign both && mentatctl publish both`, only("^built|module|container|^signed|^published")); err != nil {
		return err
	}
	if _, err := d.run(`ctr images pull `+ref, summary); err != nil {
		return err
	}
	r, err := d.run(`ctr run --rm --runtime `+runtimeName+` $IN `+ref+` wasm`, first)
	if err != nil {
		return err
	}
	if _, err := countWords(r.stdout); err != nil {
		return &failure{err.Error(), r}
	}
	if _, err := d.run(`ctr run --rm --runtime io.containerd.runc.v2 $IN `+ref+` container`, wants(d.sized())); err != nil {
		return err
	}
	d.done("both ways")
	return nil
}

// refuseUnsigned is the first of three that must not run.
func (d *demo) refuseUnsigned() error {
	d.step("Refused: unsigned", "A module from elsewhere prints "+marker+" as soon as it runs. On its author's machine it does.")
	ref := d.ref("agents/sneaky:0.1.0")
	dir := filepath.Join(d.dir, "sneaky")
	manifest := "id: com.example.sneaky\nversion: 0.1.0\nruntime: wasm\nmodule: agent.wasm\nimage: " + ref + "\n"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"manifest.yaml": []byte(manifest), "agent.wasm": sneaky} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	if _, err := d.run(`cat sneaky/manifest.yaml && mentatctl build sneaky`, only("^[a-z]+:|^built|module")); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl run sneaky`, wants(marker)); err != nil {
		return err
	}
	if _, err := d.run(`mentatctl publish --unsigned sneaky`, only("^published|signed")); err != nil {
		return err
	}
	return d.refused(ref, "sneaky", "attestation")
}

// refuseSwapped keeps a good attestation and swaps the module.
func (d *demo) refuseSwapped() error {
	d.step("Refused: the module was swapped after signing", "Who can write to the registry keeps Ada's attestation and puts the other module under it.")
	layout, err := d.swapModule("wordcount", "sneaky")
	if err != nil {
		return err
	}
	ref := d.ref("agents/wordcount:0.1.1")
	if err := d.push(layout, ref); err != nil {
		return err
	}
	d.note("Forged and pushed as %s.", ref)
	return d.refused(ref, "swapped", "signature")
}

// refuseRevoked revokes a certificate after it was used.
func (d *demo) refuseRevoked() error {
	d.step("Refused: the signer's certificate was revoked", "Eve is trusted, too, and signed the same module.")
	ref := d.ref("agents/eves:0.1.0")
	if _, err := d.run(`mentatctl pki request-cert --email eve@example.com --output eve.crt --key eve.key`, only("issued|expires")); err != nil {
		return err
	}
	if _, err := d.run("cp -r sneaky eves && sed -i 's/sneaky/eves/' eves/manifest.yaml &&\n  mentatctl sign --cert eve.crt --key eve.key eves && mentatctl publish eves", only("^signed|signer|^published")); err != nil {
		return err
	}
	if _, err := d.run(`ctr images pull `+ref, summary); err != nil {
		return err
	}
	if _, err := d.run(`ctr run --rm --runtime `+runtimeName+` `+ref+` eves`, wants(marker)); err != nil {
		return err
	}
	d.note("It ran. Then the key is lost:")
	if _, err := d.run(`mentatctl pki revoke --reason keyCompromise eve.crt`); err != nil {
		return err
	}
	return d.refused(ref, "eves", "revoked")
}

// refused shows that an artifact is refused at pull, and, when it is imported
// past the verifier, at run; and that its guest did not run.
func (d *demo) refused(ref, id, reason string) error {
	compiled, err := d.compiled()
	if err != nil {
		return err
	}
	if _, err := d.refuses(`ctr images pull `+ref, reason); err != nil {
		return err
	}
	if err := d.archive(ref, id); err != nil {
		return err
	}
	d.note("An import asks no verifier. The shim decides again:")
	if _, err := d.run(`ctr images import `+id+`.tar`, silent); err != nil {
		return err
	}
	if r, err := d.quiet(`ctr images ls -q`); err != nil || !slices.Contains(strings.Fields(r.stdout), ref) {
		return &failure{"the import left no image", r}
	}
	if _, err := d.refuses(`ctr run --rm --runtime `+runtimeName+` `+ref+` `+id, reason); err != nil {
		return err
	}
	after, err := d.compiled()
	if err != nil {
		return err
	}
	if after != compiled {
		return fmt.Errorf("the refused module was compiled: %s has %d files, had %d", filepath.Join(d.node.Root, "modules"), after, compiled)
	}
	d.done("refused at pull and at run; no %s, nothing compiled", marker)
	return nil
}

// compiled counts the files of the node's cache of compiled modules.
func (d *demo) compiled() (int, error) {
	n := 0
	err := filepath.WalkDir(filepath.Join(d.node.Root, "modules"), func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	})
	return n, err
}

// archive saves an image as a file, asking nobody's policy.
func (d *demo) archive(ref, name string) error {
	client, err := d.client()
	if err != nil {
		return err
	}
	layout, err := oci.CreateLayout(filepath.Join(d.root, "images", name))
	if err != nil {
		return err
	}
	desc, err := client.Pull(d.ctx, ref, layout)
	if err != nil {
		return err
	}
	if err := layout.Tag(d.ctx, desc, ref); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.dir, name+".tar"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(layout.ExportTar(f, ref), f.Close())
}

// settled checks that nothing is left of what ran.
func (d *demo) settled() error {
	d.step("Nothing is left", "Every task is gone, and with it its shim, mounts, cgroups and sockets.")
	left, err := d.node.Settled(5 * time.Second)
	if err != nil {
		return err
	}
	if !left.None() {
		return fmt.Errorf("left behind:\n%s", left)
	}
	d.done("counted, not guessed")
	return nil
}
