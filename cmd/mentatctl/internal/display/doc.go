// Package display renders mentatctl's results, errors and progress.
//
// Trusted: the commands, which choose what is shown. Hostile: the texts they
// show, which may come from an artifact: in text form each is folded to one
// line without control characters. Promise: with the JSON format stdout carries
// exactly one document with a versioned media type, also when a command fails;
// progress never reaches stdout.
package display
