package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/mentatlab/sdk-go/agenttest"
)

func TestCountsWordsAndTheirFrequencies(t *testing.T) {
	for name, c := range map[string]struct {
		text        string
		count       float64
		frequencies map[string]int
	}{
		"no text":     {"", 0, map[string]int{}},
		"only space":  {" \t\n ", 0, map[string]int{}},
		"case":        {"The the THE", 3, map[string]int{"the": 3}},
		"punctuation": {"Stop! (Stop?) – \"stop\".", 4, map[string]int{"stop": 3}},
		"inner marks": {"it's well-known", 2, map[string]int{"it's": 1, "well-known": 1}},
		"not ASCII":   {"Élan élan 東京", 3, map[string]int{"élan": 2, "東京": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			input, err := json.Marshal(map[string]string{"text": c.text})
			if err != nil {
				t.Fatal(err)
			}
			got := agenttest.Run(t, &WordCounter{}, string(input))
			if n := got.Number("count"); n != c.count {
				t.Errorf("count = %v, want %v", n, c.count)
			}
			var out struct{ Frequencies map[string]int }
			got.Decode(&out)
			if len(out.Frequencies) != len(c.frequencies) {
				t.Errorf("frequencies = %v, want %v", out.Frequencies, c.frequencies)
			}
			for word, n := range c.frequencies {
				if out.Frequencies[word] != n {
					t.Errorf("%q occurs %d times, want %d", word, out.Frequencies[word], n)
				}
			}
		})
	}
}

func TestRefusesAnInputWithoutText(t *testing.T) {
	for input, want := range map[string]string{
		`{}`:           `input field "text" is missing`,
		`{"text": 14}`: `input field "text" is a number, wanted is a string`,
		`some words`:   `input is not JSON`,
	} {
		got := agenttest.Run(t, &WordCounter{}, input)
		if got.Err == nil || !strings.Contains(got.Err.Error(), want) {
			t.Errorf("%s: got error %v, want %q", input, got.Err, want)
		}
		if got.Raw != nil {
			t.Errorf("%s: there is an output: %s", input, got.Raw)
		}
	}
}

func TestCountsTheSample(t *testing.T) {
	sample, err := os.ReadFile("input.json")
	if err != nil {
		t.Fatal(err)
	}
	got := agenttest.Run(t, &WordCounter{}, string(sample))
	var doc struct{ Text string }
	if err := json.Unmarshal(sample, &doc); err != nil {
		t.Fatal(err)
	}
	if n := got.Number("count"); n != float64(len(strings.Fields(doc.Text))) || n < 400 {
		t.Errorf("count = %v", n)
	}
}
