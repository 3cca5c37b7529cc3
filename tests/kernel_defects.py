"""Defects in loops that are written in C."""

from __future__ import annotations

# name: file, code, what stands in its place; without a compiler nothing notices them.
KERNELS = {
    "bfloat16 cut off": ("minillm/kernels/numbers.h", "bits + 0x7fff + ((bits >> 16) & 1)", "bits"),
    "ties away from even": ("minillm/kernels/numbers.h", "0x7fff + ((bits >> 16) & 1)", "0x8000"),
    "what is never seen counts a little": ("minillm/kernels/numbers.h", "return x < -87.0f ? 0.0f : sum", "return sum"),
    "turned the other way": (
        "minillm/kernels/rows.h",
        "x[i + 1] = real * rotation[i + 1] + imaginary * rotation[i];",
        "x[i + 1] = imaginary * rotation[i] - real * rotation[i + 1];",
    ),
    "what a row may not see": (
        "minillm/kernels/decoding.c",
        "weight[q][s] = visible[s] ? product * scale : -INFINITY;",
        "weight[q][s] = product * scale;",
    ),
    "padding is left as it was": (
        "minillm/kernels/decoding.c",
        "    clear_padding(a);\n#pragma omp parallel for if",
        "#pragma omp parallel for if",
    ),
    "padding that attends": (
        "minillm/kernels/decoding.c",
        "    if (visible[columns - 1]) store_new",
        "    store_new",
    ),
    "a token of probability 0": ("minillm/kernels/decoding.c", "if (x[i] == 0) continue;", ""),
    "the queries' norm for keys": (
        "minillm/kernels/decoding.c",
        "const float *norm = head < a->queries ? a->query_norm : a->key_norm;",
        "const float *norm = a->query_norm;",
    ),
    "one cache for all layers": (
        "minillm/kernels/decoding.py",
        "given.keys = self._address + layer * self._layer_bytes",
        "given.keys = self._address",
    ),
    "a norm's derivative as if its length were given": ("minillm/kernels/training.c", "g[i] -= x[i] * mean;", ""),
    "the scale of a norm once in its derivative": (
        "minillm/kernels/training.c",
        "mean *= scale * scale / width;",
        "mean *= scale / width;",
    ),
    "a gate's derivative without its slope": (
        "minillm/kernels/training.c",
        "(share + active * (1.0f - share))",
        "share",
    ),
    "turned on instead of back": ("minillm/kernels/training.c", "by[i + 1] = sign * rotation", "by[i + 1] = rotation"),
    "rows of logits without the room between them": (
        "minillm/kernels/losses.c",
        "token = a->tokens[row];\n        float largest = largest_in(a->student, own,",
        "token = a->tokens[row];\n        float largest = largest_in(a->student, own = row * a->count,",
    ),
    "a divergence's derivative without its mean": (
        "minillm/kernels/losses.c",
        "by_divergence * a->divergences[row] + by_logprob;",
        "by_logprob;",
    ),
    "digits lost to an offset of all logits": (
        "minillm/kernels/losses.c",
        "float logprob = (s[i] - largest) - log_total;",
        "float logprob = s[i] - (largest + log_total);",
    ),
}
