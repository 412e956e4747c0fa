#!/bin/sh
# The order of locks as a run of the tests took them: draws it, and compares it with doc/locks.dot.
#
#     tests/lock_order.sh draw PROGRAM...    run them (of a build with --enable-lock-checks) and write doc/locks.dot
#     tests/lock_order.sh check PROGRAM...   run them: every edge they take is in the drawing
#     ... FILE...                            what programs have written that were run with NEAR_LOCK_ORDER=FILE
#     tests/lock_order.sh                    the drawing alone: it is a graph without circles, of the ranks that client/base/lock.h has
set -u
top=${srcdir:-$(dirname "$0")/..}
drawing=$top/doc/locks.dot
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# "NUMBER NAME" of each rank, by the enum
awk '/^enum near__rank/ { on = 1; next } on && /}/ { exit }
     on && match($0, /NEAR__RANK_[A-Z]+/) { print ++n, tolower(substr($0, RSTART + 11, RLENGTH - 11)) }' \
    "$top/client/base/lock.h" >"$work/ranks"
[ -s "$work/ranks" ] || { echo "no ranks in client/base/lock.h"; exit 1; }

# edges_of DRAWING: "from to" by names
edges_of()
{
    sed -n 's/^ *\([a-z]*\) -> \([a-z]*\);$/\1 \2/p' "$1" | sort -u
}

# run PROGRAM|FILE...: "from to" by names, of what they took
run()
{
    for program; do
        [ -x "$program" ] || { cat "$program" >>"$work/taken"; continue; }
        NEAR_LOCK_ORDER=$work/taken "$program" >"$work/log" 2>&1 || { cat "$work/log"; echo "$program failed" >&2; return 1; }
    done
    [ -s "$work/taken" ] || { echo "no edges: is this a build with --enable-lock-checks?" >&2; return 1; }
    awk 'NR == FNR { name[$1] = $2; next } { print name[$1], name[$2] }' "$work/ranks" "$work/taken" | sort -u
}

# has_no_circle FILE: of edges; and all go upwards
has_no_circle()
{
    tsort "$1" >/dev/null 2>&1 || return 1
    awk 'NR == FNR { at[$2] = $1; next } !($1 in at) || !($2 in at) || at[$1] >= at[$2] { print "not upwards: " $0; wrong = 1 } END { exit wrong }' \
        "$work/ranks" "$1"
}

case ${1:-drawing} in
draw)
    shift
    run "$@" >"$work/edges" || exit 1
    {
        echo "// Which locks are taken while which are held, by their ranks (client/base/lock.h), as the tests took them."
        echo "// Made by tests/lock_order.sh draw; to look at it: dot -Tsvg doc/locks.dot"
        echo "digraph locks {"
        echo "    node [shape = box];"
        awk '{ print "    " $1 " -> " $2 ";" }' "$work/edges"
        echo "}"
    } >"$drawing" ;;
check)
    shift
    run "$@" >"$work/edges" && edges_of "$drawing" >"$work/drawn" || exit 1
    comm -23 "$work/edges" "$work/drawn" >"$work/new"
    [ ! -s "$work/new" ] || { echo "taken, and not in doc/locks.dot:"; cat "$work/new"; exit 1; } ;;
drawing)
    edges_of "$drawing" >"$work/edges" ;;
*)
    sed -n '2,8p' "$0"; exit 1 ;;
esac
[ -s "$work/edges" ] && has_no_circle "$work/edges" || { echo "doc/locks.dot: there is a circle, or a rank that is none"; exit 1; }
# the control: one edge turned round is found
awk 'NR == 1 { print $2, $1 } { print }' "$work/edges" >"$work/turned"
! has_no_circle "$work/turned" >/dev/null || { echo "a circle is not found"; exit 1; }
echo "$(wc -l <"$work/edges") edges, no circle"
