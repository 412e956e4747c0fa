/* See snapshot_file.h. */
#include "snapshot_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "l1/labels.h"

#define MAGIC       UINT64_C(0x50414e535241454e) /* "NEARSNAP" */
#define BLOCK_MAGIC UINT32_C(0x4b4c4253)         /* "SBLK" */
#define END_MAGIC   UINT32_C(0x444e4553)         /* "SEND" */
#define KEY_MOST    (64u << 10)
#define ROWS_MOST   (UINT32_C(1) << 30) /* bytes of a block: more than any entry takes */

enum { NEGATIVE = 1, FORCED = 2, UNKNOWN = 4, FLAGS = 7 };

/* ---- bytes */

void
near__snap_head_encode(uint8_t bytes[NEAR__SNAP_HEAD], const struct near__snap_head *head)
{
    memset(bytes, 0, NEAR__SNAP_HEAD);
    near__le64_put(bytes, MAGIC);
    near__le32_put(bytes + 8, NEAR__SNAP_NUMBER);
    near__le32_put(bytes + 12, head->flags);
    near__le64_put(bytes + 16, head->id);
    near__le64_put(bytes + 24, head->scope);
    near__le64_put(bytes + 32, (uint64_t)head->wall_ms);
    near__le64_put(bytes + 40, (uint64_t)head->boot_ns);
    memcpy(bytes + 48, head->boot_id, sizeof(head->boot_id));
    near__le64_put(bytes + 64, head->entries);
    near__le32_put(bytes + NEAR__SNAP_HEAD - 4, near__crc32c(0, bytes, NEAR__SNAP_HEAD - 4));
}

bool
near__snap_head_decode(struct near__snap_head *head, const uint8_t *bytes, size_t size)
{
    if (size < NEAR__SNAP_HEAD || near__le64_get(bytes) != MAGIC || near__le32_get(bytes + 8) < 1 ||
        near__le32_get(bytes + 8) > NEAR__SNAP_NUMBER ||
        near__le32_get(bytes + NEAR__SNAP_HEAD - 4) != near__crc32c(0, bytes, NEAR__SNAP_HEAD - 4))
        return false;
    *head = (struct near__snap_head){
        .flags   = near__le32_get(bytes + 12),
        .id      = near__le64_get(bytes + 16),
        .scope   = near__le64_get(bytes + 24),
        .wall_ms = (int64_t)near__le64_get(bytes + 32),
        .boot_ns = (int64_t)near__le64_get(bytes + 40),
        .entries = near__le64_get(bytes + 64),
    };
    memcpy(head->boot_id, bytes + 48, sizeof(head->boot_id));
    return (head->flags & ~(uint32_t)(NEAR__SNAP_ALONE | NEAR__SNAP_DECODED)) == 0 && head->wall_ms >= 0 &&
           head->boot_ns >= 0;
}

void
near__snap_block_seal(uint8_t *block, uint64_t id, uint32_t number, size_t size, uint32_t rows)
{
    near__le32_put(block, rows > 0 ? BLOCK_MAGIC : END_MAGIC);
    near__le32_put(block + 4, number);
    near__le64_put(block + 8, id);
    near__le32_put(block + 16, (uint32_t)size);
    near__le32_put(block + 20, rows);
    near__le32_put(block + 24, near__crc32c(0, block + NEAR__SNAP_BLOCK, size));
    near__le32_put(block + 28, near__crc32c(0, block, NEAR__SNAP_BLOCK - 4));
}

bool
near__snap_block_decode(struct near__snap_block *block, const uint8_t bytes[NEAR__SNAP_BLOCK], uint64_t id,
                        uint32_t number)
{
    uint32_t magic = near__le32_get(bytes);

    *block = (struct near__snap_block){
        .size     = near__le32_get(bytes + 16),
        .rows     = near__le32_get(bytes + 20),
        .checksum = near__le32_get(bytes + 24),
        .end      = magic == END_MAGIC,
    };
    return near__le32_get(bytes + 28) == near__crc32c(0, bytes, NEAR__SNAP_BLOCK - 4) &&
           near__le64_get(bytes + 8) == id && near__le32_get(bytes + 4) == number &&
           (block->end ? block->size == 0 && block->rows == 0
                       : magic == BLOCK_MAGIC && block->rows > 0 && block->size <= ROWS_MOST &&
                             block->size / NEAR__SNAP_ROW >= block->rows);
}

size_t
near__snap_row_size(const struct near__snap_row *row)
{
    return NEAR__SNAP_ROW + row->key.size + row->value.size + row->names.size;
}

static uint8_t *
put(uint8_t *at, near_bytes part)
{
    if (part.size > 0)
        memcpy(at, part.data, part.size);
    return at + part.size;
}

void
near__snap_row_encode(uint8_t *bytes, const struct near__snap_row *row)
{
    uint8_t *at = bytes + NEAR__SNAP_ROW;

    memset(bytes, 0, NEAR__SNAP_ROW);
    near__le32_put(bytes, (uint32_t)row->key.size);
    near__le32_put(bytes + 4, (uint32_t)row->value.size);
    near__le16_put(bytes + 8, (uint16_t)row->names.size);
    bytes[10] = (uint8_t)row->tags;
    bytes[11] =
        (uint8_t)((row->negative ? NEGATIVE : 0) | (row->forced ? FORCED : 0) | (row->unknown ? UNKNOWN : 0));
    bytes[12] = row->warmth;
    near__le64_put(bytes + 16, row->stamp);
    near__le64_put(bytes + 24, (uint64_t)row->expires_ms);
    near__le64_put(bytes + 32, (uint64_t)row->fresh_ms);
    near__le32_put(bytes + 40, row->cost_us);
    near__le32_put(bytes + 44, row->generation);
    near__le32_put(bytes + 48, row->age_ms);
    near__le32_put(bytes + 52, row->pool);
    put(put(put(at, row->key), row->value), row->names);
}

static bool
is_near(int64_t ms)
{
    return ms >= -NEAR__SNAP_FAR && ms <= NEAR__SNAP_FAR;
}

/* As in near__labels: each a byte of size and its bytes, none empty. */
static bool
are_names(near_bytes names, unsigned n)
{
    const uint8_t *at = names.data;
    size_t         i  = 0;

    if (n > NEAR__LABELS_MAX)
        return false;
    for (; n > 0 && i < names.size && at[i] > 0; n--)
        i += (size_t)1 + at[i];
    return n == 0 && i == names.size;
}

bool
near__snap_row_decode(struct near__snap_row *row, near_bytes rows, size_t *at)
{
    size_t         left  = rows.size - *at;
    const uint8_t *bytes = (const uint8_t *)rows.data + *at;
    uint64_t       sum;

    if (left < NEAR__SNAP_ROW)
        return false;
    *row = (struct near__snap_row){
        .key        = { bytes + NEAR__SNAP_ROW, near__le32_get(bytes) },
        .value      = { NULL, near__le32_get(bytes + 4) },
        .names      = { NULL, near__le16_get(bytes + 8) },
        .tags       = bytes[10],
        .negative   = (bytes[11] & NEGATIVE) != 0,
        .forced     = (bytes[11] & FORCED) != 0,
        .unknown    = (bytes[11] & UNKNOWN) != 0,
        .warmth     = bytes[12],
        .stamp      = near__le64_get(bytes + 16),
        .expires_ms = (int64_t)near__le64_get(bytes + 24),
        .fresh_ms   = (int64_t)near__le64_get(bytes + 32),
        .cost_us    = near__le32_get(bytes + 40),
        .generation = near__le32_get(bytes + 44),
        .age_ms     = near__le32_get(bytes + 48),
        .pool       = near__le32_get(bytes + 52),
    };
    sum = (uint64_t)row->key.size + row->value.size + row->names.size;
    if (sum > left - NEAR__SNAP_ROW || row->key.size > KEY_MOST || (bytes[11] & ~FLAGS) != 0 ||
        !is_near(row->expires_ms) || !is_near(row->fresh_ms))
        return false;
    row->value.data = bytes + NEAR__SNAP_ROW + row->key.size;
    row->names.data = (const uint8_t *)row->value.data + row->value.size;
    if (!are_names(row->names, row->tags))
        return false;
    *at += NEAR__SNAP_ROW + (size_t)sum;
    return true;
}

/* ---- writing */

static int
fail(struct near__snap_writer *w, int error)
{
    if (w->error == 0 && error < 0)
        w->error = error;
    return w->error;
}

/* Room for so many bytes more behind what is there. */
static bool
make_room(struct near__snap_writer *w, size_t more)
{
    size_t   room = w->room > 0 ? w->room : NEAR__SNAP_BLOCK + NEAR__SNAP_ROWS + 4096;
    uint8_t *block;

    while (room - w->used < more)
        room *= 2;
    if (room == w->room)
        return true;
    block = realloc(w->block, room);
    if (block == NULL)
        return false;
    w->block = block;
    w->room  = room;
    return true;
}

static int
write_bytes(struct near__snap_writer *w, const void *bytes, size_t size)
{
    int result = near__disk_write_all(w->disk, w->fd, bytes, size, w->at);

    w->at += size;
    return fail(w, result);
}

static int
write_block(struct near__snap_writer *w)
{
    near__snap_block_seal(w->block, w->id, w->number++, w->used - NEAR__SNAP_BLOCK, w->rows);
    write_bytes(w, w->block, w->used);
    w->used = NEAR__SNAP_BLOCK;
    w->rows = 0;
    return w->error;
}

int
near__snap_write_begin(struct near__snap_writer *w, const struct near__disk *disk, int directory,
                       const char *name, const struct near__snap_head *head)
{
    uint8_t bytes[NEAR__SNAP_HEAD];

    *w = (struct near__snap_writer){ .disk = disk, .directory = directory, .fd = -1, .id = head->id };
    if (strlen(name) >= sizeof(w->name))
        return fail(w, -ENAMETOOLONG);
    snprintf(w->name, sizeof(w->name), "%s", name);
    snprintf(w->beside, sizeof(w->beside), "%s.new", name);
    if (!make_room(w, NEAR__SNAP_BLOCK))
        return fail(w, -ENOMEM);
    w->used = NEAR__SNAP_BLOCK;
    w->fd   = disk->open(disk->ctx, directory, w->beside, NEAR__DISK_NEW);
    if (w->fd ==
        -EEXIST) { /* of a process that did not come to its end; if it is no file of ours that fails */
        disk->unlink(disk->ctx, directory, w->beside);
        w->fd = disk->open(disk->ctx, directory, w->beside, NEAR__DISK_NEW);
    }
    if (w->fd < 0)
        return fail(w, w->fd);
    near__snap_head_encode(bytes, head);
    return write_bytes(w, bytes, sizeof(bytes));
}

int
near__snap_write_row(struct near__snap_writer *w, const struct near__snap_row *row)
{
    size_t size = near__snap_row_size(row);

    if (w->error != 0)
        return w->error;
    if (w->rows > 0 && w->used + size > NEAR__SNAP_BLOCK + (size_t)NEAR__SNAP_ROWS && write_block(w) != 0)
        return w->error;
    if (!make_room(w, size))
        return fail(w, -ENOMEM);
    near__snap_row_encode(w->block + w->used, row);
    w->used += size;
    w->rows++;
    w->entries++;
    return 0;
}

int
near__snap_write_end(struct near__snap_writer *w)
{
    if (w->error != 0 || (w->rows > 0 && write_block(w) != 0) || write_block(w) != 0)
        return w->error;
    return fail(w, w->disk->sync(w->disk->ctx, w->fd));
}

int
near__snap_write_publish(struct near__snap_writer *w)
{
    int result;

    if (w->error != 0)
        return w->error;
    result = w->disk->rename(w->disk->ctx, w->directory, w->beside, w->name);
    if (result < 0)
        return fail(w, result);
    w->beside[0] = '\0';
    return fail(w, w->disk->sync_directory(w->disk->ctx, w->directory));
}

void
near__snap_write_close(struct near__snap_writer *w)
{
    if (w->fd >= 0) {
        w->disk->close(w->disk->ctx, w->fd);
        if (w->beside[0] != '\0')
            w->disk->unlink(w->disk->ctx, w->directory, w->beside);
    }
    free(w->block);
    w->block = NULL;
    w->fd    = -1;
}

/* ---- reading */

/* As long as the file is, so that a read past its end is none of the disk's faults. */
static int
read_head(struct near__snap_reader *r)
{
    struct near__disk_status status;
    uint8_t                  bytes[NEAR__SNAP_HEAD];
    int                      result = r->disk->status(r->disk->ctx, r->fd, &status);

    if (result < 0)
        return result;
    if (!status.regular || !status.ours || status.exposed)
        return -EPERM;
    r->size = status.size;
    if (r->size < sizeof(bytes))
        return -EBADMSG;
    result = near__disk_read_all(r->disk, r->fd, bytes, sizeof(bytes), 0);
    r->at  = sizeof(bytes);
    if (result < 0)
        return result;
    return near__snap_head_decode(&r->head, bytes, sizeof(bytes)) ? 0 : -EBADMSG;
}

int
near__snap_read_open(struct near__snap_reader *r, const struct near__disk *disk, int directory,
                     const char *name)
{
    int result;

    *r    = (struct near__snap_reader){ .disk = disk };
    r->fd = disk->open(disk->ctx, directory, name, NEAR__DISK_READ);
    if (r->fd < 0)
        return r->fd;
    result = read_head(r);
    if (result < 0)
        near__snap_read_close(r);
    return result;
}

static bool
reader_room(struct near__snap_reader *r, size_t size)
{
    uint8_t *rows;

    if (size <= r->room)
        return true;
    rows = realloc(r->rows, size);
    if (rows == NULL)
        return false;
    r->rows = rows;
    r->room = size;
    return true;
}

enum near__snap_piece
near__snap_read_block(struct near__snap_reader *r, near_bytes *rows, int *error)
{
    uint8_t                 header[NEAR__SNAP_BLOCK];
    struct near__snap_block block;
    uint64_t                at = r->at;

    *error = 0;
    if (r->size - at < sizeof(header))
        return NEAR__SNAP_BROKEN;
    *error = near__disk_read_all(r->disk, r->fd, header, sizeof(header), at);
    at += sizeof(header);
    if (*error != 0 || !near__snap_block_decode(&block, header, r->head.id, r->number) ||
        block.size > r->size - at)
        return NEAR__SNAP_BROKEN;
    if (block.end)
        return NEAR__SNAP_OVER;
    r->number++;
    r->at = at + block.size;
    if (!reader_room(r, block.size))
        return NEAR__SNAP_NO_ROOM;
    *error = near__disk_read_all(r->disk, r->fd, r->rows, block.size, at);
    if (*error != 0 || near__crc32c(0, r->rows, block.size) != block.checksum)
        return NEAR__SNAP_DAMAGED;
    *rows = (near_bytes){ r->rows, block.size };
    return NEAR__SNAP_GOOD;
}

void
near__snap_read_close(struct near__snap_reader *r)
{
    if (r->fd >= 0)
        r->disk->close(r->disk->ctx, r->fd);
    free(r->rows);
    *r = (struct near__snap_reader){ .fd = -1 };
}
