// Package agenttest runs an agent in a unit test, without a runtime and as
// often as wanted.
//
//	func TestGreets(t *testing.T) {
//		got := agenttest.Run(t, Greeter{}, `{"name": "Ada"}`)
//		if got.Err != nil || got.String("greeting") != "Hello, Ada" {
//			t.Errorf("got %+v", got)
//		}
//	}
//
// Trusted: the test. Hostile: nothing. Promise: the agent gets what a MentatLab
// host would give it, settings only as the test sets them; a test that runs
// agents must not do so in parallel with others.
package agenttest
