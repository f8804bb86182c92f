/* roof, scalar column: what plain C does, one accumulator at a time. */
#include <math.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

static void int8_task(const oct_roof_args *a, size_t row)
{
    /* The compiler must not know the factors, or it would multiply once. */
    volatile uint8_t u = 2;
    volatile int8_t s = 3;
    uint32_t acc = 0;
    for (uint32_t i = 0; i < a->steps; i++)
        for (int j = 0; j < 4; j++) acc += (uint32_t)(u * s);
    a->work[row] = (uint64_t)a->steps * 4;
    a->check[row] = acc;
}

static void f32_task(const oct_roof_args *a, size_t row)
{
    volatile float half = 0.5f;
    float acc = 0.0f;
    for (uint32_t i = 0; i < a->steps; i++) acc = fmaf(acc, half, 1.0f);
    a->work[row] = a->steps;
    a->check[row] = oct_bits(acc);
}

static void read_task(const oct_roof_args *a, size_t row)
{
    const uint32_t *p = (const uint32_t *)((const char *)a->data + row * a->bytes);
    uint32_t x = 0;
    for (size_t i = 0; i < a->bytes / sizeof *p; i++) x ^= p[i];
    a->work[row] = a->bytes;
    a->check[row] = x;
}

oct_kstatus oct_op_roof_scalar(const oct_roof_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++)
        switch (a->kind) {
        case OCT_ROOF_INT8: int8_task(a, row); break;
        case OCT_ROOF_F32: f32_task(a, row); break;
        case OCT_ROOF_READ: read_task(a, row); break;
        default: a->work[row] = a->check[row] = 0; break;
        }
    return OCT_K_OK;
}
