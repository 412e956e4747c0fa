#!/bin/sh
# Nothing is formatted into a Redis command: the sources call none of hiredis's printf-like functions, which take a command as a text.
# The control: such a call in a file beside is found.
src=${srcdir:-.}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

found()
{
    grep -nE 'redisv?(Append|Format)?Command *\(|redisAsyncCommand *\(|redisvAsyncCommand *\(' "$@" /dev/null
}

printf 'static void f(void) { redisCommand(c, "GET %%s", key); }\n' >"$work/bad.c"
[ -n "$(found "$work/bad.c")" ] || { echo "the control was not found"; exit 1; }
files=$(find "$src/l2" "$src/coherence" "$src/client" "$src/l1" -name '*.[ch]')
[ -n "$files" ] || { echo "no sources"; exit 1; }
found $files && exit 1
echo "nothing is formatted into a command"
