// The operator that sums the rows of packed texts.
#pragma once

#include <algorithm>

#include "kernel_onnxruntime.h"
#include "kernel_vector.h"

namespace poolgraph {

// weights (batch_size, num_tokens) @ rows (num_tokens, size), in the order of the tokens, weights of 0 skipped: the bits
// of a text's sum depend on its own rows alone, as those of a product in blocks of tokens do not.
class TextSum {
 public:
  static constexpr const char* kName = "TextSum";
  static constexpr size_t kInputs = 2, kOutputs = 1;
  static int type_of(size_t) { return kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t) { return true; }

  TextSum(const Api&, const OrtKernelInfo*) {}

  void compute(const Api& api, OrtKernelContext* context) const {
    const OrtValue *weights = api.input(context, 0), *rows = api.input(context, 1);
    const std::vector<int64_t> sizes = api.shape(weights), row_sizes = api.shape(rows);
    if (sizes.size() != 2 || row_sizes.size() != 2 || sizes[1] != row_sizes[0])
      throw std::runtime_error("a sum takes (batch_size, num_tokens) and (num_tokens, size)");
    const auto tokens = static_cast<size_t>(sizes[1]), size = static_cast<size_t>(row_sizes[1]);
    const auto* from = static_cast<const float*>(api.data(rows));
    const auto* of_texts = static_cast<const float*>(api.data(weights));
    float* out = api.output<float>(context, 0, {sizes[0], row_sizes[1]});
    auto task = [&](size_t text) { sum(of_texts + text * tokens, from, tokens, size, out + text * size); };
    if (sizes[0] > 0) api.parallel(context, static_cast<size_t>(sizes[0]), task);
  }

 private:
  static void sum(const float* weights, const float* rows, size_t tokens, size_t size, float* out) {
    std::fill(out, out + size, 0.0f);
    for (size_t token = 0; token < tokens; ++token)
      if (weights[token] != 0) add(weights[token], rows + token * size, size, out);
  }

  static void add(float weight, const float* row, size_t size, float* out) {
    const Floats factor = splat(weight);
    for_vectors(static_cast<int>(size), [&](int place, auto lanes) {
      lanes.store(out + place, fmadd(factor, lanes.load(row + place), lanes.load(out + place)));
    });
  }
};

}  // namespace poolgraph
