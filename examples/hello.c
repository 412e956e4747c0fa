/* The shortest useful program: a value that is loaded once, then answered from memory. */
#include <nearcache.h>

#include <stdio.h>

static void
load_users(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) { /* here stands your database query */
        printf("loading %.*s\n", (int)near_load_key(loads[i]).size,
               (const char *)near_load_key(loads[i]).data);
        near_load_set(loads[i], near_key("Ada"));
    }
}

int
main(void)
{
    near_client *client;
    near_cache  *users;
    near_value  *user;

    if (near_client_open(NULL, &client, NULL) != NEAR_OK ||
        near_cache_open(client, "users", NULL, &users, NULL) != NEAR_OK)
        return 1;
    near_cache_set_loader(users, load_users, NULL);
    for (int i = 0; i < 3; i++)
        if (near_fetch(users, near_key("user:42"), NULL, &user) == NEAR_OK) {
            printf("hello, %.*s\n", (int)near_value_bytes(user).size,
                   (const char *)near_value_bytes(user).data);
            near_value_release(user);
        }
    return near_client_close(client, NULL) == NEAR_OK ? 0 : 1;
}
