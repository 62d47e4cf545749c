package serve

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// wantsEvents tells whether a request asks for events by name. "*/*" does not:
// it is what clients send that never heard of them.
func wantsEvents(h http.Header) bool {
	for _, value := range h.Values("Accept") {
		for item := range strings.SplitSeq(value, ",") {
			name, params, err := mime.ParseMediaType(item)
			if err != nil || name != eventStream {
				continue
			}
			if q, ok := params["q"]; ok {
				if weight, err := strconv.ParseFloat(q, 64); err != nil || !(weight > 0) {
					continue
				}
			}
			return true
		}
	}
	return false
}

// wantsTrailers tells whether a client says that it reads trailers.
func wantsTrailers(h http.Header) bool {
	for _, value := range h.Values("Te") {
		for item := range strings.SplitSeq(value, ",") {
			name, _, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(name), "trailers") {
				return true
			}
		}
	}
	return false
}

// encoded tells whether a body comes in a coding that would have to be undone.
func encoded(h http.Header) bool {
	for _, value := range h.Values("Content-Encoding") {
		if v := strings.TrimSpace(value); v != "" && !strings.EqualFold(v, "identity") {
			return true
		}
	}
	return false
}
