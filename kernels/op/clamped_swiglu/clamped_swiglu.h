/* clamped_swiglu.h: the constants of gpt-oss's gate, which its code holds fixed: what g and u are
 * clamped to, and the slope of the sigmoid's argument. */
#ifndef OCT_CLAMPED_SWIGLU_H
#define OCT_CLAMPED_SWIGLU_H

#define OCT_SWIGLU_LIMIT 7.0f
#define OCT_SWIGLU_SLOPE 1.702f

#endif
