/* See disk.h.  Files are counted: a name, a descriptor and a change each hold one.  Running out of memory ends the test. */
#include "disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "harness/test.h"

enum { FILES = 256, NAMES = 256, DESCRIPTORS = 64, FIRST_DESCRIPTOR = 1000 };

struct file {
    uint8_t *bytes;
    size_t   size, capacity;
    bool     locked, failed;
};

enum change_kind { SIZE, BYTES, SYNCED, NAMED, RENAMED, UNNAMED, NAMES_SYNCED };

struct change {
    enum change_kind kind;
    int              file;
    size_t           at, size;
    uint8_t         *bytes;
    char             name[40], to[40];
};

struct test_disk_data {
    struct file files[FILES];
    int         file_count;
    struct {
        char name[40];
        int  file;
    } names[NAMES];
    size_t         name_count;
    int            descriptors[DESCRIPTORS]; /* file + 1; -1: the directory; 0: free */
    struct change *changes;
    size_t         change_count, change_capacity;
};

volatile int test_disk_allocating;

static void *
enlarge(void *memory, size_t size)
{
    test_disk_allocating++;
    memory = realloc(memory, size);
    test_disk_allocating--;
    if (memory == NULL)
        __builtin_trap();
    return memory;
}

/* ---- files and names */

static void
set_size(struct file *file, size_t size)
{
    if (size > file->capacity) {
        file->capacity = size + size / 2;
        file->bytes    = enlarge(file->bytes, file->capacity);
    }
    if (size > file->size)
        memset(file->bytes + file->size, 0, size - file->size);
    file->size = size;
}

static void
put_bytes(struct file *file, size_t at, const uint8_t *bytes, size_t size)
{
    if (at + size > file->size)
        set_size(file, at + size);
    if (size > 0)
        memcpy(file->bytes + at, bytes, size);
}

static int
find_name(const struct test_disk_data *data, const char *name)
{
    for (size_t i = 0; i < data->name_count; i++)
        if (strcmp(data->names[i].name, name) == 0)
            return (int)i;
    return -1;
}

static void
put_name(struct test_disk_data *data, const char *name, int file)
{
    int at = find_name(data, name);

    if (at < 0) {
        if (data->name_count == NAMES)
            __builtin_trap();
        at = (int)data->name_count++;
    }
    strncpy(data->names[at].name, name, sizeof(data->names[at].name) - 1);
    data->names[at].file = file;
}

static void
drop_name(struct test_disk_data *data, const char *name)
{
    int at = find_name(data, name);

    if (at >= 0)
        data->names[at] = data->names[--data->name_count];
}

static int
new_file(struct test_disk_data *data)
{
    if (data->file_count == FILES)
        __builtin_trap();
    data->files[data->file_count] = (struct file){ .size = 0 };
    return data->file_count++;
}

/* ---- memory of changes */

static struct change *
remember(struct test_disk_data *data, enum change_kind kind, int file)
{
    if (data->change_count == data->change_capacity) {
        data->change_capacity = 2 * data->change_capacity + 64;
        data->changes         = enlarge(data->changes, data->change_capacity * sizeof(*data->changes));
    }
    data->changes[data->change_count] = (struct change){ .kind = kind, .file = file };
    return &data->changes[data->change_count++];
}

static void
remember_bytes(struct test_disk_data *data, int file, size_t at, const void *bytes, size_t size)
{
    struct change *change = remember(data, BYTES, file);

    change->at    = at;
    change->size  = size;
    change->bytes = enlarge(NULL, size + 1);
    memcpy(change->bytes, bytes, size);
}

static void
forget_changes(struct test_disk_data *data)
{
    for (size_t i = 0; i < data->change_count; i++)
        free(data->changes[i].bytes);
    data->change_count = 0;
}

/* A failed fsync: what was written since the last one is gone, and the next will say that all is well. */
static void
drop_pages(struct test_disk_data *data, int file)
{
    size_t       since = data->change_count;
    struct file *f     = &data->files[file];

    while (since > 0 && !(data->changes[since - 1].kind == SYNCED && data->changes[since - 1].file == file))
        since--;
    memset(f->bytes, 0, f->size);
    for (size_t i = 0; i < data->change_count; i++) {
        struct change *change = &data->changes[i];

        if (change->file != file || change->kind != BYTES)
            continue;
        if (i < since)
            put_bytes(f, change->at, change->bytes, change->size);
        else
            change->size = 0;
    }
}

/* ---- trouble */

static int
trouble(struct test_disk *disk, enum test_call call)
{
    disk->calls++;
    if (disk->fail_at == 0 || disk->calls < disk->fail_at || (disk->calls > disk->fail_at && !disk->sticky) ||
        call == TEST_CLOSE)
        return 0;
    if (disk->trouble == TEST_SHORT)
        return 0;
    disk->failed++;
    disk->failed_call = call;
    return -disk->fail_errno;
}

static bool
cut_short(struct test_disk *disk)
{
    return disk->trouble == TEST_SHORT && disk->fail_at != 0 &&
           (disk->calls == disk->fail_at || (disk->sticky && disk->calls > disk->fail_at));
}

static int
file_of(struct test_disk *disk, int fd)
{
    int file;

    if (fd < FIRST_DESCRIPTOR || fd >= FIRST_DESCRIPTOR + DESCRIPTORS)
        __builtin_trap(); /* a descriptor that was closed, or is none */
    file = disk->data->descriptors[fd - FIRST_DESCRIPTOR];
    if (file == 0)
        __builtin_trap();
    return file - 1;
}

static int
new_descriptor(struct test_disk *disk, int file)
{
    for (int i = 0; i < DESCRIPTORS; i++)
        if (disk->data->descriptors[i] == 0) {
            disk->data->descriptors[i] = file + 1;
            return FIRST_DESCRIPTOR + i;
        }
    __builtin_trap();
}

/* An interrupted write has not failed. */
static void
note_touch(struct test_disk *disk, int file, int result)
{
    int lock = find_name(disk->data, "lock");

    if (lock >= 0 && disk->data->names[lock].file == file)
        return; /* nobody depends on what it says */
    disk->touched += disk->data->files[file].failed;
    disk->data->files[file].failed |= result < 0 && (result != -EINTR || disk->failed_call == TEST_SYNC);
}

/* ---- the calls */

enum { DIRECTORY = -2 };

static int
disk_open_directory(void *ctx, const char *path, bool create)
{
    int result = trouble(ctx, TEST_OPEN);

    (void)path, (void)create;
    return result < 0 ? result : new_descriptor(ctx, DIRECTORY);
}

static int
disk_open(void *ctx, int directory, const char *name, enum near__disk_mode mode)
{
    struct test_disk *disk = ctx;
    int               at = find_name(disk->data, name), file, result = trouble(disk, TEST_OPEN);

    file_of(disk, directory);
    if (result < 0)
        return result;
    if (at >= 0 && mode == NEAR__DISK_NEW)
        return -EEXIST;
    if (at < 0 && (mode == NEAR__DISK_READ || mode == NEAR__DISK_WRITE))
        return -ENOENT;
    if (at >= 0)
        return new_descriptor(disk, disk->data->names[at].file);
    file = new_file(disk->data);
    put_name(disk->data, name, file);
    strncpy(remember(disk->data, NAMED, file)->name, name, 39);
    return new_descriptor(disk, file);
}

static int
disk_status(void *ctx, int fd, struct near__disk_status *status)
{
    struct test_disk *disk = ctx;
    int               file = file_of(disk, fd), result = trouble(disk, TEST_STATUS);

    *status =
        (struct near__disk_status){ .directory = file == DIRECTORY, .regular = file >= 0, .ours = true };
    if (file >= 0)
        status->size = disk->data->files[file].size;
    return result;
}

static ssize_t
disk_read(void *ctx, int fd, void *buffer, size_t size, uint64_t at)
{
    struct test_disk  *disk   = ctx;
    const struct file *file   = &disk->data->files[file_of(disk, fd)];
    int                result = trouble(disk, TEST_READ);

    if (result < 0)
        return result;
    if (at >= file->size)
        return 0;
    size = size < file->size - at ? size : file->size - at;
    if (cut_short(disk))
        size = (size + 1) / 2;
    memcpy(buffer, file->bytes + at, size);
    return (ssize_t)size;
}

static ssize_t
disk_write(void *ctx, int fd, const void *buffer, size_t size, uint64_t at)
{
    struct test_disk *disk = ctx;
    int               file = file_of(disk, fd), result = trouble(disk, TEST_WRITE);

    note_touch(disk, file, result);
    if (result < 0)
        return result;
    if (cut_short(disk))
        size = (size + 1) / 2;
    put_bytes(&disk->data->files[file], at, buffer, size);
    remember_bytes(disk->data, file, at, buffer, size);
    return (ssize_t)size;
}

static int
disk_resize(void *ctx, int fd, uint64_t size)
{
    struct test_disk *disk = ctx;
    int               file = file_of(disk, fd), result = trouble(disk, TEST_ALLOCATE);

    if (result < 0)
        return result;
    set_size(&disk->data->files[file], size);
    remember(disk->data, SIZE, file)->size = size;
    return 0;
}

static int
disk_sync(void *ctx, int fd)
{
    struct test_disk *disk = ctx;
    int               file = file_of(disk, fd), result = trouble(disk, TEST_SYNC);

    note_touch(disk, file, result);
    if (result < 0 && disk->trouble == TEST_FAIL_AND_DROP)
        drop_pages(disk->data, file);
    if (result == 0 && !disk->lies)
        remember(disk->data, SYNCED, file);
    return result;
}

static int
disk_sync_directory(void *ctx, int fd)
{
    struct test_disk *disk   = ctx;
    int               result = trouble(disk, TEST_SYNC_DIRECTORY);

    file_of(disk, fd);
    if (result == 0 && !disk->lies)
        remember(disk->data, NAMES_SYNCED, 0);
    return result;
}

static int
disk_rename(void *ctx, int directory, const char *from, const char *to)
{
    struct test_disk *disk = ctx;
    int               at = find_name(disk->data, from), file, result = trouble(disk, TEST_RENAME);
    struct change    *change;

    file_of(disk, directory);
    if (result < 0)
        return result;
    if (at < 0)
        return -ENOENT;
    file = disk->data->names[at].file;
    drop_name(disk->data, from);
    put_name(disk->data, to, file);
    change = remember(disk->data, RENAMED, file);
    strncpy(change->name, from, 39);
    strncpy(change->to, to, 39);
    return 0;
}

static int
disk_unlink(void *ctx, int directory, const char *name)
{
    struct test_disk *disk   = ctx;
    int               result = trouble(disk, TEST_UNLINK);

    file_of(disk, directory);
    if (result < 0)
        return result;
    if (find_name(disk->data, name) < 0)
        return -ENOENT;
    drop_name(disk->data, name);
    strncpy(remember(disk->data, UNNAMED, 0)->name, name, 39);
    return 0;
}

static int
disk_lock(void *ctx, int fd)
{
    struct test_disk *disk   = ctx;
    struct file      *file   = &disk->data->files[file_of(disk, fd)];
    int               result = trouble(disk, TEST_LOCK);

    if (result < 0)
        return result;
    if (file->locked)
        return -EWOULDBLOCK;
    file->locked = true;
    return 0;
}

static void
disk_unlock(void *ctx, int fd)
{
    struct test_disk *disk = ctx;

    disk->data->files[file_of(disk, fd)].locked = false;
}

static int
disk_list(void *ctx, int directory, int (*found)(void *ctx, const char *name), void *found_ctx)
{
    struct test_disk *disk   = ctx;
    int               result = trouble(disk, TEST_LIST);

    file_of(disk, directory);
    for (size_t i = 0; i < disk->data->name_count && result == 0; i++)
        result = found(found_ctx, disk->data->names[i].name);
    return result;
}

static int
disk_close(void *ctx, int fd)
{
    struct test_disk *disk = ctx;
    int               file = file_of(disk, fd);

    if (file >= 0 && find_name(disk->data, "lock") >= 0 &&
        disk->data->names[find_name(disk->data, "lock")].file == file)
        disk->data->files[file].locked = false;
    disk->data->descriptors[fd - FIRST_DESCRIPTOR] = 0;
    return trouble(disk, TEST_CLOSE);
}

void
test_disk_init(struct test_disk *disk)
{
    *disk      = (struct test_disk){ .fail_errno = EIO };
    disk->data = enlarge(NULL, sizeof(*disk->data));
    memset(disk->data, 0, sizeof(*disk->data));
    disk->disk = (struct near__disk){ disk_open_directory, disk_open,   disk_status, disk_read,
                                      disk_write,          disk_resize, disk_resize, disk_sync,
                                      disk_sync_directory, disk_rename, disk_unlink, disk_lock,
                                      disk_unlock,         disk_list,   disk_close,  disk };
}

void
test_disk_free(struct test_disk *disk)
{
    forget_changes(disk->data);
    for (int i = 0; i < disk->data->file_count; i++)
        free(disk->data->files[i].bytes);
    free(disk->data->changes);
    free(disk->data);
    disk->data = NULL;
}

/* ---- crashes */

void
test_disk_settle(struct test_disk *disk)
{
    struct test_disk_data *data = disk->data;

    forget_changes(data);
    for (size_t i = 0; i < data->name_count; i++) {
        struct file *file = &data->files[data->names[i].file];

        strncpy(remember(data, NAMED, data->names[i].file)->name, data->names[i].name, 39);
        remember(data, SIZE, data->names[i].file)->size = file->size;
        if (file->size > 0)
            remember_bytes(data, data->names[i].file, 0, file->bytes, file->size);
        remember(data, SYNCED, data->names[i].file);
    }
    remember(data, NAMES_SYNCED, 0);
}

size_t
test_disk_changes(const struct test_disk *disk)
{
    return disk->data->change_count;
}

/* A write that was under way: up to some byte, or some of its sectors. */
static void
put_torn(struct file *file, const struct change *change, uint64_t *state)
{
    size_t sector = test_random(state) % 2 == 0 ? 512 : 4096;
    size_t end    = change->at + change->size;

    if (test_random(state) % 3 == 0) {
        put_bytes(file, change->at, change->bytes, test_random(state) % (change->size + 1));
        return;
    }
    for (size_t at = change->at, next; at < end; at = next) {
        next = (at / sector + 1) * sector;
        next = next < end ? next : end;
        if (test_random(state) % 2 == 0)
            put_bytes(file, at, change->bytes + (at - change->at), next - at);
    }
}

static void
apply_to_file(struct test_disk_data *image, const struct change *change, bool synced, int kept,
              uint64_t *state)
{
    struct file *file = &image->files[change->file];
    uint64_t     lot  = synced || kept == 1 ? 0 : kept == 0 ? 1 : test_random(state) % 3;

    if (change->kind == SIZE && lot != 1)
        set_size(file, change->size);
    if (change->kind == BYTES && lot == 0)
        put_bytes(file, change->at, change->bytes, change->size);
    if (change->kind == BYTES && lot == 2)
        put_torn(file, change, state);
}

static void
apply_to_names(struct test_disk_data *image, const struct change *change, bool synced, int kept,
               uint64_t *state)
{
    if (!synced && (kept == 0 || (kept == 2 && test_random(state) % 2 == 0)))
        return;
    if (change->kind == NAMED)
        put_name(image, change->name, change->file);
    if (change->kind == UNNAMED)
        drop_name(image, change->name);
    if (change->kind == RENAMED) {
        drop_name(image, change->name);
        put_name(image, change->to, change->file);
    }
}

static size_t
last_of(const struct test_disk_data *data, size_t changes, enum change_kind kind, int file)
{
    while (changes > 0 &&
           !(data->changes[changes - 1].kind == kind && data->changes[changes - 1].file == file))
        changes--;
    return changes;
}

void
test_disk_crash(struct test_disk *image, const struct test_disk *disk, size_t changes, int kept,
                uint64_t *state)
{
    const struct test_disk_data *data  = disk->data;
    size_t                       names = last_of(data, changes, NAMES_SYNCED, 0);
    size_t                       synced[FILES];

    test_disk_init(image);
    image->data->file_count = data->file_count;
    for (int i = 0; i < data->file_count; i++)
        synced[i] = 0;
    for (size_t i = 0; i < changes; i++)
        if (data->changes[i].kind == SYNCED)
            synced[data->changes[i].file] = i;
    for (size_t i = 0; i < changes; i++) {
        const struct change *change = &data->changes[i];

        if (change->kind == SIZE || change->kind == BYTES)
            apply_to_file(image->data, change, i < synced[change->file], kept, state);
        else
            apply_to_names(image->data, change, i < names, kept, state);
    }
}

void
test_disk_kill(struct test_disk *image, const struct test_disk *disk, size_t changes)
{
    uint64_t no_lot = 0;

    test_disk_crash(image, disk, changes, 1, &no_lot);
    for (size_t i = 0; i < changes; i++) {
        struct change *change =
            remember(image->data, disk->data->changes[i].kind, disk->data->changes[i].file);
        uint8_t *bytes = NULL;

        *change = disk->data->changes[i];
        if (change->bytes != NULL) {
            bytes = enlarge(NULL, change->size + 1);
            memcpy(bytes, change->bytes, change->size);
        }
        change->bytes = bytes;
    }
}

/* ---- a look inside */

uint8_t *
test_disk_file(struct test_disk *disk, const char *name, size_t *size)
{
    int at = find_name(disk->data, name);

    if (at < 0)
        return NULL;
    *size = disk->data->files[disk->data->names[at].file].size;
    return disk->data->files[disk->data->names[at].file].bytes;
}

const char *
test_disk_name(const struct test_disk *disk, size_t i)
{
    return i < disk->data->name_count ? disk->data->names[i].name : NULL;
}

uint64_t
test_disk_bytes(const struct test_disk *disk)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < disk->data->name_count; i++)
        sum += disk->data->files[disk->data->names[i].file].size;
    return sum;
}
