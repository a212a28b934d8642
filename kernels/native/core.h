// Matching and merging on plain pointers: what an adapter for a runtime calls. It knows no runtime.
//
// Tensors are contiguous. Decisions and values do not depend on the level, the number of threads or the other items.
#pragma once

#include <cstddef>
#include <cstdint>

#define TEMPME_API extern "C" __attribute__((visibility("default")))

enum TempmeStorage : int32_t { TEMPME_FLOAT32, TEMPME_FLOAT16, TEMPME_BFLOAT16 };

// Calls task(context, i) for every i below count, in any order and on any threads, and returns when all are done.
typedef void (*TempmeParallelFor)(void *pool, void (*task)(void *context, size_t i), size_t count, void *context);

// Who runs an operator. level: the most of the processor's instructions to use, 0 any, 1 AVX2, 2 AVX-512; above what
// there is, what there is.
struct TempmeRun {
    TempmeParallelFor parallel_for;
    void *pool;
    int32_t level;
};

// Tokens of joined clips: `factor` adjacent clips make an item, class tokens first (spec section 3, rule 1).
struct TempmeTokens {
    int64_t items, n_tokens, n_cls, r, factor;
};

// keys [items, n_tokens, heads * width] of `storage` -> assign [items, n_tokens], by their mean over heads.
struct TempmeMatchKeys {
    TempmeTokens tokens;
    int64_t heads, width;
    TempmeStorage storage;
    const void *keys;
    int32_t *assign;
};

// x [rows, heads * width], plus delta where there is one, summed over heads -> unit rows in two float16 parts
// [rows, width], and scale [rows], one over the norm of what these stand for; 0 for a row without one.
struct TempmeSplitRows {
    int64_t rows, heads, width;
    TempmeStorage storage;
    const void *x, *delta;
    uint16_t *high, *low;
    float *scale;
};

// What a split wrote, rows [items * factor, n_tokens / factor] -> of every A token of the joined clips the best score in
// snapping steps, and its partner among B, [items, |A|]. tokens.r counts for nothing.
struct TempmeScoreRows {
    TempmeTokens tokens;
    int64_t width;
    const uint16_t *high, *low;
    const float *scale;
    float *best;
    int32_t *best_b;
};

// best, best_b [items, |A|] -> assign [items, n_tokens].
struct TempmeSelectRows {
    TempmeTokens tokens;
    const float *best;
    const int32_t *best_b;
    int32_t *assign;
};

// x, delta [items * factor, n_tokens / factor, width], size [the same rows] or null: all 1, assign [items, n_tokens],
// position [n_positions, width] or null, weight, bias [width] of the LayerNorm -> merged, normed
// [items, n_tokens - r, width] of `storage`; sizes and their logarithms [items, n_tokens - r].
struct TempmeMergeNorm {
    TempmeTokens tokens;
    int64_t width, n_positions;
    TempmeStorage storage;
    float epsilon;
    const void *x, *delta;
    const float *size;
    const int32_t *assign;
    const void *position;
    const float *weight, *bias;
    void *merged, *normed;
    float *sizes, *log_sizes;
};

// Null, or what is wrong with the arguments, as a text that stays.
TEMPME_API const char *tempme_match_keys(const TempmeMatchKeys *job, const TempmeRun *run);
TEMPME_API const char *tempme_split_rows(const TempmeSplitRows *job, const TempmeRun *run);
TEMPME_API const char *tempme_score_rows(const TempmeScoreRows *job, const TempmeRun *run);
TEMPME_API const char *tempme_select_rows(const TempmeSelectRows *job, const TempmeRun *run);
TEMPME_API const char *tempme_merge_norm(const TempmeMergeNorm *job, const TempmeRun *run);

// The highest level that this processor has.
TEMPME_API int32_t tempme_level();
