// Every operator at every level, on one thread and on four, on buffers that end where their tensors end: for builds with
// a sanitizer. Prints what differs from the lowest level on one thread, and fails.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "core.h"

namespace {

typedef std::vector<unsigned char> Bytes;

void one_thread(void *, void (*task)(void *, size_t), size_t count, void *context) {
    for (size_t i = 0; i < count; ++i) task(context, i);
}

void four_threads(void *, void (*task)(void *, size_t), size_t count, void *context) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; ++k)
        threads.emplace_back([&] {
            for (size_t i; (i = next++) < count;) task(context, i);
        });
    for (std::thread &thread : threads) thread.join();
}

template <typename Number>
std::vector<Number> made(size_t count) {
    return std::vector<Number>(count, Number(-1));
}

template <typename Number>
void append(Bytes &to, const std::vector<Number> &from) {
    const auto *bytes = reinterpret_cast<const unsigned char *>(from.data());
    to.insert(to.end(), bytes, bytes + from.size() * sizeof(Number));
}

template <typename Number>
Bytes as_bytes(const std::vector<Number> &from) {
    Bytes bytes;
    append(bytes, from);
    return bytes;
}

// As `append`, every NaN alike: which of two NaN a sum keeps is the compiler's choice.
void append_numbers(Bytes &to, const Bytes &from, TempmeStorage storage) {
    const uint32_t infinity = storage == TEMPME_FLOAT32 ? 0x7f800000 : storage == TEMPME_FLOAT16 ? 0x7c00 : 0x7f80;
    const uint32_t magnitude = storage == TEMPME_FLOAT32 ? 0x7fffffff : 0x7fff;
    const size_t each = storage == TEMPME_FLOAT32 ? 4 : 2;
    for (size_t i = 0; i < from.size(); i += each) {
        uint32_t bits = 0;
        std::memcpy(&bits, &from[i], each);
        if ((bits & magnitude) > infinity) bits = magnitude;
        const auto *bytes = reinterpret_cast<const unsigned char *>(&bits);
        to.insert(to.end(), bytes, bytes + each);
    }
}

// Numbers of a storage. Ordinary ones lie between -4 and 4; of special ones some are zero, infinite or none.
Bytes drawn(size_t count, TempmeStorage storage, bool special, std::mt19937 &random) {
    const uint32_t odd[] = {0x00000000, 0x80000000, 0x7f800000, 0x7fc00000};
    std::uniform_real_distribution<float> uniform(-4, 4);
    Bytes bytes;
    for (size_t i = 0; i < count; ++i) {
        const float value = uniform(random);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if (special && random() % 50 == 0) bits = odd[random() % 4];
        if (storage == TEMPME_FLOAT32) {
            append(bytes, std::vector<uint32_t>{bits});
            continue;
        }
        const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
        const uint32_t half = rest >= 0x7f800000 ? rest >> 13 & 0x7fff : rest < 0x38800000 ? 0 : (rest - 0x38000000) >> 13;
        append(bytes, std::vector<uint16_t>{uint16_t(storage == TEMPME_BFLOAT16 ? bits >> 16 : sign | half)});
    }
    return bytes;
}

struct Shape {
    int64_t items, factor, tokens, heads, width, n_cls, r;
};

bool worked(const char *wrong) {
    if (wrong) std::printf("refused: %s\n", wrong);
    return !wrong;
}

// All that the operators write of one shape; empty where one refuses.
Bytes results(const Shape &s, TempmeStorage storage, const TempmeRun &run) {
    std::mt19937 random(7);
    const int64_t clips = s.items * s.factor, rows = clips * s.tokens, n_tokens = s.tokens * s.factor;
    const int64_t n_a = (n_tokens + 1) / 2 - (s.n_cls + 1) / 2, n_out = n_tokens - s.r, full = s.heads * s.width;
    const TempmeTokens tokens = {s.items, n_tokens, s.n_cls, s.r, s.factor};
    const Bytes x = drawn(size_t(rows * full), storage, true, random);
    const Bytes delta = drawn(size_t(rows * full), storage, false, random);
    const Bytes position = drawn(size_t(clips * full), storage, false, random);
    const auto size = std::vector<float>(size_t(rows), 3.0f);
    const auto weight = std::vector<float>(size_t(full), 0.5f), bias = std::vector<float>(size_t(full), 0.25f);
    Bytes all;

    auto high = made<uint16_t>(size_t(rows * s.width)), low = high;
    auto scale = made<float>(size_t(rows)), best = made<float>(size_t(s.items * n_a));
    auto assign = made<int32_t>(size_t(s.items * n_tokens)), best_b = made<int32_t>(size_t(s.items * n_a));
    const TempmeSplitRows split = {rows, s.heads, s.width, storage, x.data(), s.heads == 1 ? delta.data() : nullptr,
                                   high.data(), low.data(), scale.data()};
    const TempmeScoreRows score = {tokens,       s.width,     high.data(),  low.data(),
                                   scale.data(), best.data(), best_b.data()};
    const TempmeSelectRows select = {tokens, best.data(), best_b.data(), assign.data()};
    if (!worked(tempme_split_rows(&split, &run)) || !worked(tempme_score_rows(&score, &run))) return {};
    if (!worked(tempme_select_rows(&select, &run))) return {};
    if (s.factor == 1) {
        auto by_keys = made<int32_t>(size_t(s.items * n_tokens));
        const TempmeMatchKeys keys = {tokens, s.heads, s.width, storage, x.data(), by_keys.data()};
        if (!worked(tempme_match_keys(&keys, &run))) return {};
        append(all, by_keys);
    }
    const size_t halves = storage == TEMPME_FLOAT32 ? 4 : 2;
    Bytes merged(size_t(s.items * n_out * full) * halves), normed(merged.size());
    auto sizes = made<float>(size_t(s.items * n_out)), log_sizes = sizes;
    const TempmeMergeNorm merge = {tokens,          full,          clips,         storage,       1e-5f,       x.data(),
                                   delta.data(),    size.data(),   assign.data(), position.data(), weight.data(),
                                   bias.data(),     merged.data(), normed.data(), sizes.data(),  log_sizes.data()};
    if (!worked(tempme_merge_norm(&merge, &run))) return {};
    append_numbers(all, as_bytes(high), TEMPME_FLOAT16);
    append_numbers(all, as_bytes(low), TEMPME_FLOAT16);
    append_numbers(all, as_bytes(scale), TEMPME_FLOAT32);
    append(all, assign);
    append(all, best);
    append(all, best_b);
    append_numbers(all, merged, storage);
    append_numbers(all, normed, storage);
    append(all, sizes);
    append(all, log_sizes);
    return all;
}

}  // namespace

int main() {
    const Shape shapes[] = {
        {3, 1, 50, 2, 64, 1, 7},  {2, 1, 49, 3, 5, 1, 24}, {2, 2, 48, 1, 33, 2, 14}, {1, 3, 39, 1, 17, 12, 3},
        {1, 1, 80, 2, 16, 5, 37}, {2, 4, 5, 1, 3, 4, 2},   {2, 1, 3, 1, 1, 1, 1},    {2, 1, 9, 1, 4, 9, 0},
    };
    int different = 0, compared = 0;
    for (const Shape &shape : shapes)
        for (const TempmeStorage storage : {TEMPME_FLOAT32, TEMPME_FLOAT16, TEMPME_BFLOAT16}) {
            const Bytes first = results(shape, storage, {one_thread, nullptr, 0});
            if (first.empty()) return 1;
            for (int32_t level = 0; level <= tempme_level(); ++level)
                for (const TempmeParallelFor threads : {one_thread, four_threads}) {
                    ++compared;
                    if (results(shape, storage, {threads, nullptr, level}) == first) continue;
                    ++different;
                    std::printf("differs: %ld tokens, storage %d, level %d\n", long(shape.tokens), storage, level);
                }
        }
    std::printf("%d compared, %d different\n", compared, different);
    return different != 0;
}
