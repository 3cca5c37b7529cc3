/* Losses of logits, and their derivatives: a few passes over each row while the caches hold it. */

#include "rows.h"

#define BLOCK 256 /* numbers that are read at a time, and summed in float32; blocks are summed in float64 */

/* Logits s and t of two models, (rows, count), whose kinds may differ, as may how many numbers apart their rows are; all
   else is (rows,). */
struct sampled {
    const void *student, *teacher;
    const int64_t *tokens;
    const float *known; /* log q(token) */
    float *logprobs, *divergences, *largest, *log_totals;
    const float *by_logprobs, *by_divergences; /* gradients */
    void *by_student;                          /* (rows, count), of the student's kind */
    long rows, count, student_stride, teacher_stride;
    int student_kind, teacher_kind;
};

INLINE float at(const void *numbers, long place, int kind) {
    float value;
    load(&value, numbers, place, 1, kind);
    return value;
}

INLINE float largest_in(const void *numbers, long start, long count, int kind) {
    float largest = -INFINITY, x[BLOCK];
    for (long i = 0; i < count; i += BLOCK) {
        long size = count - i < BLOCK ? count - i : BLOCK;
        load(x, numbers, start + i, size, kind);
        float found = largest_of(x, size);
        largest = found > largest ? found : largest;
    }
    return largest;
}

/* The log-probability of a token, and KL(p || q): log p = (s - largest) - log_total, both kept for the derivative, and
   log q = (t - t(token)) + log q(token). The differences in brackets are of numbers of about one size: they lose nothing,
   however large an offset all logits have. */
void sampled_forward(const struct sampled *a) {
#pragma omp parallel for
    for (long row = 0; row < a->rows; row++) {
        long own = row * a->student_stride, others = row * a->teacher_stride, token = a->tokens[row];
        float largest = largest_in(a->student, own, a->count, a->student_kind), s[BLOCK], t[BLOCK];
        float other = at(a->teacher, others + token, a->teacher_kind), known = a->known[row];
        double total = 0, difference = 0;
        for (long start = 0; start < a->count; start += BLOCK) {
            long size = a->count - start < BLOCK ? a->count - start : BLOCK;
            float sum = 0, weighted = 0;
            load(s, a->student, own + start, size, a->student_kind);
            load(t, a->teacher, others + start, size, a->teacher_kind);
#pragma omp simd reduction(+ : sum, weighted)
            for (long i = 0; i < size; i++) {
                float share = exponential(s[i] - largest);
                sum += share;
                weighted += share * ((s[i] - largest) - ((t[i] - other) + known));
            }
            total += sum;
            difference += weighted;
        }
        double log_total = log(total);
        a->largest[row] = largest;
        a->log_totals[row] = (float)log_total;
        a->logprobs[row] = (float)((double)at(a->student, own + token, a->student_kind) - largest - log_total);
        a->divergences[row] = (float)(difference / total - log_total);
    }
}

/* With g and h the gradients of log-probability and divergence: g (1[token] - p) + h p (log p - log q - KL) by s. */
void sampled_backward(const struct sampled *a) {
#pragma omp parallel for
    for (long row = 0; row < a->rows; row++) {
        long own = row * a->student_stride, others = row * a->teacher_stride, token = a->tokens[row];
        float other = at(a->teacher, others + token, a->teacher_kind), known = a->known[row];
        float largest = a->largest[row], log_total = a->log_totals[row];
        float by_logprob = a->by_logprobs[row], by_divergence = a->by_divergences[row], s[BLOCK], t[BLOCK];
        float constant = by_divergence * a->divergences[row] + by_logprob;
        for (long start = 0; start < a->count; start += BLOCK) {
            long size = a->count - start < BLOCK ? a->count - start : BLOCK;
            load(s, a->student, own + start, size, a->student_kind);
            load(t, a->teacher, others + start, size, a->teacher_kind);
            for (long i = 0; i < size; i++) {
                float logprob = (s[i] - largest) - log_total;
                s[i] = exponential(logprob) * (by_divergence * (logprob - ((t[i] - other) + known)) - constant);
            }
            if (token >= start && token < start + size) s[token - start] += by_logprob;
            store(a->by_student, row * a->count + start, s, size, a->student_kind);
        }
    }
}
