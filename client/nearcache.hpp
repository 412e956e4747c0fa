/*
 * nearcache for C++17: the functions of <nearcache.h> with owners that let go by themselves, and lambdas as loaders and stores.
 *
 *     nearcache::client client = nearcache::client::open().value();
 *     nearcache::cache  users  = client.open_cache("users").value();
 *     users.on_load([&](nearcache::load &load) { load.set(db.find(load.key())); });
 *     if (auto user = users.fetch("user:42"))
 *         use(user->text());
 *
 * This header is all there is: link with -lnearcache and nothing else.  Everything <nearcache.h> says holds; what is said here is
 * only what C++ adds.
 *
 *  - No function of this header throws for what goes wrong in a cache: that is a near_status, as in C, or a result<T>, which is one or
 *    a T.  Strings and vectors that are returned need memory and may throw std::bad_alloc where exceptions are on.
 *    -fno-exceptions and -fno-rtti are fine.
 *  - No exception crosses the library.  What leaves a loader counts as NEAR_ERR_LOADER for every load that it had not answered; what
 *    leaves a store as NEAR_ERR_TIMEOUT (not known whether it was done), for every write that it had not answered.
 *  - Owners (client, cache, value, load, write, batch, config) can be moved and not copied.  A moved-from one is empty; its functions
 *    answer NEAR_ERR_INVALID or nothing.
 *  - Keys and values that are passed in are borrowed for the call.  Texts that are handed out are borrowed from their owner.
 *  - Durations are std::chrono; what is not given is the configured default.
 *  - Threads: as in <nearcache.h>; an owner itself (moving it, ending it) belongs to one thread at a time.
 */
#ifndef NEARCACHE_HPP
#define NEARCACHE_HPP

#include <nearcache.h>

#include <atomic>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__cpp_exceptions)
#define NEARCACHE_TRY       try
#define NEARCACHE_CATCH_ALL catch (...)
#else
#define NEARCACHE_TRY       if (true)
#define NEARCACHE_CATCH_ALL else
#endif

namespace nearcache
{

using milliseconds = std::chrono::milliseconds;
using duration     = std::optional<std::chrono::milliseconds>; /* none: the configured default */

namespace detail
{

inline near_bytes
bytes(std::string_view text) noexcept
{
    return near_bytes{ text.data(), text.size() };
}

inline std::string_view
text(near_bytes bytes) noexcept
{
    return std::string_view(static_cast<const char *>(bytes.data), bytes.size);
}

inline int64_t
ms(const duration &time) noexcept
{
    return time.has_value() ? (time->count() < 0 ? 0 : time->count()) : -1;
}

/* A text that the library allocated, as a std::string. */
inline std::string
take(char *text)
{
    std::unique_ptr<char, void (*)(char *)> owner(text, [](char *memory) { near_free(memory); });

    return text != nullptr ? std::string(text) : std::string();
}

} // namespace detail

/* What a status means, in a few English words. */
inline std::string_view
text(near_status status) noexcept
{
    return near_status_text(status);
}

/* ------------------------------------------------------------------------------------------------- result */

/* A T, or the status that says why there is none.  Looked into like a pointer, after asking whether there is something in it. */
template <class T> class [[nodiscard]] result
{
  public:
    result(near_status status) noexcept : status_(status)
    {
    }
    result(T &&value) noexcept : status_(NEAR_OK), value_(std::move(value))
    {
    }
    explicit operator bool() const noexcept
    {
        return value_.has_value();
    }
    near_status status() const noexcept
    {
        return status_;
    }
    T &operator*() noexcept
    {
        return *value_;
    }
    const T &operator*() const noexcept
    {
        return *value_;
    }
    T *operator->() noexcept
    {
        return &*value_;
    }
    const T *operator->() const noexcept
    {
        return &*value_;
    }
    /* What is in it, moved out.  With nothing in it: std::bad_optional_access, or without exceptions the program's end. */
    T value() &&
    {
        return std::move(value_).value();
    }
    T &value() &
    {
        return value_.value();
    }

  private:
    near_status      status_;
    std::optional<T> value_;
};

/* ------------------------------------------------------------------------------------------------- config */

/* Options by name.  The first one that is refused is remembered, and client::open() answers with it. */
class config
{
  public:
    config() noexcept : handle_(near_config_new())
    {
        if (handle_ == nullptr)
            failed(NEAR_ERR_NOMEM, "out of memory");
    }
    config &set(const std::string &name, const std::string &value)
    {
        near_error error;

        if (handle_ != nullptr &&
            near_config_set(handle_.get(), name.c_str(), value.c_str(), &error) != NEAR_OK)
            failed(error.code, error.text);
        return *this;
    }
    config &set(const std::string &name, const char *value)
    {
        return set(name, std::string(value));
    }
    config &set(const std::string &name, std::string_view value)
    {
        return set(name, std::string(value));
    }
    /* A number, in bytes for a size; true and false are yes and no. */
    template <class Number, std::enable_if_t<std::is_integral_v<Number>, int> = 0>
    config &set(const std::string &name, Number value)
    {
        if constexpr (std::is_same_v<Number, bool>)
            return set(name, std::string(value ? "yes" : "no"));
        else
            return set(name, std::to_string(value));
    }
    template <class Rep, class Period>
    config &set(const std::string &name, std::chrono::duration<Rep, Period> value)
    {
        auto us = std::chrono::duration_cast<std::chrono::microseconds>(value).count();

        return us % 1000 == 0 ? set(name, std::to_string(us / 1000) + "ms")
                              : set(name, std::to_string(us) + "us");
    }
    /* A file of `name = value` lines. */
    config &load(const std::string &path)
    {
        near_error error;

        if (handle_ != nullptr && near_config_load(handle_.get(), path.c_str(), &error) != NEAR_OK)
            failed(error.code, error.text);
        return *this;
    }
    /* NEAR_OK, or what the first refused option was refused for. */
    const near_error &error() const noexcept
    {
        return error_;
    }
    near_config *handle() const noexcept
    {
        return handle_.get();
    }

  private:
    struct closer {
        void operator()(near_config *handle) const noexcept
        {
            near_config_free(handle);
        }
    };
    void failed(near_status code, const char *why) noexcept
    {
        size_t size =
            std::string_view(why).copy(error_.text, error_.code == NEAR_OK ? sizeof(error_.text) - 1 : 0);

        if (error_.code != NEAR_OK)
            return;
        error_.text[size] = '\0';
        error_.code       = code;
    }
    std::unique_ptr<near_config, closer> handle_;
    near_error                           error_{};
};

/* ------------------------------------------------------------------------------------------------- values */

/* One holder of an immutable value. */
class value
{
  public:
    value() noexcept = default;
    explicit value(near_value *handle) noexcept : handle_(handle)
    {
    }
    /* The bytes, never written again, valid as long as this holder. */
    std::string_view text() const noexcept
    {
        return detail::text(near_value_bytes(handle_.get()));
    }
    near_bytes bytes() const noexcept
    {
        return near_value_bytes(handle_.get());
    }
    /* What the cache's codec made of it (cache::decode_with<T>), valid as long as this holder; null: nothing. */
    template <class T> const T *object() const noexcept
    {
        return static_cast<const T *>(near_value_object(handle_.get()));
    }
    near_value_info info() const noexcept
    {
        near_value_info info = NEAR_VALUE_INFO_INIT;

        if (handle_ != nullptr)
            near_value_get_info(handle_.get(), &info);
        return info;
    }
    bool stale() const noexcept
    {
        return info().stale;
    }
    /* One more holder of the same bytes. */
    value share() const noexcept
    {
        return value(handle_ != nullptr ? near_value_ref(handle_.get()) : nullptr);
    }
    explicit operator bool() const noexcept
    {
        return handle_ != nullptr;
    }
    near_value *handle() const noexcept
    {
        return handle_.get();
    }
    /* The handle, to be given back with near_value_release(). */
    near_value *release() noexcept
    {
        return handle_.release();
    }

  private:
    struct closer {
        void operator()(near_value *handle) const noexcept
        {
            near_value_release(handle);
        }
    };
    std::unique_ptr<near_value, closer> handle_;
};

/* ------------------------------------------------------------------------------------------------ options */

struct get_options {
    unsigned flags = 0; /* NEAR_SKIP_L1 | NEAR_ONLY_L1 | NEAR_NO_FILL */
    duration timeout{};
};

struct fetch_options {
    unsigned flags = 0; /* NEAR_SKIP_L1 | NEAR_NO_FILL */
    duration timeout{};
    duration ttl{};
};

struct put_options {
    unsigned                  flags = 0; /* NEAR_NO_FILL | NEAR_IF_ABSENT */
    duration                  timeout{};
    duration                  ttl{};
    std::vector<const char *> tags{};              /* borrowed for the call */
    const value              *unchanged = nullptr; /* put only while this is the newest version */
    unsigned                  pool      = 0;       /* of L1: cache::pool_number(); 0: not said */
};

namespace detail
{

inline near_get_options
c_options(const get_options &options) noexcept
{
    near_get_options c = NEAR_GET_OPTIONS_INIT;

    c.flags      = options.flags;
    c.timeout_ms = ms(options.timeout);
    return c;
}

inline near_fetch_options
c_options(const fetch_options &options) noexcept
{
    near_fetch_options c = NEAR_FETCH_OPTIONS_INIT;

    c.flags      = options.flags;
    c.timeout_ms = ms(options.timeout);
    c.ttl_ms     = ms(options.ttl);
    return c;
}

inline near_put_options
c_options(const put_options &options) noexcept
{
    near_put_options c = NEAR_PUT_OPTIONS_INIT;

    c.flags      = options.flags;
    c.timeout_ms = ms(options.timeout);
    c.ttl_ms     = ms(options.ttl);
    c.tags       = options.tags.data();
    c.tag_count  = options.tags.size();
    c.unchanged  = options.unchanged != nullptr ? options.unchanged->handle() : nullptr;
    c.pool       = options.pool;
    return c;
}

} // namespace detail

/* ------------------------------------------------------------------------------------------------- loading */

/*
 * One key that a loader has been asked for.  It is answered once, by set(), adopt(), unchanged(), not_found() or fail(), here or, moved
 * away, later and in another thread.  One that ends without an answer is answered by fail(NEAR_ERR_LOADER).  After the answer it is
 * empty.
 */
class load
{
  public:
    load() noexcept = default;
    explicit load(near_load *handle) noexcept : handle_(handle)
    {
    }
    std::string_view key() const noexcept
    {
        return handle_ != nullptr ? detail::text(near_load_key(handle_.get())) : std::string_view();
    }
    /* The value that this one is to replace, borrowed until the answer; NULL: there is none. */
    const near_value *previous() const noexcept
    {
        return handle_ != nullptr ? near_load_previous(handle_.get()) : nullptr;
    }
    load &ttl(milliseconds time) noexcept
    {
        if (handle_ != nullptr)
            near_load_ttl(handle_.get(), time.count());
        return *this;
    }
    near_status tag(const char *name) noexcept
    {
        return handle_ != nullptr ? near_load_tag(handle_.get(), name) : NEAR_ERR_INVALID;
    }
    near_status pool(unsigned number) noexcept
    {
        return handle_ != nullptr ? near_load_pool(handle_.get(), number) : NEAR_ERR_INVALID;
    }
    load &unkept() noexcept
    {
        if (handle_ != nullptr)
            near_load_unkept(handle_.get());
        return *this;
    }
    near_status set(std::string_view value) noexcept
    {
        return handle_ != nullptr ? near_load_set(handle_.release(), detail::bytes(value)) : NEAR_ERR_INVALID;
    }
    near_status adopt(void *data, size_t size, void (*release)(void *data)) noexcept
    {
        if (handle_ != nullptr)
            return near_load_adopt(handle_.release(), data, size, release);
        if (release != nullptr)
            release(data);
        return NEAR_ERR_INVALID;
    }
    near_status unchanged() noexcept
    {
        return handle_ != nullptr ? near_load_unchanged(handle_.release()) : NEAR_ERR_INVALID;
    }
    void not_found() noexcept
    {
        if (handle_ != nullptr)
            near_load_not_found(handle_.release());
    }
    void fail(near_status status = NEAR_ERR_LOADER) noexcept
    {
        if (handle_ != nullptr)
            near_load_fail(handle_.release(), status);
    }
    explicit operator bool() const noexcept
    {
        return handle_ != nullptr;
    }

  private:
    struct closer {
        void operator()(near_load *handle) const noexcept
        {
            near_load_fail(handle, NEAR_ERR_LOADER);
        }
    };
    std::unique_ptr<near_load, closer> handle_;
};

/* One change that a store has been asked to make, answered once, by done() or fail().  One that ends without an answer is answered by
 * fail(NEAR_ERR_TIMEOUT): it is not known whether the store has it. */
class write
{
  public:
    write() noexcept = default;
    explicit write(near_write *handle) noexcept : handle_(handle)
    {
    }
    std::string_view key() const noexcept
    {
        return handle_ != nullptr ? detail::text(near_write_key(handle_.get())) : std::string_view();
    }
    /* The new value; none: the key is to be erased. */
    std::optional<std::string_view> data() const noexcept
    {
        near_bytes bytes = handle_ != nullptr ? near_write_data(handle_.get()) : near_bytes{ nullptr, 0 };

        return bytes.data != nullptr ? std::optional(detail::text(bytes)) : std::nullopt;
    }
    uint64_t origin() const noexcept
    {
        return handle_ != nullptr ? near_write_origin(handle_.get()) : 0;
    }
    uint64_t sequence() const noexcept
    {
        return handle_ != nullptr ? near_write_sequence(handle_.get()) : 0;
    }
    bool conflict() const noexcept
    {
        return handle_ != nullptr && near_write_conflict(handle_.get());
    }
    void done() noexcept
    {
        if (handle_ != nullptr)
            near_write_done(handle_.release());
    }
    void fail(near_status status = NEAR_ERR_UNAVAILABLE) noexcept
    {
        if (handle_ != nullptr)
            near_write_fail(handle_.release(), status);
    }
    explicit operator bool() const noexcept
    {
        return handle_ != nullptr;
    }

  private:
    struct closer {
        void operator()(near_write *handle) const noexcept
        {
            near_write_fail(handle, NEAR_ERR_TIMEOUT);
        }
    };
    std::unique_ptr<near_write, closer> handle_;
};

/* What a loader or store is given that wants all of a call at once: for (auto &load : loads) ... */
template <class Item> class span
{
  public:
    span(Item *first, size_t n) noexcept : first_(first), n_(n)
    {
    }
    Item *begin() const noexcept
    {
        return first_;
    }
    Item *end() const noexcept
    {
        return first_ + n_;
    }
    Item &operator[](size_t i) const noexcept
    {
        return first_[i];
    }
    size_t size() const noexcept
    {
        return n_;
    }

  private:
    Item  *first_;
    size_t n_;
};
using loads  = span<load>;
using writes = span<write>;

namespace detail
{

/*
 * A callable that the library calls.  It belongs to the client, which lets go of it after it was closed; a call that is still under way
 * then (a loader may go on after its last answer) lets go of it in its end.  near_client_close() answering NEAR_ERR_BUSY means that
 * a call may not even have begun: then the callable is kept for ever.
 */
struct hook {
    std::atomic<long> holders{ 1 };
    hook             *next = nullptr;

    virtual void run(void *items, size_t n) noexcept = 0;
    virtual ~hook()                                  = default;

    void release() noexcept
    {
        /* acquire and release: the last one sees what the others have done with it before it goes */
        if (holders.fetch_sub(1, std::memory_order_acq_rel) == 1)
            delete this;
    }
};

template <class Item, class Handle> struct hook_of : hook {
    static void call(Handle *handles[], size_t n, void *ctx)
    {
        hook *self = static_cast<hook *>(ctx);

        /* relaxed: the owner's reference keeps it meanwhile */
        self->holders.fetch_add(1, std::memory_order_relaxed);
        self->run(handles, n);
        self->release();
    }
};

/* One call with the items of a batch: what the callable has not answered is answered where `items` ends. */
template <class Item, class Handle, class Callable> struct hook_with final : hook_of<Item, Handle> {
    Callable callable;

    explicit hook_with(Callable &&from) : callable(std::move(from))
    {
    }

    void run(void *handles, size_t n) noexcept override
    {
        Handle **each = static_cast<Handle **>(handles);
        Item     few[8], *items = few;

        if (n > 8)
            items = new (std::nothrow) Item[n];
        if (items == nullptr)
            return refuse(each, n);
        for (size_t i = 0; i < n; i++)
            items[i] = Item(each[i]);
        answer(items, n);
        if (items != few)
            delete[] items;
    }

  private:
    static void refuse(Handle **each, size_t n) noexcept
    {
        for (size_t i = 0; i < n; i++)
            Item(each[i]).fail(NEAR_ERR_NOMEM);
    }
    void answer(Item *items, size_t n) noexcept
    {
        if constexpr (std::is_invocable_v<Callable &, span<Item>>) {
            NEARCACHE_TRY
            {
                callable(span<Item>(items, n));
            }
            NEARCACHE_CATCH_ALL
            {
            }
        } else {
            for (size_t i = 0; i < n; i++) { /* one that throws does not take the others along */
                NEARCACHE_TRY
                {
                    one(items[i]);
                }
                NEARCACHE_CATCH_ALL
                {
                }
                items[i] = Item(); /* what was not answered is answered now */
            }
        }
    }
    void one(Item &item)
    {
        if constexpr (std::is_invocable_v<Callable &, Item &>) {
            callable(item);
        } else if constexpr (std::is_invocable_v<Callable &, Item>) {
            callable(std::move(item));
        } else {
            static_assert(std::is_same_v<Item, load>,
                          "a store takes nearcache::write &, nearcache::write or nearcache::writes");
            static_assert(
                std::is_invocable_v<Callable &, std::string_view>,
                "a loader takes nearcache::load &, nearcache::load, nearcache::loads or a std::string_view");
            auto found = callable(item.key()); /* an optional, or what like one is empty or a text */
            if (found)
                item.set(*found);
            else
                item.not_found();
        }
    }
};

template <class Callable> struct log_hook final : hook {
    Callable callable;

    explicit log_hook(Callable &&from) : callable(std::move(from))
    {
    }
    void run(void *message, size_t level) noexcept override
    {
        NEARCACHE_TRY
        {
            callable(static_cast<near_log_level>(level),
                     std::string_view(static_cast<const char *>(message)));
        }
        NEARCACHE_CATCH_ALL
        {
        }
    }
    static void call(near_log_level level, const char *message, void *ctx)
    {
        hook *self = static_cast<hook *>(ctx);

        self->holders.fetch_add(1, std::memory_order_relaxed); /* as in hook_of */
        self->run(const_cast<char *>(message), level);
        self->release();
    }
};

/* The client and all that lives as long as it.  Caches hold it, too: it ends with the last of them. */
struct core {
    near_client        *handle;
    std::atomic<hook *> hooks{ nullptr };

    explicit core(near_client *opened) noexcept : handle(opened)
    {
    }
    core(const core &)            = delete;
    core &operator=(const core &) = delete;
    ~core()
    {
        close(nullptr);
    }

    void keep(hook *added) noexcept
    {
        added->next = hooks.load(std::memory_order_relaxed);
        /* release: with the acquire in close() */
        while (!hooks.compare_exchange_weak(added->next, added, std::memory_order_release,
                                            std::memory_order_relaxed))
            ;
    }

    /* For ever, and in reach of who looks for leaks. */
    static void abandon(hook *first) noexcept
    {
        static std::atomic<hook *> abandoned{ nullptr };
        hook                      *last = first;

        if (first == nullptr)
            return;
        while (last->next != nullptr)
            last = last->next;
        last->next = abandoned.load(std::memory_order_relaxed);
        /* release: the list's parts are whole to who comes after (nobody reads it but the loop above) */
        while (!abandoned.compare_exchange_weak(last->next, first, std::memory_order_release,
                                                std::memory_order_relaxed))
            ;
    }

    near_status close(near_error *error) noexcept
    {
        near_status status;
        hook       *each, *next;

        if (handle == nullptr)
            return NEAR_ERR_INVALID;
        status = near_client_close(std::exchange(handle, nullptr), error);
        /* acquire: with the release in keep() */
        each = hooks.exchange(nullptr, std::memory_order_acquire);
        if (status == NEAR_ERR_BUSY) {
            abandon(each);
            return status;
        }
        for (; each != nullptr; each = next) {
            next = each->next;
            each->release();
        }
        return status;
    }
};

} // namespace detail

/* ------------------------------------------------------------------------------------------------- batches */

/*
 * Many keys and what came of them: filled with add(), asked with cache::get() or cache::fetch(), and used again after clear(), with
 * the memory it has.  The keys' bytes are borrowed until then.
 */
class batch
{
  public:
    struct item {
        std::string_view key;
        near_status      status;
        std::string_view text; /* empty where status is not NEAR_OK */
        near_value      *handle;

        explicit operator bool() const noexcept
        {
            return handle != nullptr;
        }
    };
    class iterator
    {
      public:
        iterator(const batch *of, size_t at) noexcept : of_(of), at_(at)
        {
        }
        item operator*() const noexcept
        {
            return (*of_)[at_];
        }
        iterator &operator++() noexcept
        {
            at_++;
            return *this;
        }
        bool operator!=(const iterator &other) const noexcept
        {
            return at_ != other.at_;
        }

      private:
        const batch *of_;
        size_t       at_;
    };

    batch() = default;
    batch(std::initializer_list<std::string_view> keys)
    {
        for (std::string_view key : keys)
            add(key);
    }
    batch(batch &&) noexcept = default;
    batch &operator=(batch &&other) noexcept
    {
        drop_values();
        keys_     = std::move(other.keys_);
        values_   = std::move(other.values_);
        statuses_ = std::move(other.statuses_);
        return *this;
    }
    ~batch()
    {
        drop_values();
    }
    void add(std::string_view key)
    {
        keys_.push_back(detail::bytes(key));
    }
    void clear() noexcept
    {
        drop_values();
        keys_.clear();
    }
    size_t size() const noexcept
    {
        return keys_.size();
    }
    item operator[](size_t i) const noexcept
    {
        near_value *handle = i < values_.size() ? values_[i] : nullptr;

        return { detail::text(keys_[i]), i < statuses_.size() ? statuses_[i] : NEAR_MISS,
                 detail::text(near_value_bytes(handle)), handle };
    }
    iterator begin() const noexcept
    {
        return iterator(this, 0);
    }
    iterator end() const noexcept
    {
        return iterator(this, size());
    }

  private:
    friend class cache;

    void drop_values() noexcept
    {
        for (near_value *handle : values_)
            near_value_release(handle);
        values_.clear();
        statuses_.clear();
    }
    void make_room()
    {
        drop_values();
        statuses_.resize(keys_.size(), NEAR_MISS);
        values_.resize(keys_.size(), nullptr);
    }
    std::vector<near_bytes>   keys_;
    std::vector<near_value *> values_;
    std::vector<near_status>  statuses_;
};

/* ------------------------------------------------------------------------------------------------- codecs */

namespace detail
{

/* A codec of functions alone, as objects may outlive whatever else there is.  No exception crosses the library. */
template <class T, std::unique_ptr<T> (*Decode)(std::string_view, std::string_view),
          std::size_t (*Size)(const T &)>
struct codec_of {
    static near_status decode(near_bytes key, near_bytes bytes, void **object, void *) noexcept
    {
        NEARCACHE_TRY
        {
            *object = Decode(text(key), text(bytes)).release();
        }
        NEARCACHE_CATCH_ALL
        {
            return NEAR_ERR_DECODE;
        }
        return *object != nullptr ? NEAR_OK : NEAR_ERR_DECODE;
    }
    static std::size_t size(const void *object, void *) noexcept
    {
        return Size(*static_cast<const T *>(object));
    }
    static void destroy(void *object, void *) noexcept
    {
        delete static_cast<T *>(object);
    }
};

template <class T>
std::size_t
size_of(const T &) noexcept
{
    return sizeof(T);
}

} /* namespace detail */

/* -------------------------------------------------------------------------------------------------- caches */

/* A region of a client.  Closed where it ends, or with client::close(), whichever comes first. */
class cache
{
  public:
    cache() noexcept         = default;
    cache(cache &&) noexcept = default;
    cache &operator=(cache &&other) noexcept
    {
        if (this == &other)
            return *this;
        close();
        core_   = std::move(other.core_);
        handle_ = std::exchange(other.handle_, nullptr);
        return *this;
    }
    ~cache()
    {
        close();
    }

    /*
     * The loader, before the first fetch: a callable that takes one of
     *     load &, load        one key; it may be moved away and answered later
     *     loads               all keys of a call
     *     std::string_view    a key; returns a std::optional (or a pointer) of the value, none: there is no such thing
     * It lives as long as the client, must be safe to run in several threads at once, and may throw.
     */
    template <class Callable> near_status on_load(Callable callable)
    {
        using made       = detail::hook_with<load, near_load, Callable>;
        near_cache *open = handle();
        made       *hook = open != nullptr ? new (std::nothrow) made(std::move(callable)) : nullptr;

        if (hook == nullptr)
            return open == nullptr ? NEAR_ERR_INVALID : NEAR_ERR_NOMEM;
        core_->keep(hook);
        near_cache_set_loader(open, made::call, static_cast<detail::hook *>(hook));
        return NEAR_OK;
    }

    /* The pools of L1 (l1.pools), as in nearcache.h; the function's `ctx` must outlive the cache. */
    void set_pool_fn(near_pool_fn fn, void *ctx = nullptr) const noexcept
    {
        near_cache_set_pool_fn(handle(), fn, ctx);
    }
    unsigned pool_number(const char *name) const noexcept
    {
        return near_pool_number(handle(), name);
    }
    near_status pool_resize(unsigned pool, size_t max_bytes) const noexcept
    {
        return near_pool_resize(handle(), pool, max_bytes, nullptr);
    }

    /* The store, before the first update or erase: takes write &, write, or writes; else as on_load(). */
    template <class Callable> near_status on_store(Callable callable)
    {
        using made       = detail::hook_with<write, near_write, Callable>;
        near_cache *open = handle();
        made       *hook = open != nullptr ? new (std::nothrow) made(std::move(callable)) : nullptr;

        if (hook == nullptr)
            return open == nullptr ? NEAR_ERR_INVALID : NEAR_ERR_NOMEM;
        core_->keep(hook);
        near_cache_set_store(open, made::call, static_cast<detail::hook *>(hook));
        return NEAR_OK;
    }

    /*
     * A codec, before anything is read or written and before on_store(): L1 keeps what `Decode` makes of (key, bytes), and
     * value::object<T>() has it.  Null, or an exception: they cannot be decoded.  `Size`, which must not throw, is what a T counts for in
     * l1.max_bytes; without it sizeof(T).  See near_cache_set_codec().
     */
    template <class T, std::unique_ptr<T> (*Decode)(std::string_view, std::string_view),
              std::size_t (*Size)(const T &) = detail::size_of<T>>
    near_status decode_with(unsigned flags = 0) noexcept
    {
        using made       = detail::codec_of<T, Decode, Size>;
        near_codec codec = NEAR_CODEC_INIT;

        codec.flags   = flags;
        codec.decode  = made::decode;
        codec.size    = made::size;
        codec.destroy = made::destroy;
        return near_cache_set_codec(handle(), &codec, nullptr);
    }

    result<value> get(std::string_view key, const get_options &options = {}) const noexcept
    {
        near_get_options c      = detail::c_options(options);
        near_value      *found  = nullptr;
        near_status      status = near_get_with(handle(), detail::bytes(key), &c, &found);

        return answer(status, found);
    }
    result<value> fetch(std::string_view key) const noexcept
    {
        near_value *found  = nullptr;
        near_status status = near_fetch(handle(), detail::bytes(key), nullptr, &found);

        return answer(status, found);
    }
    result<value> fetch(std::string_view key, const fetch_options &options) const noexcept
    {
        near_fetch_options c      = detail::c_options(options);
        near_value        *found  = nullptr;
        near_status        status = near_fetch(handle(), detail::bytes(key), &c, &found);

        return answer(status, found);
    }
    /* Many keys at once.  NEAR_OK when every status is an answer; else the first error among them. */
    near_status get(batch &keys) const
    {
        keys.make_room();
        return near_get_many(handle(), keys.keys_.data(), keys.size(), keys.values_.data(),
                             keys.statuses_.data());
    }
    near_status fetch(batch &keys, const fetch_options &options = {}) const
    {
        near_fetch_options c = detail::c_options(options);

        keys.make_room();
        return near_fetch_many(handle(), keys.keys_.data(), keys.size(), &c, keys.values_.data(),
                               keys.statuses_.data());
    }

    near_status put(std::string_view key, std::string_view value,
                    const put_options &options = {}) const noexcept
    {
        near_put_options c = detail::c_options(options);

        return near_put(handle(), detail::bytes(key), detail::bytes(value), &c);
    }
    /* Of all pairs NEAR_OK, or the first error. */
    near_status put_many(const std::vector<std::pair<std::string_view, std::string_view>> &pairs,
                         const put_options                                                &options = {}) const
    {
        near_put_options         c = detail::c_options(options);
        std::vector<near_bytes>  keys, values;
        std::vector<near_status> statuses(pairs.size());

        for (const auto &pair : pairs) {
            keys.push_back(detail::bytes(pair.first));
            values.push_back(detail::bytes(pair.second));
        }
        return near_put_many(handle(), keys.data(), values.data(), pairs.size(), &c, statuses.data());
    }
    near_status remove(std::string_view key) const noexcept
    {
        return near_remove(handle(), detail::bytes(key));
    }
    near_status remove_many(const std::vector<std::string_view> &texts) const
    {
        std::vector<near_bytes>  keys;
        std::vector<near_status> statuses(texts.size());

        for (std::string_view key : texts)
            keys.push_back(detail::bytes(key));
        return near_remove_many(handle(), keys.data(), keys.size(), statuses.data());
    }
    near_status expire(std::string_view key) const noexcept
    {
        return near_expire(handle(), detail::bytes(key));
    }
    near_status invalidate_tag(const char *tag) const noexcept
    {
        return near_invalidate_tag(handle(), tag);
    }
    near_status invalidate_prefix(std::string_view prefix) const noexcept
    {
        return near_invalidate_prefix(handle(), detail::bytes(prefix));
    }
    near_status clear() const noexcept
    {
        return near_clear(handle());
    }
    near_status update(std::string_view key, std::string_view value,
                       const put_options &options = {}) const noexcept
    {
        near_put_options c = detail::c_options(options);

        return near_update(handle(), detail::bytes(key), detail::bytes(value), &c);
    }
    near_status erase(std::string_view key) const noexcept
    {
        return near_erase(handle(), detail::bytes(key));
    }
    /* A counter in L2. */
    result<int64_t> add(std::string_view key, int64_t delta, int64_t initial = 0) const noexcept
    {
        int64_t     sum    = 0;
        near_status status = near_add(handle(), detail::bytes(key), delta, initial, &sum);

        if (status != NEAR_OK)
            return status;
        return result<int64_t>(std::move(sum));
    }
    near_status resize(size_t max_bytes, size_t max_entries = 0, near_error *error = nullptr) const noexcept
    {
        return near_cache_resize(handle(), max_bytes, max_entries, error);
    }
    /* JSON; empty where there is none. */
    std::string hot_keys(unsigned flags = 0) const
    {
        return detail::take(near_hot_keys(handle(), flags));
    }
    std::string explain(std::string_view key) const
    {
        return detail::take(near_explain(handle(), detail::bytes(key)));
    }

    /* Blocks until loads under way are answered, up to close.timeout. */
    void close() noexcept
    {
        near_cache *open = handle();

        handle_ = nullptr;
        if (open != nullptr)
            near_cache_close(open);
        core_.reset();
    }
    /* NULL when the cache, or its client, was closed. */
    near_cache *handle() const noexcept
    {
        return core_ != nullptr && core_->handle != nullptr ? handle_ : nullptr;
    }
    explicit operator bool() const noexcept
    {
        return handle() != nullptr;
    }

  private:
    friend class client;

    cache(std::shared_ptr<detail::core> core, near_cache *handle) noexcept
        : core_(std::move(core)), handle_(handle)
    {
    }
    static result<value> answer(near_status status, near_value *found) noexcept
    {
        if (found == nullptr)
            return status;
        return value(found);
    }
    std::shared_ptr<detail::core> core_;
    near_cache                   *handle_ = nullptr;
};

/* -------------------------------------------------------------------------------------------------- client */

/*
 * One per process and configuration.  It is closed by close(), which says how that went, or where it and the last of its caches have
 * ended.  Values outlive it.
 */
class client
{
  public:
    client() noexcept                     = default;
    client(client &&) noexcept            = default;
    client &operator=(client &&) noexcept = default;

    static result<client> open(const config &settings = config(), near_error *error = nullptr)
    {
        near_client *handle = nullptr;
        near_status  status = settings.error().code;

        if (status != NEAR_OK) {
            if (error != nullptr)
                *error = settings.error();
            return status;
        }
        status = near_client_open(settings.handle(), &handle, error);
        if (status != NEAR_OK)
            return status;
        std::unique_ptr<detail::core> core(new (std::nothrow) detail::core(handle));
        if (core == nullptr) {
            near_client_close(handle, nullptr);
            return NEAR_ERR_NOMEM;
        }
        return client(std::shared_ptr<detail::core>(std::move(core)));
    }

    result<cache> open_cache(const std::string &name, const config &overrides = config(),
                             near_error *error = nullptr) const
    {
        near_cache *opened = nullptr;
        near_status status = overrides.error().code;

        if (status != NEAR_OK && error != nullptr)
            *error = overrides.error();
        if (status == NEAR_OK)
            status = near_cache_open(handle(), name.c_str(), overrides.handle(), &opened, error);
        if (status != NEAR_OK)
            return status;
        return cache(core_, opened);
    }

    /* What the library has to say: a callable of near_log_level and std::string_view, from any thread. */
    template <class Callable> near_status on_log(Callable callable) const
    {
        using made = detail::log_hook<Callable>;
        made *hook = handle() != nullptr ? new (std::nothrow) made(std::move(callable)) : nullptr;

        if (hook == nullptr)
            return handle() == nullptr ? NEAR_ERR_INVALID : NEAR_ERR_NOMEM;
        core_->keep(hook);
        near_set_log(handle(), made::call, static_cast<detail::hook *>(hook));
        return NEAR_OK;
    }

    near_status fence(duration timeout = {}) const noexcept
    {
        return near_fence(handle(), detail::ms(timeout));
    }
    /* Empty where there is none. */
    std::string write_token() const
    {
        char token[NEAR_WRITE_TOKEN_SIZE];

        return near_write_token(handle(), token) == NEAR_OK ? std::string(token) : std::string();
    }
    near_status fence(const std::string &token, duration timeout = {}) const noexcept
    {
        return near_fence_token(handle(), token.c_str(), detail::ms(timeout));
    }
    /* Without a timeout: for as long as it takes. */
    near_status flush(duration timeout = {}) const noexcept
    {
        return near_flush(handle(), detail::ms(timeout));
    }
    near_stats stats() const noexcept
    {
        near_stats stats = NEAR_STATS_INIT;

        near_stats_get(handle(), &stats);
        return stats;
    }
    std::string stats_json() const
    {
        return detail::take(near_stats_json(handle()));
    }
    std::string stats_prometheus() const
    {
        return detail::take(near_stats_prometheus(handle()));
    }

    /* Close now, with all caches, whoever has them, and say how that went; see near_client_close(). */
    near_status close(near_error *error = nullptr) noexcept
    {
        return core_ != nullptr ? core_->close(error) : NEAR_ERR_INVALID;
    }
    near_client *handle() const noexcept
    {
        return core_ != nullptr ? core_->handle : nullptr;
    }
    explicit operator bool() const noexcept
    {
        return handle() != nullptr;
    }

  private:
    explicit client(std::shared_ptr<detail::core> core) noexcept : core_(std::move(core))
    {
    }
    std::shared_ptr<detail::core> core_;
};

} // namespace nearcache

#undef NEARCACHE_TRY
#undef NEARCACHE_CATCH_ALL

#endif /* NEARCACHE_HPP */
