package pki

// ParseOCSPRequest is for the fuzz target.
var ParseOCSPRequest = parseOCSP
