/*
 * A real Redis Cluster for tests: redis-server processes of harness/server.h, formed by commands of our own.
 *
 * Nodes 0 .. masters-1 begin as primaries with an equal share of the slots; node masters*r + i is a replica of node i.  The first
 * two seconds of its life go by in gossip.  Started, asked and stopped from the main thread; test_cluster_move() and the questions
 * may be used from one other thread at a time, as they keep to connections of their own.
 */
#ifndef TESTS_HARNESS_CLUSTER_H
#define TESTS_HARNESS_CLUSTER_H

#include "harness/server.h"

#define TEST_CLUSTER_NODES 9

struct near__redis_conn;

struct test_cluster {
    unsigned                 masters, nodes;
    struct test_server      *server[TEST_CLUSTER_NODES];
    char                     id[TEST_CLUSTER_NODES][48];
    char                     uri[512];                     /* redis-cluster://, all nodes */
    int                      tls_port[TEST_CLUSTER_NODES]; /* 0: none */
    unsigned char            owner[16384]; /* which node serves a slot, as far as we have arranged it */
    struct near__redis_conn *conn[TEST_CLUSTER_NODES];
};

/* `extra` as in test_redis_start(); with --tls-cluster every node gets a port for TLS besides, and `uri` names those.  `timeout_ms`: cluster-node-timeout; a dead primary is replaced within about twice that.  NULL, and why
 * is printed, when it did not come about. */
struct test_cluster *test_cluster_start(unsigned masters, unsigned replicas, unsigned timeout_ms,
                                        const char *const *extra);
void                 test_cluster_stop(struct test_cluster **cluster); /* NULL inside is fine */

/* Text of the reply; false: refused or not answered. */
bool test_cluster_ask(struct test_cluster *cluster, unsigned node, char *out, size_t size, int argc,
                      const char *const *argv);
/* Whether `node` answers, says the cluster is well, and knows `nodes` nodes. */
bool test_cluster_is_well(struct test_cluster *cluster, unsigned node);
/* All nodes, the replicas too, say the same of who serves which slot: a replica claims no more than it knows of. */
bool test_cluster_is_agreed(struct test_cluster *cluster);
/* Every replica has its primary's data, and every primary of a cluster with replicas has one. */
bool test_cluster_is_in_step(struct test_cluster *cluster);
/* Every write so far has reached the replicas, in their own words (once a second): a primary may be killed and nothing is lost. */
bool test_cluster_is_replicated(struct test_cluster *cluster);
bool test_cluster_is_master(struct test_cluster *cluster, unsigned node);
/* How long a node may be silent before the others take it for dead; of those that answer. */
void test_cluster_set_timeout(struct test_cluster *cluster, unsigned timeout_ms);
/* Give back to primaries what only they do not know to be theirs.  Redis 7.0 may forget a slot that was moved shortly before a failover:
 * where a ping from before the move overtakes the news of it, on another connection, the heir goes on taking the slot for one without
 * an owner, lets the old primary have it when that comes back, and nobody when that becomes a replica.  How many. */
unsigned test_cluster_mend(struct test_cluster *cluster);
/* What each node says of all of them, as an error. */
void test_cluster_print(struct test_cluster *cluster);
/* The slot of a key in the words of a server; -1: no answer. */
int test_cluster_slot(struct test_cluster *cluster, const char *key);

/* Move slots [first, last] with their keys, live, from whoever serves them to `to`.  False, with a word printed, when a step failed. */
bool test_cluster_move(struct test_cluster *cluster, unsigned first, unsigned last, unsigned to);
/* The first half of a move only: the slot is migrating at its owner and importing at `to`, no key has moved. */
bool test_cluster_begin_move(struct test_cluster *cluster, unsigned slot, unsigned to);
/* Move one key of a slot that is being moved. */
bool test_cluster_move_key(struct test_cluster *cluster, const char *key, unsigned to);

#endif
