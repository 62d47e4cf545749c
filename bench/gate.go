package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mentatlab/mentat/integration/node"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/oci/remote"
)

// measureGate runs mentat-verifier as containerd does, a process for each pull,
// against a registry on this machine. dir holds the node's policy, stores and
// compiled lists.
func measureGate(ctx context.Context, dir string, l *oci.Layout, desc ocispec.Descriptor, ref string, pairs int) (_ []Result, err error) {
	bin, tools := node.Binaries()
	registry, err := node.StartRegistry(ctx, tools, filepath.Join(dir, "registry"), os.Environ(), node.RegistryConfig{})
	if registry != nil {
		defer func() { err = errors.Join(err, registry.Stop()) }()
	}
	if err != nil {
		return nil, err
	}
	config, err := gateConfig(dir, registry.Host)
	if err != nil {
		return nil, err
	}
	client, err := remote.New(remote.Options{HostsDir: filepath.Join(dir, "certs.d"), DockerConfig: filepath.Join(dir, "docker.json")})
	if err != nil {
		return nil, err
	}
	if err := l.Tag(ctx, desc, ref); err != nil {
		return nil, err
	}
	if _, err := client.Push(ctx, l, ref); err != nil {
		return nil, err
	}
	input, err := json.Marshal(desc)
	if err != nil {
		return nil, err
	}
	var ours, floor []float64
	for i := range 10 * (pairs + 1) {
		gate := exec.CommandContext(ctx, filepath.Join(bin, "mentat-verifier"), "-name", ref, "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
		gate.Env = append(os.Environ(), nodeconfig.Env+"="+config)
		gate.Stdin = bytes.NewReader(input)
		a, verdict, err := toTheEnd(gate)
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(verdict, []byte("allowed")) { // "deferred" would be no verdict
			return nil, fmt.Errorf("the verdict is: %s", verdict)
		}
		b, _, err := toTheEnd(exec.CommandContext(ctx, busybox, "echo", "x"))
		if err != nil {
			return nil, err
		}
		if i >= 10 { // the first ones warm the page cache
			ours, floor = append(ours, a), append(floor, b)
		}
	}
	return []Result{result("mentat-verifier: exec to verdict, local registry", "ms", ours).goal(p95, 40).
		versus("busybox echo, statically linked C", ours, floor)}, nil
}

// gateConfig writes a node's configuration that finds the agent's registry on
// this machine.
func gateConfig(dir, host string) (string, error) {
	hosts := filepath.Join(dir, "certs.d", registryHost)
	config := filepath.Join(dir, "config.toml")
	return config, errors.Join(
		os.MkdirAll(hosts, 0o700),
		os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n", host), 0o600),
		os.WriteFile(config, []byte("[verify]\nstate = \"revocation\"\nhosts_dir = \"certs.d\"\ndocker_config = \"docker.json\"\n"), 0o600),
	)
}

// toTheEnd is the time from before a program is started until it has ended, in
// milliseconds, with what it printed.
func toTheEnd(cmd *exec.Cmd) (float64, []byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begin := time.Now()
	out, err := cmd.Output()
	took := time.Since(begin)
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", cmd.Path, err, out, stderr.Bytes())
	}
	return millis(took), out, err
}
