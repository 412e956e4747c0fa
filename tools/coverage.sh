#!/usr/bin/env bash
# Which branches the tests take in the parts where a wrong one costs a stale value or a lost write: tools/coverage.sh [missed|table]
#
# Builds in a directory of its own (BUILD, build-ci/coverage) without optimisation and without inlining, runs the programs listed below
# there, and prints branches, taken ones and their share per file and area; false when an area is below the bound (BOUND, 95).  `missed`
# prints each branch that was not taken, too; `table` runs nothing and judges the last run again.  A branch counts as taken when any of the
# programs took it: a comparison in && or || has two, a switch as many as it has targets.  A program that fails is told and fails nothing
# here: that is the suite's business, and what it should have taken is missing.
#
# A branch that cannot be taken, or only by a race that no test can arrange, may carry the reason as the comment
#     uncovered: REASON
# on its line, or alone on the line above: untaken branches of that line are left out of the count.  How many are is in the table.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
. tools/setup.sh
build=${BUILD:-build-ci/coverage}
bound=${BOUND:-95}

# area | its files.  What L1 keeps on disk and what measures or simulates (l1/disk*, l1/curve*, l1/simulate*, l1/lfu_exact*) is no part of the core.
areas()
{
    cat <<'LIST'
coherence|coherence/*.[ch]
entry format|l2/envelope*.[ch] l2/mac.[ch] l2/compress.[ch] l2/dictionary.[ch]
journal|client/journal*.[ch]
L1 core|l1/l1.[ch] l1/find.h l1/table.[ch] l1/block.[ch] l1/entry.[ch] l1/object.[ch] l1/batch.[ch]
L1 core|l1/arena.[ch] l1/pages.h l1/ring.[ch] l1/hazard.[ch] l1/labels.h l1/pools.[ch]
L1 core|l1/policy.[ch] l1/fifos.[ch] l1/ghost.[ch] l1/lru.c l1/lfu.c l1/sieve.c l1/s3fifo.c l1/tinylfu.c l1/adaptive.[ch]
LIST
}

# percentage of its rounds | program.  test_hit_path is not among them: it counts instructions, of which this build has others; nor is
# what needs long for little.  The longest come first.
programs()
{
    cat <<'LIST'
10|tests/integration/test_torture_calls
10|tests/integration/test_torture
5|tests/dst/test_dst
100|tests/unit/test_journal
100|tests/integration/test_recovery
10|tests/integration/test_tracking
100|tests/integration/test_bus
10|tests/integration/test_cluster_tracking
10|tests/integration/test_snapshot
10|tests/integration/test_disk_tier
3|tests/integration/test_client
10|tests/integration/test_back
10|tests/integration/test_token
10|tests/integration/test_tags
10|tests/integration/test_values
10|tests/integration/test_dictionary
10|tests/integration/test_fields
10|tests/integration/test_pools
10|tests/integration/test_share
100|tests/unit/test_message
10|tests/unit/test_coherence
100|tests/unit/test_coherence_faults
100|tests/unit/test_bus_memory
100|tests/unit/test_bus_script
100|tests/unit/test_envelope
100|tests/unit/test_mac
10|tests/unit/test_compress
100|tests/unit/test_entry_parts
100|tests/unit/test_back_memory
100|tests/unit/test_l1
100|tests/unit/test_l1_faults
100|tests/unit/test_l1_parts
10|tests/integration/test_codec
1|tests/unit/test_l1_races
1|tests/unit/test_pools_races
3|tests/unit/test_l1_traces
10|tests/unit/test_l1_stress
10|tests/unit/test_hazard
20|tests/unit/test_object
3|tests/unit/test_arena
20|tests/unit/test_table
10|tests/unit/test_policies
10|tests/unit/test_pools
10|tests/unit/test_snapshot
100|tests/fuzz/fuzz_message
100|tests/fuzz/fuzz_envelope
100|tests/fuzz/fuzz_journal
LIST
}

# A child that ends by _exit() would take what it has counted with it.
leaving()
{
    gcc -x c -O2 -c -o "$build/leave.o" - <<'CODE' && ar rcs "$build/libleave.a" "$build/leave.o"
#include <sys/syscall.h>
#include <unistd.h>
void __gcov_dump(void);
void _exit(int status)
{
    __gcov_dump();
    for (;;)
        syscall(SYS_exit_group, status);
}
CODE
}

# run_one PERCENTAGE|PROGRAM: in the build directory
run_one()
{
    local program=${1#*|} began=$SECONDS word=ok inputs=

    case $program in */fuzz_*) inputs=$(echo "$sources"/tests/fuzz/corpus/"${program##*fuzz_}"/*) ;; esac
    TIMEFORMAT="%U"
    { time NEAR_TEST_SCALE=${NEAR_TEST_SCALE:-${1%|*}} "./$program" $inputs >"$program.log" 2>&1 </dev/null; } 2>"$program.time" ||
        word="FAILED: $build/$program.log"
    echo "$program: $((SECONDS - began)) s, $(cat "$program.time") s of a processor, $word"
}

measure()
{
    need $packages_build $packages_tests
    mkdir -p "$build" && leaving || exit 1
    # -fno-builtin-fork: else fork() is gcov's own, which forgets what the handlers of forks have counted in the child
    # -Dalways_inline: else each place that a function is inlined at has branches of its own
    CFLAGS="-O0 -g --coverage -fprofile-update=atomic -fno-builtin-fork -Dalways_inline=unused" CC=gcc \
        configured "$build" --disable-shared "LIBS=-L$(cd "$build" && pwd) -lleave"
    say "make ($build/make.log)"
    quietly "$build/make.log" make -C "$build" -j"$jobs" tools/nearcache $(programs | sed 's/.*|//')
    find "$build" -name '*.gcda' -delete
    export build sources=$PWD NEAR_TEST_REQUIRE_SERVERS=1 NEAR_TEST_SLACK=${NEAR_TEST_SLACK:-4} NEAR_TEST_OPS=${NEAR_TEST_OPS:-200000}
    export -f run_one
    say "$(programs | wc -l) programs"
    (cd "$build" && programs | xargs -d '\n' -P $((2 * jobs)) -I{} bash -c 'run_one "$1"' - {})
}

# listed: "FILE AREA"
listed()
{
    local area files file

    areas | while IFS='|' read -r area files; do
        for file in $files; do
            [ ! -e "$file" ] || printf '%s\t%s\n' "$file" "$area"
        done
    done
}

# The annotated sources of every object, once per object that has a part of them: a branch is known by file, line, function (where a
# macro makes several in one line) and number.
annotated()
{
    local object

    find "$build/client" "$build/l1" "$build/l2" "$build/coherence" -name '*.gcda' | sort | while read -r object; do
        gcov -b -c -t "$object" 2>/dev/null
    done
}

# Out of these: "missed FILE LINE NUMBER SOURCE" and "left FILE LINE REASON" on stderr, the table on stdout.
judge()
{
    awk -v root="$PWD/" -v bound="$bound" -v missed_at="$build/coverage.missed" '
        function share(taken, all) { return all == 0 ? "     -" : sprintf("%6.2f", 100 * taken / all) }
        function row(name, a, t, e) { printf "%-30s %9d %9d %9d  %s\n", name, a, t, e, share(t, a - e) }
        BEGIN { FS = "\t" }
        NR == FNR { if (!($1 in area)) { file_of[++files] = $1; area[$1] = $2 } next }
        /^ +-: +0:Source:/ {
            file = $0; sub(/^[^:]*:[^:]*:Source:/, "", file)
            if (index(file, root) == 1) file = substr(file, length(root) + 1)
            wanted = file in area; instance = ""; next
        }
        !wanted { next }
        /^-+$/ { instance = ""; next }
        /^[A-Za-z_][A-Za-z0-9_.]*:$/ { instance = $0; next }
        /^ *[-#=0-9*]+: *[0-9]+:/ {
            line = $0; sub(/^[^:]*: */, "", line); source = line; sub(/:.*/, "", line); sub(/^[0-9]+:/, "", source)
            text[file, line] = source
            if (match(source, /uncovered: .*/)) {
                why = substr(source, RSTART + 11); sub(/ *\*\/.*/, "", why)
                alone = source ~ /^ *(\/\*|\*)? *uncovered: /
                reason[file, line + alone] = why
            }
            next
        }
        /^branch / {
            split($0, word, / +/)
            id = file SUBSEP line SUBSEP instance SUBSEP word[2]
            if (!(id in count)) { order[++branches] = id; count[id] = 0 }
            if (word[3] == "taken") count[id] += word[4]
        }
        END {
            for (i = 1; i <= branches; i++) {
                split(order[i], at, SUBSEP); file = at[1]; all[file]++
                if (count[order[i]] > 0) { taken[file]++; continue }
                if ((file, at[2]) in reason) { left[file]++; print "left", file ":" at[2], reason[file, at[2]] >missed_at; continue }
                print "missed", file ":" at[2], "branch " at[4] ":" text[file, at[2]] >missed_at
            }
            printf "%-30s %9s %9s %9s  %s\n", "", "branches", "taken", "left out", "%"
            for (i = 1; i <= files; i++) {
                file = file_of[i]; now = area[file]
                if (now != before && before != "") total()
                before = now
                if (all[file] > 0) row(file, all[file], taken[file], left[file])
                A += all[file]; T += taken[file]; E += left[file]
            }
            total(); row("in sum", SA, ST, SE)
            printf "\n==> covered: %s\n", figures
            exit low
        }
        function total() {
            row("== " before, A, T, E); print ""
            if (A == 0 || 100 * T < bound * (A - E)) { low = 1; printf "%s: below %s %%\n\n", before, bound }
            figures = figures (figures == "" ? "" : ", ") before " " (A == 0 ? "nothing" : sprintf("%.2f %%", 100 * T / (A - E)))
            SA += A; ST += T; SE += E; A = T = E = 0
        }' <(listed) -
}

case ${1:-} in
"" | missed) measure ;;
table) ;;
*) sed -n '2,12p' "$0"; exit 1 ;;
esac
: >"$build/coverage.missed"
annotated | judge
status=$?
[ "${1:-}" != missed ] || cat "$build/coverage.missed"
say "what was missed: $build/coverage.missed"
exit $status
