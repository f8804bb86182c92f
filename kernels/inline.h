/* inline.h: OCT_INLINE, of templates whose arguments are constants at each call. Builds under a
 * sanitizer call them instead: specialized, they would be ten times the code and minutes to compile,
 * and the lines that are watched are the same. */
#ifndef OCT_KERNELS_INLINE_H
#define OCT_KERNELS_INLINE_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OCT_INLINE static inline
#else
#define OCT_INLINE static inline __attribute__((always_inline))
#endif

#endif
