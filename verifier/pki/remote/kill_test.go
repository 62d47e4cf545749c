package remote

import (
	"bufio"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier/pki"
)

// childEnv names the CA that the test's own program serves when it was started to
// be killed.
const childEnv = "TEST_PKI_SERVER"

// childListsEnv makes it serve over plain HTTP, too, and say where.
const childListsEnv = "TEST_PKI_LISTS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, serveChild(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serveChild(dir string) error {
	ca, err := pki.Open(dir, pki.OpenOptions{})
	if err != nil {
		return err
	}
	o := ServerOptions{
		CA: ca, Listen: "127.0.0.1:0", Names: []string{"127.0.0.1"}, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
		Ready: func(at Addresses) { fmt.Println(at.Server) },
	}
	if os.Getenv(childListsEnv) != "" {
		o.ListsListen, o.Ready = "127.0.0.1:0", func(at Addresses) { fmt.Println(at.Lists) }
	}
	return Serve(context.Background(), o)
}

// developer is one client, over all the servers that are killed under it.
type developer struct {
	r     *running
	email string
	key   crypto.Signer
	token string
	chain []*x509.Certificate
	got   []string
}

// work enrols, renews, revokes and enrols anew until the server is gone.
func (d *developer) work(ctx context.Context, url string) error {
	for ctx.Err() == nil {
		c, err := NewClient(ClientOptions{URL: url, Roots: d.r.roots(), Chain: d.chain, Key: d.key})
		if err != nil {
			return err
		}
		o := pki.LeafOptions{Email: d.email, Now: time.Now()}
		var chain []*x509.Certificate
		if d.chain == nil {
			chain, err = c.Enrol(ctx, d.key, d.token, o)
		} else {
			chain, err = c.Renew(ctx, d.key, o)
		}
		switch {
		case err == nil:
			d.chain = chain
			d.got = append(d.got, chain[0].SerialNumber.Text(16))
		case fault.ReasonOf(err) == fault.ResourceLimit:
			<-ctx.Done()
		case fault.ReasonOf(err) != fault.Unavailable:
			return err
		}
	}
	return nil
}

func TestAServerThatIsKilledLosesAndRepeatsNoSerial(t *testing.T) {
	r := &running{tb: t, ca: newCA(t, "http://pki.example/crl")}
	var developers []*developer
	number := new(big.Int)
	revoked := map[string]bool{}
	var gone []*developer
	for round := range 15 {
		// The last of the old ones go on with what they have.
		for i := range 4 {
			email := fmt.Sprintf("dev%d.%d@example.com", round, i)
			developers = append(developers, &developer{r: r, email: email, key: ecKey(t), token: r.token(email)})
		}
		active := developers[max(0, len(developers)-8):]
		killRound(t, r, active)
		if _, err := r.ca.CheckLog(""); err != nil {
			t.Fatal(err)
		}
		if d := active[0]; d.chain != nil {
			serial := d.chain[0].SerialNumber
			developers = slices.DeleteFunc(developers, func(o *developer) bool { return o == d })
			gone = append(gone, d)
			if err := r.ca.Revoke(serial, pki.Superseded, time.Now()); err != nil {
				t.Fatal(err)
			}
			revoked[serial.Text(16)] = true
		}
		list, err := r.published()
		if err != nil {
			t.Fatal(err)
		}
		if list.Number.Cmp(number) < 0 || len(list.RevokedCertificateEntries) != len(revoked) {
			t.Errorf("list %s with %d entries after %s, %d were revoked", list.Number, len(list.RevokedCertificateEntries), number, len(revoked))
		}
		number = list.Number
	}
	all, err := r.ca.Issued()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]string{}
	for _, c := range all {
		if _, twice := known[c.Serial]; twice {
			t.Errorf("%s is there twice", c.Serial)
		}
		known[c.Serial] = c.Email
	}
	got, served := map[string]bool{}, 0
	for _, d := range append(gone, developers...) {
		for _, serial := range d.got {
			if got[serial] || known[serial] != d.email {
				t.Errorf("%s, given to %s: %v before, the CA knows %q", serial, d.email, got[serial], known[serial])
			}
			got[serial] = true
		}
		if len(d.got) > 0 {
			served++
		}
	}
	if served < 10 {
		t.Errorf("only %d of %d developers were served", served, len(developers))
	}
	t.Logf("%d certificates in the log, %d arrived at %d developers", len(all), len(got), served)
}

func (r *running) published() (*x509.RevocationList, error) {
	if _, err := r.ca.Refresh(time.Now()); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(r.ca.Dir() + "/" + pki.AgentCRL)
	if err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(data)
}

// killRound lets developers work on a server that is killed meanwhile.
func killRound(t *testing.T, r *running, active []*developer) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+r.ca.Dir())
	var stderr safeBuffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the server does not start: %v %s", err, stderr.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i, d := range active {
		wg.Go(func() {
			if err := d.work(ctx, "https://"+strings.TrimSpace(address)); err != nil {
				t.Errorf("developer %d: %v", i, err)
			}
		})
	}
	// Any moment will do.
	time.Sleep(mrand.N(250 * time.Millisecond))
	cmd.Process.Kill()
	cmd.Wait()
	cancel()
	wg.Wait()
	if stderr.String() != "" {
		t.Fatalf("the server: %s", stderr.String())
	}
}
