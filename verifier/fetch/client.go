package fetch

import (
	"fmt"
	"net/http"
	"net/url"
)

func newClient() *http.Client {
	return &http.Client{
		Timeout:       requestTimeout,
		CheckRedirect: sameHost,
	}
}

// ClientThrough is the client that a program has whose environment sends its requests
// through proxy: who asks in another program's place shall get what that would get,
// and nothing else.
func ClientThrough(proxy func(*url.URL) (*url.URL, error)) *http.Client {
	client := newClient()
	client.Transport = &http.Transport{
		Proxy:               func(q *http.Request) (*url.URL, error) { return proxy(q.URL) },
		TLSHandshakeTimeout: requestTimeout,
		ForceAttemptHTTP2:   true,
	}
	return client
}

// sameHost follows a server that sends on to another path, or to TLS, of its own. Which
// host is asked is the policy's word alone.
func sameHost(req *http.Request, via []*http.Request) error {
	switch from := via[len(via)-1].URL; {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case req.URL.Hostname() != from.Hostname():
		return fmt.Errorf("sends on to another host, %s, which the policy does not name", req.URL.Host)
	case req.URL.Scheme != from.Scheme && req.URL.Scheme != "https":
		return fmt.Errorf("sends on to %s", req.URL.Scheme)
	}
	return nil
}
