// The custom operator of domain "poolgraph.cuda" for ONNX Runtime: a product of cuBLASLt that takes in its bias and
// activation, for which ONNX Runtime's own products need another pass over the rows.
//
// There is no code for the device in it, so that it compiles without CUDA.

#include <map>
#include <mutex>

#include "kernel_cublaslt.h"
#include "kernel_operator.h"

namespace poolgraph {
namespace {

// Where the operators run. The tests compile them for the host, beside a cuBLASLt of their own.
struct Library {
  static constexpr const char* kDomain = "poolgraph.cuda";
#ifdef POOLGRAPH_ON_HOST
  static constexpr const char *kProvider = "CPUExecutionProvider", *kLinked = "fake_provider";
  static void* stream(const Api&, const OrtKernelContext*) { return nullptr; }
  static void* handle(const Api&, const OrtKernelContext*) { return nullptr; }
#else
  static constexpr const char *kProvider = "CUDAExecutionProvider", *kLinked = "libonnxruntime_providers_cuda";
  static void* stream(const Api& api, const OrtKernelContext* context) { return api.stream(context); }
  // The stream's cuBLAS handle, which stands for one of cuBLASLt (cuBLAS docs, cublasLtHandle_t).
  static void* handle(const Api& api, const OrtKernelContext* context) {
    void* found = api.resource(context, 1, 10002);
    if (!found) throw std::runtime_error("ONNX Runtime's CUDA provider has no cuBLAS handle for operators of others");
    return found;
  }
#endif
};

enum class Activation : int64_t { kNone = 0, kGeluTanh = 2 };  // numbers of graphs/native.py

constexpr CudaType cuda_type(int element) { return element == kFloat16 ? CudaType::kFloat16 : CudaType::kBFloat16; }

// activation(rows @ weights + bias): inputs rows (..., in_features), weights (in_features, out_features), bias
// (out_features,), all of one type. The second output is memory to work with: ONNX Runtime takes it back at once.
template <int kElement>
class BiasMatMul {
 public:
  static constexpr const char* kName = "BiasMatMul";
  static constexpr size_t kInputs = 3, kOutputs = 2;
  static int type_of(size_t) { return kElement; }
  static int output_type(size_t index) { return index == 0 ? kElement : kUint8; }
  static bool is_required(size_t) { return true; }

  BiasMatMul(const Api& api, const OrtKernelInfo* info) : epilogue_(read_epilogue(api.int_attribute(info, "activation"))) {}

  void compute(const Api& api, OrtKernelContext* context) const {
    const BiasProduct product = open(api, context);
    if (product.count == 0) {
      api.output<void>(context, 1, {0});
      return;
    }
    static const CublasLt library(Library::kLinked);
    void* handle = Library::handle(api, context);
    const Algorithm algorithm = choose(library, handle, product);
    void* workspace = api.output<void>(context, 1, {static_cast<int64_t>(algorithm.workspace)});
    if (algorithm.workspace > 0 && !workspace) throw std::runtime_error("the second output must have a name");
    library.run(handle, product, algorithm, workspace, Library::stream(api, context));
  }

 private:
  static constexpr size_t kMostShapes = 256;  // whose algorithms are kept

  static Epilogue read_epilogue(int64_t activation) {
    switch (static_cast<Activation>(activation)) {
      case Activation::kNone:
        return Epilogue::kBias;
      case Activation::kGeluTanh:
        return Epilogue::kGeluTanhBias;
    }
    throw std::runtime_error("cuBLASLt has no activation " + std::to_string(activation));
  }

  BiasProduct open(const Api& api, OrtKernelContext* context) const {
    const OrtValue *rows = api.input(context, 0), *weights = api.input(context, 1), *bias = api.input(context, 2);
    std::vector<int64_t> shape = api.shape(rows);
    const std::vector<int64_t> sizes = api.shape(weights);
    if (shape.empty() || sizes.size() != 2 || shape.back() != sizes[0] || api.shape(bias) != std::vector<int64_t>{sizes[1]})
      throw std::runtime_error("rows, weights and bias do not fit each other");
    int64_t count = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= shape[axis];
    shape.back() = sizes[1];
    const BiasProduct product{cuda_type(kElement), epilogue_, count, sizes[0], sizes[1], api.data(rows), api.data(weights),
                              api.data(bias), api.output<void>(context, 0, shape)};
    if (count > 0 && product.alignment() == 0) throw std::runtime_error("operands are not aligned");
    return product;
  }

  Algorithm choose(const CublasLt& library, void* handle, const BiasProduct& product) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::pair key(product.count, product.alignment());
    const auto found = chosen_.find(key);
    if (found != chosen_.end()) return found->second;
    if (chosen_.size() == kMostShapes) chosen_.clear();
    return chosen_[key] = library.choose(handle, product);
  }

  const Epilogue epilogue_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, uint32_t>, Algorithm> chosen_;  // by number of rows, and alignment
};

}  // namespace
}  // namespace poolgraph

// As in kernels.cpp: CUDA_OPERATORS of graphs/manifest.py.
extern "C" __attribute__((visibility("default"))) const char* poolgraph_operators() { return "poolgraph.cuda/1"; }

extern "C" __attribute__((visibility("default"))) poolgraph::OrtStatus* RegisterCustomOps(
    poolgraph::OrtSessionOptions* options, const poolgraph::OrtApiBase* base) {
  using namespace poolgraph;
  return register_operators<Library, BiasMatMul<kFloat16>, BiasMatMul<kBFloat16>>(options, base);
}
