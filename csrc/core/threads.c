/* threads.c: the pool. The hard part is handing a loop to workers without waiting for those that
 * sleep or are descheduled; the comment at the struct says why it is safe. */
#include "csrc/core/threads.h"

#include <pthread.h>
#include <sched.h> /* sched_getaffinity, sched_yield */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h> /* getpid */

#include "csrc/core/mem.h"

#define SPIN_NS 50000
#define POLL_NS 30000000
#define LEAST_SHARE 3 /* fewer tasks cost more to hand out than they even out */

/* epoch is odd while a loop is open. A worker announces itself in `inside` before it looks again at
 * epoch; the caller closes the loop before it looks at `inside`. With sequentially consistent
 * accesses one of them sees the other, so the fields below are never read while they change. */
struct oct_pool {
    _Atomic uint64_t epoch;
    _Alignas(64) _Atomic size_t next;
    _Alignas(64) _Atomic int inside;
    _Alignas(64) _Atomic int sleepers;
    _Atomic bool cancel, stop;
    size_t n, grain;
    bool shared; /* claims are shares of what is left, at most `grain` */
    oct_task_fn fn;
    void *ctx;

    int threads, started; /* started: workers that exist, lanes 1..started */
    pthread_t worker[OCT_MAX_THREADS];
    struct oct_lane_start {
        oct_pool *pool;
        int lane;
    } start[OCT_MAX_THREADS];
    pthread_mutex_t sleep_lock, owner;
    pthread_cond_t wake;
    pid_t pid;

    oct_poll poll; /* of the call that owns the pool */
    int64_t polled_ns;
    oct_fp_word host_fp;
};

int64_t oct_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The next tasks for one lane; false: there are none. */
static bool take(oct_pool *p, size_t *lo, size_t *hi)
{
    if (!p->shared) {
        *lo = atomic_fetch_add_explicit(&p->next, p->grain, memory_order_relaxed);
        *hi = *lo < p->n && p->n - *lo < p->grain ? p->n : *lo + p->grain;
        return *lo < p->n;
    }
    *lo = atomic_load_explicit(&p->next, memory_order_relaxed);
    do {
        if (*lo >= p->n) return false;
        const size_t share = (p->n - *lo) / (2 * (size_t)(p->started + 1));
        const size_t wanted = share < LEAST_SHARE ? LEAST_SHARE : share;
        *hi = *lo + (wanted < p->grain ? wanted : p->grain);
        if (*hi > p->n) *hi = p->n;
    } while (!atomic_compare_exchange_weak_explicit(&p->next, lo, *hi, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* A boundary of the calling thread: whether the poll, every so often, says cancel. */
static void look(oct_pool *p)
{
    if (!p->poll.ask) return;
    if (oct_cancel_due()) atomic_store(&p->cancel, true);
    if (oct_now_ns() - p->polled_ns <= POLL_NS) return;
    if (p->poll.ask(p->poll.arg)) atomic_store(&p->cancel, true);
    p->polled_ns = oct_now_ns();
}

static void claim(oct_pool *p, int lane)
{
    for (;;) {
        size_t lo, hi;
        if (atomic_load_explicit(&p->cancel, memory_order_relaxed)) return;
        if (!take(p, &lo, &hi)) return;
        p->fn(p->ctx, lo, hi, lane);
        if (lane == 0) look(p);
    }
}

static void sleep_until_not(oct_pool *p, uint64_t seen)
{
    pthread_mutex_lock(&p->sleep_lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->epoch) == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->sleep_lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->sleep_lock);
}

static void *work(void *arg)
{
    struct oct_lane_start *s = arg;
    oct_pool *p = s->pool;
    uint64_t seen = 0;
    oct_fp_enter();
    while (!atomic_load(&p->stop)) {
        const uint64_t e = atomic_load(&p->epoch);
        if (e != seen && (e & 1)) {
            atomic_fetch_add(&p->inside, 1);
            if (atomic_load(&p->epoch) == e) claim(p, s->lane);
            atomic_fetch_sub(&p->inside, 1);
            seen = e;
            continue;
        }
        const int64_t until = oct_now_ns() + SPIN_NS;
        while (atomic_load(&p->epoch) == e && oct_now_ns() < until)
            for (int i = 0; i < 32; i++) oct_relax();
        if (atomic_load(&p->epoch) == e) sleep_until_not(p, e);
    }
    return NULL;
}

static void wake_all(oct_pool *p)
{
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->sleep_lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->sleep_lock);
}

static void run_loop(oct_pool *p, size_t n, size_t grain, bool shared, oct_task_fn fn, void *ctx)
{
    if (n == 0) return;
    p->n = n;
    p->grain = grain ? grain : 1;
    p->shared = shared;
    p->fn = fn;
    p->ctx = ctx;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    if (p->started == 0 || n == 1 || (!shared && n <= p->grain)) {
        claim(p, 0);
        return;
    }
    atomic_fetch_add(&p->epoch, 1);
    wake_all(p);
    claim(p, 0);
    atomic_fetch_add(&p->epoch, 1);
    for (int spins = 0; atomic_load(&p->inside) != 0; spins++) {
        oct_relax();
        if (spins > 20000) sched_yield(); /* a neighbour may hold the core that the worker needs */
    }
    look(p); /* workers on a busy machine may leave the caller no task, loop after loop */
}

void oct_parallel(oct_pool *p, size_t n, size_t grain, oct_task_fn fn, void *ctx)
{
    run_loop(p, n, grain, false, fn, ctx);
}

void oct_parallel_shares(oct_pool *p, size_t n, size_t most, oct_task_fn fn, void *ctx)
{
    run_loop(p, n, most, true, fn, ctx);
}

/* Fewer lanes than asked for give the same bits, so a thread that cannot start is not an error. */
static void start_workers(oct_pool *p)
{
    p->started = 0;
    for (int lane = 1; lane < p->threads; lane++) {
        p->start[lane] = (struct oct_lane_start){p, lane};
        if (!oct_thread_start(&p->worker[lane], work, &p->start[lane])) break;
        p->started = lane;
        oct_mem_note(OCT_TAG_THREADS, 0, 1);
    }
}

static void init_fresh(oct_pool *p)
{
    atomic_store(&p->epoch, 0);
    atomic_store(&p->inside, 0);
    atomic_store(&p->sleepers, 0);
    atomic_store(&p->cancel, false);
    atomic_store(&p->stop, false);
    pthread_mutex_init(&p->sleep_lock, NULL);
    pthread_mutex_init(&p->owner, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->pid = getpid();
    start_workers(p);
}

oct_status oct_pool_open(oct_pool **out, int threads)
{
    *out = NULL;
    oct_pool *p = oct_zalloc(OCT_TAG_THREADS, 1, sizeof *p);
    if (!p) return oct_fail_memory("runtime", "the thread pool");
    p->threads = threads;
    init_fresh(p);
    *out = p;
    return OCT_OK;
}

static void stop_workers(oct_pool *p)
{
    pthread_mutex_lock(&p->sleep_lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->sleep_lock);
    for (int lane = 1; lane <= p->started; lane++) pthread_join(p->worker[lane], NULL);
    oct_mem_note(OCT_TAG_THREADS, 0, -p->started);
    p->started = 0;
    atomic_store(&p->stop, false);
}

void oct_pool_close(oct_pool **pool)
{
    oct_pool *p = *pool;
    *pool = NULL;
    if (!p) return;
    if (p->pid == getpid()) { /* in a forked child there are no workers to join */
        stop_workers(p);
        pthread_mutex_destroy(&p->sleep_lock);
        pthread_mutex_destroy(&p->owner);
        pthread_cond_destroy(&p->wake);
    }
    oct_mem_note(OCT_TAG_THREADS, 0, -p->started);
    oct_free(p);
}

void oct_pool_resize(oct_pool *p, int threads)
{
    stop_workers(p);
    p->threads = threads;
    start_workers(p);
}

int oct_pool_threads(const oct_pool *p)
{
    return p->threads;
}

/* Takes the lock. A call that may be cancelled looks at its signals meanwhile, since the step that it
 * waits for may be long; false, without the lock, if they say cancel. */
static bool wait_for_turn(oct_pool *p, oct_poll poll)
{
    if (!poll.ask) {
        pthread_mutex_lock(&p->owner);
        return true;
    }
    for (int64_t polled = oct_now_ns(); pthread_mutex_trylock(&p->owner);) {
        const struct timespec nap = {0, 200000};
        nanosleep(&nap, NULL);
        if (oct_now_ns() - polled < POLL_NS) continue;
        if (poll.ask(poll.arg)) return false;
        polled = oct_now_ns();
    }
    return true;
}

bool oct_pool_enter(oct_pool *p, oct_poll poll)
{
    if (p->pid != getpid()) { /* forked: the workers and whoever held the locks are gone */
        oct_mem_note(OCT_TAG_THREADS, 0, -p->started);
        init_fresh(p);
    }
    if (!wait_for_turn(p, poll)) return false;
    atomic_store(&p->cancel, false);
    p->poll = poll;
    p->polled_ns = oct_now_ns();
    p->host_fp = oct_fp_enter();
    return true;
}

bool oct_pool_cancelled(const oct_pool *p)
{
    return atomic_load(&((oct_pool *)(uintptr_t)p)->cancel);
}

void oct_pool_cancel(oct_pool *p)
{
    atomic_store(&p->cancel, true);
}

bool oct_pool_leave(oct_pool *p)
{
    const bool whole = !oct_pool_cancelled(p);
    oct_fp_leave(p->host_fp);
    p->poll = (oct_poll){0};
    pthread_mutex_unlock(&p->owner);
    return whole;
}

/* ---- how many threads ------------------------------------------------------------------------ */

/* The first `count` numbers of a file; false if it has fewer ("max 100000") or is not there. */
static bool read_numbers(const char *folder, const char *name, long long *to, int count)
{
    char path[4352];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    int got = 0;
    while (f && got < count && fscanf(f, "%lld", &to[got]) == 1) got++;
    if (f) fclose(f);
    return got == count;
}

/* Whole processors that one control group grants, v2 or v1. */
static int quota_at(const char *folder)
{
    long long n[2];
    if (!read_numbers(folder, "cpu.max", n, 2) &&
        !(read_numbers(folder, "cpu.cfs_quota_us", n, 1) &&
          read_numbers(folder, "cpu.cfs_period_us", n + 1, 1)))
        return OCT_MAX_THREADS;
    if (n[0] <= 0 || n[1] <= 0 || n[0] / n[1] > OCT_MAX_THREADS) return OCT_MAX_THREADS;
    return n[0] < n[1] ? 1 : (int)(n[0] / n[1]);
}

/* The least of a group and those it is in. A path that this mount does not show (a container's) has
 * no files, and ends at the mount point, where a container sees its own limit. */
static int least_quota(char *folder, size_t root)
{
    for (int least = OCT_MAX_THREADS;;) {
        const int here = quota_at(folder);
        least = here < least ? here : least;
        char *slash = strrchr(folder, '/');
        if (!slash || slash < folder + root) return least;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup are "0::PATH" (v2) and "N:CONTROLLERS:PATH" (v1). */
static int cgroup_quota(void)
{
    static const char v2[] = "/sys/fs/cgroup", v1[] = "/sys/fs/cgroup/cpu";
    char line[4096], folder[4224];
    int least = OCT_MAX_THREADS;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        char commas[4100];
        snprintf(commas, sizeof commas, ",%s,", names + 1);
        const char *mount = !names[1] ? v2 : strstr(commas, ",cpu,") ? v1 : NULL;
        if (!mount) continue;
        snprintf(folder, sizeof folder, "%s%s", mount, path);
        const int here = least_quota(folder, strlen(mount));
        least = here < least ? here : least;
    }
    if (f) fclose(f);
    return least;
}

static int sibling_first(int cpu)
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    int first = cpu;
    if (f) {
        if (fscanf(f, "%d", &first) != 1) first = cpu;
        fclose(f);
    }
    return first;
}

int oct_default_threads(void)
{
#ifdef __linux__
    cpu_set_t set, cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int c = 0; c < CPU_SETSIZE; c++)
            if (CPU_ISSET(c, &set)) CPU_SET(sibling_first(c) % CPU_SETSIZE, &cores);
        const int own = CPU_COUNT(&cores), quota = cgroup_quota();
        const int best = own < quota ? own : quota;
        return best < 1 ? 1 : best > OCT_MAX_THREADS ? OCT_MAX_THREADS : best;
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > OCT_MAX_THREADS ? OCT_MAX_THREADS : (int)n;
}
