/* q4g32m, AVX2 column: the linears of grouped_avx2.h and the packing of
 * grouped_pack_avx2.h with the constants of q4g32m.h. Gathering stays with the scalar column. */
#include "kernels/weight/q4g32m/q4g32m.h"
#include "kernels/weight/grouped_avx2.h"
#include "kernels/weight/grouped_pack_avx2.h"

const oct_weight_kernels oct_q4g32m_avx2 = {
    .pack = pack_avx2,
    .linear = {linear_a32, linear_a8, linear_a8g32, linear_a8x2},
};
