/* Stands between a program and the kernel, as LD_PRELOAD: counts the calls that change what lies
   below a folder, and fails one of them, or kills the program there. Calls that change nothing, or
   something elsewhere, pass. Armed by faults_arm(); until then all calls pass. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REMEMBERS, FORGETS_ALL, FORGETS_FILES }; /* what fsync does */

static char below[4096];
static long nth, count;
static int what, memory, trace = -1; /* what: an error number, or -1 to kill */

void faults_arm(const char *folder, long which, int how, int fsyncs, int trace_to) {
    nth = which;
    what = how;
    memory = fsyncs;
    trace = trace_to;
    count = 0;
    strncpy(below, folder, sizeof below - 1);
}

long faults_count(void) { return count; }

static int fails(const char *call, const char *path) {
    size_t length = strlen(below);
    if (!length || strncmp(path, below, length)) return 0;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (trace >= 0) {
        char line[4200];
        int size = snprintf(line, sizeof line, "%s %s\n", call, path + length);
        syscall(SYS_write, trace, line, size);
    }
    if (number != nth) return 0;
    if (what < 0) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = what;
    return 1;
}

static int fails_at(const char *call, int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(call, path);
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    if (flags & (O_CREAT | O_TRUNC) && fails("open", path)) return -1;
    return syscall(SYS_openat, folder, path, flags, mode);
}

#define OPEN(name)                                                    \
    int name(const char *path, int flags, ...) {                      \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                 \
        return opened(AT_FDCWD, path, flags, mode);                   \
    }
OPEN(open)
OPEN(open64)

#define WRITE(name)                                                   \
    ssize_t name(int file, const void *data, size_t size, off_t at) { \
        if (fails_at("pwrite", file)) return -1;                      \
        return syscall(SYS_pwrite64, file, data, size, at);           \
    }
WRITE(pwrite)
WRITE(pwrite64)

ssize_t write(int file, const void *data, size_t size) {
    if (fails_at("write", file)) return -1;
    return syscall(SYS_write, file, data, size);
}

static int synced(const char *call, int number, int file) {
    if (fails_at(call, file)) return -1;
    struct stat found;
    if (memory == FORGETS_ALL) return 0;
    if (memory == FORGETS_FILES && !fstat(file, &found) && S_ISREG(found.st_mode)) return 0;
    return syscall(number, file);
}

int fsync(int file) { return synced("fsync", SYS_fsync, file); }

int fdatasync(int file) { return synced("fdatasync", SYS_fdatasync, file); }

int rename(const char *old, const char *new) {
    if (fails("rename", new)) return -1;
    return syscall(SYS_rename, old, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    if (fails("renameat2", new)) return -1;
    return syscall(SYS_renameat2, from, old, to, new, flags);
}

int mkdir(const char *path, mode_t mode) {
    if (fails("mkdir", path)) return -1;
    return syscall(SYS_mkdir, path, mode);
}

int unlink(const char *path) {
    if (fails("unlink", path)) return -1;
    return syscall(SYS_unlink, path);
}

int rmdir(const char *path) {
    if (fails("rmdir", path)) return -1;
    return syscall(SYS_rmdir, path);
}

#define TRUNCATE(name)                                                \
    int name(int file, off_t size) {                                  \
        if (fails_at("ftruncate", file)) return -1;                   \
        return syscall(SYS_ftruncate, file, size);                    \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ALLOCATE(name)                                                \
    int name(int file, int mode, off_t start, off_t size) {           \
        if (fails_at("fallocate", file)) return -1;                   \
        return syscall(SYS_fallocate, file, mode, start, size);       \
    }
ALLOCATE(fallocate)
ALLOCATE(fallocate64)

int flock(int file, int how) {
    if (fails_at("flock", file)) return -1;
    return syscall(SYS_flock, file, how);
}
