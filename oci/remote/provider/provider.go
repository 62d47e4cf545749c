package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest/canonical"
)

// Providers are the programs of a node. They are safe for concurrent use.
type Providers struct {
	programs []program
	now      func() time.Time
	limit    time.Duration

	// mu is held while a program runs: who asks for the same has its answer.
	mu   sync.Mutex
	kept map[string]kept // guarded by mu
}

type program struct {
	name, path string
	args, env  []string
	match      []pattern
	keep       time.Duration
}

// kept is an answer that may be used again.
type kept struct {
	until time.Time
	auth  []entry
}

type entry struct {
	pattern
	Credential
}

// Credential is a user name and a secret. Its text hides both.
type Credential struct {
	Username, Password string
}

// String implements [fmt.Stringer], so that no log shows a secret by accident.
func (Credential) String() string { return "(a credential)" }

// GoString is the same for %#v.
func (c Credential) GoString() string { return c.String() }

// request is CredentialProviderRequest.
type request struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Image      string `json:"image"`
}

// response is CredentialProviderResponse.
type response struct {
	Kind          string          `json:"kind"`
	APIVersion    string          `json:"apiVersion"`
	CacheKeyType  string          `json:"cacheKeyType"`
	CacheDuration *string         `json:"cacheDuration"`
	Auth          map[string]auth `json:"auth"`
}

type auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// responseKind is what an answer says that it is.
const responseKind = "CredentialProviderResponse"

// Credential finds what an image, HOST[:PORT]/PATH without tag and digest, is
// fetched with. ok is false where no provider has anything for it. The first
// provider that has counts, and of its answer the longest pattern. Errors:
// AccessDenied for a program that fails or answers with anything but the protocol.
func (p *Providers) Credential(ctx context.Context, image string) (c Credential, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, prog := range p.programs {
		if !slices.ContainsFunc(prog.match, func(m pattern) bool { return m.matches(image) }) {
			continue
		}
		found, err := p.answer(ctx, prog, image)
		if err != nil {
			return Credential{}, false, err
		}
		for _, e := range found {
			if e.matches(image) {
				return e.Credential, true, nil
			}
		}
	}
	return Credential{}, false, nil
}

// cacheKeys are what an answer is kept under, by its cacheKeyType.
func cacheKeys(prog, image string) map[string]string {
	registry, _, _ := strings.Cut(image, "/")
	return map[string]string{"Image": prog + " image " + image, "Registry": prog + " registry " + registry, "Global": prog + " global"}
}

// answer is a program's, a kept one while it holds.
func (p *Providers) answer(ctx context.Context, prog program, image string) ([]entry, error) {
	keys, now := cacheKeys(prog.name, image), p.now()
	for _, key := range keys {
		if k, ok := p.kept[key]; ok && now.Before(k.until) {
			return k.auth, nil
		}
	}
	out, err := prog.run(ctx, p.limit, image)
	if err != nil {
		return nil, err
	}
	r, err := parse(out)
	if err != nil {
		return nil, fault.New(fault.AccessDenied, "credential provider "+prog.name, "%v", err)
	}
	keep := prog.keep
	if r.keep != nil {
		keep = *r.keep
	}
	if keep > 0 {
		p.kept[keys[r.key]] = kept{until: now.Add(keep), auth: r.auth}
	}
	return r.auth, nil
}

// exact tells whether the keys of an answer that could be decoded are spelled as
// they are: the decoder takes other cases too, so that of auth and AUTH in one
// answer its reader could not tell which counts.
func exact(data []byte) bool {
	var top map[string]json.RawMessage
	if json.Unmarshal(data, &top) != nil {
		return false
	}
	for key := range top {
		if !slices.Contains([]string{"kind", "apiVersion", "cacheKeyType", "cacheDuration", "auth"}, key) {
			return false
		}
	}
	var auth map[string]map[string]json.RawMessage
	if raw, ok := top["auth"]; ok && json.Unmarshal(raw, &auth) != nil {
		return false
	}
	for _, one := range auth {
		for key := range one {
			if key != "username" && key != "password" {
				return false
			}
		}
	}
	return true
}

// parsed is an answer that kept to the protocol.
type parsed struct {
	key  string
	keep *time.Duration
	auth []entry
}

// parse reads an answer. Its errors are made of constants: text of the answer
// could be a secret.
func parse(data []byte) (*parsed, error) {
	if canonical.Check(data) != nil {
		return nil, errors.New("its answer is not strict JSON")
	}
	var r response
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if dec.Decode(&r) != nil || !exact(data) {
		return nil, errors.New("its answer is not a " + responseKind)
	}
	if r.Kind != responseKind || r.APIVersion != protocol {
		return nil, errors.New("its answer is not a " + responseKind + " of " + protocol)
	}
	out := &parsed{key: r.CacheKeyType}
	if _, ok := cacheKeys("", "")[r.CacheKeyType]; !ok {
		return nil, errors.New("its answer's cacheKeyType is none of Image, Registry and Global")
	}
	if r.CacheDuration != nil {
		d, err := time.ParseDuration(*r.CacheDuration)
		if err != nil || d < 0 {
			return nil, errors.New("its answer's cacheDuration is not a duration")
		}
		out.keep = &d
	}
	for text, a := range r.Auth {
		m, err := parsePattern(text)
		if err != nil {
			return nil, errors.New("its answer has credentials for something that is no image pattern")
		}
		if strings.ContainsAny(a.Username+a.Password, "\r\n\x00") || strings.Contains(a.Username, ":") {
			return nil, errors.New("its answer has a credential that cannot be sent")
		}
		out.auth = append(out.auth, entry{m, Credential(a)})
	}
	// As the kubelet does: the longer pattern before its beginning, names before
	// wildcards.
	slices.SortFunc(out.auth, func(a, b entry) int { return strings.Compare(b.text, a.text) })
	return out, nil
}

// run runs the program and gives what it wrote, which nothing but parse may see.
// What it says on standard error is dropped: it could be a secret.
func (p program) run(ctx context.Context, limit time.Duration, image string) ([]byte, error) {
	on := "credential provider " + p.name
	in, err := json.Marshal(request{Kind: "CredentialProviderRequest", APIVersion: protocol, Image: image})
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, on, "cannot be asked")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdin = bytes.NewReader(in)
	out := &bounded{full: cancel}
	cmd.Stdout = out
	cmd.WaitDelay = limits.CredentialProviderWait // a child of its may hold the pipe
	err = cmd.Run()
	switch {
	case out.over:
		return nil, fault.New(fault.AccessDenied, on, "its answer is over %d bytes", limits.CredentialProviderBytes)
	case ctx.Err() != nil:
		return nil, fault.New(fault.AccessDenied, on, "no answer within %s", limit)
	case err != nil:
		return nil, fault.Wrap(err, fault.AccessDenied, on, "cannot be run or failed")
	}
	return out.data.Bytes(), nil
}

// bounded takes an answer up to its limit and then ends the program. The buffer is
// not embedded: its ReadFrom would go past the limit.
type bounded struct {
	data bytes.Buffer
	over bool
	full func()
}

var errFull = errors.New("too much")

// Write implements [io.Writer].
func (b *bounded) Write(data []byte) (int, error) {
	if b.over || b.data.Len()+len(data) > limits.CredentialProviderBytes {
		b.over = true
		b.full()
		return 0, errFull
	}
	return b.data.Write(data)
}
