// Encode videos with the engine of a bundle: TensorRT and the CUDA runtime, nothing else.
//
//     encode ENGINE [BATCH] [FRAMES [EMBEDDINGS]]
//
// BATCH       videos at once, within the engine's profile; 1 if left out
// FRAMES      raw float32 [BATCH, F, 3, S, S], resized, cropped and normalised; without it, frames that are made up
// EMBEDDINGS  receives raw float32 [BATCH, E]
// Exits 2 for a wrong command line, 3 for a file that does not fit, 4 where the engine does not run on this machine.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Failure : std::runtime_error {
    Failure(int code, const std::string& message) : std::runtime_error(message), code(code) {}
    int code;
};

void require(bool holds, int code, const std::string& message) {
    if (!holds) throw Failure(code, message);
}

void check(cudaError_t status, const std::string& what) {
    require(status == cudaSuccess, 4, what + ": " + cudaGetErrorString(status));
}

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
    }
};

template <typename T>
std::vector<T> readFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff bytes = file.tellg();
    std::vector<T> content(file.good() && bytes < (std::streamoff{1} << 40) ? bytes / sizeof(T) : 0);
    file.seekg(0).read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size() * sizeof(T)));
    require(file.good() && !content.empty(), 3, path + " cannot be read, or is empty.");
    return content;
}

std::size_t volume(const nvinfer1::Dims& shape) {
    std::size_t product = 1;
    for (int i = 0; i < shape.nbDims; ++i) product *= static_cast<std::size_t>(shape.d[i]);
    return product;
}

// Made-up frames, the same on every machine: a 32-bit counter through a multiplicative hash, spread over -2 to 2.
std::vector<float> syntheticFrames(std::size_t count) {
    std::vector<float> frames(count);
    for (std::size_t i = 0; i < count; ++i)
        frames[i] = static_cast<float>((static_cast<std::uint32_t>(i) * 2654435761u) >> 8) / 4194304.0f - 2.0f;
    return frames;
}

struct FreeOnDevice {
    void operator()(void* memory) const { cudaFree(memory); }
};

std::unique_ptr<void, FreeOnDevice> onDevice(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "GPU memory");
    return std::unique_ptr<void, FreeOnDevice>(memory);
}

void run(const std::vector<std::string>& given) {
    require(!given.empty() && given.size() <= 4, 2, "usage: encode ENGINE [BATCH] [FRAMES [EMBEDDINGS]]");
    const std::string asked = given.size() > 1 ? given[1] : "1";
    require(!asked.empty() && asked.size() < 7 && asked.find_first_not_of("0123456789") == std::string::npos, 2,
            "BATCH is '" + asked + "', expected a whole number.");
    const int batch = std::stoi(asked);
    const auto plan = readFile<char>(given[0]);
    int devices = 0;
    check(cudaGetDeviceCount(&devices), "no GPU can be used");

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    require(runtime != nullptr, 4, "TensorRT does not start; its messages stand above.");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine != nullptr, 4, given[0] + " does not load here. An engine runs on the kind of GPU and the TensorRT "
            "that it was built with: build it anew with tempme-export rebuild BUNDLE.");
    const char *input = "frames", *output = "video_embedding";
    std::string tensors;
    for (int i = 0; i < engine->getNbIOTensors(); ++i) tensors += std::string(" ") + engine->getIOTensorName(i);
    require(tensors == " frames video_embedding", 3, given[0] + " has the tensors" + tensors +
            ", expected frames and video_embedding: video.plan of a bundle without a frame mask.");
    const auto least = engine->getProfileShape(input, 0, nvinfer1::OptProfileSelector::kMIN).d[0];
    const auto most = engine->getProfileShape(input, 0, nvinfer1::OptProfileSelector::kMAX).d[0];
    require(least <= batch && batch <= most, 2, "BATCH is " + std::to_string(batch) + ", the engine takes " +
            std::to_string(least) + " to " + std::to_string(most) + ".");

    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    require(context != nullptr, 4, "the engine gets no execution context, most likely for want of GPU memory.");
    nvinfer1::Dims shape = engine->getTensorShape(input);
    shape.d[0] = batch;
    require(context->setInputShape(input, shape), 4, "TensorRT refuses the shape of the frames.");
    const auto frames = given.size() > 2 ? readFile<float>(given[2]) : syntheticFrames(volume(shape));
    require(frames.size() == volume(shape), 3, "FRAMES holds " + std::to_string(frames.size()) + " numbers, expected " +
            std::to_string(volume(shape)) + ": BATCH videos of all their frames.");
    const std::size_t count = volume(context->getTensorShape(output)), width = count / static_cast<std::size_t>(batch);
    std::vector<float> embeddings(count);
    const std::size_t inputBytes = frames.size() * sizeof(float), outputBytes = count * sizeof(float);
    const auto onInput = onDevice(inputBytes), onOutput = onDevice(outputBytes);
    const cudaStream_t stream = cudaStreamPerThread;
    require(context->setTensorAddress(input, onInput.get()) && context->setTensorAddress(output, onOutput.get()), 4,
            "TensorRT refuses the buffers.");
    check(cudaMemcpyAsync(onInput.get(), frames.data(), inputBytes, cudaMemcpyHostToDevice, stream), "copy");
    require(context->enqueueV3(stream), 4, "the engine does not run; TensorRT's messages stand above.");
    check(cudaMemcpyAsync(embeddings.data(), onOutput.get(), outputBytes, cudaMemcpyDeviceToHost, stream), "copy");
    check(cudaStreamSynchronize(stream), "the engine failed");

    for (int row = 0; row < batch; ++row) {
        const float* values = &embeddings[static_cast<std::size_t>(row) * width];
        double square = 0;
        for (std::size_t i = 0; i < width; ++i) square += static_cast<double>(values[i]) * values[i];
        std::printf("video %d: length %.6f, starts", row, std::sqrt(square));
        for (std::size_t i = 0; i < 4 && i < width; ++i) std::printf(" %+.6f", values[i]);
        std::printf("\n");
    }
    if (given.size() == 4) {
        std::ofstream file(given[3], std::ios::binary);
        file.write(reinterpret_cast<const char*>(embeddings.data()), static_cast<std::streamsize>(outputBytes));
        require(file.flush().good(), 3, given[3] + " cannot be written.");
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run({argv + 1, argv + argc});
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        const auto* failure = dynamic_cast<const Failure*>(&error);
        return failure != nullptr ? failure->code : 1;
    }
}
