// Matching: unit rows in double, their products with every B token, the best of each A token, stable ranks by counting.
//
// A score is one sum over the channels in their order, whatever the tile, so equal tokens tie exactly; in double it
// errs by far less than half a snapping step of 2^-20 (spec section 10).
#pragma once

#include "numbers.h"
#include "tokens.h"

constexpr double snap_steps = 0x1p20;
constexpr double rounding = 0x1.8p52;  // added and taken away, it rounds |value| < 2^51 to the nearest even integer

// A panel is one vector of the processor, or several; more rows at once need more registers than it has.
#if defined(__AVX512F__)
constexpr int lanes = 8, rows_at_once = 8;
#elif defined(__AVX2__)
constexpr int lanes = 4, rows_at_once = 2;
#else
constexpr int lanes = 2, rows_at_once = 1;
#endif
constexpr int vectors = panel / lanes;
typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));
typedef float Floats __attribute__((vector_size(lanes * sizeof(float))));
typedef int64_t Wholes __attribute__((vector_size(lanes * sizeof(int64_t))));

// The unit rows of one item: B in panels [|B| / panel, width, panel], then A row by row.
struct Rows {
    double *b, *a;
    int64_t width;

    Rows(const ScoreJob &job, const Sets &sets, int64_t item)
        : b(job.rows + item * sets.doubles(job.width)), a(b + sets.of_b(job.width)), width(job.width) {}

    void put(const Sets &sets, int64_t token, const double *value, double factor) const {
        const bool is_a = token % 2 == 0;
        const int64_t i = (token - (is_a ? sets.start_a : sets.start_b)) / 2, step = is_a ? 1 : panel;
        double *to = is_a ? a + i * width : b + i / panel * panel * width + i % panel;
        for (int64_t c = 0; c < width; ++c) to[c * step] = value[c] * factor;
    }

    // Behind the last B token stands NaN, which is nobody's partner.
    void close(const Sets &sets) const {
        for (int64_t i = sets.n_b; i % panel; ++i)
            for (int64_t c = 0; c < width; ++c) b[(i / panel * width + c) * panel + i % panel] = __builtin_nan("");
    }
};

// One over the norm; 0 for a zero-norm row, whose similarity to all is 0.
static inline double inverse_norm(const double *value, int64_t width) {
    double square = 0;
    for (int64_t c = 0; c < width; ++c) square += value[c] * value[c];
    return square == 0 ? 0 : 1 / __builtin_sqrt(square);
}

template <typename Number>
static void sum_heads(const void *from, int64_t row, int64_t heads, int64_t width, double *value) {
    const auto *x = static_cast<const typename Number::Stored *>(from) + row * heads * width;
    for (int64_t c = 0; c < width; ++c) value[c] = Number::widen(x[c]);
    for (int64_t h = 1; h < heads; ++h)
        for (int64_t c = 0; c < width; ++c) value[c] += Number::widen(x[h * width + c]);
}

template <typename Number>
static void unit_keys(const ScoreJob &job, int64_t i) {
    const TempmeTokens &t = job.tokens;
    const Sets sets(t);
    const Span span(i, t.n_tokens - t.n_cls);
    const Rows rows(job, sets, span.item);
    alignas(64) double value[widest];
    for (int64_t token = t.n_cls + span.first; token < t.n_cls + span.end; ++token) {
        sum_heads<Number>(job.keys, span.item * t.n_tokens + token, job.heads, job.width, value);
        rows.put(sets, token, value, inverse_norm(value, job.width));
    }
    if (span.first == 0) rows.close(sets);
}

static void unit_parts(const ScoreJob &job, int64_t i) {
    const TempmeTokens &t = job.tokens;
    const Sets sets(t);
    const Span span(i, t.n_tokens - t.n_cls);
    const Rows rows(job, sets, span.item);
    alignas(64) double value[widest];
    for (int64_t token = t.n_cls + span.first; token < t.n_cls + span.end; ++token) {
        const int64_t row = locate(t, span.item, token).row;
        const uint16_t *high = job.high + row * job.width, *low = job.low + row * job.width;
        for (int64_t c = 0; c < job.width; ++c)
            value[c] = Float16::widen(high[c]) + double(Float16::widen(low[c])) * 0x1p-12;
        rows.put(sets, token, value, job.scale[row]);
    }
    if (span.first == 0) rows.close(sets);
}

// Carries on, in every lane, the best score and the B token it belongs to; among equals the lowest stays.
static inline void take(Doubles score, Wholes b, Doubles &best, Wholes &best_b) {
    const Floats narrow = __builtin_convertvector(score, Floats);
    const Doubles snapped = (__builtin_convertvector(narrow, Doubles) * snap_steps + rounding) - rounding;
    const Wholes wins = snapped > best;  // NaN never does
    best = wins ? snapped : best;
    best_b = wins ? b : best_b;
}

// The best of `count` A tokens from `first` on.
template <int count>
static void score_rows(const ScoreJob &job, const Sets &sets, int64_t item, int64_t first) {
    const Rows rows(job, sets, item);
    const double *a = rows.a + first * rows.width;
    Doubles best[count][vectors];
    Wholes best_b[count][vectors], b[vectors];
    for (int v = 0; v < vectors; ++v) {
        for (int l = 0; l < lanes; ++l) b[v][l] = v * lanes + l;
        for (int i = 0; i < count; ++i) {
            best[i][v] = Doubles{} - __builtin_inf();
            best_b[i][v] = Wholes{};
        }
    }
    for (int64_t at = 0; at < sets.n_b; at += panel) {
        const Doubles *of_b = reinterpret_cast<const Doubles *>(rows.b + at * rows.width);
        Doubles score[count][vectors] = {};
        for (int64_t c = 0; c < rows.width; ++c)
            for (int i = 0; i < count; ++i)
                for (int v = 0; v < vectors; ++v) score[i][v] += of_b[c * vectors + v] * a[i * rows.width + c];
        for (int i = 0; i < count; ++i)
            for (int v = 0; v < vectors; ++v) take(score[i][v], b[v] + at, best[i][v], best_b[i][v]);
    }
    for (int i = 0; i < count; ++i) {
        double top = -__builtin_inf();
        int64_t partner = 0;
        for (int l = 0; l < panel; ++l) {
            const double mine = best[i][l / lanes][l % lanes];
            const int64_t of = best_b[i][l / lanes][l % lanes];
            if (mine > top || (mine == top && of < partner)) {
                top = mine;
                partner = of;
            }
        }
        job.best[item * sets.n_a + first + i] = float(top);
        job.best_b[item * sets.n_a + first + i] = int32_t(partner);
    }
}

static void score(const ScoreJob &job, int64_t i) {
    const Sets sets(job.tokens);
    const Span span(i, sets.n_a);
    int64_t a = span.first;
    for (; a + rows_at_once <= span.end; a += rows_at_once) score_rows<rows_at_once>(job, sets, span.item, a);
    for (; a < span.end; ++a) score_rows<1>(job, sets, span.item, a);
}

// The output row of every token of an item.
static void select(const TempmeSelectRows &job, int64_t item) {
    const TempmeTokens &t = job.tokens;
    const Sets sets(t);
    const float *best = job.best + item * sets.n_a;
    const int32_t *best_b = job.best_b + item * sets.n_a;
    int32_t *assign = job.assign + item * t.n_tokens;
    const int64_t n_fixed = t.r ? t.n_cls : t.n_tokens;  // where nothing merges, nothing moves
    for (int64_t i = 0; i < n_fixed; ++i) assign[i] = int32_t(i);
    if (!t.r) return;
    for (int64_t i = 0; i < sets.n_b; ++i) assign[sets.start_b + 2 * i] = int32_t(sets.row_b + i);
    int64_t kept = 0;
    for (int64_t a = 0; a < sets.n_a; ++a) {
        int32_t rank = 0;
        for (int64_t j = 0; j < a; ++j) rank += best[j] >= best[a];
        for (int64_t j = a + 1; j < sets.n_a; ++j) rank += best[j] > best[a];
        assign[sets.start_a + 2 * a] = int32_t(rank < t.r ? sets.row_b + best_b[a] : t.n_cls + kept++);
    }
}
