package main

import "strings"

// countFrequencies counts words without regard to case and to the punctuation
// around them. A word of nothing but punctuation is no word here.
func countFrequencies(words []string) map[string]int {
	frequencies := make(map[string]int)
	for _, word := range words {
		word = strings.ToLower(strings.Trim(word, ".,;:!?()[]{}\"'«»“”‘’…–—-"))
		if word != "" {
			frequencies[word]++
		}
	}
	return frequencies
}
