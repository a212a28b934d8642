// The operators of domain `tempme` on ONNX Runtime's CPU provider: those that `video.plugin.onnx` asks for.
#include <cstdlib>
#include <new>

#include "ort_call.h"

namespace {

TempmeTokens joined(Call &call, int64_t clips, int64_t n_tokens, int64_t factor) {
    call.require(factor > 0 && clips % factor == 0, "the clips are no multiple of those that are joined.");
    return {call.error ? 0 : clips / factor, n_tokens, 0, 0, factor};
}

int64_t count_a(const TempmeTokens &t) { return (t.n_tokens + 1) / 2 - (t.n_cls + 1) / 2; }

// Width of one of `heads`.
int64_t share(Call &call, int64_t width, int64_t heads) {
    call.require(heads > 0 && width % heads == 0, "the keys are not those of whole heads.");
    return call.error ? 1 : width / heads;
}

void match_keys(const Node &node, Call &call) {
    const auto [clips, n_tokens, width] = call.axes(0).sizes;
    TempmeMatchKeys job{};
    job.tokens = {clips, n_tokens, node["n_cls"], node["r"], 1};
    job.heads = node["heads"];
    job.width = share(call, width, job.heads);
    job.storage = node.storage;
    job.keys = call.input<void>(0, clips, n_tokens, width);
    job.assign = call.output<int32_t>(0, clips, n_tokens);
    call.run(tempme_match_keys, job);
}

void split_rows(const Node &node, Call &call, int64_t heads, bool added) {
    const auto [clips, tokens, width] = call.axes(0).sizes;
    TempmeSplitRows job{};
    job.rows = clips * tokens;
    job.heads = heads;
    job.width = share(call, width, heads);
    job.storage = node.storage;
    job.x = call.input<void>(0, clips, tokens, width);
    if (added) job.delta = call.input<void>(1, clips, tokens, width);
    job.high = call.output<uint16_t>(0, clips, tokens, job.width);
    job.low = call.output<uint16_t>(1, clips, tokens, job.width);
    job.scale = call.output<float>(2, clips, tokens);
    call.run(tempme_split_rows, job);
}

void split_keys(const Node &node, Call &call) { split_rows(node, call, node["heads"], false); }

void split_clips(const Node &node, Call &call) { split_rows(node, call, 1, true); }

void score_rows(const Node &node, Call &call) {
    const auto [clips, tokens, width] = call.axes(0).sizes;
    TempmeScoreRows job{};
    job.tokens = joined(call, clips, tokens * node["factor"], node["factor"]);
    job.tokens.n_cls = node["n_cls"];
    job.width = width;
    job.high = call.input<uint16_t>(0, clips, tokens, width);
    job.low = call.input<uint16_t>(1, clips, tokens, width);
    job.scale = call.input<float>(2, clips, tokens);
    job.best = call.output<float>(0, job.tokens.items, count_a(job.tokens));
    job.best_b = call.output<int32_t>(1, job.tokens.items, count_a(job.tokens));
    call.run(tempme_score_rows, job);
}

void select_rows(const Node &node, Call &call) {
    TempmeSelectRows job{};
    job.tokens = {call.axes(0).sizes[0], node["n_tokens"], node["n_cls"], node["r"], 1};
    job.best = call.input<float>(0, job.tokens.items, count_a(job.tokens));
    job.best_b = call.input<int32_t>(1, job.tokens.items, count_a(job.tokens));
    job.assign = call.output<int32_t>(0, job.tokens.items, job.tokens.n_tokens);
    call.run(tempme_select_rows, job);
}

template <bool sized, bool placed>
void merge_norm(const Node &node, Call &call) {
    const auto [clips, tokens, width] = call.axes(0).sizes;
    TempmeMergeNorm job{};
    job.tokens = joined(call, clips, tokens * node["factor"], node["factor"]);
    job.tokens.n_cls = node["n_cls"];
    job.tokens.r = node["r"];
    job.width = width;
    job.storage = node.storage;
    job.epsilon = 1e-5f;  // of every LayerNorm in CLIP
    size_t i = 0;
    job.x = call.input<void>(i++, clips, tokens, width);
    job.delta = call.input<void>(i++, clips, tokens, width);
    if (sized) job.size = call.input<float>(i++, clips, tokens);
    job.assign = call.input<int32_t>(i++, job.tokens.items, job.tokens.n_tokens);
    if (placed) {
        job.n_positions = node["n_positions"];
        job.position = call.input<void>(i++, job.n_positions, width);
    }
    job.weight = call.input<float>(i++, width);
    job.bias = call.input<float>(i++, width);
    const int64_t n_out = job.tokens.n_tokens - job.tokens.r;
    job.merged = call.output<void>(0, job.tokens.items, n_out, width);
    job.normed = call.output<void>(1, job.tokens.items, n_out, width);
    job.sizes = call.output<float>(2, job.tokens.items, n_out);
    job.log_sizes = call.output<float>(3, job.tokens.items, n_out);
    call.run(tempme_merge_norm, job);
}

constexpr ElementType T = any_type;
#define MERGED {T, T, float32, float32, none}
#define ROWS {float16, float16, float32, none}
#define BEST {float32, int32, none}
constexpr Operator operators[] = {
    {"MatchKeys", {T, none}, {int32, none}, {"heads", "n_cls", "r"}, match_keys},
    {"SplitKeys", {T, none}, ROWS, {"heads"}, split_keys},
    {"SplitClips", {T, T, none}, ROWS, {}, split_clips},
    {"ScoreRows", ROWS, BEST, {"factor", "n_cls"}, score_rows},
    {"SelectRows", BEST, {int32, none}, {"n_cls", "r", "n_tokens"}, select_rows},
    {"MergeNorm", {T, T, int32, float32, float32, none}, MERGED, {"factor", "n_cls", "r"}, merge_norm<false, false>},
    {"MergeNormSized",
     {T, T, float32, int32, float32, float32, none},
     MERGED,
     {"factor", "n_cls", "r"},
     merge_norm<true, false>},
    {"MergeNormPlaced",
     {T, T, int32, T, float32, float32, none},
     MERGED,
     {"factor", "n_cls", "r", "n_positions"},
     merge_norm<false, true>},
    {"MergeNormSizedPlaced",
     {T, T, float32, int32, T, float32, float32, none},
     MERGED,
     {"factor", "n_cls", "r", "n_positions"},
     merge_norm<true, true>},
};
#undef MERGED
#undef ROWS
#undef BEST
constexpr ElementType precisions[] = {float32, float16, bfloat16};  // in the order of TempmeStorage
constexpr size_t n_operators = sizeof operators / sizeof *operators, n_precisions = 3;

// An operator in one precision.
struct Registered : OrtCustomOp {
    const Operator *type;
    TempmeStorage storage;
};

const Registered &self(const OrtCustomOp *op) { return *static_cast<const Registered *>(op); }

size_t count(const ElementType *types) {
    size_t n = 0;
    while (types[n] != none) ++n;
    return n;
}

ElementType typed(const Registered &op, const ElementType *types, size_t i) {
    return types[i] == any_type ? precisions[op.storage] : types[i];
}

OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
    const Runtime runtime(api);
    void *memory = std::malloc(sizeof(Node));
    if (!memory) return runtime.error(failed, "there is no memory for a node.");
    Node *node = new (memory) Node{*self(op).type, self(op).storage, runtime, {}};
    for (size_t i = 0; node->type.attributes[i]; ++i)
        if (OrtStatus *error = runtime.attribute(info, node->type.attributes[i], &node->attributes[i])) {
            std::free(memory);
            return error;
        }
    *kernel = node;
    return nullptr;
}

OrtStatus *compute(void *kernel, OrtKernelContext *context) {
    const Node &node = *static_cast<const Node *>(kernel);
    Call call(node, context);
    node.type.run(node, call);
    return call.error;
}

constexpr Registered described(const Operator &type, TempmeStorage storage) {
    Registered op{};
    op.version = api_version;
    op.name = [](const OrtCustomOp *op) { return self(op).type->name; };
    op.provider = [](const OrtCustomOp *) { return "CPUExecutionProvider"; };
    op.input_type = [](const OrtCustomOp *op, size_t i) { return typed(self(op), self(op).type->inputs, i); };
    op.input_count = [](const OrtCustomOp *op) { return count(self(op).type->inputs); };
    op.output_type = [](const OrtCustomOp *op, size_t i) { return typed(self(op), self(op).type->outputs, i); };
    op.output_count = [](const OrtCustomOp *op) { return count(self(op).type->outputs); };
    op.destroy = [](void *kernel) { std::free(kernel); };
    op.input_characteristic = [](const OrtCustomOp *, size_t) { return 0; };
    op.output_characteristic = [](const OrtCustomOp *, size_t) { return 0; };
    op.input_memory = [](const OrtCustomOp *, size_t) { return 0; };
    op.start_version = [](const OrtCustomOp *) { return 1; };
    op.end_version = [](const OrtCustomOp *) { return 1; };
    op.create = create;
    op.compute = compute;
    op.type = &type;
    op.storage = storage;
    return op;
}

struct Registry {
    Registered all[n_operators * n_precisions];
    size_t count;
};

constexpr Registry every_operator() {
    Registry found{};
    for (const Operator &type : operators) {
        const size_t kinds = type.inputs[0] == any_type ? n_precisions : 1;
        for (size_t i = 0; i < kinds; ++i) found.all[found.count++] = described(type, TempmeStorage(i));
    }
    return found;
}

constexpr Registry registry = every_operator();

}  // namespace

// The entry point by which ONNX Runtime loads a library of operators. The domain stays for as long as the process: the
// options and sessions that use it do not say when they are gone.
TEMPME_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi api = base->get_api(api_version);
    if (!api) return Runtime(base->get_api(1)).error(failed, too_old);
    const Runtime runtime(api);
    OrtCustomOpDomain *domain = nullptr;
    OrtStatus *error = runtime.new_domain("tempme", &domain);
    for (size_t i = 0; i < registry.count && !error; ++i) error = runtime.add(domain, &registry.all[i]);
    return error ? error : runtime.add(options, domain);
}
