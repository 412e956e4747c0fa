#!/bin/sh
# Everything that the guides show is run: their programs (tests/guides/, built from them) against real servers, with the output that they
# name; their configurations are checked, their commands run, the user that they recommend is one that the server refuses nothing;
# and every option and metric that they name is there.  Runs in the build directory.
srcdir=${srcdir:-.}
tools=$PWD/tools
work=$(mktemp -d /tmp/guides.XXXXXX) || exit 1
servers=
failed=0

finish()
{
    for server in $servers; do
        kill "$server" 2>/dev/null && wait "$server" 2>/dev/null
    done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

wrong()
{
    echo "guides: $*" >&2
    failed=1
}

block() # block WHAT GUIDE
{
    awk -v want="$1" -f "$srcdir/tests/guides.awk" "$srcdir/doc/guide/$2.md"
}

# redis NAME ARGUMENT...: a server on the unix socket $work/NAME
redis()
{
    name=$1
    shift
    redis-server --port 0 --unixsocket "$work/$name" --save '' --dir "$work" "$@" >"$work/$name.log" 2>&1 &
    servers="$servers $!"
    for try in $(seq 100); do
        sleep 0.05
        redis-cli -s "$work/$name" ping 2>&1 | grep -qE 'PONG|NOAUTH' && return
    done
    cat "$work/$name.log" >&2
    wrong "redis-server did not start"
}

# cluster: of one node, on $port.  A port, or the cluster's own 10000 beside it, may be taken, before we look or after: then another.
# Both are below those that systems give to clients.
cluster()
{
    for port in $(seq $((10000 + $$ % 1000)) 997 22000); do
        redis-server --port "$port" --bind 127.0.0.1 --cluster-enabled yes --cluster-config-file "nodes.$port" \
            --cluster-require-full-coverage no --save '' --dir "$work" >"$work/cluster.log" 2>&1 &
        server=$!
        servers="$servers $server"
        for try in $(seq 100); do
            sleep 0.1
            kill -0 $server 2>/dev/null || break
            redis-cli -p "$port" info server 2>/dev/null | grep -q "^process_id:$server" || continue
            [ "$try" != 1 ] && redis-cli -p "$port" cluster info | grep -q cluster_state:ok && return
            redis-cli -p "$port" cluster addslotsrange 0 16383 >/dev/null
        done
    done
    cat "$work/cluster.log" >&2
    wrong "redis-server did not start as a cluster"
}

# run GUIDE [VARIABLE=VALUE...]: its program prints what the guide says that it prints
run()
{
    guide=$1
    shift
    block output "$guide" >"$work/expected"
    [ -s "$work/expected" ] || wrong "$guide: says nothing of its output"
    env "$@" timeout 60 "tests/guides/$guide" >"$work/printed" 2>"$work/errors" || wrong "$guide: its program fails: $(cat "$work/errors")"
    diff "$work/expected" "$work/printed" >&2 || wrong "$guide: its program prints something else"
}

for program in redis-server redis-cli memcached; do
    command -v $program >/dev/null && continue
    [ -n "${NEAR_TEST_REQUIRE_SERVERS:-}" ] && { wrong "no $program"; exit 1; }
    exit 77
done
for name in $(env | sed -n 's/^\(NEARCACHE_[A-Z0-9_]*\)=.*/\1/p'); do
    unset "$name"
done

# ---- programs

redis plain
memcached -u "$(id -un)" -s "$work/memcached" >/dev/null 2>&1 &
servers="$servers $!"
cluster

run cache-aside
run feature-serving
run feature-serving NEARCACHE_L2_URI="redis+unix://$work/plain"
run write-back
run settings
run memcached-or-redis NEARCACHE_L2_URI="redis+unix://$work/plain"
run memcached-or-redis NEARCACHE_L2_URI="memcached+unix://$work/memcached"
run moving NEARCACHE_L2_URI="redis+unix://$work/plain"
run redis-cluster NEARCACHE_L2_URI="redis-cluster://127.0.0.1:$port"

# ---- the recommended user; then one that lacks a right, to see that the log would have told

refusals() # refusals ACL-FILE NAME: into $refused
{
    redis "$2" --aclfile "$1"
    NEARCACHE_L2_URI="redis+unix://$work/$2" SERVICE_PASSWORD=s3cret timeout 60 tests/guides/security >"$work/printed" 2>&1
    refused=$(redis-cli -s "$work/$2" --user admin --pass look --no-auth-warning acl log | grep -c 'reason')
}

block acl security >"$work/users.acl"
echo 'user admin on >look ~* &* +@all' >>"$work/users.acl"
sed 's/ +unlink//' "$work/users.acl" >"$work/fewer.acl"
refusals "$work/users.acl" acl
[ "$refused" = 0 ] || wrong "security: the server refuses the recommended user something"
block output security | diff - "$work/printed" >&2 || wrong "security: its program prints something else"
refusals "$work/fewer.acl" fewer
[ "$refused" != 0 ] || wrong "security: the control was refused nothing"

# ---- configurations, commands, names

for guide in "$srcdir"/doc/guide/*.md; do
    name=$(basename "$guide" .md)
    block conf "$name" | awk -v to="$work/$name." '/^== / { file = to $2 ".conf"; next } { print > file }'
    for file in "$work/$name".*.conf; do
        [ ! -e "$file" ] || "$tools/nearcache" config --check "$file" >"$work/printed" 2>&1 || wrong "$name: $(cat "$work/printed")"
    done
    block sh "$name" >"$work/commands"
    (cd "$work" && PATH=$tools:$PATH sh -e commands >printed 2>&1) || wrong "$name: a command fails: $(cat "$work/printed")"
done

"$tools/nearcache" config --list | sed -n 's/^#\([a-z0-9_.]*\) = .*/\1/p' >"$work/options"
"$tools/nearcache" metrics --list --json | grep -oE '"name": "[a-z0-9_]+"' | sed 's/.*: "//; s/"//' >"$work/metrics"
[ -s "$work/options" ] && [ -s "$work/metrics" ] || wrong "no list of options or metrics"
grep -ohE '`(l1|l2|fields|ttl|loader|load|lease|write|write_back|store|coherence|prefix|sentinel|tls|close|audit|log|early_refresh)\.[a-z_]+' "$srcdir"/doc/guide/*.md |
    tr -d '`' | sort -u | while read -r option; do
    grep -qxF "$option" "$work/options" || echo "$option"
done >"$work/unknown"
[ ! -s "$work/unknown" ] || wrong "options that there are not: $(tr '\n' ' ' <"$work/unknown")"
sed -n '/^| `/p' "$srcdir/doc/guide/troubleshooting.md" | sed 's/^| `\([a-z0-9_]*\)`.*/\1/' | sort -u | while read -r metric; do
    exported=${metric%_ms} # members of the structure count milliseconds, exported are seconds
    grep -qE "^(nearcache_)?($metric|${exported}_seconds)(_total|_seconds)?$" "$work/metrics" || echo "$metric"
done >"$work/unknown"
[ ! -s "$work/unknown" ] || wrong "metrics that there are not: $(tr '\n' ' ' <"$work/unknown")"

[ $failed -eq 0 ] && echo "[  PASSED  ] $(ls "$srcdir"/doc/guide/*.md | wc -l) test(s)."
exit $failed
