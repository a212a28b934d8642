// Stand-ins for libnvinfer and libcudart. A plan is one line: "stub FRAMES SIDE WIDTH MIN MAX [FURTHER-TENSOR]".
// Its embedding is the video's first WIDTH numbers, divided by their length, so that every number and row counts.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "NvInfer.h"

using namespace nvinfer1;

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return std::getenv("STUB_NO_GPU") == nullptr ? cudaSuccess : cudaErrorNoDevice;
}
char const* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "no CUDA-capable device"; }
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    *memory = std::malloc(bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
}

namespace {

struct Plan {
    int64_t frames, side, width, least, most;
    std::vector<std::string> tensors{"frames", "video_embedding"};
};

class Context : public IExecutionContext {
public:
    explicit Context(const Plan& plan) : plan_(plan) {}
    bool setInputShape(char const*, Dims const& shape) noexcept override {
        shape_ = shape;
        return true;
    }
    Dims getTensorShape(char const*) const noexcept override { return {2, {shape_.d[0], plan_.width}}; }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        memory_[name] = static_cast<float*>(data);
        return true;
    }
    bool enqueueV3(cudaStream_t) noexcept override {
        const int64_t length = plan_.frames * 3 * plan_.side * plan_.side;
        for (int64_t row = 0; row < shape_.d[0]; ++row) {
            double square = 0;
            const float* video = memory_.at("frames") + row * length;
            for (int64_t i = 0; i < plan_.width; ++i) square += double(video[i]) * video[i];
            for (int64_t i = 0; i < plan_.width; ++i)
                memory_.at("video_embedding")[row * plan_.width + i] = float(video[i] / std::sqrt(square));
        }
        return std::getenv("STUB_NO_RUN") == nullptr;
    }

private:
    Plan plan_;
    Dims shape_{};
    std::map<std::string, float*> memory_;
};

class Engine : public ICudaEngine {
public:
    explicit Engine(const Plan& plan) : plan_(plan) {}
    int32_t getNbIOTensors() const noexcept override { return int32_t(plan_.tensors.size()); }
    char const* getIOTensorName(int32_t index) const noexcept override { return plan_.tensors[index].c_str(); }
    Dims getTensorShape(char const* name) const noexcept override { return shape(name, -1); }
    DataType getTensorDataType(char const*) const noexcept override { return DataType::kFLOAT; }
    Dims getProfileShape(char const* name, int32_t, OptProfileSelector select) const noexcept override {
        return shape(name, select == OptProfileSelector::kMIN ? plan_.least : plan_.most);
    }
    IExecutionContext* createExecutionContext() noexcept override { return new Context(plan_); }

private:
    Dims shape(const std::string& name, int64_t batch) const {
        if (name == "frames") return {5, {batch, plan_.frames, 3, plan_.side, plan_.side}};
        return {2, {batch, plan_.width}};
    }
    Plan plan_;
};

class Runtime : public IRuntime {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) {}
    ICudaEngine* deserializeCudaEngine(void const* plan, std::size_t size) noexcept override {
        std::istringstream text(std::string(static_cast<char const*>(plan), size));
        std::string word;
        Plan read;
        if (!(text >> word >> read.frames >> read.side >> read.width >> read.least >> read.most) || word != "stub") {
            logger_.log(ILogger::Severity::kERROR, "this is no engine");
            logger_.log(ILogger::Severity::kVERBOSE, "nobody wants to know");
            return nullptr;
        }
        while (text >> word) read.tensors.push_back(word);
        return new Engine(read);
    }

private:
    ILogger& logger_;
};

}  // namespace

IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }
