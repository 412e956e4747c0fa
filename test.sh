#!/usr/bin/env bash
# Builds nearcache and runs all its tests: ./test.sh [ARGUMENT OF configure...]
#
# The last line counts the tests; the exit status is 0 when none failed.  Environment:
#     BUILD             the build directory (build)
#     TESTS             only these programs: TESTS="tests/unit/test_l1 tests/unit/test_uri"
#     NEAR_TEST_SCALE   percentage of the rounds of long tests (100)
#     NEAR_TEST_SLACK   factor for time bounds on a slow machine (1)
set -u -o pipefail
cd "$(dirname "$0")" || exit 1
. tools/setup.sh

# run_tests AT_ONCE TESTS
run_tests()
{
    NEAR_TEST_REQUIRE_SERVERS=1 make -k -j"$1" -C "$build" check "TESTS=$2" VERBOSE=1 >>"$build/check.log" 2>&1 || status=1
}

# failures: the programs whose last run failed
failures()
{
    (cd "$build" && grep -lE '^:test-result: (FAIL|ERROR)' $(find tests -name '*.trs') /dev/null | sed 's/\.trs$//')
}

show_failures()
{
    local program

    for program in $(failures); do
        say "$build/$program.log"
        grep -vE '^\[ (RUN     |      OK) \]' "$build/$program.log" | tail -n 100
    done
}

# broken PROGRAM...: one of them crashed, or a sanitizer found something: no chance of the moment.  A test that fails half-way leaves its threads
# and its memory behind: that says nothing more.
broken()
{
    local program left

    for program in "$@"; do
        left='^$'
        grep -qF '[  FAILED  ]' "$build/$program.log" && left='thread leak|LeakSanitizer|AddressSanitizer: [0-9]+ byte'
        grep -E 'Sanitizer|runtime error:|exception: |exit status: 1(29|3[0-9])' "$build/$program.log" |
            grep -qvE "$left" && return
    done
    return 1
}

# run_again: the programs in $again, alone.  Tests hold bounds of time and start servers, on machines that others use, too: what fails
# once and not twice is told, by name and with what it said, and fails nobody else's change.  More than two of them are no accident.
run_again()
{
    local program

    status=0
    for program in $again; do
        mv "$build/$program.log" "$build/$program.first"
        rm "$build/$program.trs"
    done
    say "once more, alone: $again"
    run_tests 1 "$(echo $again)"
    for program in $again; do
        [ -n "$(failures | grep -x "$program")" ] || say "FAILED ONCE, passed alone: $program ($build/$program.first)"
    done
    show_failures
}

build=${BUILD:-build}
case $build in /*) at=$build ;; *) at=$PWD/$build ;; esac

need $packages_build $packages_examples $packages_tests
configured "$build" "$@"
say "make ($build/make.log)"
quietly "$build/make.log" make -C "$build" -j"$jobs" all
quietly "$build/make.log" make -C "$build" -j"$jobs" check TESTS=
find "$build/tests" \( -name '*.trs' -o -name '*.log' \) -delete # of programs that are gone too

say "make check ($build/check.log)"
began=$SECONDS status=0
: >"$build/check.log"
if [ -n "${TESTS:-}" ]; then
    run_tests 1 "$TESTS"
else # both lists come from tests/Makefile.inc.am
    run_tests $((2 * (jobs < 8 ? jobs : 8))) "$(make -s -C "$build" --no-print-directory list-tests-together)"
    run_tests 1 "$(make -s -C "$build" --no-print-directory list-tests-alone)"
fi
show_failures # as they were at first
again=$(failures)
if [ -n "$again" ] && [ "$(wc -w <<<"$again")" -le 2 ] && ! broken $again; then
    run_again
fi
grep -E '^(FAIL|SKIP|ERROR|XPASS|XFAIL): ' "$build/check.log" | awk '!seen[$0]++'
[ $status -eq 0 ] || [ -n "$again" ] || tail -n 40 "$build/check.log"
read -r passed failed skipped < <(count_tests "$build")
[ $status -eq 0 ] || [ "$failed" -gt 0 ] || failed=1 # make itself failed
[ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || failed=1 # no test ran: that is not a success
say "in $((SECONDS - began)) s; logs in $at/tests"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
