/* int8 page, AMX column: q8 and q8x2 for many queries, by page/dot_amx.h. */
#include "kernels/page/dot_amx.h"

OCT_PAGE_AMX(int8, 8)
