package llm

import (
	"fmt"
	"math"
	"sync"

	"github.com/mentatlab/mentat/host/backend"
)

// budget counts the tokens that may still be used.
type budget struct {
	limit int64

	mu   sync.Mutex
	used int64 // guarded by mu
}

// newBudget allows limit tokens; 0 is no bound.
func newBudget(limit int64) *budget {
	if limit == 0 {
		limit = math.MaxInt64
	}
	return &budget{limit: limit}
}

func (b *budget) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
}

func (b *budget) left() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit - b.used
}

// take adds n unless that is over the limit.
func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used >= b.limit || n > b.limit-b.used {
		return false
	}
	b.used += n
	return true
}

func (b *budget) exhausted() *backend.Refusal {
	return &backend.Refusal{Code: backend.Limit, Rule: "token budget", Reason: fmt.Sprintf("the budget of %d tokens is used up", b.limit)}
}

// tokens are a chat's, of prompt and completion.
type tokens struct{ prompt, completion int64 }

// ledger counts what one chat uses against its budgets.
type ledger struct {
	budgets []*budget

	mu       sync.Mutex
	estimate tokens // counted against the budgets so far; guarded by mu
	settled  bool   // guarded by mu
}

func newLedger(budgets []*budget) *ledger { return &ledger{budgets: budgets} }

// reserve counts a prompt before it is sent.
func (l *ledger) reserve(prompt int64) *backend.Refusal {
	for i, b := range l.budgets {
		if !b.take(prompt) {
			for _, taken := range l.budgets[:i] {
				taken.add(-prompt)
			}
			return b.exhausted()
		}
	}
	l.estimate.prompt = prompt
	return nil
}

// left is what the budgets have for the completion.
func (l *ledger) left() int64 {
	left := int64(math.MaxInt64)
	for _, b := range l.budgets {
		left = min(left, b.left())
	}
	return left
}

// completion counts what was completed so far, and refuses more than there is.
func (l *ledger) completion(n int64) *backend.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled || n <= l.estimate.completion {
		return nil
	}
	more := n - l.estimate.completion
	l.estimate.completion = n
	var refusal *backend.Refusal
	for _, b := range l.budgets {
		if b.add(more); b.left() < 0 && refusal == nil {
			refusal = b.exhausted()
		}
	}
	return refusal
}

// settle ends the count with the provider's word, or with the estimate when it
// gave none. It reports what counts, and whether it is the first to.
func (l *ledger) settle(said *tokens) (t tokens, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled {
		return l.estimate, false
	}
	l.settled = true
	if said == nil {
		return l.estimate, true
	}
	for _, b := range l.budgets {
		b.add(said.prompt + said.completion - l.estimate.prompt - l.estimate.completion)
	}
	l.estimate = *said
	return *said, true
}

// cancel is for a chat that used nothing.
func (l *ledger) cancel() { l.settle(&tokens{}) }

// estimated is how many tokens a text of n bytes may be: a token is about four
// bytes of English.
func estimated(n int) int64 { return int64(n+3) / 4 }
