// Places of tokens. Included within a namespace, so that no level runs the code of another.
#pragma once

constexpr int64_t block = 32;     // tokens that one task matches or merges
constexpr int64_t panel = 16;     // B tokens that are scored side by side
constexpr int64_t widest = 8192;  // channels of a row, which must fit on a thread's stack

// Sets A (even) and B (odd) of the patch tokens, and the first output row of B (spec section 4).
struct Sets {
    int64_t start_a, n_a, start_b, n_b, row_b;

    explicit Sets(const TempmeTokens &t)
        : start_a(t.n_cls + t.n_cls % 2),
          n_a((t.n_tokens + 1) / 2 - (t.n_cls + 1) / 2),
          start_b(t.n_cls + 1 - t.n_cls % 2),
          n_b(t.n_tokens / 2 - t.n_cls / 2),
          row_b(t.n_tokens - t.r - n_b) {}

    // Doubles that the unit rows of an item take: B in whole panels, then A; a multiple of the longest vector.
    int64_t doubles(int64_t width) const { return (of_b(width) + n_a * width + 7) / 8 * 8; }
    int64_t of_b(int64_t width) const { return (n_b + panel - 1) / panel * panel * width; }
};

// Clip, and row among all rows of the clips that were joined, of a token of an item.
struct Place {
    int64_t clip, row;
};

static inline Place locate(const TempmeTokens &t, int64_t item, int64_t token) {
    const int64_t tokens = t.n_tokens / t.factor, cls = t.n_cls / t.factor, patches = tokens - cls;
    const bool is_class = token < t.n_cls;
    const int64_t of = is_class ? token : token - t.n_cls, each = is_class ? cls : patches;
    const int64_t clip = item * t.factor + of / each;
    return {clip, clip * tokens + (is_class ? 0 : cls) + of % each};
}

static inline int64_t blocks(int64_t tokens) { return (tokens + block - 1) / block; }

// Block `i` of all items, each of `tokens` tokens: its item, its first token and the one behind its last.
struct Span {
    int64_t item, first, end;

    Span(int64_t i, int64_t tokens) {
        item = i / blocks(tokens);
        first = i % blocks(tokens) * block;
        end = first + block < tokens ? first + block : tokens;
    }
};
