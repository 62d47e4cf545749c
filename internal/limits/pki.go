package limits

import "time"

// Bounds on a certificate authority's server.
const (
	// PKIRequestBytes bounds a request, PKIAnswerBytes its answer.
	PKIRequestBytes = 32 * KiB
	PKIAnswerBytes  = 128 * KiB
	// PKIConnections bounds the connections at once, PKIAddressConnections those of
	// one address.
	PKIConnections        = 512
	PKIAddressConnections = 32
	// PKIHeaderTime bounds a connection until its first request's head is there,
	// handshake included; PKIRequestTime the rest of it, and each answer.
	PKIHeaderTime  = 10 * time.Second
	PKIRequestTime = 30 * time.Second
	// PKIIssuing bounds the requests for certificates that are served or wait at
	// once.
	PKIIssuing = 64
	// PKIAddressBurst and PKIAddressPerMinute bound the requests for certificates of
	// one address.
	PKIAddressBurst     = 30
	PKIAddressPerMinute = 30
	// PKIRenewals bounds how often one certificate is renewed in a day.
	PKIRenewals = 10
	// PKIQueryBytes bounds a request for a time stamp, or about a certificate's state.
	PKIQueryBytes = 8 * KiB
	// PKIAnswering bounds those that are answered or wait at once, PKIQueryBurst and
	// PKIQueriesPerMinute those of one address.
	PKIAnswering        = 64
	PKIQueryBurst       = 300
	PKIQueriesPerMinute = 300
	// PKICallers bounds the addresses and certificates that are remembered for it.
	PKICallers = 16_384
)
