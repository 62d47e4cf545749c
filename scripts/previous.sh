#!/bin/sh
# Builds the programs of the build before this one into bin/previous, from the
# commit that scripts/previous names, so that the tests can upgrade a node for
# real. A clone without that commit has nothing to upgrade from: the test says so.
set -eu
cd "$(dirname "$0")/.."

commit=$(cat scripts/previous)
out=$PWD/bin/previous
[ "$(cat "$out/commit" 2>/dev/null || true)" = "$commit" ] && exit 0
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
	echo "the previous build, $commit, is not in this clone: nothing is upgraded from it"
	exit 0
fi
echo "building the previous build"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git archive "$commit" | tar -x -C "$tree"
(cd "$tree" && git init -q && make build) >"$tree/log" 2>&1 || { cat "$tree/log" >&2; exit 1; }
rm -rf "$out"
mkdir -p "$(dirname "$out")"
rm -rf "$tree/bin/tools"
cp -r "$tree/bin" "$out"
echo "$commit" >"$out/commit"
