// The part of cuBLASLt that the kernels use, declared here so that they compile where there is no CUDA.
//
// Source of functions, numbers and sizes: cublasLt.h and cublas_api.h of CUDA 13, the same in CUDA 12.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

namespace poolgraph {

// What is done to a product's columns: activation(x @ w + bias). GELU is the one by a hyperbolic tangent.
enum class Epilogue : uint32_t { kBias = 4, kGeluTanhBias = 4 | 32 };

enum class CudaType : int { kFloat = 0, kFloat16 = 2, kBFloat16 = 14 };

// rows (count, in_features) @ weights (in_features, out_features) + bias (out_features,), all of one type, in rows.
struct BiasProduct {
  CudaType type;
  Epilogue epilogue;
  int64_t count, in_features, out_features;
  const void *rows, *weights, *bias;
  void* out;

  // What all addresses are multiples of, in bytes: of what arenas give out, or the least that kernels load at once; 0 for
  // less. Algorithms are chosen by it.
  uint32_t alignment() const {
    for (const uint32_t bytes : {256u, 16u})
      if ((address(rows) | address(weights) | address(bias) | address(out)) % bytes == 0) return bytes;
    return 0;
  }

  static uintptr_t address(const void* operand) { return reinterpret_cast<uintptr_t>(operand); }
};

// An algorithm of cuBLASLt for products of one shape, and the memory of the device that it works with, in bytes.
struct Algorithm {
  std::array<uint64_t, 8> opaque;
  size_t workspace;
};

class CublasLt {
 public:
  // Finds the cuBLASLt that a library of this process was linked to, whose file's name begins with `linked`: there may
  // be others, as torch's, and handles of one are nothing to another.
  explicit CublasLt(const char* linked) : library_(open(linked)) {
    find("cublasLtMatmulDescCreate", product_create_);
    find("cublasLtMatmulDescSetAttribute", product_set_);
    find("cublasLtMatmulDescDestroy", product_destroy_);
    find("cublasLtMatrixLayoutCreate", matrix_create_);
    find("cublasLtMatrixLayoutDestroy", matrix_destroy_);
    find("cublasLtMatmulPreferenceCreate", preference_create_);
    find("cublasLtMatmulPreferenceSetAttribute", preference_set_);
    find("cublasLtMatmulPreferenceDestroy", preference_destroy_);
    find("cublasLtMatmulAlgoGetHeuristic", heuristic_);
    find("cublasLtMatmul", matmul_);
  }

  // Asks for the algorithm that cuBLASLt holds for the fastest.
  Algorithm choose(void* handle, const BiasProduct& product) const {
    const Setup setup(*this, product);
    void* made = nullptr;
    check("cublasLtMatmulPreferenceCreate", preference_create_(&made));
    const Owned preference(made, preference_destroy_);
    const auto prefer = [&](Preference attribute, const auto& value) {
      check("cublasLtMatmulPreferenceSetAttribute", preference_set_(preference.get(), attribute, &value, sizeof value));
    };
    prefer(kMaxWorkspace, kWorkspace);
    for (const Preference operand : {kAlignmentA, kAlignmentB, kAlignmentC, kAlignmentD}) prefer(operand, product.alignment());
    Found found{};
    int count = 0;
    const int status = heuristic_(handle, setup.product.get(), setup.weights.get(), setup.rows.get(), setup.out.get(),
                                  setup.out.get(), preference.get(), 1, &found, &count);
    if (status != 0 || count < 1 || found.state != 0)
      throw std::runtime_error("cuBLASLt has no kernel for " + describe(product) + " (" + name(status) + ")");
    return {found.algorithm, found.workspace};
  }

  void run(void* handle, const BiasProduct& product, const Algorithm& algorithm, void* workspace, void* stream) const {
    const Setup setup(*this, product);
    const float one = 1, zero = 0;
    check("cublasLtMatmul", matmul_(handle, setup.product.get(), &one, product.weights, setup.weights.get(), product.rows,
                                    setup.rows.get(), &zero, product.out, setup.out.get(), product.out, setup.out.get(),
                                    algorithm.opaque.data(), workspace, algorithm.workspace, stream));
  }

 private:
  using Destroy = int (*)(void*);
  using Set = int (*)(void*, int, const void*, size_t);
  using Owned = std::unique_ptr<void, Destroy>;

  static constexpr uint64_t kWorkspace = 32 << 20;  // most bytes of it: what NVIDIA recommends for Hopper
  static constexpr int kComputeFloat = 68, kAllocFailed = 3;
  enum Preference : int { kMaxWorkspace = 1, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8 };
  enum Description : int { kEpilogue = 7, kBiasPointer = 8 };

  struct Found {  // cublasLtMatmulHeuristicResult_t
    std::array<uint64_t, 8> algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
  };

  // Descriptions of a product and its matrices. Those of cuBLASLt have their columns one after the other, so that it is
  // told of the transposed product, out' = weights' @ rows', in which nothing needs to be transposed.
  struct Setup {
    Owned product, weights, rows, out;

    Setup(const CublasLt& library, const BiasProduct& it)
        : product(library.describe_product(it)),
          weights(library.describe_matrix(it.type, it.out_features, it.in_features)),
          rows(library.describe_matrix(it.type, it.in_features, it.count)),
          out(library.describe_matrix(it.type, it.out_features, it.count)) {}
  };

  Owned describe_product(const BiasProduct& it) const {
    void* made = nullptr;
    check("cublasLtMatmulDescCreate", product_create_(&made, kComputeFloat, static_cast<int>(CudaType::kFloat)));
    Owned product(made, product_destroy_);
    check("cublasLtMatmulDescSetAttribute", product_set_(made, kEpilogue, &it.epilogue, sizeof it.epilogue));
    check("cublasLtMatmulDescSetAttribute", product_set_(made, kBiasPointer, &it.bias, sizeof it.bias));
    return product;
  }
  Owned describe_matrix(CudaType type, int64_t rows, int64_t columns) const {
    void* made = nullptr;
    check("cublasLtMatrixLayoutCreate", matrix_create_(&made, static_cast<int>(type), rows, columns, rows));
    return {made, matrix_destroy_};
  }

  static void check(const char* what, int status) {
    if (status != 0) throw std::runtime_error(std::string(what) + " failed with " + name(status));
  }
  // A lack of memory by its name, which tells the runner to go on with less; other statuses by their number.
  static std::string name(int status) {
    return status == kAllocFailed ? "CUBLAS_STATUS_ALLOC_FAILED" : "status " + std::to_string(status);
  }
  static std::string describe(const BiasProduct& it) {
    return "a product of " + std::to_string(it.count) + " rows, " + std::to_string(it.in_features) + " to " +
           std::to_string(it.out_features) + " features";
  }

  static void* open(const char* linked) {
    struct Search {
      const char* begin;
      std::string path;
    } search{linked, ""};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          auto& searched = *static_cast<Search*>(data);
          const char* slash = std::strrchr(info->dlpi_name, '/');
          const char* file = slash ? slash + 1 : info->dlpi_name;
          if (std::strncmp(file, searched.begin, std::strlen(searched.begin)) == 0) searched.path = info->dlpi_name;
          return searched.path.empty() ? 0 : 1;
        },
        &search);
    // A symbol is looked for in what was opened and then in all that it was linked to.
    void* found = search.path.empty() ? nullptr : dlopen(search.path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!found) throw std::runtime_error(std::string(linked) + " is not loaded, whose cuBLASLt the products are computed by");
    return found;
  }
  template <class Function>
  void find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (!function) throw std::runtime_error(std::string("there is no cuBLASLt, or it lacks ") + name);
  }

  void* library_;
  int (*product_create_)(void** made, int compute, int scale);
  int (*matrix_create_)(void** made, int type, uint64_t rows, uint64_t columns, int64_t stride);
  int (*preference_create_)(void** made);
  Set product_set_, preference_set_;
  Destroy product_destroy_, matrix_destroy_, preference_destroy_;
  int (*heuristic_)(void* handle, void* product, void* a, void* b, void* c, void* d, void* preference, int asked,
                    Found* found, int* count);
  int (*matmul_)(void* handle, void* product, const void* alpha, const void* a, void* a_matrix, const void* b,
                 void* b_matrix, const void* beta, const void* c, void* c_matrix, void* d, void* d_matrix,
                 const void* algorithm, void* workspace, size_t workspace_size, void* stream);
};

}  // namespace poolgraph
