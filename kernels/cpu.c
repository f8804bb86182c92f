/* cpu.c: what this processor and this operating system run.
 *
 * A level is a bundle. CPUID says that the instructions exist, XGETBV that the OS saves the
 * registers they use; without the second, the first would end in an illegal instruction. Linux
 * saves the 8 KB of tile registers only for processes that ask for it, which is done here. */
#include <string.h>

#include "kernels/kernels.h"

#if defined(__x86_64__) && !defined(OCT_PORTABLE)
#include <cpuid.h>

static uint64_t xgetbv0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}

/* Whether this process may use tile registers: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA), which
 * holds for all its threads, present and future, for good, and may be asked for again. It is refused
 * where a thread's signal stack is too small to save them, and once given, such stacks are. */
static bool tiles_permitted(void)
{
#if defined(__linux__) && defined(OCT_HAVE_AMX)
    const long arch_prctl = 158, req_xcomp_perm = 0x1023, xtiledata = 18;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(arch_prctl), "D"(req_xcomp_perm), "S"(xtiledata)
                     : "rcx", "r11", "memory");
    return result == 0;
#else
    return false;
#endif
}

oct_isa oct_cpu_isa(void)
{
    enum { YMM = 0x6, ZMM = 0xE6 }; /* XCR0: SSE and AVX; with opmask and both ZMM halves */
    enum { TILES = 0x60000, TILE_BITS = 1 << 24 | 1 << 25 }; /* XCR0; CPUID: AMX-TILE, AMX-INT8 */
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return OCT_SCALAR;
    const uint64_t saved = xgetbv0();
    const bool fma = (c & bit_FMA) && (c & bit_F16C) && (c & bit_AVX);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return OCT_SCALAR;
    if (!fma || !(b & bit_AVX2) || (saved & YMM) != YMM) return OCT_SCALAR;
    const uint32_t need = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    const bool wide = (b & need) == need && (c & bit_AVX512VNNI) && (saved & ZMM) == ZMM;
    if (!wide) return OCT_AVX2;
    const bool tiles = (d & TILE_BITS) == TILE_BITS && (saved & TILES) == TILES;
    return tiles && (c & bit_GFNI) && tiles_permitted() ? OCT_AMX : OCT_AVX512;
}

const char *oct_cpu_name(void)
{
    static char name[49]; /* always the same bytes, so a race writes what is there already */
    uint32_t words[12];
    for (uint32_t i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                         &words[4 * i + 3]))
            return "x86-64";
    memcpy(name, words, sizeof words);
    const char *p = name;
    while (*p == ' ') p++;
    return p;
}

#else

oct_isa oct_cpu_isa(void)
{
    return OCT_SCALAR;
}

const char *oct_cpu_name(void)
{
    return "unknown";
}

#endif
