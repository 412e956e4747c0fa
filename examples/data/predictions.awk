# What redis-cli MONITOR printed of a feature store's reads, shortened: each list of fields once, and then a line for each entity list that was
# asked for them together, which is one exchange of a prediction.
#
#     fields NUMBER FIELD...
#     SECONDS NUMBER ENTITY...
#
#     zstd -dc tests/data/traces/hmget-feature-store.log.zst | awk -v requests=20000 -f examples/data/predictions.awk >examples/data/predictions.txt

function flush()
{
    if (line != "")
        print line
    line = ""
}

/\] "HMGET" / {
    if (seen++ == requests)
        exit
    entity = $5
    client = $3
    list   = $0
    sub(/^.*"HMGET" "[^"]*" /, "", list)
    gsub(/"/, "", list)
    gsub(/"/, "", entity)
    if (!(list in number)) {
        flush()
        number[list] = ++lists
        print "fields", lists, list
    }
    if (line == "" || client != last_client || list != last_list || (entity in together)) {
        flush()
        delete together
        line = $1 " " number[list]
    }
    line = line " " entity
    together[entity]
    last_client = client
    last_list   = list
}

END { flush() }
