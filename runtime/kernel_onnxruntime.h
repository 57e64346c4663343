// The part of ONNX Runtime's C interface that the kernels use, declared here because its wheels ship no headers.
//
// The interface is a table of functions that only ever grows at its end, so a slot keeps its number in every version
// (docs: "ABI stability" of onnxruntime_c_api.h). All slots below are in version 17.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace poolgraph {

struct OrtStatus;
struct OrtValue;
struct OrtShape;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtDomain;
struct OrtSessionOptions;

struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

constexpr uint32_t kApiVersion = 17;
constexpr uint32_t kCustomOpVersion = 17;
constexpr int kFailed = 1;
enum ElementType { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
enum Presence { kRequired = 0, kOptional = 1 };

// Field by field what ONNX Runtime reads of a custom operator.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const void* const*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const void* const*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

// The functions, with ONNX Runtime's failures as exceptions.
class Api {
 public:
  explicit Api(const void* const* table) : table_(table) {}

  OrtStatus* status(const char* message) const {
    return call<OrtStatus* (*)(int, const char*)>(kCreateStatus)(kFailed, message);
  }

  OrtDomain* create_domain(const char* name) const {
    OrtDomain* domain = nullptr;
    check(call<OrtStatus* (*)(const char*, OrtDomain**)>(kCreateCustomOpDomain)(name, &domain));
    return domain;
  }
  void add(OrtDomain* domain, const OrtCustomOp* op) const {
    check(call<OrtStatus* (*)(OrtDomain*, const OrtCustomOp*)>(kCustomOpDomainAdd)(domain, op));
  }
  void add(OrtSessionOptions* options, OrtDomain* domain) const {
    check(call<OrtStatus* (*)(OrtSessionOptions*, OrtDomain*)>(kAddCustomOpDomain)(options, domain));
  }

  float float_attribute(const OrtKernelInfo* info, const char* name) const {
    float value = 0;
    check(call<OrtStatus* (*)(const OrtKernelInfo*, const char*, float*)>(kAttributeFloat)(info, name, &value));
    return value;
  }
  int64_t int_attribute(const OrtKernelInfo* info, const char* name) const {
    int64_t value = 0;
    check(call<OrtStatus* (*)(const OrtKernelInfo*, const char*, int64_t*)>(kAttributeInt)(info, name, &value));
    return value;
  }
  // Returns nullptr for an input that is absent; one that is no constant is refused.
  const OrtValue* constant(const OrtKernelInfo* info, size_t index) const {
    size_t count = 0;
    check(call<OrtStatus* (*)(const OrtKernelInfo*, size_t*)>(kInfoInputCount)(info, &count));
    if (index >= count) return nullptr;
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(call<OrtStatus* (*)(const OrtKernelInfo*, size_t, int*, const OrtValue**)>(kInfoConstantInput)(
        info, index, &is_constant, &value));
    if (!is_constant && has_name(info, index)) throw std::runtime_error("input " + std::to_string(index) + " must be constant");
    return is_constant ? value : nullptr;
  }

  // Returns nullptr for an input that is absent.
  const OrtValue* input(const OrtKernelContext* context, size_t index) const {
    size_t count = 0;
    check(call<OrtStatus* (*)(const OrtKernelContext*, size_t*)>(kContextInputCount)(context, &count));
    if (index >= count) return nullptr;
    const OrtValue* value = nullptr;
    check(call<OrtStatus* (*)(const OrtKernelContext*, size_t, const OrtValue**)>(kContextInput)(context, index, &value));
    return value;
  }
  // Returns nullptr for an output that nobody reads.
  template <class Element>
  Element* output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) const {
    size_t count = 0;
    check(call<OrtStatus* (*)(const OrtKernelContext*, size_t*)>(kContextOutputCount)(context, &count));
    if (index >= count) return nullptr;
    OrtValue* value = nullptr;
    check(call<OrtStatus* (*)(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(kContextOutput)(
        context, index, shape.data(), shape.size(), &value));
    return value ? static_cast<Element*>(data(value)) : nullptr;
  }

  std::vector<int64_t> shape(const OrtValue* value) const {
    OrtShape* info = nullptr;
    check(call<OrtStatus* (*)(const OrtValue*, OrtShape**)>(kTensorShape)(value, &info));
    size_t rank = 0;
    OrtStatus* failed = call<OrtStatus* (*)(const OrtShape*, size_t*)>(kDimensionsCount)(info, &rank);
    std::vector<int64_t> sizes(rank);
    if (!failed) failed = call<OrtStatus* (*)(const OrtShape*, int64_t*, size_t)>(kDimensions)(info, sizes.data(), rank);
    call<void (*)(OrtShape*)>(kReleaseTensorShape)(info);
    check(failed);
    return sizes;
  }
  void* data(const OrtValue* value) const {
    void* found = nullptr;
    check(call<OrtStatus* (*)(const OrtValue*, void**)>(kTensorData)(value, &found));
    return found;
  }

  // The stream that the device runs a node on.
  void* stream(const OrtKernelContext* context) const {
    void* found = nullptr;
    check(call<OrtStatus* (*)(const OrtKernelContext*, void**)>(kContextStream)(context, &found));
    return found;
  }
  // One of the provider's resources, by its number in cuda_resource.h.
  void* resource(const OrtKernelContext* context, int version, int number) const {
    void* found = nullptr;
    check(call<OrtStatus* (*)(const OrtKernelContext*, int, int, void**)>(kContextResource)(context, version, number, &found));
    return found;
  }

  // Calls work(index) for every index below count, on the session's threads. The first exception is thrown again once
  // all are done: ONNX Runtime's threads know of none.
  template <class Work>
  void parallel(OrtKernelContext* context, size_t count, Work& work) const {
    if (count == 1) return work(0);
    struct Shared {
      Work& work;
      std::once_flag once;
      std::exception_ptr failed;
    } shared{work, {}, nullptr};
    auto step = [](void* data, size_t index) {
      auto& found = *static_cast<Shared*>(data);
      try {
        found.work(index);
      } catch (...) {
        std::call_once(found.once, [&] { found.failed = std::current_exception(); });
      }
    };
    using Step = void (*)(void*, size_t);
    check(call<OrtStatus* (*)(OrtKernelContext*, Step, size_t, size_t, void*)>(kContextParallelFor)(
        context, static_cast<Step>(step), count, 0, &shared));
    if (shared.failed) std::rethrow_exception(shared.failed);
  }

 private:
  enum Slot : size_t {
    kCreateStatus = 0,
    kGetErrorMessage = 2,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kTensorData = 51,
    kDimensionsCount = 61,
    kDimensions = 62,
    kTensorShape = 65,
    kAttributeFloat = 85,
    kAttributeInt = 86,
    kContextInputCount = 88,
    kContextOutputCount = 89,
    kContextInput = 90,
    kContextOutput = 91,
    kReleaseStatus = 93,
    kReleaseTensorShape = 99,
    kContextStream = 193,
    kInfoInputCount = 230,
    kInfoInputName = 232,
    kInfoConstantInput = 249,
    kContextResource = 265,
    kContextParallelFor = 274,
  };

  // An optional input that is absent has an empty name.
  bool has_name(const OrtKernelInfo* info, size_t index) const {
    size_t size = 0;
    check(call<OrtStatus* (*)(const OrtKernelInfo*, size_t, char*, size_t*)>(kInfoInputName)(info, index, nullptr, &size));
    return size > 1;
  }

  template <class Function>
  Function call(Slot slot) const {
    return reinterpret_cast<Function>(const_cast<void*>(table_[slot]));
  }
  void check(OrtStatus* status) const {
    if (!status) return;
    std::string message = call<const char* (*)(const OrtStatus*)>(kGetErrorMessage)(status);
    call<void (*)(OrtStatus*)>(kReleaseStatus)(status);
    throw std::runtime_error(message);
  }

  const void* const* table_;
};

}  // namespace poolgraph
