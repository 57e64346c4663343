// Products of rounded rows with 8-bit weights: packed once, then multiplied in tiles of rows and columns.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernel_rows.h"

namespace poolgraph {

constexpr int kTileRows = 6;
constexpr int kTileColumns = kTileVectors * kLanes;
constexpr int kPanelColumns = 64;  // one tile's or several tiles'

// Weights in the order in which tiles read them: [tile][depth / kDepth][kTileColumns][kDepth].
using Packed = std::shared_ptr<const Buffer<int8_t>>;

// Copies of the same weights, as the sessions of several thread counts make them, become one.
inline Packed share_packed(Buffer<int8_t> made, size_t size) {
  static std::mutex mutex;
  static std::unordered_multimap<uint64_t, std::weak_ptr<const Buffer<int8_t>>> known;
  uint64_t hash = 1469598103934665603ull ^ size;
  for (size_t i = 0; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, made.get() + i, 8);
    hash = (hash ^ word) * 1099511628211ull;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  auto [entry, end] = known.equal_range(hash);
  while (entry != end) {
    const Packed found = entry->second.lock();
    if (found && found->size() == made.size() && !std::memcmp(found->get(), made.get(), size)) return found;
    entry = found ? std::next(entry) : known.erase(entry);
  }
  Packed kept = std::make_shared<const Buffer<int8_t>>(std::move(made));
  known.emplace(hash, kept);
  return kept;
}

// Which half of the columns, under the activation, multiplies the other half.
enum class Gate : int64_t { kNone = 0, kFirst = 1, kSecond = 2 };

// One product: what its rows are rounded by, its weights, and what becomes of its columns.
class Product {
 public:
  // `weights` is (in_features, out_features); of gated ones one half of the columns multiplies the other.
  Product(const int8_t* weights, int in_features, int out_features, const float* scales, const float* bias,
          const float* factors, Rounding rounding, Activation activation, Gate gate)
      : rounding(rounding),
        activation(activation),
        gate(gate),
        in_features(in_features),
        out_features(gate == Gate::kNone ? out_features : out_features / 2),
        panel_columns(gate == Gate::kNone ? kPanelColumns : kPanelColumns / 2),
        panels((this->out_features + panel_columns - 1) / panel_columns),
        steps_((in_features + kDepth - 1) / kDepth) {
    if (factors) factors_.assign(factors, factors + in_features);
    pack(weights, out_features, scales, bias);
  }

  // What rows are multiplied by before they are rounded, or nullptr.
  const float* factors() const { return factors_.empty() ? nullptr : factors_.data(); }
  size_t row_stride() const { return round_to(in_features, 64); }  // in RowByte

  // Computes columns of panels [first, last) for `count` rows; `out` is the place of the first row's first column.
  void run(const RowBytes& rows, int count, int first, int last, float* out, size_t stride) const {
    for (int panel = first; panel < last; ++panel)
      for (int row = 0; row < count; row += kTileRows) run_tile(rows, row, std::min(kTileRows, count - row), panel, out, stride);
  }

  const Rounding rounding;
  const Activation activation;
  const Gate gate;
  const int in_features;
  const int out_features;
  const int panel_columns;
  const int panels;

 private:
  // The matrix's column behind a panel's column, -1 for padding. Gated panels have 32 columns of the gate, then the 32
  // that these multiply.
  int source_column(int panel, int column) const {
    const int inner = panel * panel_columns + column % panel_columns;
    if (inner >= out_features) return -1;
    const bool is_gate = column < panel_columns;
    return (gate != Gate::kNone && is_gate == (gate == Gate::kSecond)) ? inner + out_features : inner;
  }

  size_t tile_size() const { return static_cast<size_t>(steps_) * kTileColumns * kDepth; }

  void pack(const int8_t* weights, int total, const float* scales, const float* bias) {
    const size_t panel_size = tile_size() * (kPanelColumns / kTileColumns);
    Buffer<int8_t> packed(panels * panel_size);
    std::memset(packed.get(), 0, panels * panel_size);
    const size_t columns = static_cast<size_t>(panels) * kPanelColumns;
    scales_.assign(columns, 0.0f);
    bias_.assign(columns, 0.0f);
    sums_.assign(columns, 0);
    for (int panel = 0; panel < panels; ++panel) pack_panel(weights, total, panel, packed.get() + panel * panel_size, scales, bias);
    packed_ = share_packed(std::move(packed), panels * panel_size);
  }

  void pack_panel(const int8_t* weights, int total, int panel, int8_t* to, const float* scales, const float* bias) {
    int sources[kPanelColumns];
    int32_t sums[kPanelColumns] = {};
    for (int column = 0; column < kPanelColumns; ++column) sources[column] = source_column(panel, column);
    for (int k = 0; k < in_features; ++k) {
      const int8_t* row = weights + static_cast<size_t>(k) * total;
      int8_t* group = to + static_cast<size_t>(k / kDepth) * kTileColumns * kDepth + k % kDepth;
      for (int column = 0; column < kPanelColumns; ++column) {
        if (sources[column] < 0) continue;
        group[column / kTileColumns * tile_size() + column % kTileColumns * kDepth] = row[sources[column]];
        sums[column] += row[sources[column]];
      }
    }
    for (int column = 0; column < kPanelColumns; ++column) {
      if (sources[column] < 0) continue;
      const size_t place = static_cast<size_t>(panel) * kPanelColumns + column;
      scales_[place] = scales[sources[column]];
      if (bias) bias_[place] = bias[sources[column]];
      sums_[place] = sums[column];
    }
  }

  void run_tile(const RowBytes& rows, int row, int count, int panel, float* out, size_t stride) const {
    switch (count) {
      case 1: return run_rows<1>(rows, row, panel, out, stride);
      case 2: return run_rows<2>(rows, row, panel, out, stride);
      case 3: return run_rows<3>(rows, row, panel, out, stride);
      case 4: return run_rows<4>(rows, row, panel, out, stride);
      case 5: return run_rows<5>(rows, row, panel, out, stride);
      default: return run_rows<kTileRows>(rows, row, panel, out, stride);
    }
  }

  template <int kRows>
  void run_rows(const RowBytes& rows, int row, int panel, float* out, size_t stride) const {
    alignas(64) float made[kRows][kPanelColumns];
    for (int tile = 0; tile < kPanelColumns / kTileColumns; ++tile)
      multiply<kRows>(rows, row, panel * (kPanelColumns / kTileColumns) + tile, made[0] + tile * kTileColumns);
    float* to = out + static_cast<size_t>(row) * stride + static_cast<size_t>(panel) * panel_columns;
    const int columns = std::min(panel_columns, out_features - panel * panel_columns);
    with_activation(activation, [&](auto function) {
      for (int r = 0; r < kRows; ++r)
        for_vectors(columns, [&](int column, auto lanes) {
          Floats x = function(load(made[r] + column));
          if (gate != Gate::kNone) x = x * load(made[r] + kPanelColumns / 2 + column);
          lanes.store(to + r * stride + column, x);
        });
    });
  }

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
      const Floats scale = load(scales_.data() + place + j * kLanes);
      const Floats bias = load(bias_.data() + place + j * kLanes);
      const Ints all = load(sums_.data() + place + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Ints extra = times(all, splat(rows.zero_points[row + r]));
        const Floats x = to_floats(minus(sums[r][j], extra)) * scale;
        store(made + r * kPanelColumns + j * kLanes, fmadd(x, splat(rows.scales[row + r]), bias));
      }
    }
  }

  const int steps_;
  std::vector<float> factors_;
  std::vector<float> scales_;
  std::vector<float> bias_;
  std::vector<int32_t> sums_;  // of each column's weights: what a zero point adds
  Packed packed_;
};

}  // namespace poolgraph
