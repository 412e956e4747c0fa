#!/bin/sh
# Runs the models: check.sh [FIRST WORD OF A LINE BELOW...]
#
# A model is named with its variant.  "holds": the whole state space, no error.  "fails": an error must be found, or the model proves nothing.
# Needs spin and a C compiler; 77 (skipped) without.  SPIN_DIR: where to build, else a directory that is removed again.
cd "$(dirname "$0")" || exit 1
models=$PWD
command -v spin >/dev/null && command -v "${CC:-gcc}" >/dev/null || { echo "no spin here: skipped"; exit 77; }
work=${SPIN_DIR:-$(mktemp -d)} || exit 1
[ -n "$SPIN_DIR" ] || trap 'rm -rf "$work"' EXIT INT TERM
held=0 failed=0 wrong=0

# run WORD MODEL DEFINITION...: "holds" or "fails" as WORD says?
run()
{
    word=$1 model=$2
    shift 2
    name=$model
    for definition; do name=$name+$definition; done
    flags=
    for definition; do flags="$flags -D$definition"; done
    optimise=-O0 # what fails does so soon
    [ "$word" = fails ] || optimise=-O2
    mkdir -p "$work/$name" && cd "$work/$name" || exit 1
    spin -a $flags "$models/$model.pml" >spin.log 2>&1 &&
        "${CC:-gcc}" $optimise -w -DSAFETY -o pan pan.c >gcc.log 2>&1 ||
        { cat spin.log gcc.log; echo "$name: is no model"; wrong=$((wrong + 1)); cd "$models"; return; }
    ./pan -m1000000 -w22 >pan.log 2>&1
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log | head -n 1)
    complete=yes
    grep -q 'max search depth too small\|out of memory\|Search not completed' pan.log && complete=no
    got=fails
    [ "$errors" = 0 ] && [ $complete = yes ] && got=holds
    [ "$errors" != "" ] || got=nothing
    [ $got = holds ] || grep -q 'assertion violated' pan.log || got=nothing # a model that is stuck proves nothing
    printf '%-44s %-6s %9s states%s\n' "$name" "$got" "$states" "$([ "$got" = "$word" ] || echo "   WRONG: it $word no more")"
    if [ "$got" != "$word" ]; then wrong=$((wrong + 1)); sed 's/^/    /' pan.log | head -n 20
    elif [ "$word" = holds ]; then held=$((held + 1)); else failed=$((failed + 1)); fi
    cd "$models" || exit 1
}

while read -r word rest; do
    case $word in '' | '#'*) continue ;; esac
    [ $# -eq 0 ] || case " $* " in *" ${rest%% *} "*) ;; *) continue ;; esac
    run $word $rest
done <<END
holds fill
holds fill TWO_STEPS
fails fill NAIVE
fails fill LATE_FENCE
fails fill PLACEHOLDER
fails fill VERSIONS
fails fill FENCE_IN_ENTRY
fails fill IGNORE_ABSENT
fails fill MESSAGE_FIRST
fails fill NO_BRACKET

holds reconnect READERS=2
fails reconnect NO_FLUSH
fails reconnect FLUSH_AT_LOSS
fails reconnect FLUSH_AT_LOSS NO_FILL_WHILE_DOWN
fails reconnect FLUSH_BEFORE_ACK
fails reconnect NO_EPOCH

holds lease
holds lease REFRESH
fails lease REMOVE_FIRST
fails lease REMOVE_FIRST NO_LEASE
fails lease NO_LEASE
fails lease REMOVE_TWICE NO_LEASE
fails lease WRITE_THROUGH
fails lease LEASE_BY_KEY
fails lease REFRESH REFRESH_BLIND

holds marks EVICT READERS=1
holds marks CRASH
holds marks EVICT CRASH REPLAY WRITERS=2
fails marks EVICT CRASH
fails marks EVICT SET
fails marks EVICT NEWER_WINS
fails marks CRASH INSTALL_ANY
fails marks CRASH LAST_MARK
fails marks CRASH NO_MARK

holds clear
fails clear COUNTER
fails clear NO_DOUBT
fails clear MESSAGE_FIRST

holds tags
fails tags CLOCK_LATE
fails tags CLOCK_FIRST
fails tags TAG_ZERO
fails tags SAME_LINEAGE
fails tags SET_BACK LOADS=1 CHANGES=3
fails tags NO_SECOND_LOOK
fails tags SECOND_LOOK_BACK
fails tags FORGET=2

holds queue
fails queue REMOVE_BLIND
fails queue COALESCE_BACK
fails queue DONE_FIRST
fails queue ACK_EARLY
fails queue TARGET_LATE
fails queue SYNC_AGAIN
fails queue STORE_AHEAD
END
echo "$held variants hold, $failed fail as they must, $wrong are wrong"
[ $wrong -eq 0 ]
