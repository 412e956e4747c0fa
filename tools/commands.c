/* The table of subcommands: everything that is said about one is said here. */
#include "command.h"

#include <string.h>

#define CLIENT_OPTIONS                                                                                       \
    { "l2", "URI", TAKES_URI, 'l', "The shared tier, as -o l2.uri=URI." },                                   \
        { "o", "NAME=VALUE", TAKES_SETTING, 'o',                                                             \
          "Any option that `nearcache config --list` shows; it comes before the environment and the "        \
          "file." },                                                                                         \
    {                                                                                                        \
        "config", "FILE", TAKES_FILE, 'c', "Options from a file."                                            \
    }
#define JSON_OPTION                                                                                          \
    {                                                                                                        \
        "json", NULL, TAKES_NOTHING, 'j', "The result as JSON, for programs."                                \
    }
#define END                                                                                                  \
    {                                                                                                        \
        NULL, NULL, TAKES_NOTHING, 0, NULL                                                                   \
    }
#define OPTIONS_NONE                                                                                         \
    (const struct command_option[])                                                                          \
    {                                                                                                        \
        END                                                                                                  \
    }
#define OPTIONS(...)                                                                                         \
    (const struct command_option[])                                                                          \
    {                                                                                                        \
        __VA_ARGS__, END                                                                                     \
    }

const struct command near__commands[] = {
    { "get", "[OPTION]... CACHE KEY", "print a value from the shared tier", run_get,
      OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_WORD,
      "The bytes go to standard output as they are; a newline follows on a terminal only.  Exit status 1: "
      "the "
      "key is not there." },
    { "set", "[OPTION]... CACHE KEY VALUE|-", "store a value and tell every instance", run_set,
      OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_WORD,
      "VALUE - reads standard input to its end.  -o ttl=30s sets how long it is good.  The service's "
      "database is "
      "not touched." },
    { "remove", "[OPTION]... CACHE KEY", "remove a key and tell every instance", run_remove,
      OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_WORD, "Removing what is not there is no failure." },
    { "invalidate", "[OPTION]... CACHE KEY... | --prefix PREFIX CACHE | --all CACHE",
      "declare values stale and tell every instance", run_invalidate,
      OPTIONS(CLIENT_OPTIONS,
              { "prefix", "PREFIX", TAKES_WORD, OPT_PREFIX,
                "Forget all values whose keys begin so: Redis is looked through from end to end, a second "
                "for some "
                "hundred thousand keys." },
              { "all", NULL, TAKES_NOTHING, OPT_ALL, "Forget every value of the cache, at once." },
              JSON_OPTION),
      NULL, TAKES_WORD,
      "A KEY's value must be refreshed before it is served again, but stays as a fallback within grace, for "
      "a loader "
      "that fails; -o grace=TIME says how long that is for this command, as for the service.  Without grace "
      "it is "
      "removed." },
    { "tag", "[OPTION]... CACHE TAG", "forget every value that carries a tag, in every instance", run_tag,
      OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_WORD,
      "In one step, however many there are; see near_invalidate_tag()." },
    { "explain", "[OPTION]... CACHE KEY", "one key on every level: where it is, how old, and for how long",
      run_explain, OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_WORD,
      "What near_explain() tells of the shared tier, seen from this command, whose own memory is empty: "
      "whether it "
      "is there, its size, tags and version, what its load took, what is left of its TTL (ttl_ms) and until "
      "it is "
      "dropped (kept_ms), and whether an instance is loading (leased) or writing it." },
    { "config", "--list [--json] | --check FILE [--json]", "show every option, or check a configuration file",
      run_config,
      OPTIONS({ "list", NULL, TAKES_NOTHING, 'l',
                "Every option with its default, in the form of a configuration file." },
              JSON_OPTION,
              { "check", "FILE", TAKES_FILE, 'c',
                "Refuse unknown names, bad values and contradictions, naming the line; exit status 3.  The "
                "environment "
                "is left out of account." },
              { "man", NULL, TAKES_NOTHING, 'm', NULL }),
      NULL, TAKES_NOTHING, NULL },
    { "doctor", "[OPTION]... URI", "say whether a shared tier can be used, or why not", run_doctor,
      OPTIONS(CLIENT_OPTIONS, JSON_OPTION), NULL, TAKES_URI,
      "Tells version, limits, memory and its policy, clock, whether the connection is encrypted and for "
      "which name its "
      "certificate was checked, which of the commands that nearcache uses the login may not, whether "
      "tracking can be "
      "had, and what to change (->).  No key is written and no instance is told anything: rights to write "
      "are found out "
      "by commands that are queued in a transaction and discarded.\n"
      "Exit status 0: all is well, perhaps with notes; 1: it works, and what is marked with ! should be "
      "changed; 3: it "
      "cannot be used." },
    { "metrics", "--list [--json]", "show every counter and histogram", run_metrics,
      OPTIONS({ "list", NULL, TAKES_NOTHING, 'l',
                "Names as in near_stats_prometheus(), kind, unit and meaning; see nearcache-metrics(7)." },
              JSON_OPTION, { "man", NULL, TAKES_NOTHING, 'm', NULL }),
      NULL, TAKES_NOTHING, NULL },
    { "simulate", "[OPTION]... TRACE...", "hit ratios of L1 over a trace, at many sizes and policies",
      run_simulate,
      OPTIONS(
          { "sizes", "LIST", TAKES_WORD, 0,
            "Up to 64 of 1000, 10k, 2M entries, 5% of the keys, 64MiB of memory; by default eight, 1% to "
            "100%." },
          { "policies", "LIST", TAKES_WORD, 0, "Of those that l1.policy accepts; by default all." },
          { "exact", NULL, TAKES_NOTHING, 0,
            "The policies by their definitions, one shard, instead of L1 as it is in production." },
          { "sampled", NULL, TAKES_NOTHING, 0,
            "Estimate from a sample of the keys, of 25000 or so: tens of times as fast, and right to a "
            "point for lru, lfu, sieve and s3fifo. adaptive can be off by somewhat more, tinylfu by four "
            "points and more at sizes below one or two percent of the keys: look at those without it. A "
            "trace with fewer than 491520 keys is simulated whole all the same, and the report says so." },
          { "rate", "R", TAKES_WORD, 0, "The same with this part of the keys, more than 0, up to 1." },
          { "format", "auto|keys|csv|monitor|hmget|pcap", TAKES_CHOICE, 0,
            "The traces' format; auto looks at the first line, or bytes." },
          { "value-size", "N", TAKES_WORD, 0,
            "Bytes of a value where the trace does not say; by default 100." },
          { "threads", "N", TAKES_WORD, 0, "By default one for each processor." },
          { "json", NULL, TAKES_NOTHING, 0, "The result as JSON, for programs." },
          { "svg", "FILE", TAKES_FILE, 0, "The curves as a picture." },
          { "html", "FILE", TAKES_FILE, 0,
            "Picture, table and advice as one page that needs nothing else." }),
      NULL, TAKES_FILE,
      "TRACE - is standard input; several are read as one.  Files compressed with zstd or gzip are read as "
      "they "
      "are.  Formats: keys (KEY or KEY SIZE in each line; lines that begin with # are comments), csv "
      "(TIME,KEY or "
      "TIME,KEY,SIZE; a first line of names is passed over), monitor (what redis-cli MONITOR prints: GET, "
      "MGET, "
      "HGET and HMGET count, a field of a hash as a key of its own), hmget (HMGET KEY FIELD... in each "
      "line), pcap (packets as tcpdump -w saves them, or pcapng: what clients say to Redis, or to memcached "
      "in its "
      "text protocol, TCP put together again; reads count, and what is missing is passed over and told).\n"
      "Exit status 3: a trace that cannot be read or makes no sense (file and line or offset are named), or "
      "a file "
      "that "
      "cannot be written; then none is left behind." },
    { "journal", "inspect [--records] [--json] DIR | verify DIR | salvage DIR",
      "look into the journal of unfinished writes", run_journal,
      OPTIONS({ "records", NULL, TAKES_NOTHING, 'r',
                "inspect: besides, each record that is not done and each dead letter, without its value." },
              JSON_OPTION),
      "inspect verify salvage", TAKES_DIRECTORY,
      "inspect says what the journal of a service (the option write_back.journal) holds: its files, what is "
      "not in "
      "the store yet by cache, dead letters, and damage.  Nothing is changed.  Of a journal that is in use "
      "the end "
      "is moving: it may be shown torn, and a file may be gone before it was read.\n"
      "verify checks every checksum: exit status 3 where a byte is not what was written.  A torn end, as a "
      "crash "
      "leaves it, is no damage.\n"
      "salvage opens a damaged journal, which its service refuses, and saves every record that can still be "
      "read; "
      "the damaged files are kept as *.bad.  No program may have it open.  What stood in damaged places is "
      "lost: a "
      "write of which it is not known any more that it was done is given to the store again." },
    { "bench", "[OPTION]... [URI]", "put a load on a cache and say how long its calls take", run_bench,
      OPTIONS(
          CLIENT_OPTIONS,
          { "against", "WHAT", TAKES_FILE, OPT_AGAINST,
            "A second configuration, run in turns with the first: WHAT is a URI, NAME=VALUE or a "
            "configuration "
            "file, and comes on top of the first one.  May be given several times." },
          { "keys", "N", TAKES_WORD, OPT_KEYS, "So many keys; by default 100k." },
          { "zipf", "S", TAKES_WORD, OPT_ZIPF,
            "Some are wanted more than others, by Zipf's law with this exponent; by default 0.99." },
          { "uniform", NULL, TAKES_NOTHING, OPT_UNIFORM, "All are wanted equally." },
          { "trace", "FILE", TAKES_FILE, OPT_TRACE,
            "The keys of this trace in its order, with its sizes, over and over; formats as for simulate." },
          { "threads", "N", TAKES_WORD, OPT_THREADS, "By default 1." },
          { "rate", "N", TAKES_WORD, OPT_RATE,
            "So many requests begin each second, whatever those before take, and a call's time counts from "
            "when "
            "it was to begin.  By default each thread begins its next call when the last one ends." },
          { "batch", "N", TAKES_WORD, OPT_BATCH, "Reads of so many keys at once; by default 1." },
          { "puts", "PERCENT", TAKES_WORD, OPT_PUTS, "So many of the calls write; by default 5." },
          { "value-size", "N[-M]", TAKES_WORD, OPT_VALUES,
            "Bytes of a value, or from N to M; by default 100." },
          { "ttl", "TIME", TAKES_WORD, OPT_TTL, "How long values are good, as -o ttl=TIME." },
          { "loader", "TIME", TAKES_WORD, OPT_LOADER,
            "Reads are near_fetch() with a loader that takes so long, and nothing is stored beforehand." },
          { "duration", "TIME", TAKES_WORD, OPT_SECONDS, "Of each configuration, in all; by default 10s." },
          { "warm-up", "TIME", TAKES_WORD, OPT_WARM_UP, "Before that, not counted; by default 500ms." },
          { "rounds", "N", TAKES_WORD, OPT_ROUNDS, "Parts of the duration; by default 1, with --against 5." },
          { "no-fill", NULL, TAKES_NOTHING, OPT_NO_FILL, "Do not store the keys beforehand." }, JSON_OPTION),
      NULL, TAKES_URI,
      "Keys lie in a cache called bench, those of a second configuration in bench2, and stay there until "
      "their "
      "TTL.  Rounds of two configurations alternate, and ratios are taken within a round, so that they hold "
      "on a "
      "machine that others use as well.  Times are exact to 1.6 %.\n"
      "Exit status 3: the keys cannot be stored, or not one request was answered." },
    { "warm", "[OPTION]... CACHE FILE", "bring the keys of a request log or a list into a shared tier",
      run_warm,
      OPTIONS(CLIENT_OPTIONS,
              { "from", "URI", TAKES_URI, OPT_FROM,
                "Values come from this other shared tier, with what is left of their TTL." },
              { "loader", "COMMAND", TAKES_WORD, OPT_LOADER,
                "Values come from this shell command.  It is given a key in each line (what is not plain "
                "ASCII as "
                "%XX), and answers each with a line that has the value's size, so many bytes, and a newline; "
                "or with "
                "-1 where there is none." },
              { "rate", "N", TAKES_WORD, OPT_RATE, "Most keys a second; by default 1000." },
              { "limit", "N", TAKES_WORD, OPT_LIMIT, "Not more than so many keys." },
              { "retry", "TIME", TAKES_WORD, OPT_RETRY,
                "A batch that fails is tried again for so long; by default 5s." },
              { "state", "FILE", TAKES_FILE, OPT_STATE,
                "Where to note how far it has come: a run that finds it goes on from there.  It is removed "
                "when all "
                "is done." },
              JSON_OPTION),
      NULL, TAKES_FILE,
      "FILE is a request log (log.requests, with log.requests_keys = plain), or has a key as the first word "
      "of each "
      "line; - is standard input.  A key that occurs again is not asked for again.  What the shared tier has "
      "is left "
      "alone, and what the service writes meanwhile wins.  With neither --from nor --loader nothing is "
      "stored: keys "
      "are read, which says how many are there and makes the server take them for used.\n"
      "Exit status 3: a batch still fails, or the file makes "
      "no sense "
      "(the line is named); 4: it was interrupted.  The state is kept then." },
    { "dict", "train [OPTION]... CACHE [FILE]... | show CACHE | use CACHE ID|none",
      "dictionaries that small values are compressed with", run_dict,
      OPTIONS(
          CLIENT_OPTIONS,
          { "lines", NULL, TAKES_NOTHING, OPT_LINES, "Each line of a FILE is a sample, not the file." },
          { "keys", "FILE", TAKES_FILE, OPT_KEYS,
            "Samples are the values in the shared tier of these keys, the first word of each line." },
          { "sample", "N", TAKES_WORD, OPT_SAMPLE,
            "Samples are the values of up to N keys that the Redis server names (SCAN)." },
          { "size", "N", TAKES_WORD, OPT_SIZE, "At most so many bytes, 1024 to 262144; by default 32768." },
          { "output", "FILE", TAKES_FILE, OPT_OUTPUT, "Write it to a file besides, as zstd -D takes it." },
          { "dry-run", NULL, TAKES_NOTHING, OPT_DRY_RUN, "Train and measure, and store nothing." },
          JSON_OPTION),
      "train show use", TAKES_FILE,
      "train makes a dictionary of samples, measures it on one in eight that were kept back, and, where it "
      "makes them a tenth smaller at least (else exit status 1), puts it into the shared tier and names it "
      "the newest one: caches with l2.dictionary = auto take it up within l2.dictionary_refresh.  Values "
      "that "
      "were compressed with others stay readable.  Some thousand samples, and a hundred times as many bytes "
      "as the dictionary has, do well.\n"
      "show tells the newest one, use names another one, or none." },
    { "top", "[OPTION]... [URI]", "what running instances count, as a table that is kept up to date", run_top,
      OPTIONS(CLIENT_OPTIONS,
              { "once", NULL, TAKES_NOTHING, OPT_ONCE,
                "Listen for a while, print once, and end; exit status 1 where nobody was heard." },
              { "wait", "TIME", TAKES_WORD, OPT_WAIT, "With --once: for so long; by default 3s." },
              { "every", "TIME", TAKES_WORD, OPT_EVERY, "How often the table is made anew; by default 1s." },
              JSON_OPTION),
      NULL, TAKES_URI,
      "Instances tell what they count where stats.publish is set, over the Redis that is their bus: URI is "
      "that, or "
      "the shared tier whose bus it is.  Rates are between the last two texts of an instance.  Their keys "
      "are shown as "
      "far as stats.publish_keys allows.  On a terminal the screen is cleared for each table, elsewhere they "
      "follow "
      "each other." },
    { "completion", "bash | zsh", "completion of this command for a shell", run_completion, OPTIONS_NONE,
      "bash zsh", TAKES_NOTHING,
      "Installed with the package; else: `source <(nearcache completion bash)`, or for zsh a file _nearcache "
      "in a "
      "directory of $fpath." },
};
const size_t near__command_count = NEAR_COUNT_OF(near__commands);

const struct command *
command_named(const char *name)
{
    for (size_t i = 0; i < near__command_count; i++)
        if (strcmp(near__commands[i].name, name) == 0)
            return &near__commands[i];
    return NULL;
}
