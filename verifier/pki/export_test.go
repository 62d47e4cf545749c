package pki

// ParseOCSPRequest is for the fuzz target.
var ParseOCSPRequest = parseOCSP

// OnStep has fn told how far changes of the time stamp authority came.
func (ca *CA) OnStep(fn func(step string)) { ca.onStep = fn }
