package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// message is what comes from the host.
type message struct {
	Call   int64           `json:"call"`
	Op     string          `json:"op"`
	Head   json.RawMessage `json:"head"`
	Body   []byte          `json:"body"`
	Cancel int64           `json:"cancel"`
	Read   int64           `json:"read"`
}

// answer is what goes back: one of its parts each time.
type answer struct {
	Call  int64   `json:"call"`
	Head  any     `json:"head,omitempty"`
	Body  []byte  `json:"body,omitempty"`
	End   bool    `json:"end,omitempty"`
	Error *denial `json:"error,omitempty"`
}

type denial struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

const maxNotes = 1000

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	write := json.NewEncoder(out)
	if err := write.Encode(map[string]string{"mentat": "extension/1", "name": "notes"}); err != nil {
		return err
	}
	notes := map[string][]byte{}
	read := json.NewDecoder(bufio.NewReader(in))
	for {
		var m message
		if err := read.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if m.Call == 0 {
			continue // every call is answered before the next: there is nothing to cancel
		}
		for _, a := range handle(notes, &m) {
			a.Call = m.Call
			if err := write.Encode(a); err != nil {
				return err
			}
		}
	}
}

func handle(notes map[string][]byte, m *message) []answer {
	var head struct {
		Key string `json:"key"`
	}
	if json.Unmarshal(m.Head, &head) != nil || head.Key == "" && m.Op != "list" {
		return fail("INVALID", `the head is {"key": NAME}`)
	}
	switch note, there := notes[head.Key]; m.Op {
	case "put":
		if !there && len(notes) >= maxNotes {
			return fail("LIMIT", "there are too many notes")
		}
		notes[head.Key] = m.Body
		return []answer{{End: true}}
	case "get":
		if !there {
			return fail("NOT_FOUND", "there is no such note")
		}
		return []answer{{Head: map[string]int{"size": len(note)}}, {Body: note}, {End: true}}
	case "list":
		keys := []string{}
		for key := range notes {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		return []answer{{Head: map[string][]string{"keys": keys}}, {End: true}}
	}
	return fail("UNSUPPORTED", "the operations are put, get and list")
}

func fail(code, reason string) []answer { return []answer{{Error: &denial{code, reason}}} }
