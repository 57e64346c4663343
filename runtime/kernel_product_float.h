// Products of rows with float weights, or rounded to bfloat16: packed once, then multiplied in tiles of rows and columns.
#pragma once

#include "kernel_amx.h"
#include "kernel_block.h"
#include "kernel_panels.h"

namespace poolgraph {

// Writes whole vectors to `to`, two side by side and the next two `apart` from there, as many as it takes for `stride` numbers,
// of which those behind `width` are 0.
inline void round_to_bfloats(const float* from, int width, int16_t* to, size_t apart, int stride) {
  const auto place = [&](int column) { return to + column / (2 * kLanes) * apart + column % (2 * kLanes); };
  for_vectors(width, [&](int column, auto lanes) { store_cut(place(column), round_to_bfloats(lanes.load(from + column))); });
  for (int column = round_to(width, kLanes); column < stride; column += kLanes) store_cut(place(column), splat(0));
}

// Writes the numbers that a step reads of sixteen columns, [kLanes][kStep], of the lines of a panel's features.
inline void pack_step(const float (&lines)[1][kPanelColumns], int column, float* to) { store(to, load(lines[0] + column)); }
inline void pack_step(const float (&lines)[2][kPanelColumns], int column, int16_t* to) {
  store_pairs(to, pair(round_to_bfloats(load(lines[0] + column)), round_to_bfloats(load(lines[1] + column))));
}

// `Numbers` are Singles or BFloats.
template <class Numbers>
class FloatProduct : public Panels {
 public:
  using Number = typename Numbers::Number;
  using Rows = BlockRows<Numbers>;

  // `bias` is (weights.columns,) or nullptr.
  FloatProduct(const Weights<float>& weights, const float* bias, const Finishing& finishing)
      : Panels(weights.in_features, weights.columns, finishing), bias_(place_columns(bias)) {
    Buffer<Number> packed(panels * panel_size());
    for (int panel = 0; panel < panels; ++panel) {
      Number* to = packed.get() + panel * panel_size();
      for_steps<kStep>(weights, row_stride(), panel, [&](int k, const auto& lines) {
        for (int column = 0; column < kPanelColumns; column += kLanes) pack_step(lines, column, to + weight_place(column, k));
      });
    }
    packed_ = share_packed(std::move(packed), panels * panel_size());
  }

  size_t row_stride() const { return round_to(in_features, in_tiles() ? kAmxRowBytes / sizeof(Number) : kStep); }
  static int row_step() { return in_tiles() ? kAmxRows : kTileRows; }

  // Where a row's numbers are read: two vectors of them side by side, and from there to the next two.
  size_t row_place(int row) const {
    return in_tiles() ? amx_row_place(row, row_stride() * sizeof(Number)) / sizeof(Number) : row * row_stride();
  }
  static size_t chunk_stride() { return in_tiles() ? kAmxTileBytes / sizeof(Number) : 2 * kLanes; }

  // Whether rows are multiplied in tiles of AMX. The last tile reads up to 15 rows more than it is asked for, and what it
  // makes of them is dropped.
  static bool in_tiles() { return std::is_same_v<Numbers, BFloats> && uses_amx(); }

  // Computes columns of panels [first, last) for `count` rows from `from` on; `out` is the place of row 0's first column.
  void run(const Rows& rows, int from, int count, int first, int last, float* out, size_t stride) const {
    thread_local Buffer<float> room;
    float* made = room.reserve(static_cast<size_t>(round_to(count, row_step())) * kPanelColumns);
    const AmxTiles tiles(in_tiles());
    const Rows some{rows.first + from * rows.stride, rows.stride};
    for (int panel = first; panel < last; ++panel) {
      if (in_tiles())
        add_in_tiles(some, round_to(count, kAmxRows), panel, made);
      else
        for (int block = 0; block < in_features; block += kBlockFeatures) run_block(some, count, panel, block, made);
      put(made, count, panel, out + from * stride, stride);
    }
  }

 private:
  static constexpr int kStep = Numbers::kStep;
  // Features that are multiplied at once: 64 KiB of a panel's weights pass by from the second cache, six rows by six, the sums
  // in memory meanwhile.
  static constexpr int kBlockFeatures = 64 * 1024 / kPanelColumns / sizeof(Number);

  size_t panel_size() const { return row_stride() * kPanelColumns; }
  int features_from(int block) const { return std::min<int>(kBlockFeatures, row_stride() - block); }

  // Weights lie in the order in which they are read: [panel][block][tile][features of a block / kStep][kTileColumns][kStep].
  size_t tile_place(int block, int tile) const {
    return static_cast<size_t>(block) * kPanelColumns + static_cast<size_t>(tile) * features_from(block) * kTileColumns;
  }

  // The place of feature k's step of sixteen columns, or as AMX reads them.
  size_t weight_place(int column, int k) const {
    if (in_tiles()) return amx_weight_place(column, k * sizeof(Number), row_stride() * sizeof(Number)) / sizeof(Number);
    const int block = k / kBlockFeatures * kBlockFeatures;
    return tile_place(block, column / kTileColumns) + (k - block) * kTileColumns + column % kTileColumns * kStep;
  }

  // Adds the products of a block of features of all rows to the sums `made`, which begin as the bias.
  void run_block(const Rows& rows, int count, int panel, int block, float* made) const {
    const Number* weights = packed_->get() + panel * panel_size();
    const float* bias = bias_.data() + static_cast<size_t>(panel) * kPanelColumns;
    for (int row = 0; row < count; row += kTileRows, made += kTileRows * kPanelColumns)
      with_tile_rows(count - row, [&](auto tile_rows) {
        const Rows some{rows.first + row * rows.stride + block, rows.stride};
        for (int tile = 0; tile < kPanelTiles; ++tile) {
          const int column = tile * kTileColumns;
          with_instructions<Numbers>([&](auto numbers) {
            multiply<decltype(numbers), tile_rows>({some.first, some.stride}, weights + tile_place(block, tile),
                                                   features_from(block) / kStep, block ? nullptr : bias + column, made + column);
          });
        }
      });
  }

  void add_in_tiles(const Rows& rows, int count, int panel, float* made) const {
    const float* bias = bias_.data() + static_cast<size_t>(panel) * kPanelColumns;
    for (int row = 0; row < count; ++row) std::memcpy(made + row * kPanelColumns, bias, kPanelColumns * sizeof(float));
    multiply_in_tiles<AmxBFloats>(rows.first, count, rows.stride * sizeof(Number), packed_->get() + panel * panel_size(), made);
  }

  template <class Computed, int kRows>
  static __attribute__((noinline)) void multiply(BlockRows<Computed> rows, const Number* weights, int steps, const float* bias,
                                                 float* made) {
    const float* sums = bias ? bias : made;
    const size_t stride = bias ? 0 : kPanelColumns;
    sum_block<Computed, kRows, kTileVectors>(
        rows, Columns<Computed>{weights, kTileColumns * kStep, kLanes * kStep}, steps,
        [&](int r, int j) { return load(sums + r * stride + j * kLanes); },
        [&](int r, int j, Floats x) { store(made + r * kPanelColumns + j * kLanes, x); });
  }

  const std::vector<float> bias_;
  Packed<Number> packed_;
};

}  // namespace poolgraph
