#!/bin/sh
# Installs what Debian 12 lacks to build MentatLab, and with the argument "test" what
# its tests and benchmarks use besides. Silent when nothing is missing. Run as root,
# or read what it asks for and install that.
set -eu
cd "$(dirname "$0")/.."

fail() {
	printf '%s\n' "$*" >&2
	exit 1
}

# Go is given: Debian's own is too old, and which one to use is the user's choice.
want=$(sed -n 's/^go //p' go.mod)
command -v go >/dev/null || fail "Go $want or newer is needed and there is no go on PATH: https://go.dev/doc/install"
atleast() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
# Asked outside the module: an old Go cannot read its go.mod. Go from 1.21 on
# fetches the version that go.mod names unless told not to.
have=$(cd / && go env GOVERSION)
if atleast 1.21 "${have#go}"; then
	have=$(go env GOVERSION 2>/dev/null) || have=$(cd / && go env GOVERSION)
fi
atleast "$want" "${have#go}" || fail "Go $want or newer is needed, this is ${have#go}: https://go.dev/doc/install"

missing=
need() { missing="$missing $1"; }
command -v gcc >/dev/null || need gcc
# Static linking needs libc.a, which comes with the headers.
[ -e /usr/include/stdlib.h ] || need libc6-dev
command -v pkg-config >/dev/null || need pkg-config
[ -e /usr/include/seccomp.h ] || need libseccomp-dev
# Test images hold this one program, which therefore must be static.
if ! [ -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then
	need busybox-static
fi
# The go command fetches modules over TLS.
[ -e /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates
if [ "${1:-}" = test ]; then
	# Guests in C are built for WebAssembly.
	command -v clang >/dev/null || need clang
	command -v wasm-ld >/dev/null || need lld
	# A token in software, for keys behind PKCS #11.
	command -v softhsm2-util >/dev/null || need softhsm2
	# Tests ask its time stamp authority and its OCSP responder.
	command -v openssl >/dev/null || need openssl
fi
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || fail "missing, by the names that Debian gives them:$missing"
[ "$(id -u)" -eq 0 ] || fail "missing: run as root: apt-get install --no-install-recommends$missing"
echo "installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# $missing is a list of words.
# shellcheck disable=SC2086
install() { apt-get install -y --no-install-recommends $missing >"$log" 2>&1; }
# The package lists of a fresh image are empty or old.
install || { apt-get update >"$log" 2>&1 && install; } || {
	cat "$log" >&2
	fail "apt-get could not install$missing"
}
