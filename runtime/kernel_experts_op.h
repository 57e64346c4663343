// The operators of mixtures of experts: of each row, the experts alone that it is sent to.
#pragma once

#include "kernel_product_op.h"

namespace poolgraph {

// Rows sent to one expert, and by how much its answer counts.
struct Routed {
  std::vector<int> rows;
  std::vector<float> weights;
};

// Room that a run keeps for the rows of one expert: gathered, between its products, and behind them.
struct ExpertRoom {
  Buffer<float> in, between, made;
  static ExpertRoom& of_thread() {
    thread_local ExpertRoom room;
    return room;
  }
};

// Computes all columns of `count` rows; cores share columns of a few rows, else rows.
template <class Kind>
void run_product(const Api& api, OrtKernelContext* context, const typename Kind::Product& product, const float* in, int count,
                 float* out) {
  const size_t in_width = product.in_features, out_width = product.out_features;
  if (!Kind::shares_columns(count))
    return for_blocks(api, context, count, block_rows(count, Kind::row_bytes(product)), [&](int first, int some) {
      const auto rows = Kind::prepare(product, in + first * in_width, some, TaskRoom<Kind>::of_thread().rows);
      product.run(rows, 0, some, 0, product.panels, out + first * out_width, out_width);
    });
  for (int first = 0; first < count; first += Kind::kColumnRows) {
    const int some = std::min(Kind::kColumnRows, count - first);
    const auto rows = Kind::prepare(product, in + first * in_width, some, TaskRoom<Kind>::of_thread().rows);
    run_panels<Kind>(api, context, product, rows, some, out + first * out_width);
  }
}

// y = finish(bias + sum over experts e of w[e] * (activation(rows @ up[e] + up_bias[e]) @ down[e])): inputs rows, the
// weights w, (..., num_experts), those of the first products side by side, those of the second ones below each other,
// residual, norm's weight and bias. An expert of weight 0 is left out, so that it costs nothing. A row's sum is in the order
// of the experts, whatever else is computed with it.
template <class Kind>
class Experts {
 public:
  static constexpr const char* kName = Kind::kExperts;
  static constexpr size_t kWeights = 1, kUp = 2, kDown = kUp + Kind::kInputs, kResidual = kDown + Kind::kInputs;
  static constexpr size_t kInputs = kResidual + 3, kOutputs = 2;
  static int type_of(size_t index) { return index == kUp || index == kDown ? Kind::kType : kFloat; }
  static int output_type(size_t) { return kFloat; }
  static bool is_required(size_t index) {
    return index < kUp + Kind::kRequired || (index >= kDown && index < kDown + Kind::kRequired);
  }

  Experts(const Api& api, const OrtKernelInfo* info)
      : count_(static_cast<int>(api.int_attribute(info, "num_experts"))),
        up_(read(api, info, kUp, "up_", Part::kColumns)),
        down_(read(api, info, kDown, "down_", Part::kRows)),
        finish_(api, info, kResidual + 1, down_[0]->out_features),
        bias_(finish_.width, 0.0f) {
    if (up_[0]->out_features != down_[0]->in_features) throw std::runtime_error("the products do not fit each other");
    if (down_[0]->finishing.is_gated() || down_[0]->finishing.activation != Activation::kNone)
      throw std::runtime_error("what experts answer is summed as it is");
    if (const float* bias = Constants(api, info).floats(kDown + Kind::kBias, finish_.width))
      bias_.assign(bias, bias + finish_.width);
  }

  void compute(const Api& api, OrtKernelContext* context) const {
    const Rows rows = open_rows(api, context, up_[0]->in_features, finish_, kResidual);
    const size_t width = finish_.width;
    for_blocks(api, context, rows.count, kBlockRows, [&](int first, int count) {
      for (int row = first; row < first + count; ++row)
        std::memcpy(rows.made(row, width), bias_.data(), width * sizeof(float));
    });
    const std::vector<Routed> routed = route(api, context, rows.count);
    for (int expert = 0; expert < count_; ++expert) add_expert(api, context, rows, expert, routed[expert]);
    for_blocks(api, context, rows.count, kBlockRows, [&](int first, int count) { finish_.run(rows, first, count); });
  }

 private:
  using Products = std::vector<std::unique_ptr<typename Kind::Product>>;

  Products read(const Api& api, const OrtKernelInfo* info, size_t first, const char* prefix, Part::Axis axis) const {
    if (count_ < 1) throw std::runtime_error("there must be an expert");
    Products products;
    for (int expert = 0; expert < count_; ++expert)
      products.push_back(Kind::read(api, info, first, prefix, Part{axis, expert, count_}));
    return products;
  }

  std::vector<Routed> route(const Api& api, OrtKernelContext* context, int count) const {
    const OrtValue* value = api.input(context, kWeights);
    const std::vector<int64_t> shape = value ? api.shape(value) : std::vector<int64_t>{};
    int64_t size = 1;
    for (const int64_t axis : shape) size *= axis;
    if (shape.empty() || shape.back() != count_ || size != static_cast<int64_t>(count) * count_)
      throw std::runtime_error("each row needs a weight of each of the " + std::to_string(count_) + " experts");
    const auto* weights = static_cast<const float*>(api.data(value));
    std::vector<Routed> routed(count_);
    for (int row = 0; row < count; ++row)
      for (int expert = 0; expert < count_; ++expert, ++weights)
        if (*weights != 0.0f) {
          routed[expert].rows.push_back(row);
          routed[expert].weights.push_back(*weights);
        }
    return routed;
  }

  // Adds one expert's weighted answers to the rows that are sent to it, some at a time.
  void add_expert(const Api& api, OrtKernelContext* context, const Rows& rows, int expert, const Routed& routed) const {
    const auto &up = *up_[expert], &down = *down_[expert];
    const size_t in_width = up.in_features, width = down.out_features;
    const int total = static_cast<int>(routed.rows.size());
    auto& room = ExpertRoom::of_thread();
    for (int first = 0; first < total; first += kExpertRows) {
      const int count = std::min(kExpertRows, total - first);
      const int* places = routed.rows.data() + first;
      float* in = room.in.reserve(count * in_width);
      float* between = room.between.reserve(static_cast<size_t>(count) * up.out_features);
      float* made = room.made.reserve(count * width);
      for_blocks(api, context, count, kBlockRows, [&](int from, int some) {
        for (int row = from; row < from + some; ++row)
          std::memcpy(in + row * in_width, rows.in + places[row] * in_width, in_width * sizeof(float));
      });
      run_product<Kind>(api, context, up, in, count, between);
      run_product<Kind>(api, context, down, between, count, made);
      for_blocks(api, context, count, kBlockRows, [&](int from, int some) {
        for (int row = from; row < from + some; ++row) {
          float* to = rows.made(places[row], width);
          const float weight = routed.weights[first + row];
          for (size_t column = 0; column < width; ++column) to[column] += weight * made[row * width + column];
        }
      });
    }
  }

  static constexpr int kExpertRows = 1024;  // gathered at once

  const int count_;
  const Products up_, down_;
  Finish finish_;
  std::vector<float> bias_;
};

}  // namespace poolgraph
