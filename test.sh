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
grep -E '^(PASS|FAIL|SKIP|ERROR|XPASS|XFAIL): ' "$build/check.log" | awk '!seen[$0]++'
if [ $status -ne 0 ]; then
    for trs in $(grep -lE '^:test-result: (FAIL|ERROR)' $(find "$build/tests" -name '*.trs') /dev/null); do
        say "${trs%.trs}.log"
        grep -vE '^\[ (RUN     |      OK) \]' "${trs%.trs}.log" | tail -n 100
    done
    grep -qE '^(FAIL|ERROR): ' "$build/check.log" || tail -n 40 "$build/check.log"
fi
read -r passed failed skipped < <(count_tests "$build")
[ $status -eq 0 ] || [ "$failed" -gt 0 ] || failed=1 # make itself failed
[ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || failed=1 # no test ran: that is not a success
say "in $((SECONDS - began)) s; logs in $at/tests"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
