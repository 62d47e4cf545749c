package manifest

import (
	"reflect"
	"testing"

	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

const servedHead = "id: a\nversion: 1.0.0\nruntime: wasm\nmodule: a.wasm\nmode: serve\n"

func TestWhatIsNotSaidOfServingHasItsDefault(t *testing.T) {
	standard := hostdoc.Serve{Listen: ":8080", Concurrent: 8, Queue: 32, BufferBytes: 16 * limits.MiB, DrainMillis: 25_000, NoticeMillis: 2_000}
	for name, c := range map[string]struct {
		text string
		body int64
		want func(*hostdoc.Serve)
	}{
		"nothing":     {"", 4 * limits.MiB, func(*hostdoc.Serve) {}},
		"empty":       {"serve: {}\n", 4 * limits.MiB, func(*hostdoc.Serve) {}},
		"port":        {"serve: {port: 9000}\n", 4 * limits.MiB, func(s *hostdoc.Serve) { s.Listen = ":9000" }},
		"concurrency": {"serve: {concurrency: 3}\n", 4 * limits.MiB, func(s *hostdoc.Serve) { s.Concurrent = 3 }},
		"no queue":    {"serve: {queue: 0}\n", 4 * limits.MiB, func(s *hostdoc.Serve) { s.Queue = 0 }},
		"small body":  {"serve: {body: 1KB}\n", 1024, func(*hostdoc.Serve) {}},
		"large body":  {"serve: {body: 64MB}\n", 64 * limits.MiB, func(s *hostdoc.Serve) { s.BufferBytes = 64 * limits.MiB }},
		"type":        {"serve: {content_type: image/png}\n", 4 * limits.MiB, func(s *hostdoc.Serve) { s.ContentType = "image/png" }},
		"short drain": {"serve: {drain: 1s}\n", 4 * limits.MiB, func(s *hostdoc.Serve) { s.DrainMillis, s.NoticeMillis = 1_000, 250 }},
	} {
		m, err := Parse("m.yaml", []byte(servedHead+c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := standard
		c.want(&want)
		if got := m.Served(""); !reflect.DeepEqual(*got, want) || m.BodyLimit() != c.body || !m.Serving() {
			t.Errorf("%s: %+v, body %d", name, *got, m.BodyLimit())
		}
	}
	var none *Manifest
	want := standard
	want.Listen = "127.0.0.1:8080"
	if got := none.Served("127.0.0.1"); !reflect.DeepEqual(*got, want) || none.BodyLimit() != limits.DefaultServeBody || none.Serving() {
		t.Errorf("without a manifest: %+v", *got)
	}
}
