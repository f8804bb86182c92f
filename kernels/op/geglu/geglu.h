/* geglu.h: the constants of gelu's tanh form (arXiv:1606.08415),
 * gelu(g) = g / 2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3))). */
#ifndef OCT_GEGLU_H
#define OCT_GEGLU_H

#define OCT_GELU_LINEAR 1.5957691216057308f /* 2 * sqrt(2/pi) */
#define OCT_GELU_CUBIC 0.07135481282553995f /* 0.044715 of it */

#endif
