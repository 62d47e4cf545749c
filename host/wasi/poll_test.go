package wasi

import (
	"bytes"
	"testing"
	"time"
)

// FuzzPolls: whatever a guest subscribes to, it waits for a time that is none of
// the past, or is told that it cannot.
func FuzzPolls(f *testing.F) {
	f.Add(make([]byte, subscriptionBytes))
	f.Add(bytes.Repeat([]byte{0xff}, 2*subscriptionBytes))
	f.Add(append(make([]byte, 8), append([]byte{1}, make([]byte, subscriptionBytes-9)...)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = data[:len(data)/subscriptionBytes*subscriptionBytes]
		g := &Guest{began: time.Now(), table: table{{kind: stdin}}}
		polls, e := g.polls(data)
		if e != Success {
			if polls != nil {
				t.Error("subscriptions beside an error")
			}
			return
		}
		if len(polls) != len(data)/subscriptionBytes {
			t.Errorf("%d subscriptions", len(polls))
		}
		for i, p := range polls {
			event := bytes.Repeat([]byte{0xa5}, eventBytes)
			p.event(event)
			if p.left < 0 || !bytes.Equal(event[:8], data[i*subscriptionBytes:][:8]) || event[10] != p.tag || p.tag > onWrite {
				t.Errorf("%+v, event %q", p, event)
			}
		}
	})
}
