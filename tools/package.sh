#!/usr/bin/env bash
# Debian packages, from a copy of the tree outside of it, looked at by lintian, and tried: tools/package.sh [DIRECTORY FOR THE PACKAGES]
#
# Trying means: unpacked into a root of its own, the examples are compiled by pkg-config and by CMake against nothing but that root,
# and run; so does the command.
set -euo pipefail
cd "$(dirname "$0")/.."
keep=${1:-}
work=$(mktemp -d "${TMPDIR:-/tmp}/nearcache-package.XXXXXX")
trap 'rm -rf "$work"' EXIT

mkdir "$work/nearcache"
git ls-files -z | tar -c --null -T - | tar -x -C "$work/nearcache"
(cd "$work/nearcache" && DEB_BUILD_OPTIONS="nocheck parallel=$(nproc)" dpkg-buildpackage -us -uc -b) >"$work/build.log" 2>&1 ||
    { tail -n 60 "$work/build.log"; exit 1; }
(cd "$work" && ls ./*.deb)
lintian --allow-root --fail-on error --no-tag-display-limit "$work"/nearcache_*.changes

# ---- a root with these packages and nothing else of ours
root=$work/root
for package in "$work"/*.deb; do
    case $package in *-dbgsym*) continue ;; esac
    dpkg-deb -x "$package" "$root"
done
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
libraries=$root/usr/lib/$multiarch
export LD_LIBRARY_PATH=$libraries

# pkg-config puts the root before every path of every package it meets: what is the system's own is found without that
pkgconfig()
{
    PKG_CONFIG_PATH=$libraries/pkgconfig pkg-config --define-variable=prefix="$root/usr" \
        --define-variable=libdir="$libraries" --define-variable=includedir="$root/usr/include" "$@" nearcache
}
echo "version $(pkgconfig --modversion)"
examples=$root/usr/share/doc/libnearcache-doc/examples
gcc -std=c11 -Wall -Wextra -Werror "$examples/hello.c" -o "$work/hello" $(pkgconfig --cflags --libs)
g++ -std=c++17 -Wall -Wextra -Werror "$examples/hello.cc" -o "$work/hello-cxx" $(pkgconfig --cflags --libs)
"$work/hello" | tail -n 1
"$work/hello-cxx" | tail -n 1

tools/cmake_test.sh "$libraries/cmake" "$work/cmake"

# ---- the command, its completion and manual
"$root/usr/bin/nearcache" --version
"$root/usr/bin/nearcache" config --list >"$work/options.conf"
"$root/usr/bin/nearcache" config --check "$work/options.conf"
bash -n "$root/usr/share/bash-completion/completions/nearcache"
for page in man1/nearcache.1 man3/near_fetch.3 man3/nearcache.3 man5/nearcache.conf.5 man7/nearcache.7 man7/nearcache-metrics.7; do
    zcat "$root/usr/share/man/$page.gz" | grep -q . || { echo "no $page"; exit 1; }
done
[ -f "$root/usr/share/doc/libnearcache-doc/html/index.html" ]
nm -D --defined-only "$libraries"/libnearcache.so.0 | grep -q ' near_fetch'
echo "packages work"
if [ -n "$keep" ]; then
    mkdir -p "$keep"
    cp "$work"/*.deb "$work"/*.changes "$work"/*.buildinfo "$keep"
fi
