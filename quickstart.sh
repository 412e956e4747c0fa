#!/usr/bin/env bash
# Builds nearcache and runs its example service: ./quickstart.sh [ARGUMENT OF examples/quickstart...]
#
# Without arguments everything happens in this process's memory: no server is needed.  With servers of your own:
#     ./quickstart.sh --l2 redis://127.0.0.1
#     ./quickstart.sh --l2 memcached://127.0.0.1 --bus redis://127.0.0.1
set -u -o pipefail
cd "$(dirname "$0")" || exit 1
. tools/setup.sh

need $packages_build $packages_examples
configured build
say "make (build/make.log)"
quietly build/make.log make -C build -j"$jobs"
say "examples/quickstart $*"
exec build/examples/quickstart "$@"
