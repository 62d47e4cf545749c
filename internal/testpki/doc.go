// Package testpki makes certificate authorities, certificates and revocation
// lists in memory for tests, with one knob for each defect.
//
// Trusted: the test. Hostile: nothing. Promise: without a knob everything
// fits the profile of specification §2.4 but for the key sizes, which are
// chosen for speed; keys are made once a process and shared.
package testpki
