package remote

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/tspclient-go"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/testpki"
	"github.com/mentatlab/mentat/verifier/pki"
)

func TestAClockThatIsSetTellsNoTime(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	wall, elapsed := begin, 7*time.Hour // since whenever
	s := newSteady(ServerOptions{Clock: func() time.Time { return wall }, Elapsed: func() time.Duration { return elapsed }})
	for _, c := range []struct {
		name      string
		wall, own time.Duration
		want      fault.Reason
	}{
		{"at once", 0, 0, ""},
		{"a year later", 365 * 24 * time.Hour, 365 * 24 * time.Hour, ""},
		{"set by a little", time.Hour + maxJump, time.Hour, ""},
		{"set back by a little", time.Hour - maxJump, time.Hour, ""},
		{"set forward", time.Hour + maxJump + time.Second, time.Hour, fault.OutsideValidity},
		{"set back", time.Hour - maxJump - time.Second, time.Hour, fault.OutsideValidity},
		{"set right again", 2 * time.Hour, 2 * time.Hour, ""},
		{"in small steps", 3*time.Hour + 2*maxJump, 3 * time.Hour, fault.OutsideValidity},
	} {
		wall, elapsed = begin.Add(c.wall), 7*time.Hour+c.own
		got, err := s.now()
		if fault.ReasonOf(err) != c.want || (err == nil) != got.Equal(wall) {
			t.Errorf("%s: %s, %v", c.name, got, err)
		}
	}
}

func TestAServerWhoseClockJumpsStampsNothingUntilItIsRight(t *testing.T) {
	r := startServices(t)
	stamped := func() bool {
		t.Helper()
		status, _, der := send(t, r.lists+stampPath, stampQuery, stampRequest(t))
		var answer tspclient.Response
		if err := answer.UnmarshalBinary(der); status != http.StatusOK || err != nil {
			t.Fatalf("%d, %v", status, err)
		}
		return len(answer.TimestampToken.FullBytes) > 0
	}
	if !stamped() {
		t.Fatal("no stamp")
	}
	r.shift.Store(int64(30 * 24 * time.Hour))
	if stamped() {
		t.Error("stamped after a jump")
	}
	if log := r.log.String(); !strings.Contains(log, "it jumped") {
		t.Errorf("log: %s", log)
	}
	// The jump left nothing behind that would be in the way now.
	r.shift.Store(0)
	if !stamped() {
		t.Error("no stamp once the clock is right again")
	}
}

func TestAServerWarnsOfATimeStampAuthorityThatEnds(t *testing.T) {
	r := startServices(t)
	if strings.Contains(r.log.String(), "time stamp authority") {
		t.Errorf("log: %s", r.log.String())
	}
	s := &server{o: ServerOptions{CA: r.ca, Clock: r.now, Log: slog.New(slog.NewTextHandler(r.log, nil))}}
	soon := r.ca.Time().NotAfter.Add(-29 * 24 * time.Hour)
	for range 2 {
		if err := s.watchTime(soon); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(r.log.String(), "time stamp authority's certificate ends at"); n != 1 {
		t.Errorf("warned %d times: %s", n, r.log.String())
	}
	other, err := pki.Open(r.ca.Dir(), pki.OpenOptions{TimeRootKey: testpki.RSA(t, "time root", 2048)})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.RenewServices(pki.ServiceOptions{Now: time.Now(), Key: testpki.RSA(t, "renewed time", 2048)}); err != nil {
		t.Fatal(err)
	}
	if err := s.watchTime(soon); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.log.String(), "was renewed: start the server again") {
		t.Errorf("log: %s", r.log.String())
	}
	// Until then it stamps as before.
	status, _, der := send(t, r.lists+stampPath, stampQuery, stampRequest(t))
	var answer tspclient.Response
	if err := answer.UnmarshalBinary(der); status != http.StatusOK || err != nil || len(answer.TimestampToken.FullBytes) == 0 {
		t.Errorf("%d, %v", status, err)
	}
}
