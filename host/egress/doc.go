// Package egress serves network capabilities: it makes HTTP requests for a guest
// that has no sockets, under the grant that the capability was opened with.
//
// Trusted: the host document, with its grants, ranges and injections, the
// secrets, and the file of authorities. Hostile: the guest's URLs, headers and
// bodies; the servers' answers, redirects above all; the names' addresses.
//
// Promise: every request, and every hop of a redirect, is one that the opened
// capability covers, goes to an address that was judged ([host/dialer]), and
// carries the host, path and headers that were judged and no others. A secret
// that is injected leaves the host in requests to the first origin that its
// injection covers, and reaches neither the guest, an error, nor another host;
// answers are searched for it. No connection is shared between grants.
package egress
