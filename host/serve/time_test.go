package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// The tests of this file run where time is made: an hour passes at once when
// everybody waits.

func TestASilentStreamShowsThatItLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := startPiped(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
			time.Sleep(limits.ServeHeartbeat*2 + time.Second)
			if err := r.Sink.Output([]byte("x")); err != nil {
				t.Error(err)
			}
			time.Sleep(limits.ServeHeartbeat + time.Second)
			return hostdoc.Exit{}
		}), nil)
		got := v.do(http.MethodPost, ProcessPath, nil, header("Accept", eventStream))
		want := ":\n\n:\n\nid: 1\nevent: output\ndata: {\"event\":\"output\",\"data\":\"x\"}\n\n:\n\nid: 2\nevent: exit\ndata: {\"event\":\"exit\",\"status\":0}\n\n"
		if got.body != want {
			t.Errorf("%q", got.body)
		}
	})
}

func TestASlowReaderHoldsTheAgentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written atomic.Int64
		v, _ := startPiped(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
			for range 100 {
				if err := r.Sink.Output(make([]byte, 64<<10)); err != nil {
					t.Error(err)
				}
				written.Add(1)
			}
			return hostdoc.Exit{}
		}), nil)
		answer, err := v.request(http.MethodPost, ProcessPath, nil, header("TE", "trailers"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := written.Load(); n > 2 {
			t.Errorf("%d pieces were written before any was read", n)
		}
		for range 50 {
			if _, err := io.ReadFull(answer.Body, make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := written.Load(); n < 49 || n > 52 {
			t.Errorf("%d pieces were written when 50 were read", n)
		}
		if rest := whole(answer); rest.err != nil || len(rest.body) != 50*64<<10 {
			t.Errorf("%d bytes, %v", len(rest.body), rest.err)
		}
	})
}

func TestAReaderThatStallsEndsTheRun(t *testing.T) {
	for _, accept := range []string{"*/*", eventStream} {
		synctest.Test(t, func(t *testing.T) {
			failed := make(chan error, 1)
			v, _ := startPiped(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
				for {
					if err := r.Sink.Output(make([]byte, 1<<20)); err != nil {
						failed <- err
						return hostdoc.Exit{Status: 124, Reason: string(fault.Canceled)}
					}
				}
			}), nil)
			began := time.Now()
			answer, err := v.request(http.MethodPost, ProcessPath, nil, header("Accept", accept))
			if err != nil {
				t.Fatal(err)
			}
			if err := <-failed; !errors.Is(err, output.ErrGone) {
				t.Errorf("%v", err)
			}
			if took := time.Since(began); took < limits.ServeStall || took > 2*limits.ServeStall {
				t.Errorf("after %v", took)
			}
			if got := whole(answer); got.err == nil {
				t.Error("the answer looks whole")
			}
			synctest.Wait()
			if len(v.admission.slots) != 0 {
				t.Error("the place is held")
			}
		})
	}
}

func TestAnInterruptedSinkGivesTheRunBack(t *testing.T) {
	for name, c := range map[string]struct {
		accept string
		output int
		want   string
	}{
		"while its reader is slow":       {"*/*", 4 << 20, ""},
		"events while its reader sleeps": {eventStream, 4 << 20, ""},
		"before anything was sent":       {"*/*", 1, `"reason":"deadline"`},
		"between events":                 {eventStream, 1, `"reason":"deadline"`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, _ := startPiped(t, agent(func(_ context.Context, r Request) hostdoc.Exit {
					go func() {
						time.Sleep(time.Second)
						r.Sink.(output.Interrupter).Interrupt()
					}()
					began := time.Now()
					err := r.Sink.Output(make([]byte, c.output))
					if err == nil {
						time.Sleep(2 * time.Second)
						err = r.Sink.Output([]byte("x"))
					}
					if !errors.Is(err, output.ErrGone) || time.Since(began) > 3*time.Second {
						t.Errorf("%v after %v", err, time.Since(began))
					}
					return hostdoc.Exit{Status: 121, Reason: string(fault.Deadline), Message: "late"}
				}), nil)
				answer, err := v.request(http.MethodPost, ProcessPath, nil, header("Accept", c.accept))
				if err != nil {
					t.Fatal(err)
				}
				if c.want == "" {
					time.Sleep(5 * time.Second)
				}
				got := whole(answer)
				if c.want == "" && got.err == nil || c.want != "" && (got.err != nil || !strings.Contains(got.body, c.want)) {
					t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
				}
			})
		})
	}
}

func TestABodyMustArriveInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, l := startPiped(t, agent(func(context.Context, Request) hostdoc.Exit {
			t.Error("it ran")
			return hostdoc.Exit{}
		}), nil)
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		began := time.Now()
		sender := make(chan struct{})
		go func() {
			defer close(sender)
			fmt.Fprint(conn, "POST /v1/process HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
			for range 99 {
				time.Sleep(time.Second)
				if _, err := conn.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
		got := whole(readAnswer(t, bufio.NewReader(conn))).wants(t, http.StatusRequestTimeout, "did not arrive")
		if took := time.Since(began); took != limits.ServeBodyTime || !got.Close {
			t.Errorf("after %v, header %v", took, got.Header)
		}
		if len(v.admission.slots) != 0 || v.bodies.held.Load() != 0 {
			t.Error("it held a place")
		}
		conn.Close()
		<-sender
	})
}

func TestARefusedBodyThatComesSlowlyHoldsNothingForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := startPiped(t, agent(echo), nil)
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		began := time.Now()
		fmt.Fprint(conn, "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
		if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if took := time.Since(began); took > limits.ServeBodyTime+time.Second {
			t.Errorf("the connection lived %v", took)
		}
	})
}

func TestALongRunOutlivesTheTimeOfItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := startPiped(t, agent(func(ctx context.Context, r Request) hostdoc.Exit {
			time.Sleep(10 * limits.ServeBodyTime)
			if ctx.Err() != nil {
				t.Error(context.Cause(ctx))
			}
			return echo(ctx, r)
		}), nil)
		v.post("patience").wants(t, http.StatusOK, "patience")
		v.post("again").wants(t, http.StatusOK, "again")
	})
}

func TestAHeaderMustArriveInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := startPiped(t, agent(echo), nil)
		for _, sent := range []string{"", "POST /v1/process HTTP/1.1\r\nHost: loc"} {
			conn, err := l.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if sent != "" {
				fmt.Fprint(conn, sent)
			}
			_, _ = io.ReadAll(conn)
			if took := time.Since(began); took > limits.ServeHeaderTime+time.Second {
				t.Errorf("%q: the connection lived %v", sent, took)
			}
			conn.Close()
		}
	})
}

func TestARestingConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := startPiped(t, agent(echo), nil)
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		began := time.Now()
		_, _ = io.ReadAll(conn)
		if took := time.Since(began); took < limits.ServeIdle || took > limits.ServeIdle+time.Second {
			t.Errorf("after %v", took)
		}
	})
}

func TestNobodyWaitsForAnInstanceForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking()
		v, _ := startPiped(t, b, func(d *hostdoc.Document) { d.Serve.Concurrent = 1 })
		go v.post("first")
		b.next(t)
		began := time.Now()
		v.post("second").wants(t, http.StatusServiceUnavailable, "try again later")
		if took := time.Since(began); took != limits.ServeQueueTime {
			t.Errorf("after %v", took)
		}
		close(b.gate)
		synctest.Wait()
	})
}

func TestADrainLetsRequestsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking()
		v, l := startPiped(t, b, func(d *hostdoc.Document) {
			d.Serve.Concurrent, d.Serve.Queue = 1, 3
			d.Serve.DrainMillis, d.Serve.NoticeMillis = 25_000, 2_000
		})
		v.get(ReadyPath).wants(t, http.StatusOK, "ok")
		running, waiting := make(chan reply, 1), make(chan reply, 1)
		go func() { running <- v.post("running") }()
		b.next(t)
		go func() { waiting <- v.post("waiting") }()
		synctest.Wait()

		v.stop(errStop)
		synctest.Wait()
		if got := v.get(ReadyPath).wants(t, http.StatusServiceUnavailable, "draining"); !got.Close {
			t.Error("the connection is kept")
		}
		v.get(HealthPath).wants(t, http.StatusOK, "ok")
		// Who has not noticed yet is served.
		unnoticed := make(chan reply, 1)
		go func() { unnoticed <- v.post("unnoticed") }()
		time.Sleep(3 * time.Second)
		if _, err := l.dial(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the notice a connection got %v", err)
		}
		select {
		case <-v.done:
			t.Fatalf("it ended before its requests: %v", v.result)
		default:
		}
		time.Sleep(10 * time.Second)
		close(b.gate)
		(<-running).wants(t, http.StatusOK, "running")
		(<-waiting).wants(t, http.StatusOK, "waiting")
		(<-unnoticed).wants(t, http.StatusOK, "unnoticed")
		if err := v.ended(); err != nil {
			t.Errorf("drained with %v", err)
		}
		if got := v.logged(); got != "draining: ended by the test\ndrained" {
			t.Errorf("logged %q", got)
		}
	})
}

func TestAfterTheNoticeNewRequestsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking()
		v, l := startPiped(t, b, func(d *hostdoc.Document) { d.Serve.NoticeMillis = 2_000 })
		go v.post("running")
		b.next(t)
		v.stop(errStop)
		synctest.Wait()
		// Opened in time, used too late.
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		time.Sleep(2*time.Second + time.Millisecond)
		fmt.Fprint(conn, "POST /v1/process HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
		got := whole(readAnswer(t, bufio.NewReader(conn))).wants(t, http.StatusServiceUnavailable, "send the request again")
		if got.Header.Get("Retry-After") == "" || !got.Close {
			t.Errorf("header %v", got.Header)
		}
		close(b.gate)
		if err := v.ended(); err != nil {
			t.Error(err)
		}
	})
}

func TestADrainThatTakesTooLongCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking()
		v, _ := startPiped(t, b, func(d *hostdoc.Document) {
			d.Serve.Concurrent, d.Serve.DrainMillis = 2, 10_000
		})
		replies := make(chan reply, 3)
		for _, body := range []string{"running", "streaming", "waiting"} {
			go func() {
				accept := "*/*"
				if body == "streaming" {
					accept = eventStream
				}
				replies <- v.do(http.MethodPost, ProcessPath, strings.NewReader(body), header("Accept", accept))
			}()
			synctest.Wait()
		}
		began := time.Now()
		v.stop(errStop)
		err := v.ended()
		if took := time.Since(began); took < 10*time.Second || took > 13*time.Second {
			t.Errorf("it took %v", took)
		}
		if fault.ReasonOf(err) != fault.Canceled || !strings.Contains(err.Error(), "2 requests") {
			t.Errorf("%v", err)
		}
		for range 3 {
			got := <-replies
			if !strings.Contains(got.body, `"reason":"canceled"`) || !strings.Contains(got.body, errStop.Error()) || got.err != nil {
				t.Errorf("%s %q, %v", got.Status, got.body, got.err)
			}
			if got.StatusCode != http.StatusServiceUnavailable && got.Header.Get("Content-Type") != eventStream {
				t.Errorf("%s", got.Status)
			}
		}
	})
}

func TestADrainEndsAlsoWhenAnAgentDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		v, _ := startPiped(t, agent(func(context.Context, Request) hostdoc.Exit {
			<-gate
			return hostdoc.Exit{}
		}), nil)
		failed := make(chan error, 1)
		go func() {
			answer, err := v.request(http.MethodPost, ProcessPath, nil, nil)
			if err == nil {
				_, err = io.ReadAll(answer.Body)
			}
			failed <- err
		}()
		synctest.Wait()
		v.stop(errStop)
		if err := v.ended(); fault.ReasonOf(err) != fault.Canceled {
			t.Errorf("%v", err)
		}
		if err := <-failed; err == nil {
			t.Error("the client was told nothing of it")
		}
		close(gate)
		synctest.Wait()
	})
}

func TestARetryIsForWhenThoseThatWaitHaveRun(t *testing.T) {
	a := newAdmission(2, 100)
	for _, c := range []struct {
		pace    time.Duration
		waiting int64
		want    time.Duration
	}{
		{0, 0, time.Second}, {time.Millisecond, 5, time.Second}, {2 * time.Second, 9, 10 * time.Second}, {time.Minute, 50, 30 * time.Second},
	} {
		a.pace.Store(int64(c.pace))
		a.waiting.Store(c.waiting)
		if got := a.retry(); got != c.want {
			t.Errorf("%v a run, %d waiting: %v, want %v", c.pace, c.waiting, got, c.want)
		}
	}
}
