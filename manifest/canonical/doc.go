// Package canonical brings JSON into the one form in which it is signed and
// compared: RFC 8785 (JCS) behind a strict check of our own.
//
// Trusted: nothing. Hostile: every byte of the input. Promise: whatever
// [Check] accepts has exactly one meaning to every JSON reader – no key occurs
// twice under any spelling, no number loses precision, no string holds half a
// character – so two readers can never be shown two different documents.
package canonical
