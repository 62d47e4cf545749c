package host

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// mediaOf opens the document's media store, unless the caller brings one. The
// second result is to be closed with the program.
func mediaOf(doc *hostdoc.Document, given media.Store) (media.Store, io.Closer, error) {
	switch {
	case given != nil || doc.Media == nil:
		return given, nil, nil
	case doc.Media.Dir == "":
		return nil, nil, fault.New(fault.Unsupported, doc.Instance, "media in S3 are not served by this host program")
	}
	d, err := media.OpenDir(doc.Media.Dir)
	return d, d, err
}

// givenMedia reads the references that every run of the document may read.
func givenMedia(doc *hostdoc.Document) ([]media.Ref, error) {
	if doc.Media == nil {
		return nil, nil
	}
	var refs []media.Ref
	for _, text := range doc.Media.Given {
		ref, err := media.ParseRef(text)
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, doc.Instance, "the host document's media")
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

const mediaRead, mediaWrite = "media:read", "media:write"

// mayUse judges the use of media; also, if not nil, refuses what is granted.
// False has left its code in the result.
func (c *call) mayUse(access, op string, also *backend.Refusal) bool {
	want := manifest.Capability{Kind: manifest.KindMedia, Access: access}
	rule, dryRun, refused := c.s.p.authority.judge(want)
	switch {
	case refused != nil:
	case c.s.p.media == nil || c.s.p.doc.Media == nil:
		refused = &backend.Refusal{Code: backend.Unsupported, Reason: "granted, but this host has no media store"}
	default:
		refused = also
	}
	if refused != nil {
		c.s.decided(want.String(), op, refused.Code != backend.Denied, refused.Rule, refused.Reason)
		return !c.refuses(want.String(), refused)
	}
	c.s.decided(want.String(), op, true, rule, "")
	c.s.counted(want.String(), op, dryRun)
	return true
}

func downloadMedia(c *call) bool {
	text, ok := c.bytes(0)
	if !ok {
		return false
	}
	s := c.s
	ref, err := media.ParseRef(string(text))
	if err != nil {
		return c.fails(codeInvalid, detail{Reason: err.Error()})
	}
	var notGiven *backend.Refusal
	if _, ok := s.readable[ref]; !ok {
		// The same answer whether the object is there or not.
		notGiven = &backend.Refusal{Code: backend.Denied, Rule: "given", Reason: "this run was not given that reference",
			Hint: "a run reads the media that it was given or wrote; knowing a reference is no right to it"}
	}
	if !c.mayUse(manifest.AccessRead, "download", notGiven) {
		return true
	}
	ctx, cancel := context.WithCancel(s.ctx)
	stop := s.whileWaiting(cancel)
	r, info, err := s.p.media.Open(ctx, ref, s.p.doc.Media.ItemBytes)
	stop()
	if err != nil {
		defer cancel()
		return c.refuses(mediaRead, storeRefusal(ctx, err))
	}
	return c.returns(s.answer(ctx, cancel, mediaRead, info.Size, source{ReadCloser: r}))
}

func uploadMedia(c *call) bool {
	kind, ok := c.bytes(0)
	if !ok {
		return false
	}
	data, ok := c.bytes(2)
	if !ok {
		return false
	}
	s := c.s
	mediaType, err := media.CheckType(string(kind))
	if err != nil {
		return c.fails(codeInvalid, detail{Reason: err.Error()})
	}
	if !c.mayUse(manifest.AccessWrite, "upload", nil) {
		return true
	}
	bounds, n := s.p.doc.Media, int64(len(data))
	switch {
	case n > bounds.ItemBytes:
		return c.fails(codeLimit, detail{Capability: mediaWrite, Reason: fmt.Sprintf("an object has at most %d bytes", bounds.ItemBytes)})
	case n > bounds.TotalBytes-s.uploaded:
		return c.fails(codeLimit, detail{Capability: mediaWrite, Reason: fmt.Sprintf("a run stores at most %d bytes of media", bounds.TotalBytes)})
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stop := s.whileWaiting(cancel)
	defer stop()
	// The guest waits, so its bytes stay as they are.
	ref, err := s.p.media.Put(ctx, mediaType, bytes.NewReader(data), n)
	if err != nil {
		return c.refuses(mediaWrite, storeRefusal(ctx, err))
	}
	s.uploaded += n
	s.readable[ref] = struct{}{}
	return c.returns(s.open(&blob{data: ref.String()}))
}

// storeRefusal is what the guest learns of a store that failed, or was told to
// give up.
func storeRefusal(ctx context.Context, err error) *backend.Refusal {
	if ctx.Err() != nil {
		return &backend.Refusal{Code: backend.Canceled, Reason: "the run is being ended"}
	}
	return refusalOf(err)
}

// whileWaiting cancels what the guest waits for when the guest is asked to end;
// the result ends that.
func (s *session) whileWaiting(cancel func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-done:
		}
	}()
	return func() { close(done) }
}
