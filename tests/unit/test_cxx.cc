/*
 * The C++ header: owners, lambdas as loaders and stores, and exceptions that end where they must.  Built twice: as it is, and as
 * test_cxx_plain without exceptions and type information, where the tests that throw are left out.
 */
#include <nearcache.hpp>

#include <condition_variable>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>

extern "C" {
#include <cmocka.h>
}
#undef fail /* cmocka's macro; a load has a member of that name */

using namespace std::literals;
using nearcache::client;
using nearcache::config;

static_assert(!std::is_copy_constructible_v<nearcache::client> &&
              std::is_nothrow_move_constructible_v<nearcache::client>);
static_assert(!std::is_copy_constructible_v<nearcache::cache> &&
              std::is_nothrow_move_constructible_v<nearcache::cache>);
static_assert(!std::is_copy_constructible_v<nearcache::value> &&
              std::is_nothrow_move_constructible_v<nearcache::value>);
static_assert(!std::is_copy_constructible_v<nearcache::load> &&
              !std::is_copy_constructible_v<nearcache::write>);
static_assert(!std::is_copy_constructible_v<nearcache::batch>);

namespace
{

struct world {
    client           service;
    nearcache::cache users;

    explicit world(const config &settings = config())
    {
        auto opened = client::open(settings);
        assert_int_equal(opened.status(), NEAR_OK);
        service     = std::move(*opened);
        auto region = service.open_cache("users");
        assert_int_equal(region.status(), NEAR_OK);
        users = std::move(*region);
    }
};

std::string
text_of(const nearcache::result<nearcache::value> &found)
{
    return found ? std::string(found->text()) : std::string(nearcache::text(found.status()));
}

void
loader_is_given_a_load(void **)
{
    world w;
    int   calls = 0;

    assert_int_equal(w.users.on_load([&](nearcache::load &load) {
        calls++;
        load.set("<" + std::string(load.key()) + ">");
        assert_int_equal(load.set("again"), NEAR_ERR_INVALID); /* answered once */
        load.fail();
    }),
                     NEAR_OK);
    assert_string_equal(text_of(w.users.fetch("a")).c_str(), "<a>");
    assert_string_equal(text_of(w.users.fetch("a")).c_str(), "<a>");
    assert_int_equal(calls, 1);
    assert_int_equal(w.users.get("a")->info().source, NEAR_FROM_L1);
    assert_int_equal(w.users.get("b").status(), NEAR_MISS);
}

void
loader_may_return_an_optional(void **)
{
    std::map<std::string, std::string, std::less<>> db{ { "a", "Ada" } };
    world                                           w;

    w.users.on_load([&](std::string_view key) -> std::optional<std::string> {
        auto found = db.find(key);
        return found != db.end() ? std::optional(found->second) : std::nullopt;
    });
    assert_string_equal(text_of(w.users.fetch("a")).c_str(), "Ada");
    assert_int_equal(w.users.fetch("b").status(), NEAR_NOT_FOUND);
}

void
loader_may_answer_later_in_another_thread(void **)
{
    world                        w;
    std::mutex                   lock;
    std::vector<nearcache::load> waiting;
    std::condition_variable      come;
    std::thread                  answers([&] {
        std::unique_lock<std::mutex> held(lock);
        come.wait(held, [&] { return !waiting.empty(); });
        waiting[0].ttl(1s).set("late");
    });

    w.users.on_load([&](nearcache::load load) {
        std::lock_guard<std::mutex> held(lock);
        waiting.push_back(std::move(load));
        come.notify_one();
    });
    assert_string_equal(text_of(w.users.fetch("a")).c_str(), "late");
    answers.join();
}

void
loader_that_forgets_a_load_has_failed(void **)
{
    world w(config().set("load.retry", 0ms));

    w.users.on_load([](nearcache::load &) {});
    assert_int_equal(w.users.fetch("a").status(), NEAR_ERR_LOADER);
}

void
batch_is_loaded_in_one_call_and_used_again(void **)
{
    world            w;
    int              calls = 0;
    nearcache::batch keys{ "a", "b", "none" };

    w.users.on_load([&](nearcache::loads loads) {
        calls++;
        for (auto &load : loads)
            if (load.key() == "none")
                load.not_found();
            else
                load.set(load.key());
    });
    assert_int_equal(w.users.fetch(keys), NEAR_OK);
    assert_int_equal(calls, 1);
    assert_true(keys[1].text == "b" && keys[1]);
    assert_int_equal(keys[2].status, NEAR_NOT_FOUND);
    assert_true(keys[2].text.empty() && !keys[2]);
    assert_int_equal(w.users.get(keys), NEAR_OK);

    nearcache::batch moved = std::move(keys);
    size_t           n     = 0;
    for (auto item : moved)
        n += item.status == NEAR_OK ? item.text.size() : 0;
    assert_int_equal(n, 2);
    moved.clear();
    std::vector<std::string> many;
    for (int i = 0; i < 50; i++) /* more than lie on the stack of the call */
        many.push_back("key" + std::to_string(i));
    for (auto &key : many)
        moved.add(key);
    assert_int_equal(w.users.fetch(moved), NEAR_OK);
    for (size_t i = 0; i < many.size(); i++)
        assert_true(moved[i].text == many[i]);
    assert_int_equal(calls, 2);
}

#if defined(__cpp_exceptions)
void
exception_of_a_loader_ends_at_its_key(void **)
{
    world            w(config().set("load.retry", 0ms));
    nearcache::batch keys{ "good", "bad", "better" };

    w.users.on_load([](nearcache::load &load) {
        if (load.key() == "bad")
            throw std::string("no");
        load.set(load.key());
    });
    assert_int_equal(w.users.fetch(keys), NEAR_ERR_LOADER);
    assert_int_equal(keys[0].status, NEAR_OK);
    assert_int_equal(keys[1].status, NEAR_ERR_LOADER);
    assert_int_equal(keys[2].status, NEAR_OK);
}

void
exception_of_a_batch_fails_what_was_not_answered(void **)
{
    world            w(config().set("load.retry", 0ms));
    nearcache::batch keys{ "one", "two", "three" };

    w.users.on_load([](nearcache::loads loads) {
        loads[0].set("1");
        throw 17;
    });
    assert_int_equal(w.users.fetch(keys), NEAR_ERR_LOADER);
    assert_int_equal(keys[0].status, NEAR_OK);
    assert_int_equal(keys[1].status, NEAR_ERR_LOADER);
    assert_int_equal(keys[2].status, NEAR_ERR_LOADER);
}

void
exception_on_the_loader_pool_ends_there_too(void **)
{
    world w(config().set("loader.hard_timeout", 5s));

    w.users.on_load([](std::string_view) -> std::optional<std::string> { throw 17; });
    assert_int_equal(w.users.fetch("a").status(), NEAR_ERR_LOADER);
}

void
exception_of_a_store_leaves_the_outcome_unknown(void **)
{
    world w;

    w.users.on_store([](nearcache::write &) { throw 17; });
    assert_int_equal(w.users.update("a", "1"), NEAR_ERR_TIMEOUT);
}

void
exception_of_a_log_callback_is_dropped(void **)
{
    world w(config().set("l2.uri", "redis+unix:///nowhere/at/all").set("log.level", "debug"));
    int   lines = 0;

    w.service.on_log([&](near_log_level, std::string_view) {
        lines++;
        throw 17;
    });
    w.users.put("a", "1");
    assert_int_not_equal(lines, 0);
}
#endif

void
store_is_given_values_and_erasures(void **)
{
    std::map<std::string, std::string, std::less<>> db;
    world                                           w;

    w.users.on_store([&](nearcache::writes writes) {
        for (auto &write : writes) {
            assert_int_not_equal(write.sequence(), 0);
            if (write.data())
                db[std::string(write.key())] = *write.data();
            else
                db.erase(std::string(write.key()));
            write.done();
        }
    });
    assert_int_equal(w.users.update("a", "1"), NEAR_OK);
    assert_int_equal(w.users.update("empty", ""), NEAR_OK);
    assert_true(db.at("a") == "1" && db.at("empty").empty());
    assert_int_equal(w.users.erase("a"), NEAR_OK);
    assert_int_equal(db.size(), 1);
    assert_int_equal(w.service.flush(1s), NEAR_OK);
}

void
store_that_forgets_a_write_has_an_unknown_outcome(void **)
{
    world w;

    w.users.on_store([](nearcache::write) {});
    assert_int_equal(w.users.update("a", "1"), NEAR_ERR_TIMEOUT);
}

void
puts_have_options(void **)
{
    world                  w;
    nearcache::put_options once, tagged, if_same;

    once.flags = NEAR_IF_ABSENT;
    assert_int_equal(w.users.put("a", "1", once), NEAR_OK);
    assert_int_equal(w.users.put("a", "2", once), NEAR_ERR_CONFLICT);
    tagged.tags = { "red", "round" };
    tagged.ttl  = 1h;
    assert_int_equal(w.users.put("t", "1", tagged), NEAR_OK);
    assert_in_range(w.users.get("t")->info().ttl_ms, 1, 3600 * 1000 * 2);
    assert_int_equal(w.users.invalidate_tag("round"), NEAR_OK);
    assert_int_equal(w.users.get("t").status(), NEAR_MISS);

    auto seen         = w.users.get("a");
    if_same.unchanged = &*seen;
    assert_int_equal(w.users.put("a", "3", if_same), NEAR_OK);
    assert_int_equal(w.users.put("a", "4", if_same), NEAR_ERR_CONFLICT);
    assert_true(seen->text() == "1");
    assert_int_equal(w.users.put_many({ { "x", "1" }, { "y", "2" } }), NEAR_OK);
    assert_string_equal(text_of(w.users.get("y")).c_str(), "2");
    assert_int_equal(w.users.remove_many({ "x", "y" }), NEAR_OK);
    assert_int_equal(w.users.get("y").status(), NEAR_MISS);
    assert_int_equal(*w.users.add("n", 1, 10), 10);
    assert_int_equal(*w.users.add("n", 5), 15);
    assert_int_equal(w.users.add("a", 1).status(), NEAR_ERR_CONFLICT);
    assert_true(w.users.explain("a").find("\"l1\"") != std::string::npos);
    assert_true(w.service.stats_json().find("\"users\"") != std::string::npos);
    assert_int_equal(w.service.stats().removes, 2);
}

void
refused_option_is_said_when_the_client_opens(void **)
{
    near_error error{};
    config     wrong;

    wrong.set("ttl", 250ms).set("ttl", 1500us).set("l1.max_bytes", 1 << 20).set("write.fast", true);
    assert_int_equal(wrong.error().code, NEAR_OK);
    wrong.set("no.such", "1").set("neither", 2);
    assert_int_equal(client::open(wrong, &error).status(), NEAR_ERR_INVALID);
    assert_true(std::string_view(error.text).find("no.such") != std::string_view::npos);
}

void
instances_hear_of_each_other(void **)
{
    world one(config().set("l2.uri", "memory:cxx")), other(config().set("l2.uri", "memory:cxx"));

    one.users.put("a", "1");
    assert_string_equal(text_of(other.users.get("a")).c_str(), "1");
    one.users.put("a", "2");
    assert_int_equal(other.service.fence(one.service.write_token(), 1s), NEAR_OK);
    assert_string_equal(text_of(other.users.get("a")).c_str(), "2");
}

void
owners_may_end_in_any_order(void **)
{
    auto             captured = std::make_shared<int>(17);
    nearcache::value kept;
    {
        nearcache::cache users;
        {
            world w;
            w.users.on_load([captured](nearcache::load &load) { load.set("kept"); });
            users = std::move(w.users);
            assert_int_equal(w.users.get("a").status(), NEAR_ERR_INVALID); /* moved away */
        } /* the client's owner has ended, not the client: the cache holds it */
        kept = std::move(*users.fetch("a"));
        assert_int_equal(captured.use_count(), 2);
    }
    assert_int_equal(captured.use_count(), 1);
    nearcache::value second = kept.share();
    kept                    = nearcache::value();
    assert_true(second.text() == "kept");
}

void
closing_the_client_closes_its_caches(void **)
{
    auto  captured = std::make_shared<int>(17);
    world w;

    w.users.on_load([captured](nearcache::load &load) { load.set("kept"); });
    assert_int_equal(w.service.close(), NEAR_OK);
    assert_int_equal(captured.use_count(), 1);
    assert_false(static_cast<bool>(w.users));
    assert_int_equal(w.users.fetch("a").status(), NEAR_ERR_INVALID);
    assert_int_equal(w.users.put("a", "1"), NEAR_ERR_INVALID);
    assert_true(w.users.explain("a").empty());
    assert_int_equal(w.service.close(), NEAR_ERR_INVALID);
    assert_true(w.service.write_token().empty());
}

/* A loader that neither answers nor ends before close.timeout: what it holds stays. */
void
loader_that_outlives_the_client_keeps_what_it_holds(void **)
{
    static std::mutex lock; /* static: the loader comes back when this function's frame may be gone */
    static std::condition_variable changed;
    static bool                    begun, go, ended;
    auto                           captured = std::make_shared<int>(17);
    {
        world w(config().set("close.timeout", 20ms));

        nearcache::fetch_options soon;
        soon.timeout = 10ms;
        w.users.on_load([captured](nearcache::load load) {
            std::unique_lock<std::mutex> held(lock);
            begun = true;
            changed.notify_all();
            changed.wait(held, [] { return go; });
            load.set(std::to_string(*captured));
            ended = true;
            changed.notify_all();
        });
        assert_int_equal(w.users.fetch("a", soon).status(), NEAR_ERR_TIMEOUT);
        {
            std::unique_lock<std::mutex> held(lock);
            changed.wait(held, [] { return begun; });
        }
        assert_int_equal(w.service.close(), NEAR_ERR_BUSY);
    }
    assert_int_equal(captured.use_count(), 2);
    std::unique_lock<std::mutex> held(lock);
    go = true;
    changed.notify_all();
    assert_true(changed.wait_for(held, 10s, [] { return ended; }));
    assert_int_equal(*captured, 17);
}

/* A load that is answered elsewhere may be done with while its loader is still at work: what that holds it lets go in its end. */
void
loader_may_end_after_the_client(void **)
{
    struct gate {
        std::mutex              lock;
        std::condition_variable changed;
        bool                    go = false;
    };
    auto opens    = std::make_shared<gate>();
    auto captured = std::make_shared<int>(17);
    {
        world w(config().set("loader.hard_timeout", 2s).set("close.timeout", 20ms));

        w.users.on_load([captured, opens](nearcache::load load) {
            std::thread([&] { load.set("early"); }).join();
            std::unique_lock<std::mutex> held(opens->lock);
            opens->changed.wait(held, [&] { return opens->go; });
        });
        nearcache::fetch_options soon;
        soon.timeout = 10ms;
        (void)w.users.fetch("a", soon);
        w.service.close();
    }
    assert_int_equal(captured.use_count(), 2);
    std::lock_guard<std::mutex> held(opens->lock);
    opens->go = true;
    opens->changed.notify_all();
}

struct user {
    std::string name;
};

std::unique_ptr<user>
make_user(std::string_view, std::string_view bytes)
{
    return bytes == "bad" ? nullptr : std::make_unique<user>(user{ std::string(bytes) });
}

std::size_t
user_size(const user &one)
{
    return sizeof(one) + one.name.size();
}

void
values_may_be_decoded(void **)
{
    nearcache::value held;
    {
        world w;

        assert_int_equal((w.users.decode_with<user, make_user, user_size>()), NEAR_OK);
        assert_int_equal(w.users.put("a", "a name that does not fit inside"), NEAR_OK);
        assert_int_equal(w.users.put("b", "bad"), NEAR_ERR_DECODE);
        held = std::move(*w.users.get("a"));
        assert_ptr_equal(held.object<user>(), w.users.get("a")->object<user>());
        assert_true(held.text().empty());
    }
    assert_string_equal(held.object<user>()->name.c_str(), "a name that does not fit inside");
    assert_null(nearcache::value().object<user>());
}

} // namespace

int
main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(loader_is_given_a_load),
        cmocka_unit_test(loader_may_return_an_optional),
        cmocka_unit_test(loader_may_answer_later_in_another_thread),
        cmocka_unit_test(loader_that_forgets_a_load_has_failed),
        cmocka_unit_test(batch_is_loaded_in_one_call_and_used_again),
#if defined(__cpp_exceptions)
        cmocka_unit_test(exception_of_a_loader_ends_at_its_key),
        cmocka_unit_test(exception_of_a_batch_fails_what_was_not_answered),
        cmocka_unit_test(exception_on_the_loader_pool_ends_there_too),
        cmocka_unit_test(exception_of_a_store_leaves_the_outcome_unknown),
        cmocka_unit_test(exception_of_a_log_callback_is_dropped),
#endif
        cmocka_unit_test(store_is_given_values_and_erasures),
        cmocka_unit_test(store_that_forgets_a_write_has_an_unknown_outcome),
        cmocka_unit_test(puts_have_options),
        cmocka_unit_test(refused_option_is_said_when_the_client_opens),
        cmocka_unit_test(values_may_be_decoded),
        cmocka_unit_test(instances_hear_of_each_other),
        cmocka_unit_test(owners_may_end_in_any_order),
        cmocka_unit_test(closing_the_client_closes_its_caches),
        cmocka_unit_test(loader_that_outlives_the_client_keeps_what_it_holds),
        cmocka_unit_test(loader_may_end_after_the_client),
    };

    return cmocka_run_group_tests_name("C++", tests, nullptr, nullptr) == 0 ? 0 : 1;
}
