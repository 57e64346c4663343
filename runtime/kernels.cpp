// The custom operators of domain "poolgraph.cpu" for ONNX Runtime: products with what surrounds them, in 8 bits, in
// float32 and in bfloat16, mixtures of experts, attention of both, and sums over packed texts.
//
// Compiled for AVX-512 with VNNI, by kernels_avxvnni.cpp for AVX-VNNI, and by kernels_avx2.cpp for AVX2 with FMA; the runtime
// registers the library that the processor runs.

#include "kernel_attention_op.h"
#ifdef __AVX512VNNI__
#include "kernel_attention_tiles.h"
#endif
#include "kernel_experts_op.h"
#include "kernel_onnxruntime.h"
#include "kernel_operator.h"
#include "kernel_product_op.h"
#include "kernel_text_sum.h"

namespace poolgraph {
namespace {

struct Library {
  static constexpr const char *kDomain = "poolgraph.cpu", *kProvider = "CPUExecutionProvider";
};

// `Short` is what computes the attention that takes no scores.
template <class Short>
OrtStatus* register_all(OrtSessionOptions* options, const OrtApiBase* base) {
  return register_operators<Library, MatMul<Quantized>, FeedForward<Quantized>, MatMul<Fused>, FeedForward<Fused>,
                            MatMul<Rounded>, FeedForward<Rounded>, Experts<Quantized>, Experts<Fused>, Experts<Rounded>,
                            AttentionOperator<Short>, AttentionOperator<FloatAttention>, TextSum>(options, base);
}

}  // namespace
}  // namespace poolgraph

// The operators and the versions of their meaning that this library has, as manifests name them (NATIVE_OPERATORS of
// graphs/manifest.py). Version 2 added packed texts, version 3 float32, version 4 experts, version 5 SwiGLU, and biases by
// distance and sinks of attention, version 6 bfloat16.
extern "C" __attribute__((visibility("default"))) const char* poolgraph_operators() {
  return "poolgraph.cpu/1 poolgraph.cpu/2 poolgraph.cpu/3 poolgraph.cpu/4 poolgraph.cpu/5 poolgraph.cpu/6";
}

// The instruction sets beyond those that it was compiled for which this library uses here, in the system's words.
extern "C" __attribute__((visibility("default"))) const char* poolgraph_instructions() {
  return poolgraph::uses_amx() ? "amx_int8 amx_bf16" : poolgraph::has_bfloat_pairs() ? "avx512_bf16" : "";
}

extern "C" __attribute__((visibility("default"))) poolgraph::OrtStatus* RegisterCustomOps(
    poolgraph::OrtSessionOptions* options, const poolgraph::OrtApiBase* base) {
  using namespace poolgraph;
#ifdef __AVX512VNNI__
  if (uses_amx()) return register_all<TiledAttention>(options, base);
#endif
  return register_all<ShortAttention>(options, base);
}
