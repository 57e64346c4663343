// What attention is told: heads, scale, which keys a query sees, and rows of which some are a head's.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernel_softmax.h"

namespace poolgraph {

constexpr int kMostFeatures = 512;     // of a head
constexpr int kMostTokens = 1 << 30;   // of a window: more is no other one, and sums of two still are numbers
constexpr float kLeastCap = 1e-6f;     // of scores: its inverse times a scale is a number

struct AttentionShape {
  int num_heads;
  int num_kv_heads;
  int head_size;
  float scale;
  bool causal;
  int left_window;   // tokens that a query sees before itself, -1 for all
  int right_window;  // and after
  float softcap;     // limit of the scores, 0 for none
  int padded_size() const { return round_to(head_size, kLanes); }
};

// What joins the scores of one text.
struct ScoreInputs {
  const float* bias = nullptr;  // added, [head][query][key]; nullptr for nothing
  ptrdiff_t head_stride = 0;
  ptrdiff_t row_stride = 0;      // -1 where the bias depends on how far a key is to the right of its query
  const float* sinks = nullptr;  // [head], one more score of each query, without a value; nullptr for none
  ScoreInputs from(int head, int query) const {
    return {bias ? bias + head * head_stride + query * row_stride : nullptr, head_stride, row_stride,
            sinks ? sinks + head : nullptr};
  }
};

// The rows of one text, heads side by side.
struct HeadRows {
  const float* data;
  size_t stride;
  int length;
  const float* at(int row, int head, int head_size) const {
    return data + static_cast<size_t>(row) * stride + static_cast<size_t>(head) * head_size;
  }
};

inline Floats load_some(const float* from, int count) {
  return count >= kLanes ? load(from) : load_where(mask_of(std::max(count, 0)), from);
}

inline void store_some(float* to, int count, Floats x) { count >= kLanes ? store(to, x) : store_where(mask_of(count), to, x); }

inline KeyRange visible_keys(const AttentionShape& shape, int query, int keys) {
  const int first = shape.left_window < 0 ? 0 : std::max(0, query - shape.left_window);
  const int last = shape.right_window < 0 ? keys : std::min(keys, query + shape.right_window + 1);
  return {first, shape.causal ? std::min(last, query + 1) : last};
}

}  // namespace poolgraph
