// Package testcorpus is the list of what attackers of signed artifacts are known to
// try, by class, with the vectors and tests that show our answer to each. Tests make
// the artifacts and run them through the gates; the documentation prints the list.
//
// Trusted: the test. Hostile: nothing; the artifacts are made elsewhere. Promise: the
// list is closed. A class that nothing shows, a vector of a class or reason that there
// is not, a test that is not there and an empty list fail whoever reads it.
package testcorpus
