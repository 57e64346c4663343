// The operators of products, with what surrounds them: residual, norm, and a second product behind the first.
//
// Each is a template over the kind of product.
#pragma once

#include "kernel_product_kinds.h"
#include "kernel_rows.h"

namespace poolgraph {

constexpr int kBlockRows = 48;           // most rows of a task that computes all columns
constexpr int kBlockBytes = 400 * 1024;  // of its intermediate rows: they stay in a core's second cache
constexpr int kAmxBlockRows = 128;       // most rows where AMX multiplies faster than weights come from the last cache
constexpr int kAmxBlockBytes = 4 * 1024 * 1024;
constexpr int kColumnsRows = 192;        // most rows of a task that computes some columns
constexpr int kLeastTasks = 16;          // wanted of such

// What a run reads and writes: rows of one float tensor, a residual, the answer, and the sum where it is asked for.
struct Rows {
  const float* in;
  const float* residual;
  float* out;
  float* sum;
  int count;
  // Where the products of a row and of those behind it go.
  float* made(int row, size_t width) const { return (sum ? sum : out) + row * width; }
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
    finish_rows(all.made(first, width), all.residual ? all.residual + place : nullptr, count, width, rows,
                all.sum ? all.out + place : nullptr);
  }

 private:
  const float* copy(Buffer<float>& to, const float* from) const {
    if (!from) return nullptr;
    std::memcpy(to.reserve(width), from, width * sizeof(float));
    return to.get();
  }
};

inline Rows open_rows(const Api& api, OrtKernelContext* context, int in_features, const Finish& finish, size_t residual) {
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

template <class Work>
void for_blocks(const Api& api, OrtKernelContext* context, int count, int size, Work&& work) {
  auto task = [&](size_t index) {
    const int first = static_cast<int>(index) * size;
    work(first, std::min(size, count - first));
  };
  if (count > 0) api.parallel(context, (count + size - 1) / size, task);
}

// Rows of a task that computes all columns: as many as fit, the tasks alike, a multiple of those multiplied at once.
inline int block_rows(int count, size_t bytes_per_row, int step) {
  const int bytes = uses_amx() ? kAmxBlockBytes : kBlockBytes, rows = uses_amx() ? kAmxBlockRows : kBlockRows;
  const int most = std::clamp(static_cast<int>(bytes / bytes_per_row) / step * step, step, rows);
  const int blocks = std::max((count + most - 1) / most, std::min(8, (count + 2 * step - 1) / (2 * step)));
  return round_to((count + blocks - 1) / blocks, step);
}

// Rows of a task that computes some of the columns: many, unless there would be too few tasks for the cores.
inline int column_rows(int count, int tasks, int step) {
  const int wanted = std::max((count + kColumnsRows - 1) / kColumnsRows, (kLeastTasks + tasks - 1) / tasks);
  const int blocks = std::min(wanted, (count + kBlockRows - 1) / kBlockRows);
  return round_to((count + blocks - 1) / blocks, step);
}

// Computes all columns of `count` prepared rows, which cores share some panels at a time.
template <class Kind, class Prepared>
void run_panels(const Api& api, OrtKernelContext* context, const typename Kind::Product& product, const Prepared& rows, int count,
                float* out) {
  const size_t stride = product.out_features;
  const int groups = (product.panels + Kind::kPanelsOfTask - 1) / Kind::kPanelsOfTask;
  const int size = column_rows(count, groups, product.row_step()), blocks = (count + size - 1) / size;
  auto task = [&](size_t index) {  // neighbours have the same weights
    const int panel = static_cast<int>(index) / blocks * Kind::kPanelsOfTask, first = static_cast<int>(index) % blocks * size;
    const int last = std::min(panel + Kind::kPanelsOfTask, product.panels);
    product.run(rows, first, std::min(size, count - first), panel, last, out, stride);
  };
  api.parallel(context, static_cast<size_t>(groups) * blocks, task);
}

// Calls run(first, count) for all rows, some at a time, and finishes what it made of them.
template <class Kind, class Run>
void run_by_columns(const Api& api, OrtKernelContext* context, const Rows& rows, const Finish& finish, Run&& run) {
  for (int first = 0; first < rows.count; first += Kind::kColumnRows) {
    const int count = std::min(Kind::kColumnRows, rows.count - first);
    run(first, count);
    if (rows.residual || finish.rows.norm != Norm::kNone)
      for_blocks(api, context, count, kBlockRows, [&](int block, int size) { finish.run(rows, first + block, size); });
  }
}

// Room that a thread keeps for the rows of one task.
template <class Kind>
struct TaskRoom {
  typename Kind::Room rows;
  Buffer<float> inner;
  static TaskRoom& of_thread() {
    thread_local TaskRoom room;
    return room;
  }
};

// y = finish(rows @ weights + bias): inputs rows, those of the product, residual, norm's weight and bias.
template <class Kind>
class MatMul {
 public:
  static constexpr const char* kName = Kind::kMatMul;
  static constexpr size_t kResidual = 1 + Kind::kInputs, kInputs = kResidual + 3, kOutputs = 2;
  static int type_of(size_t index) { return index == 1 ? Kind::kType : kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t index) { return index < 1 + Kind::kRequired; }

  MatMul(const Api& api, const OrtKernelInfo* info)
      : product_(Kind::read(api, info, 1, "")), finish_(api, info, kResidual + 1, product_->out_features) {}

  void compute(const Api& api, OrtKernelContext* context) const {
    const auto& product = *product_;
    const Rows rows = open_rows(api, context, product.in_features, finish_, kResidual);
    if (Kind::shares_columns(rows.count))
      return run_by_columns<Kind>(api, context, rows, finish_, [&](int first, int count) {
        const float* in = rows.in + static_cast<size_t>(first) * product.in_features;
        run_panels<Kind>(api, context, product, Kind::prepare(product, in, count, TaskRoom<Kind>::of_thread().rows), count,
                         rows.made(first, finish_.width));
      });
    const int size = block_rows(rows.count, Kind::row_bytes(product), product.row_step());
    for_blocks(api, context, rows.count, size, [&](int first, int count) {
      const float* in = rows.in + static_cast<size_t>(first) * product.in_features;
      const auto prepared = Kind::prepare(product, in, count, TaskRoom<Kind>::of_thread().rows);
      product.run(prepared, 0, count, 0, product.panels, rows.made(first, finish_.width), finish_.width);
      finish_.run(rows, first, count);
    });
  }

 private:
  std::unique_ptr<typename Kind::Product> product_;
  Finish finish_;
};

// Two products with an activation between them, whose rows never leave the cache: inputs rows, those of the first product,
// those of the second, residual, norm's weight and bias.
template <class Kind>
class FeedForward {
 public:
  static constexpr const char* kName = Kind::kFeedForward;
  static constexpr size_t kDown = 1 + Kind::kInputs, kResidual = kDown + Kind::kInputs, kInputs = kResidual + 3, kOutputs = 2;
  static int type_of(size_t index) { return index == 1 || index == kDown ? Kind::kType : kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t index) {
    return index < 1 + Kind::kRequired || (index >= kDown && index < kDown + Kind::kRequired);
  }

  FeedForward(const Api& api, const OrtKernelInfo* info)
      : up_(Kind::read(api, info, 1, "up_")),
        down_(Kind::read(api, info, kDown, "down_")),
        finish_(api, info, kResidual + 1, down_->out_features) {
    if (up_->out_features != down_->in_features) throw std::runtime_error("the products do not fit each other");
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const Rows rows = open_rows(api, context, up_->in_features, finish_, kResidual);
    const auto run = [&](int first, int count, const auto& product_run) {
      auto& room = TaskRoom<Kind>::of_thread();
      float* between = room.inner.reserve(static_cast<size_t>(count) * up_->out_features);
      const float* in = rows.in + static_cast<size_t>(first) * up_->in_features;
      product_run(*up_, Kind::prepare(*up_, in, count, room.rows), count, between);
      product_run(*down_, Kind::prepare(*down_, between, count, room.rows), count, rows.made(first, finish_.width));
    };
    if (Kind::shares_columns(rows.count))
      return run_by_columns<Kind>(api, context, rows, finish_, [&](int first, int count) {
        run(first, count, [&](const auto& product, const auto& prepared, int some, float* out) {
          run_panels<Kind>(api, context, product, prepared, some, out);
        });
      });
    const size_t bytes_per_row = up_->out_features * sizeof(float) + Kind::row_bytes(*up_) + Kind::row_bytes(*down_);
    const int size = block_rows(rows.count, bytes_per_row, up_->row_step());
    for_blocks(api, context, rows.count, size, [&](int first, int count) {
      run(first, count, [](const auto& product, const auto& prepared, int some, float* out) {
        product.run(prepared, 0, some, 0, product.panels, out, product.out_features);
      });
      finish_.run(rows, first, count);
    });
  }

 private:
  std::unique_ptr<typename Kind::Product> up_, down_;
  Finish finish_;
};

}  // namespace poolgraph
