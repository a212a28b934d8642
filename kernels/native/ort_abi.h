// The part of ONNX Runtime's C ABI that is used, as of API version 23 (ONNX Runtime 1.23): its functions by their places
// in a table that only grows, and the table by which an operator describes itself.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr uint32_t api_version = 23;
constexpr const char *too_old = "found an older ONNX Runtime, expected 1.23 or newer.";

// Objects of the runtime's own.
struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

enum ElementType : int { any_type = 0, float32 = 1, int32 = 6, float16 = 10, bfloat16 = 16 };
constexpr int failed = 1, invalid_argument = 2;

typedef const void *const *OrtApi;

struct OrtApiBase {
    OrtApi (*get_api)(uint32_t version);
    const char *(*version_string)();
};

// Calls into the table.
class Runtime {
   public:
    explicit Runtime(OrtApi api) : api_(api) {}

    OrtStatus *error(int code, const char *message) const {
        return at<OrtStatus *(*)(int, const char *)>(0)(code, message);
    }
    OrtStatus *new_domain(const char *name, OrtCustomOpDomain **domain) const {
        return at<OrtStatus *(*)(const char *, OrtCustomOpDomain **)>(26)(name, domain);
    }
    OrtStatus *add(OrtCustomOpDomain *domain, const struct OrtCustomOp *op) const {
        return at<OrtStatus *(*)(OrtCustomOpDomain *, const OrtCustomOp *)>(27)(domain, op);
    }
    OrtStatus *add(OrtSessionOptions *options, OrtCustomOpDomain *domain) const {
        return at<OrtStatus *(*)(OrtSessionOptions *, OrtCustomOpDomain *)>(28)(options, domain);
    }
    OrtStatus *data(OrtValue *tensor, void **data) const {
        return at<OrtStatus *(*)(OrtValue *, void **)>(51)(tensor, data);
    }
    OrtStatus *axes(const OrtTensorTypeAndShapeInfo *shape, size_t *count) const {
        return at<OrtStatus *(*)(const OrtTensorTypeAndShapeInfo *, size_t *)>(61)(shape, count);
    }
    OrtStatus *axes(const OrtTensorTypeAndShapeInfo *shape, int64_t *sizes, size_t count) const {
        return at<OrtStatus *(*)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t)>(62)(shape, sizes, count);
    }
    OrtStatus *shape(const OrtValue *tensor, OrtTensorTypeAndShapeInfo **shape) const {
        return at<OrtStatus *(*)(const OrtValue *, OrtTensorTypeAndShapeInfo **)>(65)(tensor, shape);
    }
    OrtStatus *attribute(const OrtKernelInfo *node, const char *name, int64_t *value) const {
        return at<OrtStatus *(*)(const OrtKernelInfo *, const char *, int64_t *)>(86)(node, name, value);
    }
    OrtStatus *input(const OrtKernelContext *call, size_t i, const OrtValue **tensor) const {
        return at<OrtStatus *(*)(const OrtKernelContext *, size_t, const OrtValue **)>(90)(call, i, tensor);
    }
    OrtStatus *output(OrtKernelContext *call, size_t i, const int64_t *sizes, size_t axes, OrtValue **tensor) const {
        typedef OrtStatus *(*Function)(OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **);
        return at<Function>(91)(call, i, sizes, axes, tensor);
    }
    void release(OrtStatus *status) const { at<void (*)(OrtStatus *)>(93)(status); }
    void release(OrtTensorTypeAndShapeInfo *shape) const { at<void (*)(OrtTensorTypeAndShapeInfo *)>(99)(shape); }
    OrtStatus *parallel_for(const OrtKernelContext *call, void (*task)(void *, size_t), size_t count, void *data) const {
        typedef OrtStatus *(*Function)(const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t, void *);
        return at<Function>(274)(call, task, count, 0, data);
    }

   private:
    template <typename Function>
    Function at(size_t place) const {
        return reinterpret_cast<Function>(const_cast<void *>(api_[place]));
    }

    OrtApi api_;
};

// An operator as the runtime asks for it. What stands at null is optional.
struct OrtCustomOp {
    uint32_t version;
    void *create_kernel;
    const char *(*name)(const OrtCustomOp *);
    const char *(*provider)(const OrtCustomOp *);
    ElementType (*input_type)(const OrtCustomOp *, size_t);
    size_t (*input_count)(const OrtCustomOp *);
    ElementType (*output_type)(const OrtCustomOp *, size_t);
    size_t (*output_count)(const OrtCustomOp *);
    void *kernel_compute;
    void (*destroy)(void *kernel);
    int (*input_characteristic)(const OrtCustomOp *, size_t);
    int (*output_characteristic)(const OrtCustomOp *, size_t);
    int (*input_memory)(const OrtCustomOp *, size_t);
    void *variadic[4];
    OrtStatus *(*create)(const OrtCustomOp *, OrtApi, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*compute)(void *kernel, OrtKernelContext *);
    OrtStatus *(*infer_shape)(const OrtCustomOp *, OrtShapeInferContext *);
    int (*start_version)(const OrtCustomOp *);
    int (*end_version)(const OrtCustomOp *);
    void *in_place[2];
    void *aliases[2];
};
