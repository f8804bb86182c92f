/* q4g32z, AMX column: the linears of grouped_amx.h with the constants of q4g32z.h. Float
 * activations, and tiles of few rows, stay with the AVX-512 column. */
#include "kernels/weight/q4g32z/q4g32z.h"
#include "kernels/weight/grouped_amx.h"

OCT_GROUPED_AMX(q4g32z)
