// Products of rounded rows with 8-bit weights: packed once, then tiles of 6 rows by 64 columns by VNNI.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernel_rows.h"

namespace poolgraph {

constexpr int kTileRows = 6;      // 24 accumulators, four vectors of weights and one of a row's bytes: 29 registers
constexpr int kTileColumns = 64;
constexpr int kDepth = 4;         // bytes that one lane of VNNI multiplies and adds

// Weights in the order in which tiles read them: [panel][depth / 4][64 columns][4].
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
        panel_columns(gate == Gate::kNone ? kTileColumns : kTileColumns / 2),
        panels((this->out_features + panel_columns - 1) / panel_columns),
        steps_((in_features + kDepth - 1) / kDepth) {
    if (factors) factors_.assign(factors, factors + in_features);
    pack(weights, out_features, scales, bias);
  }

  // What rows are multiplied by before they are rounded, or nullptr.
  const float* factors() const { return factors_.empty() ? nullptr : factors_.data(); }
  size_t bytes_stride() const { return round_to(in_features, 64); }

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

  void pack(const int8_t* weights, int total, const float* scales, const float* bias) {
    const size_t panel_size = static_cast<size_t>(steps_) * kTileColumns * kDepth;
    Buffer<int8_t> packed(panels * panel_size);
    std::memset(packed.get(), 0, panels * panel_size);
    const size_t columns = static_cast<size_t>(panels) * kTileColumns;
    scales_.assign(columns, 0.0f);
    bias_.assign(columns, 0.0f);
    sums_.assign(columns, 0);
    for (int panel = 0; panel < panels; ++panel) pack_panel(weights, total, panel, packed.get() + panel * panel_size, scales, bias);
    packed_ = share_packed(std::move(packed), panels * panel_size);
  }

  void pack_panel(const int8_t* weights, int total, int panel, int8_t* to, const float* scales, const float* bias) {
    int sources[kTileColumns];
    int32_t sums[kTileColumns] = {};
    for (int column = 0; column < kTileColumns; ++column) sources[column] = source_column(panel, column);
    for (int k = 0; k < in_features; ++k) {
      const int8_t* row = weights + static_cast<size_t>(k) * total;
      int8_t* group = to + static_cast<size_t>(k / kDepth) * kTileColumns * kDepth + k % kDepth;
      for (int column = 0; column < kTileColumns; ++column) {
        if (sources[column] < 0) continue;
        group[column * kDepth] = row[sources[column]];
        sums[column] += row[sources[column]];
      }
    }
    for (int column = 0; column < kTileColumns; ++column) {
      if (sources[column] < 0) continue;
      const size_t place = static_cast<size_t>(panel) * kTileColumns + column;
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
    alignas(64) float tile[kRows][kTileColumns];
    multiply<kRows>(rows, row, panel, tile);
    float* to = out + static_cast<size_t>(row) * stride + static_cast<size_t>(panel) * panel_columns;
    const int columns = std::min(panel_columns, out_features - panel * panel_columns);
    with_activation(activation, [&](auto function) {
      for (int r = 0; r < kRows; ++r)
        for_vectors(columns, [&](int column, auto lanes) {
          __m512 x = function(_mm512_load_ps(tile[r] + column));
          if (gate != Gate::kNone) x = _mm512_mul_ps(x, _mm512_load_ps(tile[r] + kTileColumns / 2 + column));
          lanes.store(to + r * stride + column, x);
        });
    });
  }

  // Unrolled by the compiler, so that all sums stay in registers.
  template <int kRows>
  __attribute__((noinline)) void multiply(const RowBytes& rows, int row, int panel, float (*tile)[kTileColumns]) const {
    __m512i sums[kRows][4];
    const size_t place = static_cast<size_t>(panel) * kTileColumns;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[r][j] = _mm512_setzero_si512();
    const uint8_t* bytes = rows.bytes + static_cast<size_t>(row) * rows.stride;
    const size_t stride = rows.stride;
    const int8_t* weights = packed_->get() + place * steps_ * kDepth;
#pragma GCC unroll 1
    for (int step = 0; step < steps_; ++step, weights += kTileColumns * kDepth, bytes += kDepth) {
      __m512i columns[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) columns[j] = _mm512_load_si512(weights + j * 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        std::memcpy(&four, bytes + r * stride, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) add_products(sums[r][j], x, columns[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 scale = _mm512_loadu_ps(scales_.data() + place + j * kLanes);
      const __m512 bias = _mm512_loadu_ps(bias_.data() + place + j * kLanes);
      const __m512i all = _mm512_loadu_si512(sums_.data() + place + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i extra = _mm512_mullo_epi32(all, _mm512_set1_epi32(rows.zero_points[row + r]));
        const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][j], extra)), scale);
        _mm512_store_ps(tile[r] + j * kLanes, _mm512_fmadd_ps(x, _mm512_set1_ps(rows.scales[row + r]), bias));
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
