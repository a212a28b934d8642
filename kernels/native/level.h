// What the files of one level provide: the work on one item, block or row. Compiled once for each level.
#pragma once

#include "core.h"

namespace tempme {

// Scoring under way. Either keys, or high, low and scale; rows: memory for the unit rows of all items.
struct ScoreJob {
    TempmeTokens tokens;
    int64_t heads, width;
    const void *keys;
    const uint16_t *high, *low;
    const float *scale;
    double *rows;
    float *best;
    int32_t *best_b;
};

// A merge under way. first, next: memory for the tokens of every output row, [items, n_out] and [items, n_tokens].
struct MergeJob {
    TempmeMergeNorm merge;
    int32_t *first, *next;
};

// By storage, where that matters. `i` counts blocks of all items, items, or rows.
struct Level {
    void (*unit_keys[3])(const ScoreJob &, int64_t i);
    void (*unit_parts)(const ScoreJob &, int64_t i);
    void (*score)(const ScoreJob &, int64_t i);
    void (*select)(const TempmeSelectRows &, int64_t i);
    void (*split[3])(const TempmeSplitRows &, int64_t i);
    void (*link)(const MergeJob &, int64_t i);
    void (*merge[3])(const MergeJob &, int64_t i);
};

namespace any {
extern const Level functions;
}
namespace avx2 {
extern const Level functions;
}
namespace avx512 {
extern const Level functions;
}

}  // namespace tempme
