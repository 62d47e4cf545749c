#!/bin/sh
# Runs golangci-lint over the module after it has proven that each of its bans
# fires. Usage: scripts/lint.sh [package pattern...]; default: ./...
# The linter is built once from tools/lint into bin/tools.
set -eu
cd "$(dirname "$0")/.."

bin=$PWD/bin/tools/golangci-lint
stamp=$bin.version
want=$(cd tools/lint && go list -m -f '{{.Version}}' github.com/golangci/golangci-lint/v2)-$(go env GOVERSION)
if [ ! -x "$bin" ] || [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
	echo "building golangci-lint $want (minutes, once)"
	mkdir -p "$(dirname "$bin")"
	(cd tools/lint && go build -trimpath -ldflags '-s -w' -o "$bin.new" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
	mv "$bin.new" "$bin"
	echo "$want" >"$stamp"
fi

# A configuration that silently lost a ban must not pass.
out=$(GOLANGCI_LINT=$bin go test -count=1 -v -run '^TestEachBanOfTheLinterFires$' ./internal/arch) || { echo "$out"; exit 1; }
case $out in
*'--- PASS: TestEachBanOfTheLinterFires'*) echo "each ban of the linter fires" ;;
*) echo "$out"; echo "the linter's self-test did not run" >&2; exit 1 ;;
esac

[ $# -gt 0 ] || set -- ./...
"$bin" run --allow-parallel-runners "$@"
echo "golangci-lint: no findings in $*"
