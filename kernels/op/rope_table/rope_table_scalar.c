/* rope_table, scalar column: see rope_table.h. */
#include "kernels/op/rope_table/rope_table.h"

oct_kstatus oct_op_rope_table_scalar(const oct_rope_table_args *a, size_t lo, size_t hi)
{
    rope_table_rows(a, lo, hi);
    return OCT_K_OK;
}
