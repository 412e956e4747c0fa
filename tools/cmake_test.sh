#!/usr/bin/env bash
# A CMake project finds an installed nearcache, at a version it wants and at none it does not: tools/cmake_test.sh LIB/cmake WORK
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
where=$1 work=$2
version=$(sed -n 's/^AC_INIT(\[nearcache\], \[\(.*\)\])$/\1/p' "$source/configure.ac")

project() # project VERSION: configure, build
{
    rm -rf "$work"
    mkdir -p "$work"
    cat >"$work/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.16)
project(hello C CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(nearcache $1 REQUIRED)
add_executable(hello $source/examples/hello.c)
target_link_libraries(hello PRIVATE nearcache::nearcache)
add_executable(hello_cxx $source/examples/hello.cc)
target_link_libraries(hello_cxx PRIVATE nearcache::nearcache)
END
    cmake -S "$work" -B "$work/build" -DCMAKE_PREFIX_PATH= -Dnearcache_DIR="$where/nearcache" >"$work/log" 2>&1
}

project "$version" && cmake --build "$work/build" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/build/hello" | tail -n 1
"$work/build/hello_cxx" | tail -n 1
project "${version%.*}" || { cat "$work/log"; exit 1; }
for refused in 99.0 0.0.1 "${version%.*}.99"; do
    ! project "$refused" || { echo "a program that wants $refused was given $version"; exit 1; }
done
echo "cmake: nearcache $version found, other versions refused"
