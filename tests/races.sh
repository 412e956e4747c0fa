#!/bin/sh
# Every program, test, model and file that doc/races.md names must exist, and no race be left out.
#
# Test programs may be in no build without cmocka; their sources are looked at.
top=${srcdir:-$(dirname "$0")/..}
list=${1:-$top/doc/races.md}
wrong=0

say()
{
    echo "$1"
    wrong=$((wrong + 1))
}

for race in $(seq 1 41); do
    [ "$(grep -c "^| $race |" "$list")" = 1 ] || say "race $race: not once in the list"
done

# what stands between backticks, one a line
names=$(mktemp) || exit 1
trap 'rm -f "$names"' EXIT
grep -o '`[^`]*`' "$list" | tr -d '`' | sort -u >"$names"

while read -r name; do
    case $name in
    unit/*:* | integration/*:* | coherence/*:* | long/*:*)
        grep -qE "^${name##*: }\(void \*\*state\)" "$top/tests/${name%%:*}.c" 2>/dev/null || say "no such test: $name" ;;
    "dst: DST_"*" over "*)
        cure=${name#dst: } cure=${cure%% over*}
        grep -q "{ $cure, \"${name##* over }\"" "$top/tests/dst/test_dst.c" || say "no such control: $name" ;;
    "dst: CURE over row" | "dst: row") ;;
    dst:*)
        grep -q "\"${name#dst: }\"" "$top/tests/dst/test_dst.c" || say "no such row: $name" ;;
    fill:* | reconnect:* | lease:* | marks:* | clear:* | tags:* | queue:*)
        model=${name%%:*} definitions=${name#*:}
        grep -qE "^(holds|fails) $model$definitions\$" "$top/doc/models/check.sh" || say "no such model: $name" ;;
    */*.[ch] | doc/*.md | tests/*.sh)
        [ -f "$top/$name" ] || say "no such file: $name" ;;
    esac
done <"$names"
echo "$(wc -l <"$names") names, $wrong wrong"
[ $wrong -eq 0 ]
