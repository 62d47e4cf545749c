package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	cri "k8s.io/cri-api/pkg/apis"

	"github.com/mentatlab/mentat/integration/node"
)

// pod is a sandbox under the runtime handler mentat.
type pod struct {
	*world
	service cri.RuntimeService
	id      string
	config  *runtimeapi.PodSandboxConfig
}

// cri is a client of the node's CRI plugin, as kubelet has one.
func (w *world) cri() (cri.RuntimeService, error) {
	return criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + w.Socket).WithConnectionTimeout(30 * time.Second).Build(w.t.Context())
}

func (w *world) pod(pause string) *pod {
	w.t.Helper()
	service, err := w.cri()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &pod{world: w, service: service, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: w.Namespace, Attempt: 0},
		LogDirectory: w.t.TempDir(),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + w.Namespace,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}}
	p.id, err = service.RunPodSandbox(w.t.Context(), p.config, "mentat")
	if err != nil {
		w.t.Fatalf("pod sandbox with %s: %v", pause, err)
	}
	w.t.Cleanup(func() { p.remove() })
	return p
}

func (p *pod) remove() {
	ctx := context.WithoutCancel(p.t.Context())
	if err := p.service.StopPodSandbox(ctx, p.id); err != nil {
		p.t.Errorf("stop the pod: %v", err)
	}
	if err := p.service.RemovePodSandbox(ctx, p.id); err != nil {
		p.t.Errorf("remove the pod: %v", err)
	}
}

// add creates and starts a container of the pod.
func (p *pod) add(name, image string, change func(*runtimeapi.ContainerConfig)) (string, error) {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions},
		},
	}
	if change != nil {
		change(c)
	}
	id, err := p.service.CreateContainer(p.t.Context(), p.id, c, p.config)
	if err != nil {
		return "", err
	}
	return id, p.service.StartContainer(p.t.Context(), id)
}

func (p *pod) status(id string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	s, err := p.service.ContainerStatus(p.t.Context(), id, false)
	if err != nil {
		p.t.Fatal(err)
	}
	return s.Status
}

func (p *pod) log(name string) string {
	data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name+".log"))
	if err != nil {
		return ""
	}
	return string(data)
}

func TestAPodHoldsPauseAgentAndSidecar(t *testing.T) {
	const pause = "mentat.test/pause:1.0.0"
	w := newWorld(t, node.Config{CRI: true, SandboxImage: pause})
	w.kubernetes(func() {
		w.container("pause", "/bin/sleep", "2147483647")
		w.agent("marker", guestMarker(10), "")
		w.agent("trap", guestTrap, "")
		w.container("sidecar", "/bin/sh", "-c", "echo sidecar; exec sleep 600")
	})
	p := w.pod(pause)

	sidecar, err := p.add("sidecar", "mentat.test/sidecar:1.0.0", nil)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := p.add("agent", "mentat.test/marker:1.0.0", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 64 << 20
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent's end", func() bool { return p.status(agent).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if s := p.status(agent); s.ExitCode != 0 {
		t.Errorf("the agent ended with %d (%s %s), log %q", s.ExitCode, s.Reason, s.Message, p.log("agent"))
	}
	eventually(t, "the agent's log", func() bool { return strings.Contains(p.log("agent"), marker) })
	eventually(t, "the sidecar's log", func() bool { return strings.Contains(p.log("sidecar"), "sidecar") })
	if s := p.status(sidecar).State; s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the sidecar is %s", s)
	}
	stats, err := p.service.ContainerStats(t.Context(), sidecar)
	if err != nil || stats.GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats %v, %v", stats, err)
	}
	out, _, err := p.service.ExecSync(t.Context(), sidecar, []string{"/bin/echo", "inside"}, 10*time.Second)
	if err != nil || string(out) != "inside\n" {
		t.Errorf("exec into the sidecar: %q, %v", out, err)
	}

	trap, err := p.add("trap", "mentat.test/trap:1.0.0", nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the trapping agent's end", func() bool { return p.status(trap).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if s := p.status(trap); s.ExitCode != 120 {
		t.Errorf("a trap ends with %d, log %q", s.ExitCode, p.log("trap"))
	}
	if _, err := p.add("tiny", "mentat.test/marker:1.0.0", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 8 << 20
	}); err == nil || !strings.Contains(err.Error(), "memory limit") {
		t.Errorf("a limit that cannot hold the host: %v", err)
	}
}

func TestUnknownRuntimeOptionsOfCRIAreRefused(t *testing.T) {
	const pause = "mentat.test/pause:1.0.0"
	w := newWorld(t, node.Config{CRI: true, SandboxImage: pause, Extra: `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mentat.options]
NoSuchOption = true
`})
	w.kubernetes(func() { w.container("pause", "/bin/sleep", "2147483647") })
	service, err := w.cri()
	if err != nil {
		t.Fatal(err)
	}
	_, err = service.RunPodSandbox(t.Context(), &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: w.Namespace},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + w.Namespace, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
		}},
	}, "mentat")
	if err == nil {
		t.Fatal("the pod runs with an option that nobody understands")
	}
	if !strings.Contains(err.Error(), "NoSuchOption") {
		t.Errorf("the error does not name the option: %v", err)
	}
}
