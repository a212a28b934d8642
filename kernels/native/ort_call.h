// A node and one call of it, as the operators see them: attributes by name, tensors with the axes that they must have.
#pragma once

#include <cstring>

#include "core.h"
#include "ort_abi.h"

constexpr size_t most_values = 7, most_attributes = 8, most_axes = 3;

class Call;
struct Node;

// any_type stands for the precision of the graph; the lists of types end with `none`, those of names with null.
constexpr ElementType none = ElementType(-1);

struct Operator {
    const char *name;
    ElementType inputs[most_values + 1], outputs[most_values + 1];
    const char *attributes[most_attributes + 1];
    void (*run)(const Node &, Call &);
};

struct Node {
    const Operator &type;
    TempmeStorage storage;
    Runtime runtime;
    int64_t attributes[most_attributes];

    int64_t operator[](const char *name) const {
        size_t i = 0;
        while (std::strcmp(type.attributes[i], name) != 0) ++i;
        return attributes[i];
    }
};

struct Axes {
    size_t count;
    int64_t sizes[most_axes];
};

// The first failure stays, and what would follow it is left out.
class Call {
   public:
    Call(const Node &node, OrtKernelContext *context) : runtime_(node.runtime), context_(context) {}

    Axes axes(size_t i) {
        Axes found{};
        const OrtValue *tensor = nullptr;
        OrtTensorTypeAndShapeInfo *shape = nullptr;
        if (error || !keep(runtime_.input(context_, i, &tensor)) || !keep(runtime_.shape(tensor, &shape))) return found;
        if (keep(runtime_.axes(shape, &found.count)) && found.count <= most_axes)
            keep(runtime_.axes(shape, found.sizes, found.count));
        runtime_.release(shape);
        return found;
    }

    template <typename Number, typename... Sizes>
    const Number *input(size_t i, Sizes... sizes) {
        const int64_t wanted[] = {sizes...};
        const Axes found = axes(i);
        require(found.count == sizeof...(sizes) && !std::memcmp(found.sizes, wanted, sizeof wanted),
                "an input's axes are not what the attributes of its node say.");
        const OrtValue *tensor = nullptr;
        void *data = nullptr;
        if (!error && keep(runtime_.input(context_, i, &tensor)))
            keep(runtime_.data(const_cast<OrtValue *>(tensor), &data));
        return static_cast<const Number *>(data);
    }

    template <typename Number, typename... Sizes>
    Number *output(size_t i, Sizes... sizes) {
        const int64_t wanted[] = {sizes...};
        OrtValue *tensor = nullptr;
        void *data = nullptr;
        if (!error && keep(runtime_.output(context_, i, wanted, sizeof...(sizes), &tensor)))
            keep(runtime_.data(tensor, &data));
        return static_cast<Number *>(data);
    }

    // Calls the core, on the threads of the provider.
    template <typename Job>
    void run(const char *(*work)(const Job *, const TempmeRun *), const Job &job) {
        if (error) return;
        const TempmeRun run = {parallel_for, this, INT32_MAX};
        const char *wrong = work(&job, &run);
        require(!wrong, wrong);
    }

    void require(bool fits, const char *otherwise) {
        if (!fits && !error) error = runtime_.error(invalid_argument, otherwise);
    }

    OrtStatus *error = nullptr;

   private:
    static void parallel_for(void *pool, void (*task)(void *, size_t), size_t count, void *data) {
        Call *call = static_cast<Call *>(pool);
        if (call->error) return;
        call->keep(call->runtime_.parallel_for(call->context_, task, count, data));
    }

    bool keep(OrtStatus *status) {
        if (!status) return true;
        if (error)
            runtime_.release(status);
        else
            error = status;
        return false;
    }

    Runtime runtime_;
    OrtKernelContext *context_;
};
