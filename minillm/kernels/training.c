/* The parts of a layer beside its products, and their derivatives. */

#include "rows.h"

#include <omp.h>

#define PIECE 1024 /* numbers that a thread goes through at a time */

/* states: (count, width). weight: (width,). scales: (count,), 1 / sqrt(mean(x^2) + smallest), for the derivative. */
void norm_forward(const void *states, int kind, const float *weight, void *result, int result_kind, float *scales,
                  long count, long width, float smallest) {
#pragma omp parallel for
    for (long row = 0; row < count; row++) {
        float x[width];
        load(x, states, row * width, width, kind);
        scales[row] = normalise(x, weight, width, smallest);
        store(result, row * width, x, width, result_kind);
    }
}

/* With g the gradient and s the scale: g s x by w, summed over rows, and s g w - s^3 x mean(g x w) by x.

   by_weight: (threads, width), zeros, what the rows of each thread add up to. */
void norm_backward(const void *gradient, int gradient_kind, const void *states, int kind, const float *weight,
                   const float *scales, void *by_states, float *by_weight, int threads, long count,
                   long width) {
#pragma omp parallel num_threads(threads)
    {
        float g[width], x[width], *sums = by_weight + omp_get_thread_num() * width;
#pragma omp for schedule(static)
        for (long row = 0; row < count; row++) {
            float scale = scales[row], mean = 0;
            load(g, gradient, row * width, width, gradient_kind);
            load(x, states, row * width, width, kind);
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < width; i++) {
                g[i] *= scale;
                sums[i] += g[i] * x[i];
                g[i] *= weight[i];
                mean += g[i] * x[i];
            }
            mean *= scale * scale / width;
            for (long i = 0; i < width; i++) g[i] -= x[i] * mean;
            store(by_states, row * width, g, width, kind);
        }
    }
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(x < -87.0f ? 87.0f : -x)); }

/* silu(gate) up, of count numbers each. */
void gated_forward(const void *gate, const void *up, void *result, int kind, long count) {
#pragma omp parallel for schedule(static)
    for (long start = 0; start < count; start += PIECE) {
        long size = count - start < PIECE ? count - start : PIECE;
        float x[PIECE], y[PIECE];
        load(x, gate, start, size, kind);
        load(y, up, start, size, kind);
        for (long i = 0; i < size; i++) x[i] = x[i] * sigmoid(x[i]) * y[i];
        store(result, start, x, size, kind);
    }
}

/* The result once more, and what its gradient means for gate and up; that of up may take the gradient's place. */
void gated_backward(const void *gate, const void *up, const void *gradient, void *result, void *by_gate, void *by_up,
                    int kind, long count) {
#pragma omp parallel for schedule(static)
    for (long start = 0; start < count; start += PIECE) {
        long size = count - start < PIECE ? count - start : PIECE;
        float x[PIECE], y[PIECE], g[PIECE], product[PIECE];
        load(x, gate, start, size, kind);
        load(y, up, start, size, kind);
        load(g, gradient, start, size, kind);
        for (long i = 0; i < size; i++) {
            float share = sigmoid(x[i]), active = x[i] * share;
            product[i] = active * y[i];
            x[i] = g[i] * y[i] * (share + active * (1.0f - share));
            y[i] = g[i] * active;
        }
        store(result, start, product, size, kind);
        store(by_gate, start, x, size, kind);
        store(by_up, start, y, size, kind);
    }
}

/* Heads (count, num_heads, width), whose tokens are `stride` numbers apart, turned: by the rotation (count, width), or
   back where sign is -1; the first `scaled` of each token are also scaled. */
void turn_heads(const void *heads, const float *rotation, void *result, int kind, long count, long num_heads, long width,
                long stride, long scaled, float scale, float sign) {
#pragma omp parallel for schedule(static)
    for (long token = 0; token < count; token++) {
        float by[width], x[width];
        for (long i = 0; i < width; i += 2) {
            by[i] = rotation[token * width + i];
            by[i + 1] = sign * rotation[token * width + i + 1];
        }
        for (long head = 0; head < num_heads; head++) {
            load(x, heads, token * stride + head * width, width, kind);
            turn(x, by, width);
            if (head < scaled)
                for (long i = 0; i < width; i++) x[i] *= scale;
            store(result, (token * num_heads + head) * width, x, width, kind);
        }
    }
}

/* Of a parallel part here: as many as torch has told, if both have the same OpenMP. */
int most_threads(void) { return omp_get_max_threads(); }
