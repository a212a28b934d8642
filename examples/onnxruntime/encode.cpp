// A bundle of --ort-ops with ONNX Runtime's C++ API alone: encode BUNDLE. Nothing of tempme-export is installed.
//
//   g++ -std=c++17 encode.cpp -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -o encode
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <string>
#include <vector>

int main(int count, char **arguments) {
    if (count != 2) return std::puts("encode BUNDLE"), 2;
    const std::string bundle = arguments[1];
    Ort::Env env;
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary((bundle + "/libtempme_ort.so").c_str());
    Ort::Session session(env, (bundle + "/video.plugin.onnx").c_str(), options);
    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1;
    std::vector<float> frames(size_t(shape[1] * shape[2] * shape[3] * shape[4]));
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<float>(memory, frames.data(), frames.size(), shape.data(), shape.size());
    const char *inputs[] = {"frames"}, *outputs[] = {"video_embedding"};
    const auto found = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);
    for (int i = 0; i < 4; ++i) std::printf(i < 3 ? "%g " : "%g\n", found[0].GetTensorData<float>()[i]);
}
