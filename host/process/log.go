package process

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mentatlab/mentat/internal/hostdoc"
)

// log writes lines of what runs beside the guest, as package host writes its own.
type log struct {
	mu  sync.Mutex
	w   io.Writer
	doc *hostdoc.Document
}

func newLog(w io.Writer, doc *hostdoc.Document) *log { return &log{w: w, doc: doc} }

func (l *log) line(level, source, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.doc.LogFormat != "json" {
		fmt.Fprintf(l.w, "%s: %s\n", source, message)
		return
	}
	data, err := json.Marshal(struct {
		Time     time.Time `json:"time"`
		Level    string    `json:"level"`
		Source   string    `json:"source"`
		Agent    string    `json:"agent,omitempty"`
		Instance string    `json:"instance,omitempty"`
		Message  string    `json:"msg"`
	}{time.Now().UTC(), level, source, l.doc.Agent.ID, l.doc.Instance, message})
	if err == nil {
		fmt.Fprintf(l.w, "%s\n", data)
	}
}
