#!/bin/sh
# What static analysis says of the library and the command: tools/static.sh [cppcheck] [tidy] [clang] [gcc]   (all, if none is named)
#
# cppcheck and tidy (clang-tidy's checks of the text; .clang-tidy says what is asked, and why the rest is not) take a minute or two and are a leg of
# CI; clang and gcc (the analyzers of both, which follow paths through functions) take ten minutes each on two processors.
# A finding is mended, or stands in the list below with the reason why it is none; one that no longer comes up is told, too, so that the list
# does not grow old.  clang's thread-safety analysis is part of every build with clang (client/base/lock.h).
set -u
cd "$(dirname "$0")/.." || exit 1
defines="-D_GNU_SOURCE -DHAVE_OPENSSL -DNEAR_HAVE_LZ4 -DNEAR_HAVE_ZSTD -DPACKAGE_VERSION=\"0\""
include="-I. -Iclient -Itools $(pkg-config --cflags hiredis libmemcached libxxhash)"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
sources=$(ls client/*.c client/base/*.c l1/*.c l2/*.c coherence/*.c tools/*.c)

# tool | file | finding | why it is none
accepted()
{
    cat <<'LIST'
cppcheck|client/back.c|uninitvar|status is set before each `continue`: the loop's condition is looked at after it
cppcheck|client/base/uri.c|internalAstError|cppcheck does not read a compound literal between ? and :
cppcheck|client/budget.c|autoVariables|who queues waits for its turn inside the same call, and leaves the queue before it returns
cppcheck|client/fetch.c|ctuuninitvar|fetch.cache is NULL, which is all that miss() looks at before it fills the rest
cppcheck|client/journal_file.c|ctuuninitvar|the report is an output: all of it is assigned first
cppcheck|client/snapshot.c|uninitvar|near__snap_row_decode() fills it before it is used
cppcheck|client/watch.c|memleak|it is linked into the bucket, or freed where there is none any more
cppcheck|l1/block.c|pointerSize|of an object two pointers are kept, not what they point at
cppcheck|l2/lane.c|ctuuninitvar|moved is assigned at the head of the loop, before it is read
cppcheck|l2/memory.c|ctuuninitvar|an output: find_field() assigns it before it is read
cppcheck|l2/lane.c|uninitvar|filled up to n by the loop above, and somebody is served: n is at least 1
cppcheck|l2/redis_cluster.c|uninitvar|an array of pointers, filled by the loop above for each number that an owner can have
cppcheck|l2/memcached.c|uninitvar|filled up to n by the loop above
tidy|client/fields.c|bugprone-not-null-terminated-result|the block is zeroed: the NUL is there
tidy|client/fields_below.c|bugprone-macro-parentheses|the argument is a name that the macro declares
tidy|l2/redis_cluster.c|bugprone-not-null-terminated-result|near__address_display() writes the rest and its NUL
tidy|tools/load.c|bugprone-not-null-terminated-result|a key has a size and no NUL
tidy|tools/warm.c|cert-err34-c|of a file that the command wrote itself; what is no number is not counted in n
gcc|client/disk.c|malloc-leak|the labels are the entry's, whose release frees them
gcc|client/fields_below.c|use-of-uninitialized-value|the caller fills all of the n places that it passes
gcc|client/flight.c|malloc-leak|a chain's links are the stripe's, which frees them at the end; unlinked ones are their last user's
gcc|client/journal_file.c|use-of-uninitialized-value|open_file() sets the size whenever it says NEAR_OK
gcc|coherence/memory.c|possible-null-dereference|the branch above has returned when there was no member
gcc|l1/l1.c|malloc-leak|what realloc() gives held_add_locked() is the shard's, which frees it with the cache
gcc|l2/memcached_talk.c|malloc-leak|blocks are in the talk's list, which its end frees
gcc|l2/memcached_talk.c|null-argument|copied is only what has a size, and what has a size was given a place or has returned
gcc|l2/memory.c|malloc-leak|slots and entries are the store's, freed when the last user leaves
gcc|l2/redis.c|use-of-uninitialized-value|the window is filled up to window_count, and no more replies are read than commands are in it
gcc|l2/redis_cluster.c|use-of-uninitialized-value|the ways are filled up to count, which bounds the loops
gcc|l2/redis_node.c|malloc-leak|the arena's blocks are the call's, freed with it
gcc|l2/redis_sweep.c|null-dereference|near__redis_read_one() gives a reply whenever it says NEAR_OK
gcc|tools/dict.c|file-leak|closed but for standard input, which is not the command's
gcc|tools/dict.c|malloc-leak|samples are the dictionary's, freed with it
gcc|tools/load.c|malloc-leak|worker_fini() frees what there is
gcc|tools/simulate.c|null-argument|n_sizes is not 0 there, so the sizes are
gcc|tools/simulate.c|possible-null-argument|the same
gcc|tools/streams.c|malloc-leak|grow() replaces what the decoder holds, which frees it at its end
clang|client/back.c|clang-analyzer-core.NonNullParamChecker|a change without data has size 0: near_update() refuses NULL with a size
clang|client/budget.c|clang-analyzer-core.NullDereference|who leaves is in the queue
tidy|client/journal_disk.c|concurrency-mt-unsafe|readdir(3) on a stream of the call's own
LIST
}

# report TOOL FOUND: "file finding text" a line; false when something is new
report()
{
    accepted | awk -F'|' -v tool="$1" '$1 == tool { print $2 " " $3 }' | sort -u >"$work/accepted"
    awk '{ print $1 " " $2 }' "$2" | sort -u >"$work/found"
    comm -13 "$work/accepted" "$work/found" >"$work/new"
    comm -23 "$work/accepted" "$work/found" | sed "s/^/$1: no longer found, take it off the list: /"
    echo "$1: $(wc -l <"$work/found") kinds of findings, $(wc -l <"$work/new") of them new"
    grep -F -f "$work/new" "$2"
    [ ! -s "$work/new" ]
}

run_cppcheck()
{
    cppcheck --std=c11 --enable=warning,portability --quiet $defines -I. -Iclient --suppress=missingIncludeSystem \
        --suppress=preprocessorErrorDirective:l2/memcached_router.c \
        --template='{file} {id} {line}: {message}' client l1 l2 coherence 2>&1 | grep -E '^(client|l1|l2|coherence)/' >"$work/cppcheck"
    report cppcheck "$work/cppcheck"
}

# of_each AFTER COMMAND...: what the command warns of in each source file, AFTER coming last of all: "file finding line: message", each once
of_each()
{
    export after=$1 said="$work/said"
    shift
    mkdir "$said"
    echo $sources | tr ' ' '\n' | xargs -P "$(nproc)" -I '{}' sh -c 'file=$1; shift
        "$@" "$file" $after >"$said/$(echo "$file" | tr / _)" 2>&1' - '{}' "$@"
    cat "$said"/* | sed -n "s|^$PWD/||; s|^\./||
        s/\\[CWE-[0-9]*\\] //
        s/^\\([a-z0-9_/]*\\.[ch]\\):\\([0-9]*\\):[0-9]*: \\(warning\\|error\\): \\(.*\\) \\[\\([^][]*\\)\\]\$/\\1 \\5 \\2: \\4/p" | sort -u
    rm -r "$said"
}

run_tidy()
{
    of_each "-- -std=gnu11 $defines $include" clang-tidy-14 --quiet --checks='-clang-analyzer-*' >"$work/tidy"
    report tidy "$work/tidy"
}

run_clang()
{
    of_each "-- -std=gnu11 $defines $include" clang-tidy-14 --quiet --checks='-bugprone-*,-cert-*,-concurrency-*,-performance-*' >"$work/clang"
    report clang "$work/clang"
}

run_gcc()
{
    of_each '' gcc -std=gnu11 -O2 -fanalyzer $defines $include -c -o /dev/null | sed 's/ -Wanalyzer-/ /' >"$work/gcc"
    report gcc "$work/gcc"
}

failed=0
for tool in ${*:-cppcheck tidy clang gcc}; do
    case $tool in
    cppcheck | tidy | clang | gcc) "run_$tool" || failed=1 ;;
    *) sed -n '2,5p' "$0"; exit 1 ;;
    esac
done
exit $failed
