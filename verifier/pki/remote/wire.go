package remote

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/verifier/pki"
)

// What a server answers to.
const (
	enrolPath  = "/v1/enrol"
	renewPath  = "/v1/renew"
	listsPath  = "/crl/"
	healthPath = "/healthz"
	stampPath  = "/tsa"
	ocspPath   = "/ocsp"

	jsonType   = "application/json"
	requestPEM = "CERTIFICATE REQUEST"
	certPEM    = "CERTIFICATE"
)

// request is the body of both requests. A renewal has no token and no address:
// its client's certificate says who asks.
type request struct {
	// CSR is one PEM block.
	CSR   string `json:"csr"`
	Token string `json:"token,omitempty"`
	Email string `json:"email,omitempty"`
	// ValiditySeconds is how long the certificate shall count; 0 is as long as it
	// may.
	ValiditySeconds int64 `json:"validity_seconds,omitempty"`
}

// answer is what both get.
type answer struct {
	// Chain is PEM, leaf first, without the root.
	Chain string `json:"chain"`
}

// refusal is the body of every other answer.
type refusal struct {
	Reason  fault.Reason `json:"reason"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

// statuses are the reasons that a server tells; all else is its own failure.
var statuses = map[fault.Reason]int{
	fault.Usage:             http.StatusBadRequest,
	fault.SignatureInvalid:  http.StatusBadRequest,
	fault.AccessDenied:      http.StatusUnauthorized,
	fault.IdentityUntrusted: http.StatusForbidden,
	fault.Revoked:           http.StatusForbidden,
	fault.OutsideValidity:   http.StatusForbidden,
	fault.NotFound:          http.StatusNotFound,
	fault.ResourceLimit:     http.StatusTooManyRequests,
	fault.Unavailable:       http.StatusServiceUnavailable,
}

// parseRequest reads a body strictly: no unknown member, none twice, one PEM
// block and nothing beside it.
func parseRequest(body []byte) (*request, *x509.CertificateRequest, error) {
	var r request
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, nil, fault.New(fault.Usage, "request", "is not the JSON that is wanted: %v", err)
	}
	if len(r.CSR) > limits.CertificatePEMBytes {
		return nil, nil, fault.New(fault.Usage, "certificate request", "is over %d bytes", limits.CertificatePEMBytes)
	}
	block, rest := pem.Decode([]byte(r.CSR))
	if block == nil || block.Type != requestPEM || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, fault.New(fault.Usage, "certificate request", "is not one PEM block of type %q", requestPEM)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, fault.New(fault.Usage, "certificate request", "is malformed: %v", err)
	}
	if r.ValiditySeconds < 0 || r.ValiditySeconds > int64(366*24*time.Hour/time.Second) {
		return nil, nil, fault.New(fault.Usage, "validity", "%d seconds are not between 0 and a year", r.ValiditySeconds)
	}
	return &r, csr, pki.CheckRequest(csr)
}

// parseChain reads an answer's chain.
func parseChain(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != certPEM {
			return nil, badAnswer("holds something else than certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, badAnswer("holds a malformed certificate: %v", err)
		}
		if chain = append(chain, c); len(chain) > limits.ChainCertificates {
			return nil, badAnswer("holds over %d certificates", limits.ChainCertificates)
		}
	}
	if len(chain) < 2 {
		return nil, badAnswer("holds %d certificates, not a chain", len(chain))
	}
	return chain, nil
}

func badAnswer(format string, args ...any) *fault.Error {
	return fault.New(fault.Unavailable, "answer of the certificate authority", format, args...)
}

func encodeChain(chain []*x509.Certificate) string {
	var b bytes.Buffer
	for _, c := range chain {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: certPEM, Bytes: c.Raw}))
	}
	return b.String()
}
