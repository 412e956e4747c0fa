#!/bin/sh
# The probes listed in client/base/probe.h are in the library's notes, with as many arguments as are listed, where configure was told to
# have them; where not, none is.  And the tracers' scripts in contrib/ use probes that there are.  Runs in the build directory.
srcdir=${srcdir:-.}
library=.libs/libnearcache.so
command -v readelf >/dev/null && [ -e $library ] || exit 77

# NAME COUNT, of the comment and of the notes
sed -n 's/^ \*     \([a-z_]*\)(\(.*\)) .*/\1 \2/p' "$srcdir/client/base/probe.h" | awk '{ n = gsub(/,/, ""); print $1, n + 1 }' | sort >probes.listed
readelf -n $library | awk '/Provider: nearcache/ { ours = 1 } ours && /Name:/ { name = $2 } ours && /Arguments:/ { print name, NF - 1; ours = 0 }' |
    sort -u >probes.found
status=0
if grep -q 'NEAR_HAVE_USDT=1\|define NEAR_HAVE_USDT 1' config.status; then
    diff probes.listed probes.found || { echo "listed in client/base/probe.h (<) and found in $library (>)" >&2; status=1; }
else
    [ ! -s probes.found ] || { echo "probes though none were asked for" >&2; status=1; }
fi
for script in "$srcdir"/contrib/*.bt; do
    for probe in $(grep -oE 'nearcache:[a-z_]+' "$script" | sed 's/.*://' | sort -u); do
        grep -q "^$probe " probes.listed || { echo "$script: no probe $probe" >&2; status=1; }
    done
done
[ -s probes.listed ] || status=1
[ $status -eq 0 ] && echo "[  PASSED  ] $(wc -l <probes.listed) test(s)."
rm -f probes.listed probes.found
exit $status
