/* tiles_amx.h: the tile registers of AMX. Eight of up to 16 rows x 64 bytes: C tiles 0-3 of int32
 * sums, A tiles 4-5 of activation rows, B tiles 6-7 of weight lines.
 *
 *   dot     C[r][c] += sum over k of A[r][k] * B[k/4][c][k%4]: 16 rows x 16 channels x 64 inputs,
 *           in 16 cycles whatever the number of inputs
 *   store   takes 16 cycles too, beside dots of other tiles only: it must not follow its own dot
 *           closely, or both units wait for each other
 *
 * For some 60 cycles around any tile instruction, float instructions of 512 bits (multiply, add,
 * convert, maximum) have one port instead of two; integer sums, logic and permutations keep both.
 * So the float steps beside tile products are what their time goes to.
 *
 * Rows that a shape leaves out are neither read nor written. Written as assembly, since gcc's
 * intrinsics for loads do not say that they read memory, and tile numbers must be literals. */
#ifndef OCT_SIMD_TILES_AMX_H
#define OCT_SIMD_TILES_AMX_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16]; /* of a row, tile by tile */
    uint8_t rows[16];
} oct_tile_shapes;
static_assert(sizeof(oct_tile_shapes) == 64, "what ldtilecfg reads");

/* Shapes for sums over `inputs` (a multiple of 4, at most 64) at a time: C 0, C 1 and A 4 of
 * `upper` rows, C 2, C 3 and A 5 of `lower`. Zeroes all tiles. */
static inline void oct_tiles_shape(int upper, int lower, int inputs)
{
    static const uint8_t low[6] = {0, 0, 1, 1, 0, 1};
    oct_tile_shapes s = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        s.bytes[i] = (uint16_t)(i == 4 || i == 5 ? inputs : 64);
        s.rows[i] = (uint8_t)(i >= 6 ? inputs / 4 : low[i] ? lower : upper);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(s));
}

/* Gives the registers back, so that nobody has to save them. */
static inline void oct_tiles_release(void)
{
    __asm__ volatile("tilerelease");
}

#define OCT_TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define OCT_TILE_LOAD(t, at, stride)                                            \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"((const void *)(at)), \
                     "r"((ptrdiff_t)(stride))                                   \
                     : "memory")
#define OCT_TILE_STORE(t, at, stride)                                           \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"((void *)(at)),   \
                     "r"((ptrdiff_t)(stride))                                   \
                     : "memory")
/* Signed A; B signed (ss) or unsigned (su). */
#define OCT_TILE_DOT_SS(c, a, b) \
    __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define OCT_TILE_DOT_SU(c, a, b) \
    __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif
