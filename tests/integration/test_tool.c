/* The nearcache command as a person uses it: the built binary, real servers, its two outputs and its exit status. */
#include "tool.h"

#include "config.h"
#include "journal.h"

/* ------------------------------------------------------------------------------------------------- usage */

static void
test_help_and_version(void **state)
{
    static const char *const commands[] = { "get", "set", "remove", "config", "doctor" };
    struct world            *world      = *state;
    char                     version[64];

    assert_int_equal(RUN("--help"), 0);
    assert_string_equal(world->err, "");
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++) {
        assert_says(world->out, commands[i]);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++) {
        assert_int_equal(RUN(commands[i], "--help"), 0);
        assert_says(world->out, "usage: nearcache ");
        assert_says(world->out, commands[i]);
    }
    assert_int_equal(RUN("--version"), 0);
    snprintf(version, sizeof(version), "nearcache %s\n", near_version());
    assert_string_equal(world->out, version);
}

static void
test_wrong_usage_is_2_and_says_how(void **state)
{
    struct world *world = *state;

    assert_int_equal(RUN(NULL), 2);
    assert_says(world->err, "usage: nearcache");
    assert_string_equal(world->out, "");
    assert_int_equal(RUN("fetch"), 2);
    assert_says(world->err, "no command \"fetch\"");
    assert_int_equal(RUN("get", "users"), 2);
    assert_says(world->err, "usage: nearcache get");
    assert_int_equal(RUN("set", "users", "k"), 2);
    assert_says(world->err, "usage: nearcache set");
    assert_int_equal(RUN("get", "--nonsense", "users", "k"), 2);
    assert_int_equal(RUN("config"), 2);
    assert_int_equal(RUN("config", "--json"), 2);
    assert_int_equal(RUN("doctor"), 2);
    assert_int_equal(RUN("get", "-o", "l2.uri", "users", "k"), 2);
    assert_says(world->err, "NAME=VALUE");
    assert_int_equal(RUN("get", "-o", "l2.url=x", "users", "k"), 2);
    assert_says(world->err, "l2.url");
    assert_int_equal(RUN("get", "-o", "l2.timeout=50", "users", "k"), 2);
    assert_says(world->err, "accepts");
    assert_int_equal(RUN("get", "--l2", "http://x", "users", "k"), 2);
    assert_int_equal(RUN("get", "users", "k"), 2); /* memory: is this process's own */
    assert_says(world->err, "no shared tier");
}

/* ------------------------------------------------------------------------------------------------- values */

static void
round_trip(struct world *world)
{
    assert_int_equal(RUN("get", world->l2, "users", "user:1"), 1);
    assert_string_equal(world->out, "");
    assert_says(world->err, "not in the caches");
    assert_int_equal(RUN("set", world->l2, "users", "user:1", "Ada"), 0);
    assert_string_equal(world->err, "");
    assert_int_equal(RUN("get", world->l2, "users", "user:1"), 0);
    assert_string_equal(world->out, "Ada"); /* no newline: it is not a terminal */
    assert_int_equal(RUN("get", world->l2, "others", "user:1"), 1);
    assert_int_equal(RUN("set", world->l2, "users", "user:1", ""), 0);
    assert_int_equal(RUN("get", world->l2, "users", "user:1"), 0);
    assert_string_equal(world->out, "");
    assert_int_equal(RUN_INPUT("two\0lines\r\n", "set", world->l2, "users", "a key", "-"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "a key"), 0);
    assert_int_equal(world->out_size, 11);
    assert_memory_equal(world->out, "two\0lines\r\n", 11);
    assert_int_equal(RUN("remove", world->l2, "users", "a key"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "a key"), 1);
    assert_int_equal(RUN("remove", world->l2, "users", "a key"), 0);
    assert_int_equal(RUN("set", world->l2, "--", "users", "-k", "v"), 0);
    assert_int_equal(RUN("get", world->l2, "--", "users", "-k"), 0);
    assert_string_equal(world->out, "v");
}

static void
test_values_on_redis(void **state)
{
    start_redis(*state);
    round_trip(*state);
}

static void
test_values_on_memcached(void **state)
{
    start_memcached(*state);
    round_trip(*state);
}

/* What the command writes is what a client reads, and the other way round. */
static void
test_the_command_and_a_client_share_data(void **state)
{
    struct world *world  = *state;
    near_config  *config = near_config_new();
    near_client  *client = NULL;
    near_cache   *cache  = NULL;
    near_error    error;
    near_value   *value;
    near_status   status;
    char          text[16] = "";
    size_t        size     = 0;

    start_redis(world);
    assert_int_equal(near_config_set(config, "l2.uri", world->server->uri, &error), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_OK);
    near_config_free(config);
    assert_int_equal(near_cache_open(client, "users", NULL, &cache, &error), NEAR_OK);
    assert_int_equal(near_put(cache, near_key("k"), near_key("first"), NULL), NEAR_OK);
    assert_int_equal(RUN("get", world->l2, "users", "k"), 0);
    assert_string_equal(world->out, "first");
    assert_int_equal(RUN("set", world->l2, "users", "k", "then"), 0);
    assert_int_equal(near_fence(client, 5000 * test_slack()), NEAR_OK);
    status = near_get_copy(cache, near_key("k"), text, sizeof(text) - 1, &size, NULL); /* not L1's old one */
    assert_int_equal(status, NEAR_OK);
    assert_string_equal(text, "then");
    assert_int_equal(RUN("remove", world->l2, "users", "k"), 0);
    assert_int_equal(near_fence(client, 5000 * test_slack()), NEAR_OK);
    assert_int_equal(near_get(cache, near_key("k"), &value), NEAR_MISS);
    near_cache_close(cache);
    assert_int_equal(near_client_close(client, &error), NEAR_OK);
}

static void
test_options_of_the_command_line_come_before_the_environment(void **state)
{
    struct world *world = *state;
    char          text[400];

    start_redis(world);
    setenv("NEARCACHE_L2_URI", "redis+unix:///nowhere/at/all", 1);
    assert_int_equal(RUN("set", world->l2, "users", "k", "v"), 0);
    setenv("NEARCACHE_L2_URI", world->server->uri, 1);
    assert_int_equal(RUN("get", "users", "k"), 0);
    assert_string_equal(world->out, "v");
    unsetenv("NEARCACHE_L2_URI");
    snprintf(text, sizeof(text), "l2.uri = %s\nl2.key_prefix = other:\n", world->server->uri);
    assert_int_equal(RUN("get", "--config", write_file(world, text), "users", "k"), 1);
    assert_int_equal(RUN("get", "-o", "l2.key_prefix=nc:", "--config", world->file, "users", "k"), 0);
    assert_string_equal(world->out, "v");
}

static void
test_trouble_is_3_and_names_server_and_reason(void **state)
{
    struct world *world = *state;

    start_redis(world);
    test_server_kill(world->server);
    assert_int_equal(RUN("get", world->l2, "users", "k"), 3);
    assert_says(world->err, world->server->socket);
    assert_string_equal(world->out, "");
    assert_int_equal(RUN("set", world->l2, "users", "k", "v"), 3);
    assert_int_equal(RUN("remove", world->l2, "users", "k"), 3);
    assert_int_equal(RUN("get", "--config", "/no/such/file", "users", "k"), 3);
    assert_says(world->err, "/no/such/file");
}

/* ------------------------------------------------------------------------------------------------- config */

static void
test_config_list_is_a_file_with_every_default(void **state)
{
    struct world *world = *state;
    char          name[128];

    assert_int_equal(RUN("config", "--list"), 0);
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++) {
        snprintf(name, sizeof(name), "\n#%s = %s\n", near__options[i].name, near__options[i].preset);
        assert_says(world->out, name);
    }
    assert_int_equal(RUN("config", "--check", write_file(world, world->out)), 0);
}

/* Uncommenting every line changes nothing and is accepted: the defaults pass their own checks. */
static void
test_config_defaults_are_accepted(void **state)
{
    struct world *world = *state;
    size_t        to    = 0;

    assert_int_equal(RUN("config", "--list"), 0);
    for (size_t at = 0; world->out[at] != '\0'; at++)
        if (world->out[at] != '#' || world->out[at + 1] == ' ')
            world->out[to++] = world->out[at];
    world->out[to] = '\0';
    assert_says(world->out, "\nl2.uri = memory:\n");
    assert_int_equal(RUN("config", "--check", write_file(world, world->out)), 0);
    assert_says(world->out, ": ok\n");
}

static void
test_config_list_json_names_everything(void **state)
{
    struct world *world = *state;
    char          part[160];
    int           depth = 0;

    assert_int_equal(RUN("config", "--list", "--json"), 0);
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++) {
        snprintf(part, sizeof(part), "\"name\": \"%s\"", near__options[i].name);
        assert_says(world->out, part);
        near__option_variable(&near__options[i], part, sizeof(part));
        assert_says(world->out, part);
    }
    for (const char *at = world->out; *at != '\0'; at++) {
        depth += *at == '[' || *at == '{' ? 1 : *at == ']' || *at == '}' ? -1 : 0;
        if (*at == '"') /* pass over the string */
            for (at++; *at != '"'; at++)
                at += *at == '\\';
    }
    assert_int_equal(depth, 0);
    assert_int_equal(world->out[0], '[');
}

static void
test_config_check_names_file_line_and_reason(void **state)
{
    struct world *world = *state;
    char          place[80];

    write_file(world, "# mine\nttl = 1m\nl2.timeout = 50\n");
    snprintf(place, sizeof(place), "%s:3: l2.timeout", world->file);
    assert_int_equal(RUN("config", "--check", world->file), 3);
    assert_says(world->err, place);
    assert_string_equal(world->out, "");
    unlink(world->file);
    assert_int_equal(RUN("config", "--check",
                         write_file(world, "coherence.heartbeat = 400ms\ncoherence.serve_window = 500ms\n")),
                     3);
    assert_says(world->err, "coherence.heartbeat");
    unlink(world->file);
    setenv("NEARCACHE_TTL", "nonsense", 1); /* not the file's fault */
    assert_int_equal(RUN("config", "--check", write_file(world, "ttl = 1m\n")), 0);
    unsetenv("NEARCACHE_TTL");
    assert_int_equal(RUN("config", "--check", "/no/such/file"), 3);
}

/* ------------------------------------------------------------------------------------------------- doctor */

static void
test_doctor_finds_redis_and_its_bus(void **state)
{
    struct world *world = *state;
    char          text[256];

    start_redis(world);
    assert_int_equal(RUN("doctor", world->server->uri), 0);
    assert_string_equal(world->err, "");
    assert_says(world->out, world->server->socket);
    assert_says(world->out, "redis 7.");
    assert_says(world->out, "coherence   subscribed");
    assert_true(test_redis_command(world->server, text, sizeof(text), 1, (const char *[]){ "DBSIZE" }));
    assert_string_equal(text, "0"); /* no key was written */
}

static void
test_doctor_finds_memcached(void **state)
{
    struct world *world = *state;

    start_memcached(world);
    assert_int_equal(RUN("doctor", world->server->uri), 0);
    assert_string_equal(world->err, "");
    assert_says(world->out, "memcached 1.");
    assert_says(world->out, "coherence   no bus");
}

static void
test_doctor_says_why_not(void **state)
{
    struct world *world = *state;

    start_redis(world);
    world->proxy = test_proxy_start(world->server);
    assert_non_null(world->proxy);
    test_proxy_fault(world->proxy, (struct test_fault){ .kind = TEST_FAULT_BLACKHOLE });
    assert_int_equal(RUN("doctor", test_proxy_uri(world->proxy)), 3);
    assert_says(world->err, "timed out");
    test_server_kill(world->server);
    assert_int_equal(RUN("doctor", world->server->uri), 3);
    assert_says(world->err, world->server->socket);
    assert_int_equal(RUN("doctor", "redis://127.0.0.1:notaport"), 2);
    assert_int_equal(RUN("doctor", "gopher://x"), 2);
}

static void
test_doctor_never_shows_a_password(void **state)
{
    struct world *world = *state;
    char          uri[128];

    world->server = test_redis_start(TEST_SERVER_TCP, (const char *[]){ "--requirepass", "right-one", NULL });
    test_need_server(world->server);
    snprintf(uri, sizeof(uri), "redis://:wrong-one@127.0.0.1:%d", world->server->port);
    assert_int_equal(RUN("doctor", uri), 3);
    assert_null(strstr(world->err, "wrong-one"));
    assert_null(strstr(world->out, "wrong-one"));
    snprintf(uri, sizeof(uri), "redis://:right-one@127.0.0.1:%d", world->server->port);
    assert_int_equal(RUN("doctor", uri), 0);
    assert_null(strstr(world->out, "right-one"));
}

/* ---- journal */

/* Three records of which one is not done, and a dead letter. */
static void
write_journal(const char *directory)
{
    struct near__journal_options options = { .directory = directory, .max_bytes = 1 << 20, .manual = true };
    struct near__journal_record  record  = { NEAR__JOURNAL_PUT, near_key("users"), near_key("user:42"),
                                             near_key("not shown") };
    uint64_t                     sequences[3];
    struct near__journal        *journal;
    near_error                   error;

    assert_int_equal(near__journal_open(&journal, &options, &error), NEAR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(near__journal_write(journal, &record, &sequences[i]), NEAR_OK);
    near__journal_done(journal, sequences, 2);
    assert_int_equal(near__journal_dead(journal, &record, sequences[0], NEAR_ERR_CONFLICT), NEAR_OK);
    assert_int_equal(near__journal_close(journal, &error), NEAR_OK);
}

static void
test_journal(void **state)
{
    struct world *world       = *state;
    char          directory[] = "/tmp/near-tool-XXXXXX", path[100], command[100];
    int           fd;

    assert_non_null(mkdtemp(directory));
    write_journal(directory);
    assert_int_equal(RUN("journal", "inspect", "--records", directory), 0);
    assert_says(world->out, "cache       users: 1 puts, 0 erases, 0 intents");
    assert_says(world->out, "\"user:42\" 9 bytes: another write came first");
    assert_null(strstr(world->out, "not shown"));
    assert_int_equal(RUN("journal", "inspect", "--json", directory), 0);
    assert_says(world->out, "\"not_done\": 1");
    assert_int_equal(RUN("journal", "verify", directory), 0);
    assert_says(world->out, "whole: ");
    assert_int_equal(RUN("journal", "salvage", directory), 0);
    assert_says(world->out, "nothing to do");

    snprintf(path, sizeof(path), "%s/0000000000000001.seg", directory);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, 600), 1);
    close(fd);
    assert_int_equal(RUN("journal", "verify", directory), 3);
    assert_says(world->err, "0000000000000001.seg: damaged at offset ");
    assert_int_equal(RUN("journal", "inspect", directory), 3);
    assert_int_equal(RUN("journal", "salvage", directory), 0);
    assert_says(world->out, "*.bad");
    assert_int_equal(RUN("journal", "verify", directory), 0);

    assert_int_equal(RUN("journal", "verify", "/no/such/place"), 3);
    assert_int_equal(RUN("journal", "verify", "--json", directory), 2);
    assert_int_equal(RUN("journal", "mend", directory), 2);
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    assert_int_equal(system(command), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_help_and_version),
        TEST(test_wrong_usage_is_2_and_says_how),
        TEST(test_values_on_redis),
        TEST(test_values_on_memcached),
        TEST(test_the_command_and_a_client_share_data),
        TEST(test_options_of_the_command_line_come_before_the_environment),
        TEST(test_trouble_is_3_and_names_server_and_reason),
        TEST(test_config_list_is_a_file_with_every_default),
        TEST(test_config_defaults_are_accepted),
        TEST(test_config_list_json_names_everything),
        TEST(test_config_check_names_file_line_and_reason),
        TEST(test_doctor_finds_redis_and_its_bus),
        TEST(test_doctor_finds_memcached),
        TEST(test_doctor_says_why_not),
        TEST(test_doctor_never_shows_a_password),
        TEST(test_journal),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
