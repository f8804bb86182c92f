/* w8g32, AMX column: the linears of grouped_amx.h with the constants of w8g32.h. Float
 * activations, and tiles of few rows, stay with the AVX-512 column. */
#include "kernels/weight/w8g32/w8g32.h"
#include "kernels/weight/grouped_amx.h"

OCT_GROUPED_AMX(w8g32)
