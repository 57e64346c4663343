// The kinds of products, as nodes have them: in 8 bits, in float32, and in bfloat16.
//
// Each has kInputs (of one product: weights and what belongs to them), kType of its weights, read(api, info, first input,
// prefix of attributes), Product, Room and prepare(product, rows, count, room).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>

#include "kernel_onnxruntime.h"
#include "kernel_panels.h"
#include "kernel_product.h"
#include "kernel_product_float.h"

namespace poolgraph {

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
  template <class Weight>
  const Weight* matrix(size_t index) const {
    if (!api_.constant(info_, index) || shape(index).size() != 2 || shape(index)[0] == 0 || shape(index)[1] == 0)
      throw std::runtime_error("input " + std::to_string(index) + " must be a constant matrix, and not empty");
    return static_cast<const Weight*>(api_.data(api_.constant(info_, index)));
  }
  std::vector<int64_t> shape(size_t index) const { return api_.shape(api_.constant(info_, index)); }

 private:
  const Api& api_;
  const OrtKernelInfo* info_;
};

// Lets the kernel take back the pages of weights that have been packed: ONNX Runtime keeps the file that they are in
// mapped, and nobody reads them again. Nothing is lost: what is read again comes back from the file.
inline void give_back(const void* weights, size_t size) {
#ifdef MADV_PAGEOUT
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(weights) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(weights) + size) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);
#endif
}

// Of products that lie side by side or below each other in one matrix, one.
struct Part {
  enum Axis { kAll, kColumns, kRows } axis = kAll;
  int index = 0, count = 1;

  int size(Axis of, int whole) const {
    if (of != axis) return whole;
    if (whole % count != 0) throw std::runtime_error("the matrix does not have equal parts");
    return whole / count;
  }
  int first(Axis of, int whole) const { return of == axis ? index * size(of, whole) : 0; }
  bool is_last() const { return index + 1 == count; }
  bool has_bias() const { return axis != kRows; }  // what is summed up has one bias, that of the sum
};

// A product's matrix and what becomes of its columns, as a node has them.
template <class Weight>
struct Matrix {
  const Weight* weights;
  int in_features, columns;
  Finishing finishing{};

  Matrix(const Api& api, const OrtKernelInfo* info, size_t index, const std::string& prefix) {
    const Constants constants(api, info);
    weights = constants.matrix<Weight>(index);
    in_features = static_cast<int>(constants.shape(index)[0]);
    columns = static_cast<int>(constants.shape(index)[1]);
    const auto choice = [&](const char* name, auto last) {
      const int64_t number = api.int_attribute(info, (prefix + name).c_str());
      if (number < 0 || number > static_cast<int64_t>(last)) throw std::runtime_error("there is no such " + std::string(name));
      return static_cast<decltype(last)>(number);
    };
    finishing.activation = choice("activation", Activation::kSwiglu);
    finishing.gate = choice("gate", Gate::kEven);
    if (finishing.is_gated() && columns % 2 != 0) throw std::runtime_error("a gate needs as many columns as it opens");
    if (finishing.activation != Activation::kSwiglu) return;
    const auto attribute = [&](const char* name) { return api.float_attribute(info, (prefix + name).c_str()); };
    finishing.swiglu = {attribute("alpha"), attribute("beta"), attribute("limit")};
    const auto& [alpha, beta, limit] = finishing.swiglu;
    if (!finishing.is_gated() || !(alpha > 0 && std::isfinite(alpha)) || !(limit > 0))
      throw std::runtime_error("SwiGLU has a gate, and alpha and limit above 0");
  }
  Weights<Weight> part(const Part& part) const {
    const size_t row = part.first(Part::kRows, in_features), column = part.first(Part::kColumns, columns);
    return {weights + row * columns + column, part.size(Part::kRows, in_features), part.size(Part::kColumns, columns),
            static_cast<size_t>(columns)};
  }
  void release() const { give_back(weights, sizeof(Weight) * in_features * columns); }
};

// Where a part's numbers begin, of one number for each of the whole.
inline const float* from(const float* numbers, int first) { return numbers ? numbers + first : nullptr; }

// Products with 8-bit weights: inputs weights, scales, bias, factors.
struct Quantized {
  static constexpr const char *kMatMul = "QuantizedMatMul", *kFeedForward = "QuantizedFeedForward", *kExperts = "QuantizedExperts";
  static constexpr size_t kInputs = 4, kRequired = 2, kBias = 2;
  static constexpr int kType = kInt8;
  using Product = ByteProduct;

  // Cores share rows, which each rounds for itself and keeps until they are normalized; of a few rows they share columns.
  static constexpr int kColumnRows = 32, kPanelsOfTask = 4;
  static bool shares_columns(int count) { return count <= kColumnRows; }

  static std::unique_ptr<Product> read(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& prefix,
                                       const Part& part = {}) {
    const Constants constants(api, info);
    const Matrix<int8_t> matrix(api, info, first, prefix);
    const Rounding rounding{api.float_attribute(info, (prefix + "scale").c_str()),
                            static_cast<int>(api.int_attribute(info, (prefix + "zero_point").c_str()))};
    const float* scales = constants.floats(first + 1, matrix.columns);
    if (!scales) throw std::runtime_error("a product needs the scales of its columns");
    const float* bias = part.has_bias() ? constants.floats(first + kBias, matrix.columns) : nullptr;
    const float* factors = constants.floats(first + 3, matrix.in_features);
    const int column = part.first(Part::kColumns, matrix.columns), row = part.first(Part::kRows, matrix.in_features);
    auto product = std::make_unique<Product>(matrix.part(part), scales + column, from(bias, column), from(factors, row), rounding,
                                             matrix.finishing);
    if (part.is_last()) matrix.release();
    return product;
  }

  struct Room {
    Buffer<RowByte> bytes;
    Buffer<float> scales;
    Buffer<int32_t> zero_points;
  };
  static RowBytes prepare(const Product& product, const float* in, int count, Room& room) {
    const size_t stride = product.row_stride(), width = product.in_features;
    const size_t size = round_to(count, product.row_step()) * stride;
    const RowBytes bytes{room.bytes.reserve(size), stride, room.scales.reserve(count), room.zero_points.reserve(count)};
    round_rows({in, width, count, product.in_features}, product.factors(), product.rounding, bytes,
               [&](int row) { return product.row_place(bytes, row); });
    return bytes;
  }
  static size_t row_bytes(const Product& product) { return product.row_stride() * sizeof(RowByte); }
};

// Products with float weights, summed in float32: inputs weights, bias.
template <class Numbers>
struct Floating {
  static constexpr size_t kInputs = 2, kRequired = 1, kBias = 1;
  static constexpr int kType = kFloat;
  using Product = FloatProduct<Numbers>;

  // Weights are four times as large as those in 8 bits, or twice: cores share columns, so that each reads its weights once
  // for many rows.
  static constexpr int kColumnRows = 512, kPanelsOfTask = 1;
  static constexpr int kAmxColumnRows = 128;  // more are shared, since AMX waits for the core that rounds them all
  static bool shares_columns(int count) { return !Product::in_tiles() || count <= kAmxColumnRows; }

  static std::unique_ptr<Product> read(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& prefix,
                                       const Part& part = {}) {
    const Matrix<float> matrix(api, info, first, prefix);
    const float* bias = part.has_bias() ? Constants(api, info).floats(first + kBias, matrix.columns) : nullptr;
    auto product = std::make_unique<Product>(matrix.part(part), from(bias, part.first(Part::kColumns, matrix.columns)),
                                             matrix.finishing);
    if (part.is_last()) matrix.release();
    return product;
  }
  static size_t row_bytes(const Product& product) { return product.row_stride() * sizeof(typename Numbers::Number); }
};

struct Fused : Floating<Singles> {
  static constexpr const char *kMatMul = "FusedMatMul", *kFeedForward = "FusedFeedForward", *kExperts = "FusedExperts";
  struct Room {};
  static Product::Rows prepare(const Product& product, const float* in, int, Room&) { return {in, product.row_stride()}; }
};

// The same of numbers rounded to bfloat16, the weights where they are packed.
struct Rounded : Floating<BFloats> {
  static constexpr const char *kMatMul = "BFloatMatMul", *kFeedForward = "BFloatFeedForward", *kExperts = "BFloatExperts";
  struct Room {
    Buffer<int16_t> numbers;
  };
  static Product::Rows prepare(const Product& product, const float* in, int count, Room& room) {
    const size_t stride = product.row_stride();
    int16_t* to = room.numbers.reserve(round_to(count, product.row_step()) * stride + kLanes);  // whole vectors are written
    for (int row = 0; row < count; ++row)
      round_to_bfloats(in + row * static_cast<size_t>(product.in_features), product.in_features, to + product.row_place(row),
                       product.chunk_stride(), stride);
    return {to, stride};
  }
};

}  // namespace poolgraph
