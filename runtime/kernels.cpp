// The custom operators of domain "poolgraph.cpu" for ONNX Runtime: 8-bit products with what surrounds them, attention,
// and sums over packed texts.
//
// Compiled for AVX-512 with VNNI, by kernels_avxvnni.cpp for AVX-VNNI, and by kernels_avx2.cpp for AVX2 with FMA; the runtime
// registers the library that the processor runs.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "kernel_attention_op.h"
#include "kernel_onnxruntime.h"
#include "kernel_operator.h"
#include "kernel_product.h"
#include "kernel_text_sum.h"

namespace poolgraph {
namespace {

constexpr int kFewRows = 32;       // up to here cores share columns instead of rows
constexpr int kBlockRows = 48;     // most rows of a task
constexpr int kBlockBytes = 400 * 1024;  // of its intermediate rows: they stay in a core's second cache
constexpr int kPanelsOfTask = 4;

// Room that a thread keeps for the rows of one task.
struct Room {
  Buffer<RowByte> bytes;
  Buffer<float> scales;
  Buffer<int32_t> zero_points;
  Buffer<float> inner;
  RowBytes rows(const Product& product, int count) {
    const size_t stride = product.row_stride();
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

  // Returns nullptr for an input that is absent; one of another size than `count` is refused.
  const float* floats(size_t index, size_t count) const {
    const OrtValue* value = api_.constant(info_, index);
    if (!value) return nullptr;
    if (shape(index) != std::vector<int64_t>{static_cast<int64_t>(count)})
      throw std::runtime_error("input " + std::to_string(index) + " must have " + std::to_string(count) + " numbers");
    return static_cast<const float*>(api_.data(value));
  }
  const int8_t* matrix(size_t index) const {
    if (!api_.constant(info_, index) || shape(index).size() != 2)
      throw std::runtime_error("input " + std::to_string(index) + " must be a constant matrix");
    return static_cast<const int8_t*>(api_.data(api_.constant(info_, index)));
  }
  std::vector<int64_t> shape(size_t index) const { return api_.shape(api_.constant(info_, index)); }

 private:
  const Api& api_;
  const OrtKernelInfo* info_;
};

// Lets the kernel take back the pages of weights that have been packed: ONNX Runtime keeps the file that they are in
// mapped, and nobody reads them again. Nothing is lost: what is read again comes back from the file.
inline void give_back(const int8_t* weights, size_t size) {
#ifdef MADV_PAGEOUT
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(weights) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(weights) + size) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);
#endif
}

// Reads a product from inputs [weights, scales, bias, factors] that begin at `first`, and attributes with a prefix.
std::unique_ptr<Product> read_product(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& prefix) {
  const Constants constants(api, info);
  const int8_t* weights = constants.matrix(first);
  const size_t in_features = constants.shape(first)[0], out_features = constants.shape(first)[1];
  const Rounding rounding{api.float_attribute(info, (prefix + "scale").c_str()),
                          static_cast<int>(api.int_attribute(info, (prefix + "zero_point").c_str()))};
  const auto activation = static_cast<Activation>(api.int_attribute(info, (prefix + "activation").c_str()));
  const auto gate = static_cast<Gate>(api.int_attribute(info, (prefix + "gate").c_str()));
  const float* scales = constants.floats(first + 1, out_features);
  if (!scales) throw std::runtime_error("a product needs the scales of its columns");
  auto product = std::make_unique<Product>(weights, static_cast<int>(in_features), static_cast<int>(out_features), scales,
                                           constants.floats(first + 2, out_features),
                                           constants.floats(first + 3, in_features), rounding, activation, gate);
  give_back(weights, in_features * out_features);
  return product;
}

// What a run reads and writes: rows of one float tensor, a residual, the answer, and the sum where it is asked for.
struct Rows {
  const float* in;
  const float* residual;
  float* out;
  float* sum;
  int count;
  float* made() const { return sum ? sum : out; }  // where the products go
};

// The norm behind a node's rows: inputs [weight, bias] from `first`.
struct Finish {
  Buffer<float> weight, bias;
  RowFinish rows;
  int width;

  Finish(const Api& api, const OrtKernelInfo* info, size_t first, int width) : width(width) {
    rows.norm = static_cast<Norm>(api.int_attribute(info, "norm"));
    if (rows.norm == Norm::kNone) return;
    rows.epsilon = api.float_attribute(info, "epsilon");
    const Constants constants(api, info);
    rows.weight = copy(weight, constants.floats(first, width));
    rows.bias = copy(bias, constants.floats(first + 1, width));
    if (!rows.weight) throw std::runtime_error("a norm needs its weight");
  }

  // Adds the residual to rows [first, first + count) of what was made, and normalizes them.
  void run(const Rows& all, int first, int count) const {
    const size_t place = static_cast<size_t>(first) * width;
    finish_rows(all.made() + place, all.residual ? all.residual + place : nullptr, count, width, rows,
                all.sum ? all.out + place : nullptr);
  }

 private:
  const float* copy(Buffer<float>& to, const float* from) const {
    if (!from) return nullptr;
    std::memcpy(to.reserve(width), from, width * sizeof(float));
    return to.get();
  }
};

Rows open_rows(const Api& api, OrtKernelContext* context, int in_features, const Finish& finish, size_t residual) {
  const OrtValue* input = api.input(context, 0);
  std::vector<int64_t> shape = api.shape(input);
  if (shape.empty() || shape.back() != in_features)
    throw std::runtime_error("rows have " + std::to_string(shape.empty() ? 0 : shape.back()) + " features, the weights " +
                             std::to_string(in_features));
  int64_t count = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= shape[axis];
  shape.back() = finish.width;
  const OrtValue* added = api.input(context, residual);
  if (added && api.shape(added) != shape) throw std::runtime_error("the residual's shape is not the answer's");
  float* out = api.output<float>(context, 0, shape);
  float* sum = api.output<float>(context, 1, shape);
  if (sum && finish.rows.norm == Norm::kNone) throw std::runtime_error("a second output needs a norm");
  return {static_cast<const float*>(api.data(input)), added ? static_cast<const float*>(api.data(added)) : nullptr, out, sum,
          static_cast<int>(count)};
}

// Rows of a task: as many as fit, the tasks alike, a multiple of a tile's.
int block_rows(int count, size_t bytes_per_row) {
  const int most = std::clamp(static_cast<int>(kBlockBytes / bytes_per_row), kTileRows, kBlockRows);
  const int blocks = std::max((count + most - 1) / most, std::min(8, (count + 2 * kTileRows - 1) / (2 * kTileRows)));
  return round_to((count + blocks - 1) / blocks, kTileRows);
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
  static int type_of(size_t index) { return index == 1 ? kInt8 : kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t index) { return index < 3; }

  QuantizedMatMul(const Api& api, const OrtKernelInfo* info)
      : product_(read_product(api, info, 1, "")), finish_(api, info, 6, product_->out_features) {}

  void compute(const Api& api, OrtKernelContext* context) const {
    const Product& product = *product_;
    const size_t width = product.out_features;
    const Rows rows = open_rows(api, context, product.in_features, finish_, 5);
    float* made = rows.made();
    if (rows.count <= kFewRows) {
      const RowBytes bytes = round_for(product, rows.in, rows.count, room_of_thread());
      for_blocks(api, context, product.panels, kPanelsOfTask, [&](int first, int count) {
        product.run(bytes, rows.count, first, first + count, made, width);
      });
      return finish_.run(rows, 0, rows.count);
    }
    for_blocks(api, context, rows.count, block_rows(rows.count, product.row_stride() * sizeof(RowByte)), [&](int first, int count) {
      const float* in = rows.in + static_cast<size_t>(first) * product.in_features;
      product.run(round_for(product, in, count, room_of_thread()), count, 0, product.panels, made + first * width, width);
      finish_.run(rows, first, count);
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
  static int type_of(size_t index) { return index == 1 || index == 5 ? kInt8 : kFloat; }
  static int output_type(size_t) { return kFloat; }
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
    const Rows rows = open_rows(api, context, up.in_features, finish_, 9);
    float* made = rows.made();
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
      return finish_.run(rows, 0, rows.count);
    }
    const size_t bytes_per_row = inner * sizeof(float) + (down.row_stride() + up.row_stride()) * sizeof(RowByte);
    for_blocks(api, context, rows.count, block_rows(rows.count, bytes_per_row), [&](int first, int count) {
      Room& room = room_of_thread();
      float* between = room.inner.reserve(count * inner);
      const float* in = rows.in + static_cast<size_t>(first) * up.in_features;
      up.run(round_for(up, in, count, room), count, 0, up.panels, between, inner);
      down.run(round_for(down, between, count, room), count, 0, down.panels, made + first * width, width);
      finish_.run(rows, first, count);
    });
  }

 private:
  std::unique_ptr<Product> up_, down_;
  Finish finish_;
};

struct Library {
  static constexpr const char *kDomain = "poolgraph.cpu", *kProvider = "CPUExecutionProvider";
};

}  // namespace
}  // namespace poolgraph

// The operators and the versions of their meaning that this library has, as manifests name them (NATIVE_OPERATORS of
// graphs/manifest.py). Version 2 added packed texts.
extern "C" __attribute__((visibility("default"))) const char* poolgraph_operators() { return "poolgraph.cpu/1 poolgraph.cpu/2"; }

extern "C" __attribute__((visibility("default"))) poolgraph::OrtStatus* RegisterCustomOps(
    poolgraph::OrtSessionOptions* options, const poolgraph::OrtApiBase* base) {
  using namespace poolgraph;
  return register_operators<Library, QuantizedMatMul, QuantizedFeedForward, Attention, TextSum>(options, base);
}
