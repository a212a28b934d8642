// The operators as steps over all items: which level runs them, in how many tasks, with what memory.
#include <cstdlib>

#include "level.h"

namespace tempme {
namespace {

#include "tokens.h"

#if TEMPME_LEVELS == 3
const Level *const levels[] = {&any::functions, &avx2::functions, &avx512::functions};

int32_t highest() {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return !__builtin_cpu_supports("avx2") ? 0 : wide ? 2 : 1;
}
#else
const Level *const levels[] = {&any::functions};

int32_t highest() { return 0; }
#endif

const Level &level_of(const TempmeRun &run) {
    const int32_t most = highest();
    return *levels[run.level < 0 ? 0 : run.level < most ? run.level : most];
}

template <typename Job>
void for_each(const TempmeRun &run, int64_t count, void (*task)(const Job &, int64_t), const Job &job) {
    struct Call {
        void (*task)(const Job &, int64_t);
        const Job *job;
    } call{task, &job};
    run.parallel_for(
        run.pool, [](void *context, size_t i) {
            const Call &one = *static_cast<const Call *>(context);
            one.task(*one.job, int64_t(i));
        },
        size_t(count), &call);
}

const char *const too_wide = "the width is not within 1 to 8192.";
const char *const no_memory = "there is no memory for it.";

// Memory aligned as the vectors of every level want it; its numbers are not set. Null where there is none.
template <typename Number>
class Memory {
   public:
    explicit Memory(int64_t count)
        : numbers(static_cast<Number *>(std::aligned_alloc(64, (size_t(count) * sizeof(Number) / 64 + 1) * 64))) {}
    ~Memory() { std::free(numbers); }
    Memory(const Memory &) = delete;

    Number *const numbers;
};

const char *check(const TempmeTokens &t, int64_t width) {
    if (t.items < 0 || t.factor < 1 || t.n_cls < 0 || t.n_tokens < t.n_cls) return "the counts of tokens are none.";
    if (t.n_tokens % t.factor || t.n_cls % t.factor) return "the tokens are no multiple of the clips that are joined.";
    if (t.n_tokens > INT32_MAX) return "there are more tokens than an int32 counts.";
    const Sets sets(t);
    if (t.r < 0 || t.r > sets.n_a || (t.r && !sets.n_b)) return "r is more than there are tokens to merge.";
    if (width < 1 || width > widest) return too_wide;
    return nullptr;
}

const char *score(ScoreJob job, const TempmeRun &run, void (*unit)(const ScoreJob &, int64_t)) {
    const Sets sets(job.tokens);
    const Memory<double> rows(job.tokens.items * sets.doubles(job.width));
    if (!rows.numbers) return no_memory;
    job.rows = rows.numbers;
    for_each(run, job.tokens.items * blocks(job.tokens.n_tokens - job.tokens.n_cls), unit, job);
    for_each(run, job.tokens.items * blocks(sets.n_a), level_of(run).score, job);
    return nullptr;
}

}  // namespace
}  // namespace tempme

using namespace tempme;

int32_t tempme_level() { return highest(); }

const char *tempme_match_keys(const TempmeMatchKeys *job, const TempmeRun *run) {
    if (const char *wrong = check(job->tokens, job->width)) return wrong;
    if (job->tokens.factor != 1 || job->heads < 1) return "keys are those of some heads, within a clip.";
    const int64_t n_a = job->tokens.items * Sets(job->tokens).n_a;
    const Memory<float> best(n_a);
    const Memory<int32_t> best_b(n_a);
    if (!best.numbers || !best_b.numbers) return no_memory;
    ScoreJob scoring{};
    scoring.tokens = job->tokens;
    scoring.heads = job->heads;
    scoring.width = job->width;
    scoring.keys = job->keys;
    scoring.best = best.numbers;
    scoring.best_b = best_b.numbers;
    if (const char *wrong = score(scoring, *run, level_of(*run).unit_keys[job->storage])) return wrong;
    const TempmeSelectRows selecting = {job->tokens, best.numbers, best_b.numbers, job->assign};
    return tempme_select_rows(&selecting, run);
}

const char *tempme_split_rows(const TempmeSplitRows *job, const TempmeRun *run) {
    if (job->width < 1 || job->width > widest) return too_wide;
    if (job->rows < 0 || job->heads < 1) return "the counts of rows are none.";
    if (job->delta && job->heads != 1) return "delta is added to rows of one head.";
    for_each(*run, job->rows, level_of(*run).split[job->storage], *job);
    return nullptr;
}

const char *tempme_score_rows(const TempmeScoreRows *job, const TempmeRun *run) {
    TempmeTokens tokens = job->tokens;
    tokens.r = 0;
    if (const char *wrong = check(tokens, job->width)) return wrong;
    ScoreJob scoring{};
    scoring.tokens = tokens;
    scoring.width = job->width;
    scoring.high = job->high;
    scoring.low = job->low;
    scoring.scale = job->scale;
    scoring.best = job->best;
    scoring.best_b = job->best_b;
    return score(scoring, *run, level_of(*run).unit_parts);
}

const char *tempme_select_rows(const TempmeSelectRows *job, const TempmeRun *run) {
    if (const char *wrong = check(job->tokens, 1)) return wrong;
    for_each(*run, job->tokens.items, level_of(*run).select, *job);
    return nullptr;
}

const char *tempme_merge_norm(const TempmeMergeNorm *job, const TempmeRun *run) {
    const TempmeTokens &t = job->tokens;
    if (const char *wrong = check(t, job->width)) return wrong;
    if (job->position && job->n_positions < 1) return "there are no rows of clip positions.";
    const int64_t n_out = t.n_tokens - t.r;
    for (int64_t i = 0; i < t.items * t.n_tokens; ++i)
        if (job->assign[i] < 0 || job->assign[i] >= n_out) return "assign names an output row that is not there.";
    const Memory<int32_t> first(t.items * n_out), next(t.items * t.n_tokens);
    if (!first.numbers || !next.numbers) return no_memory;
    const MergeJob all{*job, first.numbers, next.numbers};
    for_each(*run, t.items, level_of(*run).link, all);
    for (int64_t row = 0; row < t.items * n_out; ++row)
        if (first.numbers[row] < 0) return "assign leaves an output row without a token.";
    for_each(*run, t.items * blocks(n_out), level_of(*run).merge[job->storage], all);
    return nullptr;
}
