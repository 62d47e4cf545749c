# MentatLab. `make` lists what can be made.
#
# Privilege: everything runs as any user, except what the list below marks with
# [root]: those start a private containerd in a temporary directory, take it
# away again, and touch no other.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

MODULE   := github.com/mentatlab/mentat
VERSION  := $(shell cat VERSION)
REVISION := $(shell git rev-parse --short=12 HEAD 2>/dev/null)$(shell git status --porcelain 2>/dev/null | grep -q . && echo -dirty)
STAMP    := -s -w -X $(MODULE)/internal/version.Version=$(VERSION) -X $(MODULE)/internal/version.Revision=$(REVISION)
# The revision is in the stamp; the go command's own would fail in a tree whose
# owner is somebody else.
GOBUILD  := go build -trimpath -buildvcs=false
# Of our own programs: without it gRPC carries a web page for tracing into the
# shim, which then is larger and starts slower.
TAGS     := grpcnotrace

# Static glibc warns about what wasmtime could look up and mentat-host never
# does: users, hosts and plugins. Asked when it is used: before, there may be no ld.
QUIETLD   = $(shell ld --help 2>/dev/null | grep -q -e --no-warnings && echo -Wl,--no-warnings)

PROGRAMS := mentatctl containerd-shim-mentat-v1 mentat-shim mentat mentat-verifier
# What the tests drive, pinned in a module of its own, so that none of it
# reaches the product's go.mod.
TOOLS    := containerd ctr containerd-shim-runc-v2 registry
TOOLPKGS := github.com/containerd/containerd/v2/cmd/containerd \
            github.com/containerd/containerd/v2/cmd/ctr \
            github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
            github.com/distribution/distribution/v3/cmd/registry

# An older containerd that the shim must serve too; only tests need it.
OLDTOOL  := github.com/containerd/containerd/v2/cmd/containerd

# Other modules of this repository, each with its own tests.
MODULES  := $(patsubst %/go.mod,%,$(filter-out tools/%,$(wildcard sdk/*/go.mod agents/*/go.mod)))
UNIT     = $$(go list ./... | grep -v '^$(MODULE)/integration')
# Packages with goroutines of their own.
RACE     := ./aot/... ./bundle/... ./shim/... ./oci/... ./verifier/... ./cmd/mentatctl/internal/... ./cmd/mentat-verifier/... ./host/... ./capability/... ./node/...
FUZZTIME ?= 10s
RUNTESTS := go run ./scripts/runtests -skips scripts/skips.txt --

##@ Use

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z][a-z-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build tools ## [root] the main job on real parts, as a transcript (minutes the first time, then seconds)
	@go run ./demo

.PHONY: build
build: deps ## our programs, into bin/
	@[ -e bin/mentat-host ] || echo "building MentatLab (the first time this fetches and compiles its libraries)"
	@CGO_ENABLED=0 $(GOBUILD) -tags $(TAGS) -ldflags '$(STAMP)' -o bin/ $(PROGRAMS:%=./cmd/%)
	@CGO_ENABLED=1 $(GOBUILD) -tags netgo,osusergo -ldflags '$(STAMP) -linkmode external -extldflags "-static $(QUIETLD)"' -o bin/ ./cmd/mentat-host ./cmd/mentat-host-net
	@CGO_ENABLED=1 $(GOBUILD) -ldflags '$(STAMP)' -o bin/ ./cmd/mentat-pkcs11

.PHONY: tools
tools: $(TOOLS:%=bin/tools/%) bin/tools/runc ## containerd, ctr, runc and registry, pinned, into bin/tools/

$(TOOLS:%=bin/tools/%) &: tools/node/go.mod tools/node/go.sum | deps
	@echo "building containerd, ctr and registry (minutes, once)"
	@cd tools/node && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../bin/tools/ $(TOOLPKGS)
	@touch $(TOOLS:%=bin/tools/%)

bin/tools/runc: tools/node/go.mod tools/node/go.sum | deps
	@echo "building runc"
	@cd tools/node && CGO_ENABLED=1 $(GOBUILD) -tags seccomp -ldflags '-s -w' -o ../../bin/tools/ github.com/opencontainers/runc
	@touch $@

bin/tools/containerd-old: tools/oldnode/go.mod tools/oldnode/go.sum | deps
	@echo "building an old containerd"
	@cd tools/oldnode && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../$@ $(OLDTOOL)
	@touch $@

# The build before this one, to upgrade from; only tests need it.
.PHONY: previous
previous: deps
	@scripts/previous.sh

bin/tools/versitygw: tools/s3/go.mod tools/s3/go.sum | deps
	@echo "building an S3 server"
	@cd tools/s3 && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../$@ github.com/versity/versitygw/cmd/versitygw
	@touch $@

bin/tools/step-ca: tools/stepca/go.mod tools/stepca/go.sum | deps
	@echo "building smallstep's certificate authority"
	@cd tools/stepca && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../$@ github.com/smallstep/certificates/cmd/step-ca
	@touch $@

.PHONY: chatserver
chatserver:
	@scripts/llm.sh

.PHONY: deps
deps: ## [root, if something is missing] what Debian 12 lacks to build; says so when nobody is root
	@scripts/deps.sh

.PHONY: testdeps
testdeps: ## [root, if something is missing] the same, and what tests and benchmarks use besides
	@scripts/deps.sh test

##@ Check

.PHONY: test
test: testdeps check cross build tools previous bin/tools/containerd-old bin/tools/versitygw bin/tools/step-ca chatserver ## [root] everything: checks, unit tests, races, every module, integration, the benchmark's short form
	@go run ./bench -pairs 2
	@$(RUNTESTS) -timeout 20m $(UNIT) \
		$(foreach m,$(MODULES),-- -C $(m) ./...) \
		-- -race -timeout 20m $(RACE) \
		-- -count=1 -timeout 30m ./integration/...

.PHONY: unit
unit: bin/tools/versitygw bin/tools/step-ca chatserver ## the main module's tests that need no root and no network
	@$(RUNTESTS) -timeout 20m $(UNIT)

.PHONY: race
race: bin/tools/versitygw bin/tools/step-ca chatserver ## the same with the race detector, where there are goroutines
	@$(RUNTESTS) -race -timeout 20m $(RACE)

.PHONY: integration
integration: build tools previous bin/tools/containerd-old ## [root] end to end, against a private containerd and registry
	@$(RUNTESTS) -count=1 -timeout 30m ./integration/...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: testdeps build tools ## [root] the numbers of docs/performance.md, into bench.json
	@go run ./bench -json bench.json

.PHONY: check
check: deps ## formatting, vet, tidy modules, lint
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*' -not -path '*/testdata/*')); \
		[ -z "$$unformatted" ] || { echo "gofmt these:"; echo "$$unformatted"; exit 1; }
	@for f in scripts/*.sh .ci/run; do sh -n "$$f" || exit 1; done
	@for m in . $(MODULES); do (cd $$m && go mod tidy -diff) || { echo "$$m: run go mod tidy"; exit 1; }; done
	@for m in . $(MODULES); do (cd $$m && go vet ./...) || exit 1; done
	@scripts/lint.sh

.PHONY: cross
cross: ## mentatctl for the other systems it is built for
	@CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GOBUILD) -o /dev/null ./cmd/mentatctl
	@CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GOBUILD) -o /dev/null ./cmd/mentatctl

##@ Clean

.PHONY: clean
clean: ## what was built, the pinned tools included
	@rm -rf bin bench.json coverage.out
