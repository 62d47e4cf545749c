module github.com/mentatlab/sdk-go

go 1.24
