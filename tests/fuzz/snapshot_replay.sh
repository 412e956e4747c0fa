#!/bin/sh
# Replays the committed corpus of the fuzz target; a skip where the tests are not built.
program=tests/fuzz/fuzz_snapshot
test -x "$program" || exit 77
exec "$program" "${srcdir:-.}"/tests/fuzz/corpus/snapshot/*
