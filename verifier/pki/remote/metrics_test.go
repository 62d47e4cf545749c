package remote

import (
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// scraped are the metrics as a collector gets them.
func (r *running) scraped() string {
	r.tb.Helper()
	resp, err := http.Get(r.metrics + "/metrics")
	if err != nil {
		r.tb.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.tb.Fatal(resp.Status, err)
	}
	return string(data)
}

func TestMetricsTellWhatBecameOfEachRequest(t *testing.T) {
	r := startServices(t)
	chain := r.enrol(ecKey(t), "dev@example.com")
	r.post(renewPath, jsonType, body(t, csrPEM(t, ecKey(t), &x509.CertificateRequest{}), ""), nil)
	r.post(enrolPath, jsonType, []byte("hello"), nil)
	r.post("/v1/nothing-of-ours", jsonType, nil, nil)
	for _, name := range []string{"agent.crl", "no.crl"} {
		resp, err := http.Get(r.lists + listsPath + name)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	send(t, r.lists+stampPath, stampQuery, []byte("no query"))
	send(t, r.lists+ocspPath, ocspRequest, []byte("no query"))
	send(t, r.lists+ocspPath, "text/plain", []byte("no query"))
	text := r.scraped()
	for _, want := range []string{
		`mentatlab_pki_requests_total{request="enrol",result="ok"} 1`,
		`mentatlab_pki_requests_total{request="enrol",result="usage"} 1`,
		`mentatlab_pki_requests_total{request="renew",result="usage"} 1`,
		`mentatlab_pki_requests_total{request="other",result="not-found"} 1`,
		`mentatlab_pki_requests_total{request="list",result="ok"} 1`,
		`mentatlab_pki_requests_total{request="list",result="not-found"} 1`,
		`mentatlab_pki_requests_total{request="stamp",result="usage"} 1`,
		`mentatlab_pki_requests_total{request="ocsp",result="usage"} 2`,
		`mentatlab_pki_request_seconds_count{request="enrol"} 2`,
		`mentatlab_pki_lists_current 1`,
		fmt.Sprintf(`mentatlab_pki_certificate_not_after_timestamp_seconds{certificate="agent"} %v`, float64(r.ca.Agent().NotAfter.Unix())),
		fmt.Sprintf(`mentatlab_pki_certificate_not_after_timestamp_seconds{certificate="root"} %v`, float64(r.ca.Root().NotAfter.Unix())),
		fmt.Sprintf(`mentatlab_pki_certificate_not_after_timestamp_seconds{certificate="timestamp"} %v`, float64(r.ca.Time().NotAfter.Unix())),
		`mentatlab_pki_certificate_not_after_timestamp_seconds{certificate="server"}`,
		`mentatlab_pki_certificate_not_after_timestamp_seconds{certificate="ocsp"}`,
		`mentatlab_pki_list_next_update_timestamp_seconds{list="agent"}`,
		`mentatlab_pki_list_next_update_timestamp_seconds{list="roots"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, secret := range []string{"dev@example.com", "nothing-of-ours", "127.0.0.1", chain[0].SerialNumber.Text(16)} {
		if strings.Contains(text, secret) {
			t.Errorf("they tell of %s", secret)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "mentatlab_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// A list that cannot be renewed is what an operator must hear of first.
func TestMetricsTellOfAListThatIsNotCurrent(t *testing.T) {
	ca := newCA(t, "http://pki.example/crl")
	s, err := newServer(ServerOptions{CA: ca, Clock: time.Now, Names: []string{"a"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	read := func(s *server) string {
		w := httptest.NewRecorder()
		s.metrics.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Body.String()
	}
	s.measure(time.Time{})
	if got := read(s); !strings.Contains(got, "mentatlab_pki_lists_current 1") || strings.Contains(got, `{list="agent"}`) || !strings.Contains(got, `{list="roots"}`) {
		t.Error(got)
	}
	s.healthy.Store(false)
	s.measure(time.Now())
	if got := read(s); !strings.Contains(got, "mentatlab_pki_lists_current 0") || !strings.Contains(got, `{list="agent"}`) {
		t.Error(got)
	}
}

func TestNothingListensWhereOneAddressIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, change := range map[string]func(*ServerOptions){
		"lists":   func(o *ServerOptions) { o.ListsListen = taken.Addr().String() },
		"metrics": func(o *ServerOptions) { o.MetricsListen = taken.Addr().String() },
	} {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := free.Addr().String()
		free.Close()
		o := ServerOptions{CA: newCA(t, "http://pki.example/crl"), Listen: address, Clock: time.Now, Names: []string{"a"}, Log: slog.New(slog.DiscardHandler),
			Ready: func(Addresses) { t.Errorf("%s: it answers", name) }}
		change(&o)
		if err := Serve(t.Context(), o); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
			t.Errorf("%s: %v", name, err)
		}
		again, err := net.Listen("tcp", address)
		if err != nil {
			t.Errorf("%s: the server's address is still taken: %v", name, err)
			continue
		}
		again.Close()
	}
}
