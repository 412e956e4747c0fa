#!/usr/bin/env bash
# Fuzzes: tests/fuzz/run.sh [TARGET...]     (default: every tests/fuzz/fuzz_TARGET.c)
#
# Each target runs with libFuzzer, AddressSanitizer and UBSan, from the corpus in the tree, until it has tried FUZZ_RUNS inputs or
# FUZZ_SECONDS have passed.  What it finds on the way goes to a directory of the build, never to the tree.  The last line counts targets;
# the exit status is 0 when none crashed, leaked, met undefined behaviour, or asked for more than its limit in one allocation.
# `make check-long` and `make soak` run it as a row of theirs.
# Environment:
#     FUZZ_RUNS      inputs per target (10000000; in soak 1000000000)
#     FUZZ_SECONDS   bound on each target's time (60; 0: none, as many seconds as the inputs take)
#     FUZZ_JOBS      targets at a time (the number of processors)
#     BUILD, CC      the build directory (build-fuzz) and a clang (clang-14)
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1

build=${BUILD:-build-fuzz} CC=${CC:-clang-14}
runs=${FUZZ_RUNS:-10000000} seconds=${FUZZ_SECONDS:-${NEAR_TEST_SECONDS:-60}} jobs=${FUZZ_JOBS:-$(nproc)}
[ "${NEAR_TEST_LEVEL:-}" != soak ] || runs=${FUZZ_RUNS:-1000000000}
unset MAKEFLAGS MAKEOVERRIDES # of the make that this is a row of
sanitizers=fuzzer-no-link,address,undefined

# limit TARGET: one allocation of so many MiB is a finding.  An input has 8 KiB at the most, so a decoder that asks for a MiB believed a number in it.
limit()
{
    case $1 in
    message | journal | snapshot | memcached) echo 1 ;;
    envelope) echo 2 ;; # a payload that says it unpacks to a MiB gets one: the target's bound, as l2.max_value is the library's
    resp) echo 8 ;;     # a reply of 64 KiB at the most
    *) echo 64 ;;       # opens a client, or takes what an operator wrote
    esac
}

# bytes of the longest input: a configuration is tried line by line, and more lines say nothing new
longest()
{
    case $1 in
    config) echo 600 ;;
    *) echo 8192 ;;
    esac
}

prepare()
{
    mkdir -p "$build" && cd "$build" || return 1
    [ -f Makefile ] || "$OLDPWD/configure" CC="$CC" CFLAGS="-g -O2 -fsanitize=$sanitizers -fno-sanitize-recover=undefined" || return 1
    make -j"$jobs" libnear-all.la && make -j"$jobs" CPPFLAGS=-DFUZZ_ENGINE LDFLAGS=-fsanitize=fuzzer "${targets[@]/#/tests/fuzz/fuzz_}"
}

# run TARGET: its own words go to a log, one line to the screen
run()
{
    local log=$build/fuzz_$1.log word=ok began=$SECONDS

    mkdir -p "$build/found/$1"
    ASAN_OPTIONS=handle_segv=2:detect_leaks=1 "$build/tests/fuzz/fuzz_$1" -runs="$runs" -max_total_time="$seconds" \
        -malloc_limit_mb="$(limit "$1")" -rss_limit_mb=1024 -timeout=20 -max_len="$(longest "$1")" -print_final_stats=1 \
        -artifact_prefix="$build/$1-" "$build/found/$1" "tests/fuzz/corpus/$1" >"$log" 2>&1 </dev/null || word=FAILED
    printf '%-12s %-6s %10s inputs, %s a second, %d s\n' "$1" $word "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")" $((SECONDS - began))
    [ $word = ok ] || { grep -vE '^#[0-9]+' "$log" | tail -n 60; return 1; }
}

targets=("$@")
[ $# -gt 0 ] || for file in tests/fuzz/fuzz_*.c; do
    file=${file##*/fuzz_} file=${file%.c}
    [[ $file != ${NEAR_TEST_ROWS:-*} ]] || targets+=("$file")
done
[ ${#targets[@]} -gt 0 ] || exit 0 # none of them is a row that was asked for
if [ -n "${NEAR_TEST_LEVEL:-}" ] && ! command -v "$CC" >/dev/null; then
    echo "no $CC here: the engine comes with it; SKIPPED"
    exit 0
fi
[ -x configure ] || ./autogen.sh >/dev/null 2>&1
(prepare) >"$build.log" 2>&1 || { tail -n 40 "$build.log"; exit 1; }

failed=0 going=0
for target in "${targets[@]}"; do
    [ $going -lt "$jobs" ] || { wait -n || failed=$((failed + 1)); going=$((going - 1)); }
    run "$target" &
    going=$((going + 1))
done
while [ $going -gt 0 ]; do
    wait -n || failed=$((failed + 1))
    going=$((going - 1))
done
echo "${#targets[@]} targets, $failed failed"
[ $failed -eq 0 ]
