package fetch

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
	"golang.org/x/crypto/ocsp"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/internal/nodeconfig"
	"github.com/mentatlab/mentat/verifier"
)

// askBudget bounds how long a judgement waits for responders.
const askBudget = 5 * time.Second

// askAtOnce is how many questions a refresher asks at once.
const askAtOnce = 16

// Judge judges with verify, and again when OCSP responders could change the verdict
// and were asked: a judgement that ended at one certificate could not ask about those
// of the countersigners behind it. Nobody is asked twice, nor for a spare answer a
// moment after a failure. A verdict that is refused for want of an answer says why there
// is none. A nil client is one with short time-outs.
func Judge(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify, client *http.Client, in verifier.Input,
	verify func(context.Context, verifier.Input) *verifier.Verdict,
) *verifier.Verdict {
	vd := verify(ctx, in)
	if len(vd.Questions) == 0 {
		return vd
	}
	asking, cancel := context.WithTimeout(ctx, askBudget)
	defer cancel()
	var err error
	asked := map[string]bool{}
	for {
		var questions []verifier.Question
		for _, q := range vd.Questions {
			about := string(q.Certificate.Raw)
			if !asked[about] && !(vd.Allowed && failedLately(cfg, q, v.Now())) {
				questions = append(questions, q)
			}
			asked[about] = true
		}
		if len(questions) == 0 {
			break
		}
		err = errors.Join(err, Ask(asking, cfg, client, questions, v.Now()))
		vd = verify(ctx, in)
	}
	if err != nil && (vd.Reason == fault.RevocationUnknown || vd.Reason == fault.SignersMissing) {
		vd.Err = fault.Wrap(errors.Join(vd.Err, err), vd.Reason, "", "no OCSP responder could tell")
		vd.Message = fault.OneLine(vd.Err.Error())
	}
	return vd
}

// failedLately tells whether a question's responder failed a moment ago.
func failedLately(cfg nodeconfig.Verify, q verifier.Question, now time.Time) bool {
	url, err := q.Source.Address(q.Certificate)
	return err == nil && failures(cfg.State).recent(url, now)
}

// Ask asks OCSP responders and writes their answers into cfg.State. It returns
// the joined errors of the questions that were not answered:
// [fault.Unavailable] for a responder that does not answer,
// [fault.RevocationUnknown] for an answer that cannot be used,
// [fault.PolicyDenied] for an address that the policy does not allow.
func Ask(ctx context.Context, cfg nodeconfig.Verify, client *http.Client, questions []verifier.Question, now time.Time) error {
	if client == nil {
		client = newClient()
	}
	asking := *client
	// A responder that sends on elsewhere could be sent by anybody: its address
	// is the policy's word.
	asking.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if err := os.MkdirAll(cfg.State, 0o755); err != nil {
		return fault.Wrap(err, fault.Internal, cfg.State, "cannot make the directory for revocation data")
	}
	errs := make([]error, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { errs[i] = ask(ctx, cfg.State, &asking, q, now) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// RefreshOCSP asks for new answers about the certificates that the gates asked about
// before, ahead of the time when they would ask again. It tells how many answers are
// kept. Its errors are those of [Ask].
func RefreshOCSP(ctx context.Context, v *verifier.Verifier, cfg nodeconfig.Verify, client *http.Client) (kept int, err error) {
	due, kept, err := v.OCSPDue(cfg.State)
	errs := []error{err}
	for batch := range slices.Chunk(due, askAtOnce) {
		if ctx.Err() != nil {
			return kept, errors.Join(append(errs, fault.Wrap(ctx.Err(), fault.Unavailable, "OCSP answers", "not all were asked for"))...)
		}
		errs = append(errs, Ask(ctx, cfg, client, batch, v.Now()))
	}
	return kept, errors.Join(errs...)
}

func ask(ctx context.Context, state string, client *http.Client, q verifier.Question, now time.Time) error {
	url, err := q.Source.Address(q.Certificate)
	if err != nil {
		return err
	}
	request, err := ocsp.CreateRequest(q.Certificate, q.Issuer, nil)
	if err != nil {
		return fault.Wrap(err, fault.RevocationUnknown, url, "cannot ask about %s", q.Certificate.Subject)
	}
	der, err := post(ctx, client, url, request)
	failures(state).note(url, err, now)
	if err != nil {
		return err
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(state, lockFile)).Lock()
	if err != nil {
		return fault.Wrap(err, fault.Internal, state, "cannot lock the revocation data")
	}
	defer unlock()
	if err := verifier.StoreOCSP(state, q.Certificate, q.Issuer, der, now); err != nil {
		return fault.Wrap(err, fault.ReasonOf(err), url, "gave no answer that counts")
	}
	return nil
}

func post(ctx context.Context, client *http.Client, url string, request []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request))
	if err != nil {
		return nil, fault.Wrap(err, fault.PolicyInvalid, url, "is no address")
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, url, "cannot ask the OCSP responder")
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "application/ocsp-response" {
		return nil, fault.New(fault.Unavailable, url, "the OCSP responder says %s, of type %q", resp.Status, kind)
	}
	der, err := limits.Read(resp.Body, limits.OCSPBytes)
	if errors.Is(err, limits.ErrExceeded) {
		return nil, fault.Wrap(err, fault.RevocationUnknown, url, "the OCSP answer cannot be used")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, url, "the OCSP answer breaks off")
	}
	return der, nil
}
