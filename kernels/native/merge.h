// Merging: every output row gathers its own token and those that joined it, in float32, and is normalised at once.
#pragma once

#include "numbers.h"
#include "tokens.h"

// Sixteen sums side by side, then added up in one order: the same bits at every level.
static inline float sum_of(const float *value, int64_t width) {
    float sums[16] = {};
    int64_t c = 0;
    for (; c + 16 <= width; c += 16)
        for (int l = 0; l < 16; ++l) sums[l] += value[c + l];
    for (int l = 0; c < width; ++c, ++l) sums[l] += value[c];
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    return sums[0];
}

// The tokens of each output row of an item, rising: the first of a row, and the next of a token's; -1: none.
static void link(const MergeJob &job, int64_t item) {
    const TempmeTokens &t = job.merge.tokens;
    const int64_t n_out = t.n_tokens - t.r;
    int32_t *first = job.first + item * n_out, *next = job.next + item * t.n_tokens;
    for (int64_t row = 0; row < n_out; ++row) first[row] = -1;
    for (int64_t token = t.n_tokens - 1; token >= 0; --token) {
        const int32_t row = job.merge.assign[item * t.n_tokens + token];
        next[token] = first[row];
        first[row] = int32_t(token);
    }
}

// A token of an item in float32: x, plus delta, plus the clip position where there is one; its size.
template <typename Number>
static float read(const TempmeMergeNorm &job, int64_t item, int64_t token, float *value) {
    typedef const typename Number::Stored *Pointer;
    const Place place = locate(job.tokens, item, token);
    const Pointer x = static_cast<Pointer>(job.x) + place.row * job.width;
    const Pointer delta = static_cast<Pointer>(job.delta) + place.row * job.width;
    for (int64_t c = 0; c < job.width; ++c) value[c] = Number::widen(x[c]) + Number::widen(delta[c]);
    if (job.position) {
        const Pointer position = static_cast<Pointer>(job.position) + place.clip % job.n_positions * job.width;
        for (int64_t c = 0; c < job.width; ++c) value[c] += Number::widen(position[c]);
    }
    return job.size ? job.size[place.row] : 1;
}

// The LayerNorm of a row, statistics in float32. `value` is lost.
template <typename Number>
static void norm(const TempmeMergeNorm &job, float *value, float *square, typename Number::Stored *to) {
    const float width = float(job.width), mean = sum_of(value, job.width) / width;
    for (int64_t c = 0; c < job.width; ++c) {
        value[c] -= mean;
        square[c] = value[c] * value[c];
    }
    const float factor = 1 / __builtin_sqrtf(sum_of(square, job.width) / width + job.epsilon);
    for (int64_t c = 0; c < job.width; ++c)
        to[c] = Number::narrow(value[c] * factor * job.weight[c] + job.bias[c]);
}

template <typename Number>
static void merge(const MergeJob &all, int64_t i) {
    const TempmeMergeNorm &job = all.merge;
    const int64_t n_out = job.tokens.n_tokens - job.tokens.r;
    const Span span(i, n_out);
    const int32_t *next = all.next + span.item * job.tokens.n_tokens;
    alignas(64) float value[widest], other[widest];
    for (int64_t row = span.item * n_out + span.first; row < span.item * n_out + span.end; ++row) {
        int32_t token = all.first[row];
        float total = read<Number>(job, span.item, token, value);
        if (next[token] >= 0) {  // a token that nothing joined is a copy, bit for bit
            for (int64_t c = 0; c < job.width; ++c) value[c] *= total;
            while ((token = next[token]) >= 0) {
                const float size = read<Number>(job, span.item, token, other);
                for (int64_t c = 0; c < job.width; ++c) value[c] += size * other[c];
                total += size;
            }
            for (int64_t c = 0; c < job.width; ++c) value[c] /= total;
        }
        auto *merged = static_cast<typename Number::Stored *>(job.merged) + row * job.width;
        for (int64_t c = 0; c < job.width; ++c) {
            merged[c] = Number::narrow(value[c]);
            value[c] = Number::widen(merged[c]);
        }
        norm<Number>(job, value, other, static_cast<typename Number::Stored *>(job.normed) + row * job.width);
        job.sizes[row] = total;
        job.log_sizes[row] = __builtin_logf(total);
    }
}
