/* hadamard.h: the constants of the transform (docs/formats.md, A2), shared by all columns. */
#ifndef OCT_HADAMARD_H
#define OCT_HADAMARD_H

#include "kernels/kernels.h"
#include "kernels/num.h"

/* Bit b of word w: channel 64 w + b is negative. Bit 63 of each output of SplitMix64, seed 0. */
static const uint64_t oct_hadamard_signs[OCT_MAX_HEAD_DIM / 64] = {
    0x9ecc3104737afa89, 0x365e05b61ac16ee8, 0x0b672b6ebe83866b, 0x3c99568653b8f652,
    0x1d861e844a58a241, 0xab7139cbc090d448, 0xc8d6e9e5b86256d5, 0x0a049ca61e8256f2,
    0x462469b11194c781,
};

/* 1 / sqrt(block): 2^-k, or 2^-k times the float32 nearest to sqrt(1/2). */
static inline float oct_hadamard_factor(int block)
{
    int log2 = 0;
    while (1 << log2 < block) log2++;
    const uint32_t half = (uint32_t)(log2 / 2) << 23;
    return oct_float((log2 % 2 ? 0x3F3504F3u : 0x3F800000u) - half);
}

static inline uint32_t oct_hadamard_flip(int channel) /* the sign as a mask of the sign bit */
{
    return (uint32_t)(oct_hadamard_signs[channel / 64] >> (channel % 64) & 1) << 31;
}

#endif
