package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/oci"
	"github.com/mentatlab/mentat/verifier"
	"github.com/mentatlab/mentat/verifier/fetch"
	"github.com/mentatlab/mentat/verifier/memory"
	"github.com/mentatlab/mentat/verifier/timestamp"
)

// verifications are enough for a 99th percentile that means something.
const verifications = 2000

// measureVerify judges one signed agent again and again. No verdict is kept:
// every run parses the block and its certificates, checks three signatures and
// looks both certificates up in the revocation lists.
func measureVerify(ctx context.Context, m *machine, pairs int) ([]Result, error) {
	dir := filepath.Join(m.dir, "verify")
	l, desc, ref, err := m.authority.agent(ctx, dir, "verify", guestFirst)
	if err != nil {
		return nil, err
	}
	if err := m.authority.enforce(dir); err != nil {
		return nil, err
	}
	cfg := nodeconfig.Verify{
		Policy: filepath.Join(dir, "policy.yaml"), Trust: filepath.Join(dir, "trust"), State: filepath.Join(dir, "revocation"),
	}
	read := func() (verifier.Input, error) {
		raw, err := oci.ReadBlob(ctx, l, desc, limits.OCIManifestBytes)
		if err != nil {
			return verifier.Input{}, err
		}
		a, err := oci.Read(ctx, l, raw)
		return verifier.Input{Reference: ref, Artifact: a}, err
	}
	small, err := judgeOften(ctx, cfg, read)
	if err != nil {
		return nil, err
	}
	if err := m.authority.revokeMany(time.Now(), manyRevoked, 2000); err != nil {
		return nil, err
	}
	large, err := judgeOften(ctx, cfg, read)
	if err != nil {
		return nil, err
	}
	const by = "a list of 1,000"
	remembered, err := judgeRemembered(ctx, cfg, filepath.Join(dir, "verdicts"), read)
	if err != nil {
		return nil, err
	}
	results := []Result{
		result("verify, same process, no verdict cache", "ms", small.same).goal(p99, 10),
		result("  the same, processor time", "ms", small.cpu),
		result("policy, stores, lists, artifact read + verify", "ms", small.fresh),
		result("verify, a revocation list of 100,000", "ms", large.same).versus(by, large.same, small.same).goal(p99, 10),
		result("  the same, processor time", "ms", large.cpu).versus(by, large.cpu, small.cpu),
		result("policy, stores, lists of 100,000, artifact + verify", "ms", large.fresh).versus(by, large.fresh, small.fresh),
		result("verify, from the verdict memory", "ms", remembered.same).goal(p99, 1),
		result("  the same, processor time", "ms", remembered.cpu),
	}
	warm, err := judgeWarm(ctx, cfg, filepath.Join(dir, "verdicts"), l, desc, ref)
	if err != nil {
		return nil, err
	}
	results = append(results,
		result("the gate before a run, warm, without containerd", "ms", warm.fresh),
		result("  the same, processor time", "ms", warm.cpu).goal(p99, 1))
	gate, err := measureGate(ctx, dir, l, desc, ref, pairs)
	return append(results, gate...), err
}

// judgements are how long each took.
type judgements struct {
	same, cpu, fresh []float64
}

// judgeOften compiles the lists and then judges in one process and as a new one
// would.
func judgeOften(ctx context.Context, cfg nodeconfig.Verify, read func() (verifier.Input, error)) (*judgements, error) {
	v, err := verifier.Open(cfg, time.Now, timestamp.Reader{})
	if err != nil {
		return nil, err
	}
	// A node has its lists compiled long before.
	if err := fetch.Refresh(ctx, v, cfg, nil, true); err != nil {
		return nil, err
	}
	in, err := read()
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // its processor time is measured
	defer runtime.UnlockOSThread()
	j := &judgements{}
	for range verifications {
		used, err := threadTime()
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		verdict := v.Verify(ctx, in)
		j.same = append(j.same, millis(time.Since(begin)))
		after, err := threadTime()
		if err != nil {
			return nil, err
		}
		j.cpu = append(j.cpu, millis(after-used))
		if !verdict.Allowed || verdict.Trust != verifier.Signed {
			return nil, fmt.Errorf("the verdict is: %s", verdict.Line())
		}

		// What a shim does, which is a new process for each pod.
		begin = time.Now()
		other, err := verifier.Open(cfg, time.Now, timestamp.Reader{})
		if err != nil {
			return nil, err
		}
		again, err := read()
		if err != nil {
			return nil, err
		}
		verdict = other.Verify(ctx, again)
		j.fresh = append(j.fresh, millis(time.Since(begin)))
		if !verdict.Allowed {
			return nil, fmt.Errorf("the verdict is: %s", verdict.Line())
		}
	}
	return j, nil
}

// judgeRemembered asks for a verdict that is remembered: what a second start of the
// agent pays. The list is the large one.
func judgeRemembered(ctx context.Context, cfg nodeconfig.Verify, dir string, read func() (verifier.Input, error)) (*judgements, error) {
	v, err := verifier.Open(cfg, time.Now, timestamp.Reader{})
	if err != nil {
		return nil, err
	}
	kept, err := memory.Open(dir)
	if err != nil {
		return nil, err
	}
	in, err := read()
	if err != nil {
		return nil, err
	}
	if first := kept.Verify(ctx, v, in); !first.Allowed {
		return nil, fmt.Errorf("the verdict is: %s", first.Line())
	}
	runtime.LockOSThread() // its processor time is measured
	defer runtime.UnlockOSThread()
	j := &judgements{}
	for range verifications {
		used, err := threadTime()
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		verdict := kept.Verify(ctx, v, in)
		j.same = append(j.same, millis(time.Since(begin)))
		after, err := threadTime()
		if err != nil {
			return nil, err
		}
		j.cpu = append(j.cpu, millis(after-used))
		if !verdict.Allowed || !verdict.Remembered {
			return nil, fmt.Errorf("the verdict was not remembered: %s", verdict.Line())
		}
	}
	return j, nil
}

// judgeWarm does what the gate before a run does in a new process on a node where
// the agent ran before, but for asking containerd: configuration, policy, stores,
// what is due of the lists, the remembered manifest and the remembered verdict.
func judgeWarm(ctx context.Context, cfg nodeconfig.Verify, dir string, l *oci.Layout, desc ocispec.Descriptor, ref string) (*judgements, error) {
	runtime.LockOSThread() // its processor time is measured
	defer runtime.UnlockOSThread()
	j := &judgements{}
	const warming = 10
	for i := range verifications + warming {
		used, err := threadTime()
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		verdict, err := judgeOnce(ctx, cfg, dir, l, desc, ref)
		if err != nil {
			return nil, err
		}
		took := time.Since(begin)
		after, err := threadTime()
		switch {
		case err != nil:
			return nil, err
		case i < warming:
			continue
		case !verdict.Allowed || !verdict.Remembered:
			return nil, fmt.Errorf("the verdict was not remembered: %s", verdict.Line())
		}
		j.fresh, j.cpu = append(j.fresh, millis(took)), append(j.cpu, millis(after-used))
	}
	return j, nil
}

func judgeOnce(ctx context.Context, cfg nodeconfig.Verify, dir string, l *oci.Layout, desc ocispec.Descriptor, ref string) (*verifier.Verdict, error) {
	v, err := verifier.Open(cfg, time.Now, timestamp.Reader{})
	if err != nil {
		return nil, err
	}
	if err := fetch.Refresh(ctx, v, cfg, nil, false); err != nil {
		return nil, err
	}
	kept, err := memory.Open(dir)
	if err != nil {
		return nil, err
	}
	raw, err := oci.ReadBlob(ctx, kept.Blobs(l), desc, limits.OCIManifestBytes)
	if err != nil {
		return nil, err
	}
	a, err := oci.Read(ctx, kept.Blobs(l), raw)
	if err != nil {
		return nil, err
	}
	return fetch.Judge(ctx, v, cfg, nil, verifier.Input{Reference: ref, Artifact: a}, func(ctx context.Context, in verifier.Input) *verifier.Verdict {
		return kept.Verify(ctx, v, in)
	}), nil
}

// threadTime is the processor time that this thread has used. Unlike the
// clock's, what others do on the machine hardly changes it.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}
