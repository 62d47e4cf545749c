module github.com/mentatlab/mentat/agents/word-counter

go 1.24

require github.com/mentatlab/sdk-go v0.0.0

replace github.com/mentatlab/sdk-go => ../../sdk/go
