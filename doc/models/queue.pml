/*
 * Write-back: the dirty table, the journal, the store, and a crash.
 *
 * Stands for: client/back.c and client/dirty.c (coalescing, one flight per key, order), client/journal.c (group commit, "done", replay).
 *
 * One key, three writes by two threads, numbered where they enter the table.  A leader syncs the journal for all who wait; a write is acknowledged when its
 * record is on disk.  The flusher takes the newest write of the key, sees that the journal holds it, calls the store, which may fail, and
 * on its word writes "done", which reaches the disk some time.  A sync may fail once: what it was to write is not on disk then, whatever a
 * later sync says.  One crash at any moment: table, buffer and what was not synced are gone; the next life hands the newest record that is
 * not done to the store.
 *
 * Abstraction: records of one key are a number; the disk is "everything up to here"; torn records and segments are tested on bytes.
 *
 * Promised: P1, what was acknowledged is in the store in the end, or something newer; P2, the store never goes back; readers of this process see
 * what was acknowledged.
 *
 * Product: (none).   Broken: REMOVE_BLIND (the store's answer takes whatever is in the table), COALESCE_BACK (a write that failed replaces a newer
 * one), DONE_FIRST (done before the store's answer), ACK_EARLY (acknowledged at once), TARGET_LATE (the sync counts for what came while it ran),
 * SYNC_AGAIN (a failed sync is tried again on the same file), STORE_AHEAD (the store is called before the journal is on disk).
 */

byte numbered = 0;              /* the newest number */
byte pending = 0, flying = 0;   /* the table: what waits, what is with the store; 0: none */
byte appended = 0;              /* the journal's buffer */
byte durable = 0, disk = 0;     /* up to where callers believe it is on disk; and where it is */
byte done = 0, done_disk = 0;
byte acknowledged = 0;
byte store = 0;
bool failed_once = false, broken = false, alive = true, over = false;

inline give_store(n) {
    assert(n >= store);         /* P2 */
    store = n
}

proctype writer(byte writes) {
    byte i = 0, mine;

    do
    :: atomic { i < writes && alive && !broken ->
            numbered++; mine = numbered; appended = mine; pending = mine; i++ };
#ifndef ACK_EARLY
        (!alive || durable >= mine || broken);
#endif
        atomic {
            if
            :: alive && !broken && mine > acknowledged -> acknowledged = mine
            :: else
            fi
        };
    :: else -> break
    od
}

proctype syncer() {
    byte target;

end:
    do
    :: atomic { alive && appended > durable && !broken -> target = appended };
        if
        :: atomic {                             /* the disk has it */
#ifdef SYNC_AGAIN
            alive;
            if
            :: failed_once
            :: else -> disk = target
            fi
#else
            alive -> disk = target;
#endif
           }
           atomic {
            if
            :: alive ->
#ifdef TARGET_LATE
                durable = appended
#else
                durable = target
#endif
            :: else
            fi
           }
        :: atomic {                             /* it has failed, and dropped what it was to write */
            alive && !failed_once -> failed_once = true;
#ifndef SYNC_AGAIN
            broken = true
#endif
           }
        :: !alive
        fi;
        target = 0
    :: atomic { alive && done > done_disk && !broken -> done_disk = done }
    :: atomic { over -> break }
    od
}

proctype flusher() {
    byte n;

end:
    do
    :: atomic { alive && pending != 0 && !broken -> flying = pending; n = pending;
#ifndef REMOVE_BLIND
        pending = 0
#endif
        };
#ifndef STORE_AHEAD
        (!alive || broken || durable >= n);
#endif
#ifdef DONE_FIRST
        atomic {
            if
            :: alive -> done = n
            :: else
            fi
        };
#endif
        if
        :: atomic { alive && !broken -> give_store(n) }
           atomic {
            if
            :: alive ->
                flying = 0;
#ifdef REMOVE_BLIND
                pending = 0;
#endif
                if
                :: n > done -> done = n
                :: else
                fi
            :: else
            fi
           }
        :: atomic { alive -> flying = 0;        /* the store fails */
            if
#ifdef COALESCE_BACK
            :: true -> pending = n
#else
            :: pending == 0 -> pending = n
            :: else
#endif
            fi
           }
        :: !alive || broken
        fi;
        n = 0
    :: atomic { over -> break }
    od
}

/* Readers of this process: the table first, then what the store has. */
proctype reader() {
    byte least, x;

    least = acknowledged;
    atomic {
        if
        :: alive ->
            x = store;
            if
            :: flying > x -> x = flying
            :: else
            fi;
            if
            :: pending > x -> x = pending
            :: else
            fi;
            assert(x >= least)
        :: else
        fi;
        least = 0; x = 0
    }
}

proctype crash() {
    if
    :: atomic { alive = false; pending = 0; flying = 0; appended = 0 }
    :: skip
    fi
}

init {
    atomic { run writer(2); run writer(1); run syncer(); run flusher(); run reader(); run crash() };
    (timeout);
    /* the next life: after a crash, and after a journal that failed */
    atomic {
        if
        :: !alive || broken ->
            if
            :: disk > done_disk -> give_store(disk)
            :: else
            fi
        :: else
        fi;
        over = true
    };
    assert(store >= acknowledged)
}
