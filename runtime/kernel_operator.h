// From a class that computes an operator to what ONNX Runtime registers of it.
//
// The class has kName, kInputs, kOutputs, type_of(index), output_type(index), is_required(index), a constructor from
// (Api, OrtKernelInfo*) and compute(Api, OrtKernelContext*); its library has kDomain and kProvider.
#pragma once

#include "kernel_onnxruntime.h"

namespace poolgraph {

template <class Kernel>
struct Instance {
  Api api;
  Kernel kernel;
};

// Runs a step of a kernel, its exceptions as ONNX Runtime's failures.
template <class Step>
OrtStatus* guarded(const Api& api, Step&& step) {
  try {
    step();
    return nullptr;
  } catch (const std::exception& error) {
    return api.status(error.what());
  } catch (...) {
    return api.status("unknown failure");
  }
}

template <class Library, class Kernel>
OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = kCustomOpVersion;
  op.GetName = [](const OrtCustomOp*) { return Kernel::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return Library::kProvider; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::kOutputs; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) -> int { return Kernel::type_of(index); };
  op.GetOutputType = [](const OrtCustomOp*, size_t index) -> int { return Kernel::output_type(index); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
    return Kernel::is_required(index) ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) -> int { return index == 0 ? kRequired : kOptional; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const void* const* table, const OrtKernelInfo* info, void** made) {
    const Api api(table);
    return guarded(api, [&] { *made = new Instance<Kernel>{api, Kernel(api, info)}; });
  };
  op.KernelComputeV2 = [](void* instance, OrtKernelContext* context) {
    const auto& found = *static_cast<const Instance<Kernel>*>(instance);
    return guarded(found.api, [&] { found.kernel.compute(found.api, context); });
  };
  op.KernelDestroy = [](void* instance) { delete static_cast<Instance<Kernel>*>(instance); };
  return op;
}

// Makes the operators of a library known to the sessions of `options`.
template <class Library, class... Kernels>
OrtStatus* register_operators(OrtSessionOptions* options, const OrtApiBase* base) {
  static const OrtCustomOp ops[] = {describe<Library, Kernels>()...};
  const void* const* table = base->GetApi(kApiVersion);
  if (!table) return Api(base->GetApi(1)).status("poolgraph's operators need ONNX Runtime 1.17 or newer");
  const Api api(table);
  return guarded(api, [&] {
    static OrtDomain* domain = [&] {
      OrtDomain* made = api.create_domain(Library::kDomain);
      for (const OrtCustomOp& op : ops) api.add(made, &op);
      return made;
    }();
    api.add(options, domain);
  });
}

}  // namespace poolgraph
