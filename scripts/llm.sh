#!/bin/sh
# Installs a server of the chat-completions protocol that somebody else wrote
# into bin/tools/llm, pinned by tools/llm/package-lock.json, without running
# anything of its packages. Without npm it says so and leaves the test of it to
# be skipped.
set -eu
cd "$(dirname "$0")/.."

to=bin/tools/llm
if cmp -s tools/llm/package-lock.json "$to/package-lock.json" && [ -e "$to/installed" ]; then
	exit 0
fi
command -v npm >/dev/null && command -v node >/dev/null || {
	echo "no npm here: the test against a chat server of others will be skipped"
	exit 0
}
echo "installing a chat server for tests"
rm -rf "$to"
mkdir -p "$to"
cp tools/llm/package.json tools/llm/package-lock.json "$to/"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
(cd "$to" && npm ci --ignore-scripts --no-audit --no-fund >"$log" 2>&1) || {
	cat "$log" >&2
	exit 1
}
touch "$to/installed"
