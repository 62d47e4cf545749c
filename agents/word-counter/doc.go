// Command word-counter is the first example agent: it counts the words of a
// text. Input {"text": "…"}, output {"count": 3, "frequencies": {"word": 1, …}}.
//
// Hostile: the input. Trusted: the host. Promise: it needs no capability.
package main
