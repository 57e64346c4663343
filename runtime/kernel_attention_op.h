// The operator of attention.
#pragma once

#include "kernel_attention.h"
#include "kernel_onnxruntime.h"

namespace poolgraph {

// Attention over (batch_size, sequence_length, heads * head_size): inputs query, key, value, or all three side by side.
class Attention {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr size_t kInputs = 3, kOutputs = 1;
  static bool is_weight(size_t) { return false; }
  static bool is_required(size_t index) { return index == 0; }

  Attention(const Api& api, const OrtKernelInfo* info) {
    const auto number = [&](const char* name) { return static_cast<int>(api.int_attribute(info, name)); };
    shape_ = {number("num_heads"), number("kv_num_heads"), number("head_size"), api.float_attribute(info, "scale"),
              number("is_causal") != 0, number("left_window"), number("right_window")};
    if (shape_.head_size < 1 || shape_.num_kv_heads < 1 || shape_.num_heads % shape_.num_kv_heads != 0)
      throw std::runtime_error("heads of queries must be a multiple of those of keys");
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const size_t size = shape_.head_size, width = size * shape_.num_heads, kv_width = size * shape_.num_kv_heads;
    const OrtValue* values[3];
    for (size_t index = 0; index < 3; ++index) values[index] = api.input(context, index);
    if (!values[1] != !values[2]) throw std::runtime_error("attention takes one input or three");
    std::vector<int64_t> sizes = api.shape(values[0]);
    HeadRows query = rows_of(api, values[0], sizes.at(0)), key = query, value = query;
    size_t expected = width, kv_expected = kv_width;
    if (values[1]) {
      key = rows_of(api, values[1], sizes[0]);
      value = rows_of(api, values[2], sizes[0]);
    } else {
      key.data += width;
      value.data += width + kv_width;
      expected = kv_expected = width + 2 * kv_width;
    }
    if (query.stride != expected || key.stride != kv_expected || value.stride != kv_expected || key.length != value.length)
      throw std::runtime_error("query, key and value do not fit the heads");
    if (query.length > key.length) throw std::runtime_error("there are more queries than keys");
    sizes.back() = width;
    float* out = api.output(context, 0, sizes);
    run(api, context, static_cast<int>(sizes[0]), query, key, value, out, width);
  }

 private:
  static HeadRows rows_of(const Api& api, const OrtValue* value, int64_t texts) {
    const std::vector<int64_t> sizes = api.shape(value);
    if (sizes.size() != 3 || sizes[0] != texts)
      throw std::runtime_error("attention takes (batch_size, sequence_length, features)");
    return {static_cast<const float*>(api.data(value)), static_cast<size_t>(sizes[2]), static_cast<int>(sizes[1])};
  }

  void run(const Api& api, OrtKernelContext* context, int texts, const HeadRows& query, const HeadRows& key,
           const HeadRows& value, float* out, size_t width) const {
    const int heads = texts * shape_.num_kv_heads, blocks = (query.length + kQueryRows - 1) / kQueryRows;
    if (heads == 0 || blocks == 0) return;
    const int parts = std::min(std::max(1, 16 / heads), std::max(1, blocks / 4));
    auto task = [&](size_t index) {
      const int head = static_cast<int>(index) / parts, part = static_cast<int>(index) % parts;
      const int first = blocks * part / parts * kQueryRows, last = blocks * (part + 1) / parts * kQueryRows;
      answer(head / shape_.num_kv_heads, head % shape_.num_kv_heads, first, std::min(last, query.length), query, key, value, out,
             width);
    };
    api.parallel(context, static_cast<size_t>(heads) * parts, task);
  }

  // Answers queries [first, last) of the heads that share one head of keys and values.
  void answer(int text, int kv_head, int first, int last, const HeadRows& query, const HeadRows& key, const HeadRows& value,
              float* out, size_t width) const {
    thread_local AttentionRoom room;
    const PackedHead packed = pack_head(shape_, key, value, text, kv_head, room);
    const int group = shape_.num_heads / shape_.num_kv_heads;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int start = first; start < last; start += kQueryRows) {
        const int count = std::min(kQueryRows, last - start);
        float* to = out + (static_cast<size_t>(text) * query.length + start) * width + static_cast<size_t>(head) * shape_.head_size;
        const float* from = query.at(text, head, shape_.head_size) + static_cast<size_t>(start) * query.stride;
        attend(shape_, from, query.stride, packed, key.length, start + key.length - query.length, count, to, width, room);
      }
  }

  AttentionShape shape_;
};

}  // namespace poolgraph
