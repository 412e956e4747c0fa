/* The shortest useful program in C++: a value that is loaded once, then answered from memory. */
#include <nearcache.hpp>

#include <iostream>

static std::optional<std::string>
find_user(std::string_view key) /* here stands your database query */
{
    std::cout << "loading " << key << '\n';
    return key == "user:42" ? std::optional<std::string>("Ada") : std::nullopt;
}

int
main()
{
    near_error error{};
    auto client = nearcache::client::open(nearcache::config().set("ttl", std::chrono::minutes(5)), &error);

    if (!client) {
        std::cerr << error.text << '\n';
        return 1;
    }
    auto users = client->open_cache("users");
    if (!users)
        return 1;
    users->on_load(find_user);
    for (int i = 0; i < 3; i++)
        if (auto user = users->fetch("user:42"))
            std::cout << "hello, " << user->text() << '\n';
    if (users->fetch("user:43").status() == NEAR_NOT_FOUND)
        std::cout << "nobody is user:43\n";
    return client->close() == NEAR_OK ? 0 : 1;
}
