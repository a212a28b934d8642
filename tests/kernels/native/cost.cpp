// A match by keys and a merge of ViT-B/32 with twelve frames, once each: for counting their instructions. Prints the
// level that ran.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "core.h"

namespace {

void one_thread(void *, void (*task)(void *, size_t), size_t count, void *context) {
    for (size_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace

int main() {
    constexpr int64_t items = 12, n_tokens = 50, heads = 12, width = 64, full = heads * width, n_out = n_tokens - 2;
    const TempmeTokens tokens = {items, n_tokens, 1, 2, 1};
    const TempmeRun run = {one_thread, nullptr, INT32_MAX};
    std::vector<float> x(items * n_tokens * full), weight(full, 1), bias(full, 0);
    uint32_t state = 1;
    for (float &value : x) {
        state = state * 1664525u + 1013904223u;
        value = float(int32_t(state)) * 0x1p-31f;
    }
    std::vector<int32_t> assign(items * n_tokens);
    std::vector<float> merged(items * n_out * full), normed(merged.size()), sizes(items * n_out), log_sizes(sizes.size());
    const TempmeMatchKeys match = {tokens, heads, width, TEMPME_FLOAT32, x.data(), assign.data()};
    const TempmeMergeNorm merge = {tokens,        full,          0,             TEMPME_FLOAT32, 1e-5f,      x.data(),
                                   x.data(),      nullptr,       assign.data(), nullptr,        weight.data(),
                                   bias.data(),   merged.data(), normed.data(), sizes.data(),   log_sizes.data()};
    if (tempme_match_keys(&match, &run) || tempme_merge_norm(&merge, &run)) return 1;
    std::printf("level %d\n", tempme_level());
}
