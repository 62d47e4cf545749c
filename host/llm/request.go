package llm

import (
	"errors"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mentatlab/mentat/host/backend"
)

// chatRequest is the part of the protocol's request that is passed on. A field
// that is not here is refused: it could make the endpoint fetch an address, use
// what the account holds, run tools of its own, or (with gateways) choose another
// endpoint.
type chatRequest struct {
	Model    string    `json:"model"`
	Messages []message `json:"messages"`

	Tools             []tool         `json:"tools,omitzero"`
	ToolChoice        jsontext.Value `json:"tool_choice,omitzero"`
	ParallelToolCalls *bool          `json:"parallel_tool_calls,omitzero"`
	ResponseFormat    jsontext.Value `json:"response_format,omitzero"`

	MaxTokens           *int64         `json:"max_tokens,omitzero"`
	MaxCompletionTokens *int64         `json:"max_completion_tokens,omitzero"`
	N                   *int64         `json:"n,omitzero"`
	Stop                jsontext.Value `json:"stop,omitzero"`
	Seed                *int64         `json:"seed,omitzero"`
	Temperature         *float64       `json:"temperature,omitzero"`
	TopP                *float64       `json:"top_p,omitzero"`
	PresencePenalty     *float64       `json:"presence_penalty,omitzero"`
	FrequencyPenalty    *float64       `json:"frequency_penalty,omitzero"`
	LogitBias           jsontext.Value `json:"logit_bias,omitzero"`
	ReasoningEffort     *string        `json:"reasoning_effort,omitzero"`
	Verbosity           *string        `json:"verbosity,omitzero"`

	// The guest's own wish is of no account: the answer is a stream.
	Stream        *bool          `json:"stream,omitzero"`
	StreamOptions jsontext.Value `json:"stream_options,omitzero"`
}

type message struct {
	Role             string         `json:"role"`
	Content          jsontext.Value `json:"content,omitzero"`
	Name             *string        `json:"name,omitzero"`
	ToolCalls        []toolCall     `json:"tool_calls,omitzero"`
	ToolCallID       *string        `json:"tool_call_id,omitzero"`
	Refusal          *string        `json:"refusal,omitzero"`
	ReasoningContent *string        `json:"reasoning_content,omitzero"`
}

// part is one of a message's contents.
type part struct {
	Type       string      `json:"type"`
	Text       *string     `json:"text,omitzero"`
	Refusal    *string     `json:"refusal,omitzero"`
	ImageURL   *imageURL   `json:"image_url,omitzero"`
	InputAudio *inputAudio `json:"input_audio,omitzero"`
}

type imageURL struct {
	URL    string  `json:"url"`
	Detail *string `json:"detail,omitzero"`
}

type inputAudio struct {
	Data   string `json:"data"`
	Format string `json:"format"`
}

// toolCall is a call of a function of the guest's.
type toolCall struct {
	Index    *int64       `json:"index,omitzero"`
	ID       *string      `json:"id,omitzero"`
	Type     *string      `json:"type,omitzero"`
	Function functionCall `json:"function,omitzero"`
}

type functionCall struct {
	Name      *string `json:"name,omitzero"`
	Arguments *string `json:"arguments,omitzero"`
}

type tool struct {
	Type     string   `json:"type"`
	Function function `json:"function"`
}

type function struct {
	Name        string         `json:"name"`
	Description *string        `json:"description,omitzero"`
	Parameters  jsontext.Value `json:"parameters,omitzero"`
	Strict      *bool          `json:"strict,omitzero"`
}

// request is a judged request.
type request struct {
	chatRequest
	// text is the length of what the model reads, media how many images and
	// sounds.
	text, media int
}

// parseRequest reads a guest's request strictly.
func parseRequest(body []byte) (*request, *backend.Refusal) {
	r := new(request)
	if err := jsonv2.Unmarshal(body, &r.chatRequest, jsonv2.RejectUnknownMembers(true)); err != nil {
		return nil, notPassed(err)
	}
	switch {
	case r.Model == "" || len(r.Messages) == 0:
		return nil, invalid("the request needs a model and messages", "")
	case r.N != nil && *r.N != 1:
		return nil, invalid("n must be 1", "ask several times")
	case r.MaxTokens != nil && *r.MaxTokens <= 0, r.MaxCompletionTokens != nil && *r.MaxCompletionTokens <= 0:
		return nil, invalid("a number of tokens must be positive", "")
	}
	for i := range r.Messages {
		if refusal := r.read(&r.Messages[i]); refusal != nil {
			return nil, refusal
		}
	}
	for _, t := range r.Tools {
		if t.Type != "function" {
			return nil, invalid("a tool must be a function of the agent's own", "tools that the provider runs reach further than the agent")
		}
		r.text += len(t.Function.Name) + len(t.Function.Parameters)
		r.add(t.Function.Description)
	}
	r.text += len(r.ResponseFormat)
	return r, r.checkChoice()
}

// notPassed says what of a request cannot be read.
func notPassed(err error) *backend.Refusal {
	var semantic *jsonv2.SemanticError
	if errors.As(err, &semantic) && semantic.JSONPointer != "" {
		return invalid("the request's "+string(semantic.JSONPointer)+" is not what a chat may hold", "fields that act beyond the model are not passed on")
	}
	return invalid("the request is no JSON object with each key once", "it is an OpenAI chat-completions request")
}

func (r *request) checkChoice() *backend.Refusal {
	if len(r.ToolChoice) == 0 || r.ToolChoice.Kind() == '"' {
		return nil
	}
	var named struct {
		Type     string `json:"type"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if !decode(r.ToolChoice, &named) || named.Type != "function" {
		return invalid("tool_choice must be a word, or name a function", "")
	}
	return nil
}

func (r *request) add(text *string) {
	if text != nil {
		r.text += len(*text)
	}
}

// read judges a message.
func (r *request) read(m *message) *backend.Refusal {
	switch m.Role {
	case "system", "developer", "user", "assistant", "tool":
	default:
		return invalid("a message's role is none of system, developer, user, assistant and tool", "")
	}
	r.add(m.Refusal)
	r.add(m.ReasoningContent)
	for _, c := range m.ToolCalls {
		r.add(c.Function.Name)
		r.add(c.Function.Arguments)
	}
	switch m.Content.Kind() {
	case 0, 'n':
		return nil
	case '"':
		r.text += len(m.Content)
		return nil
	}
	var parts []part
	if err := jsonv2.Unmarshal(m.Content, &parts, jsonv2.RejectUnknownMembers(true)); err != nil {
		return invalid("a message's content is neither text nor a list of parts that may be passed on", "text, image_url with a data: URL, and input_audio are")
	}
	for _, p := range parts {
		if refusal := r.readPart(p); refusal != nil {
			return refusal
		}
	}
	return nil
}

func (r *request) readPart(p part) *backend.Refusal {
	r.add(p.Text)
	r.add(p.Refusal)
	switch {
	case p.Type == "text" && p.Text != nil && p.ImageURL == nil && p.InputAudio == nil:
	case p.Type == "refusal" && p.Refusal != nil && p.ImageURL == nil && p.InputAudio == nil:
	case p.Type == "image_url" && p.ImageURL != nil && p.InputAudio == nil:
		if !strings.HasPrefix(p.ImageURL.URL, "data:") {
			return &backend.Refusal{
				Code: backend.Denied, Rule: "image_url", Reason: "an image must be in the request: the endpoint would fetch the address on the agent's behalf",
				Hint: "send it as a data: URL",
			}
		}
		r.media++
	case p.Type == "input_audio" && p.InputAudio != nil && p.ImageURL == nil:
		r.media++
	default:
		return invalid("a part of a message's content does not hold what its type says", "text, image_url with a data: URL, and input_audio may be passed on")
	}
	return nil
}

// mediaTokens is what an image or a sound is taken for.
const mediaTokens = 1000

// estimate is how many tokens the prompt may have.
func (r *request) estimate() int64 { return estimated(r.text) + int64(r.media)*mediaTokens }

// bound lowers what the guest asks for to what is left.
func (r *request) bound(left int64) {
	for _, most := range []*int64{r.MaxTokens, r.MaxCompletionTokens} {
		if most != nil {
			*most = max(1, min(*most, left))
		}
	}
}

// encode writes the request as it is sent.
func (r *request) encode() ([]byte, error) {
	stream := true
	r.Stream, r.N = &stream, nil
	r.StreamOptions = jsontext.Value(`{"include_usage":true}`)
	return jsonv2.Marshal(&r.chatRequest)
}
