/* bf16 page, scalar column: what the format means. */
#include "kernels/page/bf16/bf16.h"
#include "kernels/page/turn.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    return oct_units_layout(OCT_BF16, d, role, out);
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_BF16, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode(OCT_BF16, a);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn_units(OCT_BF16, a);
}

const oct_page_kernels oct_page_bf16_scalar = {
    .layout = layout, .seal = seal, .decode = decode, .turn = turn,
};
