#!/bin/sh
# The binary interface, as the public headers declare it, beside the one that was last promised: tools/abi.sh check | update
#
# A library is made of the headers alone, every function of theirs with an empty body, so that its debug information has the types that
# an application sees and no other; that is what client/nearcache.abi holds (written by abidw, of the package abigail-tools).  `check`
# fails when a function has gone or an old program would find something at another place; new functions, and members at the end of
# the structs that begin with their size, are fine.  `update` promises what is there now, for a release, or once all of a change is
# meant, and adds new functions to the symbols of the Debian package.
set -eu
cd "$(dirname "$0")/.."
symbols=debian/libnearcache0.symbols
version=$(sed -n 's/^AC_INIT(\[nearcache\], \[\(.*\)\])$/\1/p' configure.ac)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# the definitions that belong to the declarations of client/nearcache.h and client/nearcache/backend.h
bodies()
{
    printf '#include "nearcache.h"\n#include "nearcache/backend.h"\n'
    awk '/^NEAR_API / { inside = 1 }
         inside { text = text $0 " " }
         inside && /;[ \t]*(\/\*.*)?$/ { sub(/^NEAR_API /, "", text); sub(/;[^;]*$/, "", text); print text " { __builtin_trap(); }"
                                         text = ""; inside = 0 }' client/nearcache.h client/nearcache/backend.h
}

functions()
{
    sed -n 's/^NEAR_API .*[ *]\(near_[a-z0-9_]*\)(.*/\1/p' client/nearcache.h client/nearcache/backend.h | sort
}

bodies >"$work/interface.c"
${CC:-cc} -std=gnu11 -g -O0 -w -fPIC -shared -Iclient -Wl,-soname,libnearcache.so.0 -o "$work/libnearcache.so" "$work/interface.c"

case ${1:-} in
check)
    abidiff --suppressions client/nearcache.abignore --no-added-syms client/nearcache.abi "$work/libnearcache.so"
    for function in $([ ! -e "$symbols" ] || functions); do # a tarball has no debian/
        grep -q "^ $function@" "$symbols" || missing="${missing:-} $function"
    done
    [ -z "${missing:-}" ] || { echo "not in $symbols:$missing (tools/abi.sh update adds them)" >&2; exit 1; }
    echo "$(functions | wc -l) functions: nothing that old programs rely on has changed" ;;
update)
    abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed --no-parameter-names --no-write-default-sizes \
        "$work/libnearcache.so" --out-file client/nearcache.abi
    echo "libnearcache.so.0 libnearcache0 #MINVER#" >"$work/symbols"
    for function in $(functions); do
        grep "^ $function@" "$symbols" 2>/dev/null || echo " $function@Base $version"
    done >>"$work/symbols"
    cp "$work/symbols" "$symbols" ;;
*)
    echo "usage: tools/abi.sh check | update" >&2
    exit 2 ;;
esac
