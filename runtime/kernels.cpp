// The custom operators of domain "poolgraph.cpu" for ONNX Runtime: 8-bit products with what surrounds them, and attention.
//
// Compiled for AVX-512 with VNNI and BF16; the runtime registers the library only where the processor has both.

#include <cstring>
#include <memory>
#include <optional>

#include "kernel_attention.h"
#include "kernel_onnxruntime.h"
#include "kernel_product.h"

namespace poolgraph {
namespace {

constexpr int kFewRows = 32;       // up to here cores share columns instead of rows
constexpr int kBlockRows = 48;     // most rows of a task
constexpr int kBlockBytes = 400 * 1024;  // of its intermediate rows: they stay in a core's second cache
constexpr int kPanelsOfTask = 4;

// Room that a thread keeps for the rows of one task.
struct Room {
  Buffer<uint8_t> bytes;
  Buffer<float> scales;
  Buffer<int32_t> zero_points;
  Buffer<float> inner;
  RowBytes rows(const Product& product, int count) {
    const size_t stride = product.bytes_stride();
    return {bytes.reserve(count * stride), stride, scales.reserve(count), zero_points.reserve(count)};
  }
};

Room& room_of_thread() {
  thread_local Room room;
  return room;
}

// The constant inputs of a node.
class Constants {
 public:
  Constants(const Api& api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  const float* floats(size_t index) const { return static_cast<const float*>(optional(index)); }
  template <class T>
  const T* required(size_t index) const {
    const void* found = optional(index);
    if (!found) throw std::runtime_error("input " + std::to_string(index) + " must be constant");
    return static_cast<const T*>(found);
  }
  std::vector<int64_t> shape(size_t index) const { return api_.shape(api_.constant(info_, index)); }

 private:
  const void* optional(size_t index) const {
    const OrtValue* value = api_.constant(info_, index);
    return value ? api_.data(value) : nullptr;
  }
  const Api& api_;
  const OrtKernelInfo* info_;
};

// Reads a product from inputs [weights, scales, bias, factors] that begin at `first`, and attributes with a prefix.
std::unique_ptr<Product> read_product(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& prefix) {
  const Constants constants(api, info);
  const int8_t* weights = constants.required<int8_t>(first);
  const std::vector<int64_t> shape = constants.shape(first);
  const Rounding rounding{api.float_attribute(info, (prefix + "scale").c_str()),
                          static_cast<int>(api.int_attribute(info, (prefix + "zero_point").c_str()))};
  const auto activation = static_cast<Activation>(api.int_attribute(info, (prefix + "activation").c_str()));
  const auto gate = static_cast<Gate>(api.int_attribute(info, (prefix + "gate").c_str()));
  return std::make_unique<Product>(weights, static_cast<int>(shape.at(0)), static_cast<int>(shape.at(1)),
                                   constants.required<float>(first + 1), constants.floats(first + 2),
                                   constants.floats(first + 3), rounding, activation, gate);
}

// The norm behind a node's rows: inputs [weight, bias] from `first`.
struct Finish {
  Buffer<float> weight, bias;
  RowFinish rows;

  Finish(const Api& api, const OrtKernelInfo* info, size_t first, int width) {
    rows.norm = static_cast<Norm>(api.int_attribute(info, "norm"));
    if (rows.norm == Norm::kNone) return;
    rows.epsilon = api.float_attribute(info, "epsilon");
    const Constants constants(api, info);
    rows.weight = copy(weight, constants.required<float>(first), width);
    if (const float* found = constants.floats(first + 1)) rows.bias = copy(bias, found, width);
  }

 private:
  static const float* copy(Buffer<float>& to, const float* from, int width) {
    std::memcpy(to.reserve(width), from, width * sizeof(float));
    return to.get();
  }
};

// What a run reads and writes: rows of one float tensor, a residual, the answer, and the sum where it is asked for.
struct Rows {
  const float* in;
  const float* residual;
  float* out;
  float* sum;
  int count;
};

Rows open_rows(const Api& api, OrtKernelContext* context, int in_features, int out_features, size_t residual) {
  const OrtValue* input = api.input(context, 0);
  std::vector<int64_t> shape = api.shape(input);
  if (shape.empty() || shape.back() != in_features)
    throw std::runtime_error("rows have " + std::to_string(shape.empty() ? 0 : shape.back()) + " features, the weights " +
                             std::to_string(in_features));
  int64_t count = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= shape[axis];
  shape.back() = out_features;
  const OrtValue* added = api.input(context, residual);
  if (added && api.shape(added) != shape) throw std::runtime_error("the residual's shape is not the answer's");
  float* out = api.output(context, 0, shape);
  float* sum = api.output(context, 1, shape);
  return {static_cast<const float*>(api.data(input)), added ? static_cast<const float*>(api.data(added)) : nullptr, out, sum,
          static_cast<int>(count)};
}

// Rows of a task: as many as fit, the tasks alike, a multiple of a tile's.
int block_rows(int count, size_t bytes_per_row) {
  const int most = std::clamp(static_cast<int>(kBlockBytes / bytes_per_row), kTileRows, kBlockRows);
  const int blocks = std::max((count + most - 1) / most, std::min(8, (count + 2 * kTileRows - 1) / (2 * kTileRows)));
  return static_cast<int>(round_up((count + blocks - 1) / blocks, kTileRows));
}

template <class Work>
void for_blocks(const Api& api, OrtKernelContext* context, int count, int size, Work&& work) {
  auto task = [&](size_t index) {
    const int first = static_cast<int>(index) * size;
    work(first, std::min(size, count - first));
  };
  if (count > 0) api.parallel(context, (count + size - 1) / size, task);
}

// Rounds `count` rows of `in` for a product.
RowBytes round_for(const Product& product, const float* in, int count, Room& room) {
  const RowBytes bytes = room.rows(product, count);
  const size_t width = product.in_features;
  round_rows({in, width, count, product.in_features}, product.factors(), product.rounding, bytes);
  return bytes;
}

// y = finish(rows @ weights + bias): inputs rows, weights, scales, bias, factors, residual, norm's weight and bias.
class QuantizedMatMul {
 public:
  static constexpr const char* kName = "QuantizedMatMul";
  static constexpr size_t kInputs = 8, kOutputs = 2;
  static bool is_weight(size_t index) { return index == 1; }
  static bool is_required(size_t index) { return index < 3; }

  QuantizedMatMul(const Api& api, const OrtKernelInfo* info)
      : product_(read_product(api, info, 1, "")), finish_(api, info, 6, product_->out_features) {}

  void compute(const Api& api, OrtKernelContext* context) const {
    const Product& product = *product_;
    const size_t width = product.out_features;
    const Rows rows = open_rows(api, context, product.in_features, product.out_features, 5);
    float* made = rows.sum ? rows.sum : rows.out;
    const auto finish = [&](int first, int count) {
      const size_t place = first * width;
      finish_rows(made + place, rows.residual ? rows.residual + place : nullptr, count, product.out_features, finish_.rows,
                  rows.sum ? rows.out + place : nullptr);
    };
    if (rows.count <= kFewRows) {
      const RowBytes bytes = round_for(product, rows.in, rows.count, room_of_thread());
      for_blocks(api, context, product.panels, kPanelsOfTask, [&](int first, int count) {
        product.run(bytes, rows.count, first, first + count, made, width);
      });
      return finish(0, rows.count);
    }
    for_blocks(api, context, rows.count, block_rows(rows.count, product.bytes_stride()), [&](int first, int count) {
      const float* in = rows.in + static_cast<size_t>(first) * product.in_features;
      product.run(round_for(product, in, count, room_of_thread()), count, 0, product.panels, made + first * width, width);
      finish(first, count);
    });
  }

 private:
  std::unique_ptr<Product> product_;
  Finish finish_;
};

// Two products with an activation between them, whose rows never leave the cache: inputs rows, weights, scales, bias,
// factors of the first, the same of the second, residual, norm's weight and bias.
class QuantizedFeedForward {
 public:
  static constexpr const char* kName = "QuantizedFeedForward";
  static constexpr size_t kInputs = 12, kOutputs = 2;
  static bool is_weight(size_t index) { return index == 1 || index == 5; }
  static bool is_required(size_t index) { return index < 3 || index == 5 || index == 6; }

  QuantizedFeedForward(const Api& api, const OrtKernelInfo* info)
      : up_(read_product(api, info, 1, "up_")),
        down_(read_product(api, info, 5, "down_")),
        finish_(api, info, 10, down_->out_features) {
    if (up_->out_features != down_->in_features) throw std::runtime_error("the products do not fit each other");
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const Product &up = *up_, &down = *down_;
    const size_t width = down.out_features, inner = up.out_features;
    const Rows rows = open_rows(api, context, up.in_features, down.out_features, 9);
    float* made = rows.sum ? rows.sum : rows.out;
    const auto finish = [&](int first, int count) {
      const size_t place = first * width;
      finish_rows(made + place, rows.residual ? rows.residual + place : nullptr, count, down.out_features, finish_.rows,
                  rows.sum ? rows.out + place : nullptr);
    };
    if (rows.count <= kFewRows) {
      Room& room = room_of_thread();
      float* between = room.inner.reserve(rows.count * inner);
      RowBytes bytes = round_for(up, rows.in, rows.count, room);
      for_blocks(api, context, up.panels, kPanelsOfTask, [&](int first, int count) {
        up.run(bytes, rows.count, first, first + count, between, inner);
      });
      bytes = round_for(down, between, rows.count, room);
      for_blocks(api, context, down.panels, kPanelsOfTask, [&](int first, int count) {
        down.run(bytes, rows.count, first, first + count, made, width);
      });
      return finish(0, rows.count);
    }
    const size_t bytes_per_row = inner * sizeof(float) + down.bytes_stride() + up.bytes_stride();
    for_blocks(api, context, rows.count, block_rows(rows.count, bytes_per_row), [&](int first, int count) {
      Room& room = room_of_thread();
      float* between = room.inner.reserve(count * inner);
      const float* in = rows.in + static_cast<size_t>(first) * up.in_features;
      up.run(round_for(up, in, count, room), count, 0, up.panels, between, inner);
      down.run(round_for(down, between, count, room), count, 0, down.panels, made + first * width, width);
      finish(first, count);
    });
  }

 private:
  std::unique_ptr<Product> up_, down_;
  Finish finish_;
};

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
    if (shape_.padded_size() > 1024) throw std::runtime_error("heads of more than 1024 features");
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const size_t size = shape_.head_size, width = size * shape_.num_heads, kv_width = size * shape_.num_kv_heads;
    const OrtValue* values[3];
    for (size_t index = 0; index < 3; ++index) values[index] = api.input(context, index);
    std::vector<int64_t> sizes = api.shape(values[0]);
    HeadRows query = rows_of(api, values[0]), key = query, value = query;
    size_t expected = width, kv_expected = kv_width;
    if (values[1]) {
      key = rows_of(api, values[1]);
      value = rows_of(api, values[2]);
    } else {
      key.data += width;
      value.data += width + kv_width;
      expected = kv_expected = width + 2 * kv_width;
    }
    if (query.stride != expected || key.stride != kv_expected || value.stride != kv_expected || key.length != value.length)
      throw std::runtime_error("query, key and value do not fit the heads");
    sizes.back() = width;
    float* out = api.output(context, 0, sizes);
    run(api, context, static_cast<int>(sizes[0]), query, key, value, out, width);
  }

 private:
  static HeadRows rows_of(const Api& api, const OrtValue* value) {
    const std::vector<int64_t> sizes = api.shape(value);
    if (sizes.size() != 3) throw std::runtime_error("attention takes (batch_size, sequence_length, features)");
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

template <class Kernel>
OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = kCustomOpVersion;
  op.GetName = [](const OrtCustomOp*) { return Kernel::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::kOutputs; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) -> int { return Kernel::is_weight(index) ? kInt8 : kFloat; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return kFloat; };
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

}  // namespace
}  // namespace poolgraph

extern "C" __attribute__((visibility("default"))) poolgraph::OrtStatus* RegisterCustomOps(
    poolgraph::OrtSessionOptions* options, const poolgraph::OrtApiBase* base) {
  using namespace poolgraph;
  static const OrtCustomOp ops[] = {describe<QuantizedMatMul>(), describe<QuantizedFeedForward>(), describe<Attention>()};
  const void* const* table = base->GetApi(kApiVersion);
  if (!table) std::abort();  // an ONNX Runtime older than 1.17, which the package does not install with
  const Api api(table);
  return guarded(api, [&] {
    static OrtDomain* domain = [&] {
      OrtDomain* made = api.create_domain("poolgraph.cpu");
      for (const OrtCustomOp& op : ops) api.add(made, &op);
      return made;
    }();
    api.add(options, domain);
  });
}
