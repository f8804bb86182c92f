/* f32 page, scalar column: what the format means. */
#include "kernels/page/f32/f32.h"
#include "kernels/page/turn.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    return oct_units_layout(OCT_F32, d, role, out);
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_F32, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode(OCT_F32, a);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn_units(OCT_F32, a);
}

const oct_page_kernels oct_page_f32_scalar = {
    .layout = layout, .seal = seal, .decode = decode, .turn = turn,
};
