package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mentatlab/mentat/internal/testpki"
)

// stepProgram is smallstep's certificate authority as it is, pinned in
// tools/stepca.
const stepProgram = "../../bin/tools/step-ca"

// stepTemplate is what step-ca has to be told for certificates that sign agents.
const stepTemplate = `{
	"subject": {{ toJson .Subject }},
	"sans": {{ toJson .SANs }},
	"keyUsage": ["digitalSignature"],
	"extKeyUsage": ["codeSigning"],
	"crlDistributionPoints": ["%s"]
}`

// stepCA is a step-ca that runs, with the key of its one provisioner.
type stepCA struct {
	address     string
	provisioner *ecdsa.PrivateKey
	client      *http.Client
}

func haveStepCA(t *testing.T) bool {
	if _, err := os.Stat(stepProgram); err != nil {
		t.Logf("step-ca is not here: make bin/tools/step-ca")
		return false
	}
	return true
}

// stepCommands are the commands of transcripts that have to do with step-ca:
//
//	step-ca DIR                     starts one; root.pem, root.crl and intermediate.pem
//	                                are in DIR, STEP_CRL is the address of its list
//	step-sign KIND EMAIL CERT KEY   has it certify a new key, rsa or ec
//	step-revoke CERT                has it revoke a certificate
func stepCommands(t *testing.T) map[string]func(*testscript.TestScript, bool, []string) {
	var ca *stepCA // of the one transcript
	return map[string]func(*testscript.TestScript, bool, []string){
		"step-ca": func(ts *testscript.TestScript, _ bool, args []string) {
			var err error
			ca, err = startStepCA(t, ts, ts.MkAbs(args[0]))
			ts.Check(err)
		},
		"step-sign": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(ca.sign(args[0], args[1], ts.MkAbs(args[2]), ts.MkAbs(args[3])))
		},
		"step-revoke": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(ca.revoke(ts.MkAbs(args[0])))
		},
	}
}

// startStepCA makes a root and an intermediate CA, and has step-ca serve the
// latter. The root's list is made here: step-ca makes none.
func startStepCA(t *testing.T, ts *testscript.TestScript, dir string) (*stepCA, error) {
	now := time.Now()
	p := testpki.New(t, func(r *testpki.Recipe) {
		for _, c := range []*x509.Certificate{r.Root, r.Agent} {
			c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.AddDate(1, 0, 0)
		}
		r.Root.Subject, r.Agent.Subject = testpki.Name("Step Root CA"), testpki.Name("Step Intermediate CA")
	})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{
		"root.pem": testpki.PEM(p.Root), "intermediate.pem": testpki.PEM(p.Agent), "intermediate.key": testpki.KeyPEM(t, p.AgentKey),
		"root.crl": p.RootCRL(func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = now.Add(-time.Minute), now.AddDate(0, 1, 0) }),
	} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name), data, 0o600)); err != nil {
			return nil, err
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.Root)
	ca := &stepCA{provisioner: key, client: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}}
	// Ports that are free now may be taken when it starts.
	for range 5 {
		if err = ca.start(ts, dir); err == nil {
			return ca, nil
		}
	}
	return nil, err
}

func (ca *stepCA) start(ts *testscript.TestScript, dir string) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	ca.address = ports[0]
	crl := "http://" + ports[1] + "/crl"
	var coordinates [2]string
	point, err := ca.provisioner.PublicKey.Bytes()
	if err != nil {
		return err
	}
	for i := range coordinates {
		coordinates[i] = base64.RawURLEncoding.EncodeToString(point[1+32*i : 33+32*i])
	}
	config, err := json.Marshal(map[string]any{
		"root": filepath.Join(dir, "root.pem"), "crt": filepath.Join(dir, "intermediate.pem"), "key": filepath.Join(dir, "intermediate.key"),
		"address": ports[0], "insecureAddress": ports[1], "dnsNames": []string{"127.0.0.1"},
		"logger": map[string]any{"format": "json"},
		"db":     map[string]any{"type": "bbolt", "dataSource": filepath.Join(dir, "db")},
		// Its list says for which distribution point it is: that of the certificates.
		"crl": map[string]any{"enabled": true, "generateOnRevoke": true, "cacheDuration": "24h", "idpURL": crl},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": "agents",
			"key":     map[string]any{"use": "sig", "kty": "EC", "kid": "agents", "crv": "P-256", "alg": "ES256", "x": coordinates[0], "y": coordinates[1]},
			"claims":  map[string]any{"defaultTLSCertDuration": "168h", "maxTLSCertDuration": "168h"},
			"options": map[string]any{"x509": map[string]any{"template": fmt.Sprintf(stepTemplate, crl)}},
		}}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.json"), config, 0o600); err != nil {
		return err
	}
	var log bytes.Buffer
	cmd := exec.Command(stepProgram, filepath.Join(dir, "ca.json"))
	cmd.Env = append(os.Environ(), "HOME="+dir, "STEPPATH="+dir)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		select {
		case <-ended:
			return fmt.Errorf("step-ca does not run: %s", log.String())
		case <-time.After(50 * time.Millisecond):
		}
		if ca.healthy(crl) {
			ts.Defer(stop)
			ts.Setenv("STEP_CRL", crl)
			return nil
		}
		if time.Now().After(deadline) {
			stop()
			return fmt.Errorf("step-ca does not answer: %s", log.String())
		}
	}
}

// healthy tells whether it serves certificates and a list.
func (ca *stepCA) healthy(crl string) bool {
	for _, address := range []string{"https://" + ca.address + "/health", crl} {
		resp, err := ca.client.Get(address)
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

func freePorts(n int) (addresses []string, err error) {
	for range n {
		var c net.ListenConfig
		l, err := c.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// token is what the provisioner's holder lets somebody do once.
func (ca *stepCA) token(path, subject string, names []string) (string, error) {
	now := time.Now()
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": "agents", "aud": "https://" + ca.address + path, "sub": subject, "sans": names, "jti": fmt.Sprintf("%x", id),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"agents","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, ca.provisioner, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func (ca *stepCA) post(path string, body map[string]any, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := ca.client.Post("https://"+ca.address+path, "application/json", bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("step-ca says %s: %s", resp.Status, text)
	}
	return json.Unmarshal(text, answer)
}

func (ca *stepCA) sign(kind, email, certFile, keyFile string) error {
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: email}, EmailAddresses: []string{email}}, key)
	if err != nil {
		return err
	}
	ott, err := ca.token("/1.0/sign", email, []string{email})
	if err != nil {
		return err
	}
	var answer struct {
		Chain []string `json:"certChain"`
	}
	if err := ca.post("/1.0/sign", map[string]any{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), "ott": ott}, &answer); err != nil {
		return err
	}
	if len(answer.Chain) != 2 {
		return fmt.Errorf("a chain of %d certificates", len(answer.Chain))
	}
	return os.WriteFile(certFile, []byte(answer.Chain[0]+answer.Chain[1]), 0o600)
}

func (ca *stepCA) revoke(certFile string) error {
	data, err := os.ReadFile(certFile)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return errors.New("no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	serial := new(big.Int).Set(c.SerialNumber).String()
	ott, err := ca.token("/1.0/revoke", serial, nil)
	if err != nil {
		return err
	}
	var answer struct {
		Status string `json:"status"`
	}
	if err := ca.post("/1.0/revoke", map[string]any{"serial": serial, "ott": ott, "reasonCode": 1, "reason": "lost", "passive": true}, &answer); err != nil {
		return err
	}
	if answer.Status != "ok" {
		return fmt.Errorf("step-ca says %q", answer.Status)
	}
	return nil
}
