package provider

import (
	"errors"
	"net"
	"path"
	"strings"
)

// pattern is what the kubelet matches images by: a host whose labels may be
// globs, its port, and the beginning of a path.
type pattern struct {
	text, port, path string
	labels           []string
}

func parsePattern(text string) (pattern, error) {
	host, below, port := split(text)
	if strings.Contains(text, "://") || host == "" || strings.ContainsAny(below+port, "*?[\\") {
		return pattern{}, errors.New("is not HOST[:PORT][/PATH], where only the host may have wildcards")
	}
	m := pattern{text: text, port: port, path: below, labels: strings.Split(host, ".")}
	for _, label := range m.labels {
		if _, err := path.Match(label, ""); err != nil || label == "" {
			return pattern{}, errors.New("its host has a malformed label")
		}
	}
	return m, nil
}

// split takes HOST:PORT/PATH apart.
func split(image string) (host, below, port string) {
	host, below, _ = strings.Cut(image, "/")
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	}
	return host, below, port
}

// matches tells whether an image, HOST[:PORT]/PATH, falls under the pattern. A
// wildcard stands for one label, and a port must be named by both or by neither.
func (m pattern) matches(image string) bool {
	host, below, port := split(image)
	labels := strings.Split(host, ".")
	if port != m.port || len(labels) != len(m.labels) || !strings.HasPrefix(below, m.path) {
		return false
	}
	for i, label := range m.labels {
		if ok, err := path.Match(label, labels[i]); !ok || err != nil {
			return false
		}
	}
	return true
}
