#!/bin/sh
# Runs every fuzz target of the module, one after another.
# Usage: scripts/fuzz.sh [time per target]; default: 10s
set -eu
cd "$(dirname "$0")/.."
time=${1:-10s}
total=0
for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	grep -qs '^func Fuzz' "$(go list -f '{{.Dir}}' "$pkg")"/*_test.go || continue
	for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz'); do
		echo "$pkg $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"
		total=$((total + 1))
	done
done
[ "$total" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "$total fuzz targets, $time each, nothing found"
