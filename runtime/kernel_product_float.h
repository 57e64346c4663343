// Products of rows with float weights: packed once, then multiplied in tiles of rows and columns.
#pragma once

#include "kernel_block.h"
#include "kernel_panels.h"

namespace poolgraph {

// Steps of the rows that are multiplied at once: 64 KiB of a panel's weights pass by from the second cache, six rows by
// six, the sums in memory meanwhile.
constexpr int kFloatSteps = 256;

class FloatProduct : public Panels {
 public:
  using Rows = BlockRows<Singles>;

  // `bias` is (weights.columns,) or nullptr.
  FloatProduct(const Weights<float>& weights, const float* bias, const Finishing& finishing)
      : Panels(weights.in_features, weights.columns, finishing), bias_(place_columns(bias)) {
    Buffer<float> packed(panels * panel_size());
    std::memset(packed.get(), 0, panels * panel_size() * sizeof(float));
    for (int panel = 0; panel < panels; ++panel) {
      float* to = packed.get() + panel * panel_size();
      for_columns(panel, in_features, [&](int k, int column, int source) {
        const int step = k / kFloatSteps * kFloatSteps;
        float* tile = to + tile_place(step, column / kTileColumns);
        tile[(k - step) * kTileColumns + column % kTileColumns] = weights.first[k * weights.stride + source];
      });
    }
    packed_ = share_packed(std::move(packed), panels * panel_size());
  }

  // Computes columns of panels [first, last) for `count` rows from `from` on; `out` is the place of row 0's first column.
  void run(const Rows& rows, int from, int count, int first, int last, float* out, size_t stride) const {
    thread_local Buffer<float> room;
    float* made = room.reserve(static_cast<size_t>(count) * kPanelColumns);
    const Rows some{rows.first + from * rows.stride, rows.stride};
    for (int panel = first; panel < last; ++panel) {
      for (int step = 0; step < in_features; step += kFloatSteps) run_steps(some, count, panel, step, made);
      put(made, count, panel, out + from * stride, stride);
    }
  }

 private:
  size_t panel_size() const { return static_cast<size_t>(in_features) * kPanelColumns; }
  int steps_from(int step) const { return std::min(kFloatSteps, in_features - step); }

  // Weights lie in the order in which they are read: [panel][step / kFloatSteps][tile][kFloatSteps][kTileColumns].
  size_t tile_place(int step, int tile) const {
    return static_cast<size_t>(step) * kPanelColumns + static_cast<size_t>(tile) * steps_from(step) * kTileColumns;
  }

  // Adds the products of up to kFloatSteps steps of all rows to the sums `made`, which begin as the bias.
  void run_steps(const Rows& rows, int count, int panel, int step, float* made) const {
    const float* weights = packed_->get() + panel * panel_size();
    const float* bias = bias_.data() + static_cast<size_t>(panel) * kPanelColumns;
    for (int row = 0; row < count; row += kTileRows, made += kTileRows * kPanelColumns)
      with_tile_rows(count - row, [&](auto tile_rows) {
        const Rows some{rows.first + row * rows.stride + step, rows.stride};
        for (int tile = 0; tile < kPanelTiles; ++tile) {
          const int column = tile * kTileColumns;
          multiply<tile_rows>(some, weights + tile_place(step, tile), steps_from(step), step ? nullptr : bias + column,
                              made + column);
        }
      });
  }

  template <int kRows>
  static __attribute__((noinline)) void multiply(Rows rows, const float* weights, int steps, const float* bias, float* made) {
    const float* sums = bias ? bias : made;
    const size_t stride = bias ? 0 : kPanelColumns;
    sum_block<Singles, kRows, kTileVectors>(
        rows, Columns<Singles>{weights, kTileColumns, kLanes}, steps,
        [&](int r, int j) { return load(sums + r * stride + j * kLanes); },
        [&](int r, int j, Floats x) { store(made + r * kPanelColumns + j * kLanes, x); });
  }

  const std::vector<float> bias_;
  Packed<float> packed_;
};

}  // namespace poolgraph
