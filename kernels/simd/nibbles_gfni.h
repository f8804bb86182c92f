/* nibbles_gfni.h: nibbles to bytes by affine maps of a byte's bits, one instruction for what shift,
 * mask and subtraction do. Bit i of a result is the parity of the byte and byte 7 - i of the
 * matrix. Every processor that has AMX has them. */
#ifndef OCT_SIMD_NIBBLES_GFNI_H
#define OCT_SIMD_NIBBLES_GFNI_H

#include <immintrin.h>

#include "kernels/inline.h"

/* The low and the high nibbles u of each byte. */
OCT_INLINE void oct_nibbles(__m512i v, __m512i w[2])
{
    w[0] = _mm512_and_si512(v, _mm512_set1_epi8(15));
    w[1] = _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(0x1020408000000000), 0);
}

/* The same less 8: its sign is the opposite of u's top bit. */
OCT_INLINE void oct_centred_nibbles(__m512i v, __m512i w[2])
{
    w[0] = _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(0x0102040808080808), 0xF8);
    w[1] = _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(0x1020408080808080), 0xF8);
}

#endif
