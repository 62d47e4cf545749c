package llm

import (
	"errors"
	"io"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mentatlab/mentat/host/backend"
)

// chunk is one event of a provider's answer. What else it holds is dropped.
type chunk struct {
	Model   string `json:"model"`
	Choices []struct {
		Index        int64   `json:"index"`
		Delta        delta   `json:"delta"`
		FinishReason *string `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
	} `json:"usage"`
	Error jsontext.Value `json:"error"`
}

// delta is what an event adds to the answer.
type delta struct {
	Role             *string    `json:"role,omitzero"`
	Content          *string    `json:"content,omitzero"`
	Refusal          *string    `json:"refusal,omitzero"`
	ReasoningContent *string    `json:"reasoning_content,omitzero"`
	ToolCalls        []toolCall `json:"tool_calls,omitzero"`
}

// size is the length of what the model wrote.
func (d *delta) size() int {
	n := 0
	count := func(s *string) {
		if s != nil {
			n += len(*s)
		}
	}
	count(d.Content)
	count(d.Refusal)
	count(d.ReasoningContent)
	for i := range d.ToolCalls {
		count(d.ToolCalls[i].Function.Name)
		count(d.ToolCalls[i].Function.Arguments)
	}
	return n
}

// The lines of an answer (abi.md).
type (
	deltaLine struct {
		Delta delta `json:"delta"`
	}
	usageLine struct {
		Usage usage `json:"usage"`
	}
	finishLine struct {
		Finish string `json:"finish"`
	}
	usage struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
		Total      int64 `json:"total_tokens"`
		Estimated  bool  `json:"estimated,omitzero"`
	}
)

// translator turns a provider's events into lines.
type translator struct {
	c      *call
	events *events
	model  string

	out   []byte
	err   error // after out
	ended bool

	finish string
	said   *tokens
	// text is the length of the completion so far, pieces how many events brought
	// some.
	text   int
	pieces int64
}

// begin reads up to the first event, which names the model.
func (t *translator) begin() error {
	t.model = t.c.model
	t.advance()
	if len(t.out) == 0 && t.err != nil && !errors.Is(t.err, io.EOF) {
		return t.err
	}
	return nil
}

func (t *translator) Read(p []byte) (int, error) {
	for len(t.out) == 0 && t.err == nil {
		t.advance()
	}
	if len(t.out) == 0 {
		return 0, t.err
	}
	n := copy(p, t.out)
	t.out = t.out[n:]
	return n, nil
}

// advance takes one event.
func (t *translator) advance() {
	data, err := t.events.next()
	switch {
	case errors.Is(err, io.EOF) && t.finish != "":
		// Some endpoints just hang up.
		t.end()
	case err != nil:
		t.err = err
		if errors.Is(err, io.EOF) {
			t.err = io.ErrUnexpectedEOF
		}
	case string(data) == "[DONE]":
		t.end()
	default:
		t.take(data)
	}
}

func (t *translator) take(data []byte) {
	var c chunk
	if err := jsonv2.Unmarshal(data, &c); err != nil {
		t.err = &backend.Refusal{Code: backend.Unavailable, Rule: "provider " + t.c.p.name, Reason: "the provider sends an event that is none of the protocol"}
		return
	}
	if problemText(c.Error) != "" {
		t.err = t.c.brokenOff(c.Error)
		return
	}
	if c.Model != "" && t.pieces == 0 {
		t.model = c.Model
	}
	for i := range c.Choices {
		choice := &c.Choices[i]
		if choice.Index != 0 {
			continue // one was asked for
		}
		if n := choice.Delta.size(); n > 0 {
			t.text += n
			t.pieces++
		}
		if !choice.Delta.empty() {
			t.line(deltaLine{choice.Delta})
		}
		if choice.FinishReason != nil && *choice.FinishReason != "" {
			t.finish = *choice.FinishReason
		}
	}
	if c.Usage != nil && c.Usage.Prompt >= 0 && c.Usage.Completion >= 0 {
		t.said = &tokens{c.Usage.Prompt, c.Usage.Completion}
	}
	// A token is rarely shorter than an event and seldom longer than four bytes.
	count := max(estimated(t.text), t.pieces)
	if t.said != nil {
		count = max(count, t.said.completion)
	}
	if refusal := t.c.ledger.completion(count); refusal != nil && t.err == nil {
		t.err = refusal
	}
}

func (d *delta) empty() bool {
	return d.Role == nil && d.Content == nil && d.Refusal == nil && d.ReasoningContent == nil && len(d.ToolCalls) == 0
}

// end is the proper end of an answer.
func (t *translator) end() {
	if t.ended {
		t.err = io.EOF
		return
	}
	t.ended = true
	counted := t.c.settle(t.said)
	t.line(usageLine{usage{counted.prompt, counted.completion, counted.prompt + counted.completion, t.said == nil}})
	if t.finish == "" {
		t.finish = "stop"
	}
	t.line(finishLine{t.finish})
	if t.err == nil {
		t.err = io.EOF
	}
}

func (t *translator) line(v any) {
	data, err := jsonv2.Marshal(v)
	if err != nil {
		t.err = &backend.Refusal{Code: backend.Internal, Reason: "the answer cannot be encoded"}
		return
	}
	t.out = append(append(t.out, data...), '\n')
}
