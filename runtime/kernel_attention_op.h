// The operator of attention.
#pragma once

#include <vector>

#include "kernel_attention.h"
#include "kernel_attention_float.h"
#include "kernel_onnxruntime.h"

namespace poolgraph {

// Attention over (batch_size, sequence_length, heads * head_size): inputs query, key, value, or all three side by side.
//
// With the fourth input, cu_seqlens (batch_size + 1,), the texts are packed in one row, (1, num_tokens, ...); queries
// may then also be one a text, (1, batch_size, ...), each of which sees its whole text. In float32 there may be a softcap of
// the scores, and one of two inputs that are added to them: the fifth, (1 or batch_size, heads, queries, keys), or the
// sixth, (heads, an odd number), by how far a key is to the right of its query, the middle column being for none. The
// seventh is a sink a head, (heads,): one more score of each query, without a value.
//
// A template over what computes it: ShortAttention, TiledAttention or FloatAttention.
template <class Kind>
class AttentionOperator {
 public:
  static constexpr const char* kName = Kind::kName;
  static constexpr int kRows = Kind::kRows;  // most queries that are answered at once
  static constexpr size_t kBounds = 3, kBias = 4, kByDistance = 5, kSinks = 6;
  static constexpr size_t kInputs = Kind::kTakesScores ? 7 : 4, kOutputs = 1;
  static int type_of(size_t index) { return index == kBounds ? kInt64 : kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t index) { return index == 0; }

  AttentionOperator(const Api& api, const OrtKernelInfo* info) {
    const auto number = [&](const char* name) {
      return static_cast<int>(std::clamp<int64_t>(api.int_attribute(info, name), -1, kMostTokens));
    };
    shape_ = {number("num_heads"), number("kv_num_heads"), number("head_size"), api.float_attribute(info, "scale"),
              number("is_causal") != 0, number("left_window"), number("right_window"), 0};
    if (Kind::kTakesScores) shape_.softcap = api.float_attribute(info, "softcap");
    if (shape_.head_size > kMostFeatures) throw std::runtime_error("heads have more features than 512");
    if (shape_.head_size < 1 || shape_.num_heads < 1 || shape_.num_kv_heads < 1 || shape_.num_heads % shape_.num_kv_heads != 0)
      throw std::runtime_error("heads of queries must be a multiple of those of keys");
    if (!(shape_.scale > 0)) throw std::runtime_error("scores must have a scale above 0");
    if (shape_.softcap != 0 && !(shape_.softcap >= kLeastCap && shape_.softcap <= 1 / kLeastCap))
      throw std::runtime_error("a softcap is 0 for none, or a number from 1e-6 to 1e6");
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const Batch batch = open(api, context);
    const std::vector<Text> texts = batch.bounds ? split_packed(batch) : split_even(batch);
    std::vector<int64_t> sizes = batch.sizes;
    sizes.back() = width();
    run(api, context, texts, api.output<float>(context, 0, sizes));
  }

 private:
  // Rows of all texts, one after the other.
  struct Batch {
    std::vector<int64_t> sizes;  // of the query
    HeadRows query, key, value;
    const int64_t* bounds;  // nullptr where the texts are of one length
    ScoreInputs scores;     // of the first text; a bias by distance begins at its middle column
    size_t text_stride;     // of a bias, 0 where all texts share it
    int64_t reach;          // of a bias by distance: how far a key may be from its query
    int texts;
    bool is_by_distance() const { return scores.row_stride < 0; }
  };
  struct Text {
    HeadRows query, key, value;
    size_t first_row;  // of its answers
    ScoreInputs scores;
  };

  size_t width() const { return static_cast<size_t>(shape_.head_size) * shape_.num_heads; }

  Batch open(const Api& api, OrtKernelContext* context) const {
    const OrtValue* values[3];
    for (size_t index = 0; index < 3; ++index) values[index] = api.input(context, index);
    if (!values[1] != !values[2]) throw std::runtime_error("attention takes one input or three");
    Batch batch{api.shape(values[0]), {}, {}, {}, nullptr, {}, 0, 0, 0};
    const int64_t rows = batch.sizes.at(0);
    batch.query = rows_of(api, values[0], rows);
    batch.key = values[1] ? rows_of(api, values[1], rows) : batch.query;
    batch.value = values[1] ? rows_of(api, values[2], rows) : batch.query;
    const size_t kv_width = static_cast<size_t>(shape_.head_size) * shape_.num_kv_heads;
    if (!values[1]) {
      batch.key.data += width();
      batch.value.data += width() + kv_width;
    }
    const size_t all = width() + 2 * kv_width;
    if (batch.query.stride != (values[1] ? width() : all) || batch.key.stride != (values[1] ? kv_width : all) ||
        batch.value.stride != batch.key.stride || batch.key.length != batch.value.length)
      throw std::runtime_error("query, key and value do not fit the heads");
    const OrtValue* bounds = api.input(context, kBounds);
    batch.texts = static_cast<int>(rows);
    if (bounds) {
      const std::vector<int64_t> count = api.shape(bounds);
      if (rows != 1 || count.size() != 1 || count[0] < 1) throw std::runtime_error("packed texts are one row with bounds");
      batch.bounds = static_cast<const int64_t*>(api.data(bounds));
      batch.texts = static_cast<int>(count[0]) - 1;
    }
    if (Kind::kTakesScores) open_scores(api, context, batch);
    return batch;
  }

  void open_scores(const Api& api, OrtKernelContext* context, Batch& batch) const {
    const OrtValue *bias = api.input(context, kBias), *table = api.input(context, kByDistance);
    if (bias && table) throw std::runtime_error("attention takes one bias, be it by distance");
    if (bias) open_bias(api, bias, batch);
    if (table) open_by_distance(api, table, batch);
    if (const OrtValue* sinks = api.input(context, kSinks)) {
      if (api.shape(sinks) != std::vector<int64_t>{shape_.num_heads}) throw std::runtime_error("sinks are (heads,)");
      batch.scores.sinks = static_cast<const float*>(api.data(sinks));
    }
  }

  void open_bias(const Api& api, const OrtValue* bias, Batch& batch) const {
    const std::vector<int64_t> sizes = api.shape(bias);
    const std::vector<int64_t> wanted{shape_.num_heads, batch.query.length, batch.key.length};
    const bool is_shared = !sizes.empty() && sizes[0] == 1;
    if (batch.bounds || sizes.size() != 4 || !(is_shared || sizes[0] == batch.texts) ||
        !std::equal(sizes.begin() + 1, sizes.end(), wanted.begin()))
      throw std::runtime_error("a bias is (1 or batch_size, heads, queries, keys), of texts that are not packed");
    const ptrdiff_t row_stride = batch.key.length, head_stride = row_stride * batch.query.length;
    batch.scores = {static_cast<const float*>(api.data(bias)), head_stride, row_stride, nullptr};
    batch.text_stride = is_shared ? 0 : static_cast<size_t>(head_stride) * shape_.num_heads;
  }

  void open_by_distance(const Api& api, const OrtValue* table, Batch& batch) const {
    const std::vector<int64_t> sizes = api.shape(table);
    if (sizes.size() != 2 || sizes[0] != shape_.num_heads || sizes[1] % 2 != 1)
      throw std::runtime_error("a bias by distance is (heads, an odd number)");
    batch.reach = sizes[1] / 2;
    batch.scores = {static_cast<const float*>(api.data(table)) + batch.reach, sizes[1], -1, nullptr};
  }

  // What joins the scores of a text whose last query stands at its last key.
  static ScoreInputs scores_of(const Batch& batch, size_t text, int queries, int keys) {
    ScoreInputs scores = batch.scores;
    if (!scores.bias) return scores;
    if (!batch.is_by_distance()) {
      scores.bias += text * batch.text_stride;
      return scores;
    }
    if (keys - 1 > batch.reach)
      throw std::runtime_error("a bias by distance reaches " + std::to_string(batch.reach) + " tokens; a text of " +
                               std::to_string(keys) + " needs " + std::to_string(keys - 1));
    scores.bias -= keys - queries;
    return scores;
  }

  static HeadRows rows_of(const Api& api, const OrtValue* value, int64_t texts) {
    const std::vector<int64_t> sizes = api.shape(value);
    if (sizes.size() != 3 || sizes[0] != texts)
      throw std::runtime_error("attention takes (batch_size, sequence_length, features)");
    return {static_cast<const float*>(api.data(value)), static_cast<size_t>(sizes[2]), static_cast<int>(sizes[1])};
  }

  static HeadRows part(const HeadRows& rows, size_t first, int length) {
    return {rows.data + first * rows.stride, rows.stride, length};
  }

  std::vector<Text> split_even(const Batch& batch) const {
    if (batch.query.length > batch.key.length) throw std::runtime_error("there are more queries than keys");
    std::vector<Text> texts;
    texts.reserve(batch.texts);
    for (size_t text = 0; text < static_cast<size_t>(batch.texts); ++text) {
      const size_t query = text * batch.query.length, key = text * batch.key.length;
      texts.push_back({part(batch.query, query, batch.query.length), part(batch.key, key, batch.key.length),
                       part(batch.value, key, batch.key.length), query,
                       scores_of(batch, text, batch.query.length, batch.key.length)});
    }
    return texts;
  }

  std::vector<Text> split_packed(const Batch& batch) const {
    const bool sees_all = !shape_.causal && shape_.left_window < 0 && shape_.right_window < 0;
    const bool is_whole = batch.query.length == batch.key.length, is_one = sees_all && batch.query.length == batch.texts;
    if (!is_whole && !is_one)
      throw std::runtime_error("packed queries are those of all tokens, or one a text that sees its whole text");
    if (!is_whole && batch.is_by_distance())
      throw std::runtime_error("a bias by distance is not for one query a text: its place is not known");
    std::vector<Text> texts;
    texts.reserve(batch.texts);
    int64_t first = 0;
    for (int text = 0; text < batch.texts; ++text) {
      const int64_t end = batch.bounds[text + 1];
      if (batch.bounds[text] != first || end < first || end > batch.key.length || (is_one && end == first))
        throw std::runtime_error("bounds of packed texts must rise from 0 to the number of tokens");
      const int length = static_cast<int>(end - first);
      const size_t query = is_whole ? first : text;
      const int queries = is_whole ? length : 1;
      texts.push_back({part(batch.query, query, queries), part(batch.key, first, length), part(batch.value, first, length),
                       query, scores_of(batch, text, queries, length)});
      first = end;
    }
    if (first != batch.key.length) throw std::runtime_error("bounds of packed texts must end at the number of tokens");
    return texts;
  }

  // A task answers blocks of queries [first, last) of one text's heads that share one head of keys and values.
  struct Task {
    int text, head, first, last;
  };

  std::vector<Task> plan(const std::vector<Text>& texts) const {
    const int heads = static_cast<int>(texts.size()) * shape_.num_kv_heads;
    std::vector<Task> tasks;
    tasks.reserve(heads);
    for (int text = 0; text < static_cast<int>(texts.size()); ++text) {
      const int blocks = (texts[text].query.length + kRows - 1) / kRows;
      const int parts = std::min(std::max(1, 16 / heads), std::max(1, blocks / 4));
      for (int head = 0; blocks > 0 && head < shape_.num_kv_heads; ++head)
        for (int index = 0; index < parts; ++index)
          tasks.push_back({text, head, blocks * index / parts, blocks * (index + 1) / parts});
    }
    return tasks;
  }

  void run(const Api& api, OrtKernelContext* context, const std::vector<Text>& texts, float* out) const {
    const std::vector<Task> tasks = plan(texts);
    auto task = [&](size_t index) { answer(texts[tasks[index].text], tasks[index], out); };
    if (!tasks.empty()) api.parallel(context, tasks.size(), task);
  }

  void answer(const Text& text, const Task& task, float* out) const {
    thread_local typename Kind::Room room;
    const auto packed = Kind::pack(shape_, text.key, text.value, task.head, room);
    const int group = shape_.num_heads / shape_.num_kv_heads;
    const int first = task.first * kRows, last = std::min(task.last * kRows, text.query.length);
    for (int head = task.head * group; head < (task.head + 1) * group; ++head)
      for (int start = first; start < last; start += kRows) {
        const int count = std::min(kRows, last - start), position = start + text.key.length - text.query.length;
        float* to = out + (text.first_row + start) * width() + static_cast<size_t>(head) * shape_.head_size;
        Kind::answer(shape_, text.query.at(start, head, shape_.head_size), text.query.stride, packed, text.key.length, position,
                     count, text.scores.from(head, start), to, width(), room);
      }
  }

  AttentionShape shape_;
};

}  // namespace poolgraph
