// Splitting: unit rows as high + low / 2^12, both float16, for matches over the rows of several clips.
#pragma once

#include "match.h"

template <typename Number>
static void split(const TempmeSplitRows &job, int64_t row) {
    alignas(64) double value[widest];
    sum_heads<Number>(job.x, row, job.heads, job.width, value);
    if (job.delta) {
        const auto *delta = static_cast<const typename Number::Stored *>(job.delta) + row * job.width;
        for (int64_t c = 0; c < job.width; ++c) value[c] = float(value[c]) + Number::widen(delta[c]);
    }
    const double factor = inverse_norm(value, job.width);
    uint16_t *high = job.high + row * job.width, *low = job.low + row * job.width;
    for (int64_t c = 0; c < job.width; ++c) {
        const double unit = value[c] * factor, top = ((unit * 0x1p11 + rounding) - rounding) * 0x1p-11;
        high[c] = Float16::narrow(float(top));
        low[c] = Float16::narrow(float((unit - top) * 0x1p12));
        value[c] = top + double(Float16::widen(low[c])) * 0x1p-12;
    }
    job.scale[row] = float(inverse_norm(value, job.width));
}
