/* roof, AMX column: tile products beside what the AVX-512 column measures. */
#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/simd/tiles_amx.h"

oct_kstatus oct_op_roof_avx512(const oct_roof_args *a, size_t lo, size_t hi);

/* Four tiles of sums, each 16 rows x 16 channels x 64 inputs of 2 * 3 a step. */
static void tile_task(const oct_roof_args *a, size_t row)
{
    enum { TILES = 4, PRODUCTS = 16 * 16 * 64 }; /* rows x channels x inputs */
    _Alignas(64) int8_t twos[1024], threes[1024];
    _Alignas(64) uint32_t sums[256];
    memset(twos, 2, sizeof twos);
    memset(threes, 3, sizeof threes);
    oct_tiles_shape(16, 16, 64);
    OCT_TILE_LOAD(4, twos, 64);
    OCT_TILE_LOAD(6, threes, 64);
    for (uint32_t i = 0; i < a->steps; i++) {
        OCT_TILE_DOT_SS(0, 4, 6);
        OCT_TILE_DOT_SS(1, 4, 6);
        OCT_TILE_DOT_SS(2, 4, 6);
        OCT_TILE_DOT_SS(3, 4, 6);
    }
    OCT_TILE_STORE(3, sums, 64);
    oct_tiles_release();
    a->work[row] = (uint64_t)a->steps * TILES * PRODUCTS;
    a->check[row] = sums[255];
}

oct_kstatus oct_op_roof_amx(const oct_roof_args *a, size_t lo, size_t hi)
{
    if (a->kind != OCT_ROOF_TILE) return oct_op_roof_avx512(a, lo, hi);
    for (size_t row = lo; row < hi; row++) tile_task(a, row);
    return OCT_K_OK;
}
