package doctor

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// askCRI has CRI pull the canary, as a kubelet would. CRI alone decides whether it
// goes through the transfer service, and so whether a verifier is asked.
func (g gates) askCRI(ctx context.Context, r *Report, c *canary, ref, want string) {
	if g.daemon.PID == 0 {
		return // the pull through containerd says so
	}
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	conn, err := dial(g.address)
	if err != nil {
		r.fail(checkCanaryCRI, g.address, err.Error(), "whether a kubelet's pulls are verified was not shown", "look at containerd's log")
		return
	}
	defer conn.Close()
	images := runtimeapi.NewImageServiceClient(conn)
	spec := &runtimeapi.ImageSpec{Image: ref}
	_, err = images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
	switch said := status.Convert(err).Message(); {
	case status.Code(err) == codes.Unimplemented:
		r.note(checkCanaryCRI, g.address, "serves no CRI", "no kubelet pulls on this node")
	case err == nil || strings.Contains(said, want):
		told(r, checkCanaryCRI, "CRI", c, err, said, want)
	default:
		// CRI takes the way to a registry from its own configuration, which may send
		// every name to a mirror. Then the canary is not found, and nothing is shown.
		r.warn(checkCanaryCRI, "CRI", fmt.Sprintf("did not come to the agent that is %s: %q", c.name, words(said)),
			"whether a kubelet's pulls are verified was not shown by trying; its settings were read", "let CRI reach "+ref[:strings.IndexByte(ref, '/')]+" without a mirror, if it shall be tried")
	}
	if err == nil {
		ctx := context.WithoutCancel(ctx)
		if _, err := images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
			r.warn(checkCanaryCRI, ref, "cannot be removed again: "+status.Convert(err).Message(), "it stays on the node", "remove it: crictl rmi "+ref)
		}
	}
}
