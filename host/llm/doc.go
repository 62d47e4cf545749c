// Package llm serves llm capabilities: streaming chats with models behind
// OpenAI-compatible endpoints that the node's owner configured.
//
// Trusted: the host document with its providers, and their secrets. Hostile: the
// guest's requests, and what the endpoints answer.
//
// Promise: a request reaches only a model that the capability covers and a
// provider offers. It is written anew from fields that are known to act on the
// model alone: nothing in it makes the endpoint fetch an address, use what the
// node's account holds there, or ask another endpoint. A run uses no more tokens
// than its budget, by the provider's count, or by an estimate while there is
// none. The provider's secret reaches the provider and nobody else.
package llm
