// The operators of mixtures of experts: of each row, the experts alone that it is sent to.
#pragma once

#include "kernel_product_op.h"

namespace poolgraph {

// Some of the routes to one expert.
struct ExpertTask {
  int expert, count;
  size_t place;  // of the first one
};

// Which rows are sent to experts, and by how much their answers count: to expert e those from bounds[e] to bounds[e + 1].
struct Routes {
  std::vector<int> rows;
  std::vector<float> weights;
  std::vector<size_t> bounds;
};

// Room that a thread keeps: for what one task gathers and has between its products, and for the answers of many tasks.
struct ExpertRoom {
  Buffer<float> in, between, made;
  static ExpertRoom& of_thread() {
    thread_local ExpertRoom room;
    return room;
  }
};

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
    const Routes routes = route(api, context, rows.count);
    for (size_t place = 0; place < routes.rows.size();) place = add_answers(api, context, rows, routes, place);
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

  Routes route(const Api& api, OrtKernelContext* context, int count) const {
    const OrtValue* value = api.input(context, kWeights);
    const std::vector<int64_t> shape = value ? api.shape(value) : std::vector<int64_t>{};
    int64_t size = 1;
    for (const int64_t axis : shape) size *= axis;
    if (shape.empty() || shape.back() != count_ || size != static_cast<int64_t>(count) * count_)
      throw std::runtime_error("each row needs a weight of each of the " + std::to_string(count_) + " experts");
    const auto* weights = static_cast<const float*>(api.data(value));
    Routes routes;
    for (int expert = 0; expert < count_; ++expert) {
      routes.bounds.push_back(routes.rows.size());
      for (int row = 0; row < count; ++row)
        if (const float weight = weights[static_cast<size_t>(row) * count_ + expert]; weight != 0.0f) {
          routes.rows.push_back(row);
          routes.weights.push_back(weight);
        }
    }
    routes.bounds.push_back(routes.rows.size());
    return routes;
  }

  // Splits what begins at `place` into tasks of one expert each, as many as there is room for.
  std::vector<ExpertTask> plan(const Routes& routes, size_t place) const {
    std::vector<ExpertTask> tasks;
    const size_t end = std::min(routes.rows.size(), place + kRoomRows);
    for (int expert = 0; expert < count_; ++expert)
      for (; place < std::min(end, routes.bounds[expert + 1]); place += tasks.back().count) {
        const int left = static_cast<int>(std::min(end, routes.bounds[expert + 1]) - place);
        tasks.push_back({expert, std::min(left, kTaskRows), place});
      }
    return tasks;
  }

  // Adds answers from `place` on, weighted, to the rows that they are of, and returns where the next ones begin. Experts
  // answer side by side; cores share the columns of the sums, to which each adds the experts in their order.
  size_t add_answers(const Api& api, OrtKernelContext* context, const Rows& rows, const Routes& routes, size_t place) const {
    const std::vector<ExpertTask> tasks = plan(routes, place);
    const size_t end = tasks.back().place + tasks.back().count, width = finish_.width;
    float* made = ExpertRoom::of_thread().made.reserve((end - place) * width);
    auto answer_task = [&](size_t index) {
      answer(rows, routes.rows.data() + tasks[index].place, tasks[index], made + (tasks[index].place - place) * width);
    };
    api.parallel(context, tasks.size(), answer_task);
    for_blocks(api, context, static_cast<int>(width), kPanelColumns, [&](int first, int columns) {
      for (size_t route = place; route < end; ++route) {
        float* to = rows.made(routes.rows[route], width) + first;
        const float *from = made + (route - place) * width + first, weight = routes.weights[route];
        for (int column = 0; column < columns; ++column) to[column] += weight * from[column];
      }
    });
    return end;
  }

  // Writes the answers of one expert's rows, `places` among all.
  void answer(const Rows& rows, const int* places, const ExpertTask& task, float* made) const {
    const auto &up = *up_[task.expert], &down = *down_[task.expert];
    auto& room = ExpertRoom::of_thread();
    float* in = room.in.reserve(task.count * static_cast<size_t>(up.in_features));
    float* between = room.between.reserve(task.count * static_cast<size_t>(up.out_features));
    for (int row = 0; row < task.count; ++row)
      std::memcpy(in + row * static_cast<size_t>(up.in_features), rows.in + places[row] * static_cast<size_t>(up.in_features),
                  up.in_features * sizeof(float));
    run(up, in, task.count, between);
    run(down, between, task.count, made);
  }

  static void run(const typename Kind::Product& product, const float* in, int count, float* out) {
    const auto prepared = Kind::prepare(product, in, count, TaskRoom<Kind>::of_thread().rows);
    product.run(prepared, 0, count, 0, product.panels, out, product.out_features);
  }

  static constexpr int kTaskRows = 96;        // of one expert, which read its weights once
  static constexpr size_t kRoomRows = 4096;  // whose answers are kept before they are added

  const int count_;
  const Products up_, down_;
  Finish finish_;
  std::vector<float> bias_;
};

}  // namespace poolgraph
