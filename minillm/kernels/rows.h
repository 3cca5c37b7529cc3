/* What is done to the numbers of one token. */

#pragma once

#include "numbers.h"

INLINE float sum_of_squares(const float *x, long width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += x[i] * x[i];
    return sum;
}

INLINE float largest_of(const float *x, long count) {
    float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (long i = 0; i < count; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* An RMS norm: x weight / sqrt(mean(x^2) + smallest). Returns the factor before the weight. */
INLINE float normalise(float *x, const float *weight, long width, float smallest) {
    float scale = 1.0f / sqrtf(sum_of_squares(x, width) / width + smallest);
    for (long i = 0; i < width; i++) x[i] = x[i] * scale * weight[i];
    return scale;
}

/* Pairs that stand side by side are complex numbers, and are multiplied by those of the rotation. */
INLINE void turn(float *x, const float *rotation, long width) {
    for (long i = 0; i < width; i += 2) {
        float real = x[i], imaginary = x[i + 1];
        x[i] = real * rotation[i] - imaginary * rotation[i + 1];
        x[i + 1] = real * rotation[i + 1] + imaginary * rotation[i];
    }
}
