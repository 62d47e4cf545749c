package backend

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func pending(ended *atomic.Int32) *Pending {
	return NewPending(func(err error) *Refusal { return &Refusal{Code: Unavailable, Reason: "explained: " + err.Error()} }, func() { ended.Add(1) })
}

func TestAPendingAnswerIsWaitedForAndReadToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int32
		p := pending(&ended)
		got := make(chan string, 1)
		go func() {
			head, refusal := p.Head()
			body, err := io.ReadAll(p)
			if refusal != nil || err != nil {
				t.Errorf("%v, %v", refusal, err)
			}
			got <- string(head) + string(body)
		}()
		synctest.Wait()
		if len(got) != 0 || ended.Load() != 0 {
			t.Fatal("it does not wait")
		}
		p.Answer(json.RawMessage("{}"), strings.NewReader("body"))
		if text := <-got; text != "{}body" || ended.Load() == 0 {
			t.Errorf("%q, ended %d times", text, ended.Load())
		}
	})
}

func TestARefusedAnswerEndsTheCallAndSaysWhyToWhoeverReads(t *testing.T) {
	var ended atomic.Int32
	p := pending(&ended)
	why := &Refusal{Code: Denied, Reason: "no"}
	p.Refuse(why)
	if _, refusal := p.Head(); refusal != why || ended.Load() != 1 {
		t.Errorf("%v, ended %d times", refusal, ended.Load())
	}
	if n, err := p.Read(make([]byte, 1)); n != 0 || !errors.Is(err, why) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestABodyThatBreaksOffSaysWhyOnceAndForGood(t *testing.T) {
	var ended atomic.Int32
	p := pending(&ended)
	p.Answer(nil, iotest.DataErrReader(io.MultiReader(strings.NewReader("part"), iotest.ErrReader(errors.New("torn")))))
	data, err := io.ReadAll(p)
	var refusal *Refusal
	if string(data) != "part" || !errors.As(err, &refusal) || refusal.Code != Unavailable || refusal.Reason != "explained: torn" {
		t.Errorf("%q, %v", data, err)
	}
	if _, again := p.Read(make([]byte, 1)); !errors.Is(again, err) || ended.Load() != 1 {
		t.Errorf("%v, ended %d times", again, ended.Load())
	}
}

func TestClosingWaitsForNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		p := NewPending(func(error) *Refusal { return &Refusal{Code: Canceled} }, func() { w.Close() })
		p.Answer(nil, r)
		go func() { _, _ = p.Read(make([]byte, 1)) }()
		synctest.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}
