/* A decoder's operations beside its products. */

#include "rows.h"

#define SMALL 32768 /* numbers that one thread goes through as fast as two */

/* states, result: (count, width). weight: (width,). */
void norm(const void *states, const float *weight, void *result, int kind, long count, long width, float smallest) {
#pragma omp parallel for if (count * width > SMALL)
    for (long row = 0; row < count; row++) {
        float x[width];
        load(x, states, row * width, width, kind);
        normalise(x, weight, width, smallest);
        store(result, row * width, x, width, kind);
    }
}

/* What comes before attention: queries and keys are normalised, in models that do that, and turned; keys and values go
   into the cache. Queries that read one head of keys form a group. */
struct attention {
    const void *heads;                  /* (tokens, queries + 2 keys, width): queries, keys, values */
    const float *rotation;              /* (tokens, width): pairs of numbers */
    const float *query_norm, *key_norm; /* (width,) or null */
    float query_smallest, key_smallest;
    void *keys, *values;                /* (rows, keys, capacity, width), of which columns are in use with the new ones */
    const uint8_t *visible;             /* (rows, columns) */
    const int64_t *places;              /* (tokens,): of rows times num_new; null if all are there */
    float *weights;                     /* (rows, queries, columns), where one new token attends */
    void *result;
    long tokens, rows, num_new, queries, num_keys, width, capacity, columns;
    int kind;
};

INLINE void take_head(const struct attention *a, float *x, long token, long head, long width) {
    const float *norm = head < a->queries ? a->query_norm : a->key_norm;
    load(x, a->heads, (token * (a->queries + 2 * a->num_keys) + head) * width, width, a->kind);
    if (norm) normalise(x, norm, width, head < a->queries ? a->query_smallest : a->key_smallest);
    turn(x, a->rotation + token * width, width);
}

INLINE void store_new(const struct attention *a, long token, long head, long place, long width) {
    float x[width];
    long value_head = token * (a->queries + 2 * a->num_keys) + a->queries + a->num_keys + head;
    take_head(a, x, token, a->queries + head, width);
    store(a->keys, place, x, width, a->kind);
    load(x, a->heads, value_head * width, width, a->kind);
    store(a->values, place, x, width, a->kind);
}

/* New columns where a row has no token: attention multiplies them by 0, so they have to be numbers. */
static void clear_padding(const struct attention *a) {
    size_t bytes = (a->kind == FLOAT32 ? 4 : 2) * a->width;
    for (long row = 0; row < a->rows; row++)
        for (long column = a->columns - a->num_new; column < a->columns; column++) {
            if (a->visible[row * a->columns + column]) continue;
            for (long head = 0; head < a->num_keys; head++) {
                long place = (row * a->num_keys + head) * a->capacity + column;
                memset((char *)a->keys + place * bytes, 0, bytes);
                memset((char *)a->values + place * bytes, 0, bytes);
            }
        }
}

INLINE void arrange_token(const struct attention *a, long token, long width) {
    long place = a->places ? a->places[token] : token, row = place / a->num_new, column = place % a->num_new;
    long group = a->queries / a->num_keys, old = a->columns - a->num_new;
    float x[width];
    for (long head = 0; head < a->num_keys; head++) {
        long start = row * a->num_keys + head;
        store_new(a, token, head, (start * a->capacity + old + column) * width, width);
        for (long q = 0; q < group; q++) {
            take_head(a, x, token, head * group + q, width);
            store(a->result, ((start * a->num_new + column) * group + q) * width, x, width, a->kind);
        }
    }
}

/* result: (rows, keys, num_new group, width), each token's queries of a group side by side. Loops whose width the
   compiler knows are several times as fast. */
void arrange(const struct attention *a) {
    clear_padding(a);
#pragma omp parallel for if (a->tokens * a->queries * a->width > SMALL)
    for (long token = 0; token < a->tokens; token++) {
        if (a->width == 64) arrange_token(a, token, 64);
        else if (a->width == 128) arrange_token(a, token, 128);
        else arrange_token(a, token, a->width);
    }
}

/* The way back: heads (rows, keys, num_new group, width) to result (tokens, queries, width). */
void gather(const struct attention *a) {
    long group = a->queries / a->num_keys, bytes = (a->kind == FLOAT32 ? 4 : 2) * group * a->width;
#pragma omp parallel for if (a->tokens * a->queries * a->width > SMALL)
    for (long token = 0; token < a->tokens; token++) {
        long place = a->places ? a->places[token] : token, row = place / a->num_new, column = place % a->num_new;
        for (long head = 0; head < a->num_keys; head++) {
            const char *from = (const char *)a->heads + ((row * a->num_keys + head) * a->num_new + column) * bytes;
            memcpy((char *)a->result + (token * a->num_keys + head) * bytes, from, bytes);
        }
    }
}

INLINE void softmax(float *x, long first, long count) {
    float largest = largest_of(x + first, count - first), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = first; i < count; i++) sum += x[i] = exponential(x[i] - largest);
    for (long i = first; i < count; i++) x[i] /= sum;
}

/* One new token in a row: the `group` queries that read one head of keys; the columns before the first that the row may
   see do not exist for it, which is how bits do not depend on the padding of prompts. Padding finds nothing: zeros. */
INLINE void attend(const struct attention *a, long row, long head, long group, long width) {
    long columns = a->columns, cache = (row * a->num_keys + head) * a->capacity * width, first = 0;
    float query[group][width], sum[group][width], x[width], scale = 1.0f / sqrtf(width);
    float(*weight)[columns] = (float(*)[columns])(a->weights + (row * a->queries + head * group) * columns);
    const uint8_t *visible = a->visible + row * columns;
    memset(sum, 0, sizeof sum);
    while (first < columns && !visible[first]) first++;
    if (visible[columns - 1]) store_new(a, row, head, cache + (columns - 1) * width, width);
    for (long q = 0; q < group; q++) take_head(a, query[q], row, head * group + q, width);
    for (long s = first; s < columns; s++) {
        load(x, a->keys, cache + s * width, width, a->kind);
        for (long q = 0; q < group; q++) {
            float product = 0;
#pragma omp simd reduction(+ : product)
            for (long i = 0; i < width; i++) product += query[q][i] * x[i];
            weight[q][s] = visible[s] ? product * scale : -INFINITY;
        }
    }
    for (long q = 0; q < group; q++) softmax(weight[q], first, columns);
    for (long s = first; s < columns; s++) {
        load(x, a->values, cache + s * width, width, a->kind);
        for (long q = 0; q < group; q++)
            for (long i = 0; i < width; i++) sum[q][i] += weight[q][s] * x[i];
    }
    for (long q = 0; q < group; q++)
        store(a->result, (row * a->queries + head * group + q) * width, sum[q], width, a->kind);
}

/* result: (rows, queries, width), what the one new token of each row finds. */
void attend_once(const struct attention *a) {
    long group = a->queries / a->num_keys;
    clear_padding(a);
#pragma omp parallel for collapse(2)
    for (long row = 0; row < a->rows; row++)
        for (long head = 0; head < a->num_keys; head++) {
            if (a->width == 64) attend(a, row, head, group, 64);
            else if (a->width == 128) attend(a, row, head, group, 128);
            else attend(a, row, head, group, a->width);
        }
}

#define BLOCK 256 /* logits whose exponentials are summed in float32 */

INLINE float sum_of_exponentials(const float *x, float largest, long count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; i++) sum += exponential(x[i] - largest);
    return sum;
}

/* The first of x, by its running sum, that passes a share of the total; the last that is not 0 if rounding lets none. */
INLINE long passing(const double *x, long count, double *share) {
    long last = 0;
    for (long i = 0; i < count; i++) {
        if (x[i] == 0) continue;
        last = i;
        if (*share < x[i]) break;
        *share -= x[i];
    }
    return last;
}

/* By inverting the cumulative distribution of logits (rows, count) at shares (rows,) in [0, 1): a token and its
   log-probability, NaN where the logits are not finite. */
void draw(const float *logits, const double *shares, int64_t *tokens, float *logprobs, long rows, long count) {
#pragma omp parallel for if (rows * count > SMALL)
    for (long row = 0; row < rows; row++) {
        const float *x = logits + row * count;
        long num_blocks = (count + BLOCK - 1) / BLOCK;
        double sums[num_blocks], chosen[BLOCK], total = 0;
        float largest = largest_of(x, count);
        for (long block = 0; block < num_blocks; block++) {
            long start = block * BLOCK, size = count - start < BLOCK ? count - start : BLOCK;
            total += sums[block] = sum_of_exponentials(x + start, largest, size);
        }
        double share = shares[row] * total;
        long block = passing(sums, num_blocks, &share), start = block * BLOCK;
        long size = count - start < BLOCK ? count - start : BLOCK;
        for (long i = 0; i < size; i++) chosen[i] = exponential(x[start + i] - largest);
        tokens[row] = start + passing(chosen, size, &share);
        logprobs[row] = (float)((double)x[tokens[row]] - largest - log(total));
    }
}
