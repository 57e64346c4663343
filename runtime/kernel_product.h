// Products of rounded rows with 8-bit weights: packed once, then multiplied in tiles of rows and columns.
#pragma once

#include <algorithm>
#include <vector>

#include "kernel_amx.h"
#include "kernel_panels.h"
#include "kernel_rows.h"

namespace poolgraph {

// One product: what its rows are rounded by, its weights, and what becomes of its columns.
class ByteProduct : public Panels {
 public:
  using Rows = RowBytes;

  // `scales` and `bias` are (weights.columns,), `factors` (weights.in_features,); the last two may be nullptr.
  ByteProduct(const Weights<int8_t>& weights, const float* scales, const float* bias, const float* factors, Rounding rounding,
              const Finishing& finishing)
      : Panels(weights.in_features, weights.columns, finishing),
        rounding(rounding),
        steps_((uses_amx() ? round_to(in_features, kAmxRowBytes) : round_to(in_features, kDepth)) / kDepth),
        scales_(place_columns(scales)),
        bias_(place_columns(bias)),
        sums_(bias_.size(), 0) {
    if (factors) factors_.assign(factors, factors + in_features);
    pack(weights);
  }

  // What rows are multiplied by before they are rounded, or nullptr.
  const float* factors() const { return factors_.empty() ? nullptr : factors_.data(); }
  size_t row_stride() const { return round_to(in_features, 64); }  // in RowByte
  static int row_step() { return uses_amx() ? kAmxRows : kTileRows; }

  // Where a row's bytes are read.
  RowPlace row_place(const RowBytes& rows, int row) const {
    if (uses_amx()) return {rows.bytes + amx_row_place(row, rows.stride), kAmxTileBytes};
    return {rows.bytes + static_cast<size_t>(row) * rows.stride, kRowChunk};
  }

  // Computes columns of panels [first, last) for `count` rows from `from` on; `out` is the place of row 0's first column.
  // In tiles of AMX up to 15 rows more are read, and what is made of them is dropped.
  void run(const RowBytes& rows, int from, int count, int first, int last, float* out, size_t stride) const {
    const int end = from + count;
    const AmxTiles tiles(uses_amx());
    for (int panel = first; panel < last; ++panel) {
      if (uses_amx()) {
        run_in_tiles(rows, from, count, panel, out, stride);
        continue;
      }
      for (int row = from; row < end; row += kTileRows)
        with_tile_rows(end - row, [&](auto tile_rows) { run_rows<tile_rows>(rows, row, panel, out + row * stride, stride); });
    }
  }

  const Rounding rounding;

 private:
  size_t tile_size() const { return static_cast<size_t>(steps_) * kTileColumns * kDepth; }

  // Weights in the order in which they are read: [tile][depth / kDepth][kTileColumns][kDepth], or as AMX does.
  size_t weight_place(int column, int k) const {
    if (uses_amx()) return amx_weight_place(column, k, steps_ * kDepth);
    return column / kTileColumns * tile_size() + k * kTileColumns + column % kTileColumns * kDepth;
  }

  void pack(const Weights<int8_t>& weights) {
    const size_t panel_size = tile_size() * kPanelTiles;
    Buffer<int8_t> packed(panels * panel_size);
    for (int panel = 0; panel < panels; ++panel) {
      int8_t* to = packed.get() + panel * panel_size;
      int32_t* sums = sums_.data() + panel * kPanelColumns;
      for_steps<kDepth>(weights, steps_ * kDepth, panel, [&](int k, const auto& lines) {
        for (int column = 0; column < kPanelColumns; ++column) {
          int8_t* place = to + weight_place(column, k);
          for (int step = 0; step < kDepth; ++step) {
            place[step] = lines[step][column];
            sums[column] += place[step];
          }
        }
      });
    }
    packed_ = share_packed(std::move(packed), panels * panel_size);
  }

  template <int kRows>
  void run_rows(const RowBytes& rows, int row, int panel, float* out, size_t stride) const {
    alignas(64) float made[kRows][kPanelColumns];
    for (int tile = 0; tile < kPanelTiles; ++tile)
      multiply<kRows>(rows, row, panel * kPanelTiles + tile, made[0] + tile * kTileColumns);
    put(made[0], kRows, panel, out, stride);
  }

  // The same by AMX: sums of integers are exact, so its bits are those of the vectors.
  void run_in_tiles(const RowBytes& rows, int from, int count, int panel, float* out, size_t stride) const {
    thread_local Buffer<int32_t> room;
    const int all = round_to(count, kAmxRows);
    int32_t* sums = room.reserve(static_cast<size_t>(all) * kPanelColumns);
    multiply_in_tiles<AmxBytes>(rows.bytes + from * rows.stride, all, rows.stride, packed_->get() + panel * tile_size(), sums);
    for (int row = from; row < from + count; row += kAmxRows, sums += kAmxRows * kPanelColumns) {
      alignas(64) float made[kAmxRows][kPanelColumns];
      const int some = std::min(kAmxRows, from + count - row);
      for (int column = 0; column < kPanelColumns; column += kLanes) {
        const Column finish(*this, static_cast<size_t>(panel) * kPanelColumns + column);
        for (int r = 0; r < some; ++r)
          store(made[r] + column, finish(load(sums + r * kPanelColumns + column), rows, row + r));
      }
      put(made[0], some, panel, out + row * stride, stride);
    }
  }

  // A vector of columns: what becomes of their sums.
  struct Column {
    Floats scale, bias;
    Ints all;
    Column(const ByteProduct& product, size_t place)
        : scale(load(product.scales_.data() + place)),
          bias(load(product.bias_.data() + place)),
          all(load(product.sums_.data() + place)) {}
    Floats operator()(Ints sums, const RowBytes& rows, int row) const {
      const Floats x = to_floats(minus(sums, times(all, splat(rows.zero_points[row])))) * scale;
      return fmadd(x, splat(rows.scales[row]), bias);
    }
  };

  // Unrolled by the compiler, so that all sums stay in registers.
  template <int kRows>
  __attribute__((noinline)) void multiply(const RowBytes& rows, int row, int tile, float* made) const {
    Ints sums[kRows][kTileVectors];
    const size_t place = static_cast<size_t>(tile) * kTileColumns;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) sums[r][j] = splat(0);
    const RowByte* bytes = rows.bytes + static_cast<size_t>(row) * rows.stride;
    const size_t stride = rows.stride;
    const int8_t* weights = packed_->get() + tile * tile_size();
#pragma GCC unroll 1
    for (int step = 0; step < steps_; ++step, weights += kTileColumns * kDepth, bytes += kDepth) {
      Ints columns[kTileVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) columns[j] = load_weights(weights + j * kLanes * kDepth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t few;
        static_assert(sizeof few == kDepth * sizeof *bytes);
        std::memcpy(&few, bytes + r * stride, sizeof few);
        const Ints x = splat(few);
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j) add_products(sums[r][j], x, columns[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) {
      const Column finish(*this, place + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) store(made + r * kPanelColumns + j * kLanes, finish(sums[r][j], rows, row + r));
    }
  }

  const int steps_;
  const std::vector<float> scales_;
  const std::vector<float> bias_;
  std::vector<float> factors_;
  std::vector<int32_t> sums_;  // of each column's weights: what a zero point adds
  Packed<int8_t> packed_;
};

}  // namespace poolgraph
