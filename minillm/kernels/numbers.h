/* Numbers in memory, float32 or bfloat16, and in registers, where all arithmetic is float32. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum kind { FLOAT32, BFLOAT16 };

INLINE float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The nearest bfloat16, ties to even; NaN stays NaN. */
INLINE uint16_t rounded(float value) {
    uint32_t bits = bits_of(value);
    uint16_t nearest = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return value == value ? nearest : (uint16_t)0x7fc0;
}

INLINE void load(float *to, const void *from, long start, long count, int kind) {
    if (kind == FLOAT32) {
        memcpy(to, (const float *)from + start, count * sizeof *to);
        return;
    }
    const uint16_t *numbers = (const uint16_t *)from + start;
    for (long i = 0; i < count; i++) to[i] = of_bits((uint32_t)numbers[i] << 16);
}

INLINE void store(void *to, long start, const float *from, long count, int kind) {
    if (kind == FLOAT32) {
        memcpy((float *)to + start, from, count * sizeof *from);
        return;
    }
    uint16_t *numbers = (uint16_t *)to + start;
    for (long i = 0; i < count; i++) numbers[i] = rounded(from[i]);
}

/* e^x within a few units of the last place for x <= 88, and 0 where it is below e^-87: 2^k e^r with |r| <= log(2) / 2,
   where e^r is its Taylor polynomial. log(2) is taken off in two parts, the first of few digits: k times it is exact. */
INLINE float exponential(float x) {
    float bounded = x < -87.0f ? -87.0f : x;
    float k = rintf(bounded * 1.44269504f);
    float r = fmaf(k, -1.42860677e-6f, fmaf(k, -0.693145752f, bounded));
    float sum = fmaf(r, 1.0f / 5040, 1.0f / 720);
    sum = fmaf(sum, r, 1.0f / 120);
    sum = fmaf(sum, r, 1.0f / 24);
    sum = fmaf(sum, r, 1.0f / 6);
    sum = fmaf(sum, r, 0.5f);
    sum = fmaf(sum, r * r, r) + 1.0f;
    return x < -87.0f ? 0.0f : sum * of_bits((uint32_t)((int32_t)k + 127) << 23);
}
