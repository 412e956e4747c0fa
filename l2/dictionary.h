/*
 * Dictionaries for zstd: what small values have in common, told once instead of in each of them.
 *
 * A dictionary's id is made of its content (31 bits of XXH64 of all behind the id, kept where a trained dictionary says its id), so
 * bytes can be held against the id that a value names: what is damaged, cut or another one is refused, and the wrong dictionary, with which
 * a value would become another of the same size, is not to be had.  Bytes come from a server that others write to: their size is
 * compared with NEAR__DICTIONARY_MOST before anything is made of them.
 *
 * A dictionary never changes once it is made, but for near__dictionary_prepare(), which its owner calls before others see it used
 * for compressing; counted references, no lock.  Without libzstd there are none.
 */
#ifndef NEAR_L2_DICTIONARY_H
#define NEAR_L2_DICTIONARY_H

#include "l2/compress.h"

/* Larger ones gain little for small values; and a stored one fits into memcached's item of 1 MiB with room to spare. */
#define NEAR__DICTIONARY_MOST  ((size_t)256 << 10)
#define NEAR__DICTIONARY_LEAST ((size_t)256)

struct near__dictionary;

/* The id that these bytes make; 0: they have not the form of a dictionary. */
uint32_t near__dictionary_identify(near_bytes bytes);
/* Write the id that a trained dictionary's bytes make into them; 0: they are no dictionary, and left alone. */
uint32_t near__dictionary_seal(uint8_t *bytes, size_t size);

/* NEAR_OK with a reference; NEAR_ERR_INVALID: they are not the dictionary with that id; NEAR_ERR_NOMEM. */
near_status near__dictionary_new(near_bytes bytes, uint32_t id, struct near__dictionary **dictionary);
struct near__dictionary *near__dictionary_ref(struct near__dictionary *dictionary);
/* NULL is fine. */
void       near__dictionary_release(struct near__dictionary *dictionary);
uint32_t   near__dictionary_id(const struct near__dictionary *dictionary);
near_bytes near__dictionary_bytes(const struct near__dictionary *dictionary);
/* What compressing needs: some hundred KiB more.  By one thread, once. */
near_status near__dictionary_prepare(struct near__dictionary *dictionary);

/* The id that a compressed payload names; 0: it needs none. */
uint32_t near__dictionary_needed(enum near__codec codec, near_bytes stored);

/* near__pack() and near__unpack() of zstd with a dictionary. */
size_t      near__dictionary_pack(struct near__packer *packer, const struct near__dictionary *dictionary,
                                  near_bytes raw, void *out, size_t room);
near_status near__dictionary_unpack(struct near__packer *packer, const struct near__dictionary *dictionary,
                                    near_bytes stored, void *out, size_t size);

#endif
