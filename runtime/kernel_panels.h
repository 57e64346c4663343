// Products in panels of 64 columns: where a weight lies once it is packed, and what becomes of a panel's columns.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernel_vector.h"

namespace poolgraph {

constexpr int kTileRows = 6;
constexpr int kTileColumns = kTileVectors * kLanes;
constexpr int kPanelColumns = 64;  // one tile's or several tiles'
constexpr int kPanelTiles = kPanelColumns / kTileColumns;

template <class Weight>
using Packed = std::shared_ptr<const Buffer<Weight>>;

// Hashes some thousands of words from all over a buffer: weights are compared before they are shared.
inline uint64_t hash_some(const char* bytes, size_t size) {
  const size_t step = std::max<size_t>(size / 4096 / 8, 1) * 8;
  uint64_t hash = 1469598103934665603ull ^ size;
  for (size_t i = 0; i + 8 <= size; i += step) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    hash = (hash ^ word) * 1099511628211ull;
  }
  return hash;
}

// Copies of the same weights, as the sessions of several thread counts make them, become one.
template <class Weight>
inline Packed<Weight> share_packed(Buffer<Weight> made, size_t count) {
  static std::mutex mutex;
  static std::unordered_multimap<uint64_t, std::weak_ptr<const Buffer<Weight>>> known;
  const size_t size = count * sizeof(Weight);
  const uint64_t hash = hash_some(reinterpret_cast<const char*>(made.get()), size);
  const std::lock_guard<std::mutex> lock(mutex);
  auto [entry, end] = known.equal_range(hash);
  while (entry != end) {
    const Packed<Weight> found = entry->second.lock();
    if (found && found->size() == made.size() && !std::memcmp(found->get(), made.get(), size)) return found;
    entry = found ? std::next(entry) : known.erase(entry);
  }
  Packed<Weight> kept = std::make_shared<const Buffer<Weight>>(std::move(made));
  known.emplace(hash, kept);
  return kept;
}

// A matrix, (in_features, columns), whose rows lie `stride` apart.
template <class Weight>
struct Weights {
  const Weight* first;
  int in_features, columns;
  size_t stride;
};

// Columns of a matrix, `apart` from each other: half a panel's.
struct PanelHalf {
  int first, count, apart;

  // Copies those of row `k`, zero where there are none. Rows are far apart, so those that come next are asked for.
  template <class Weight>
  void copy(const Weights<Weight>& weights, int k, Weight* to) const {
    constexpr int kAhead = 16, kLine = 64 / sizeof(Weight);
    if (k >= weights.in_features) return void(std::fill_n(to, count, Weight{}));
    const Weight* from = weights.first + k * weights.stride + first;
    for (int i = 0; i < count * apart; i += kLine) __builtin_prefetch(from + kAhead * weights.stride + i);
    if (apart == 1) return void(std::copy_n(from, count, to));
    for (int i = 0; i < count; ++i) to[i] = from[i * apart];
  }
};

// Which half of the columns, under the activation, multiplies the other half; kEven is every other one, from the first on.
enum class Gate : int64_t { kNone = 0, kFirst = 1, kSecond = 2, kEven = 3 };

// What becomes of a product's columns.
struct Finishing {
  Activation activation;
  Gate gate;
  Swiglu swiglu;  // of kSwiglu, which there is behind a gate alone
  bool is_gated() const { return gate != Gate::kNone; }
};

// The columns of one product: of gated ones one half of the matrix's multiplies the other.
struct Panels {
  Panels(int in_features, int matrix_columns, const Finishing& finishing)
      : finishing(finishing),
        in_features(in_features),
        out_features(finishing.is_gated() ? matrix_columns / 2 : matrix_columns),
        panel_columns(finishing.is_gated() ? kPanelColumns / 2 : kPanelColumns),
        panels((out_features + panel_columns - 1) / panel_columns) {}

  const Finishing finishing;
  const int in_features;
  const int out_features;
  const int panel_columns;
  const int panels;

 protected:
  // The matrix's columns behind half a panel's. Gated panels have 32 columns of the gate, then the 32 that these multiply.
  PanelHalf half_of(int panel, int column) const {
    const int inner = panel * panel_columns + column % panel_columns;
    const int count = std::clamp(out_features - inner, 0, kPanelColumns / 2);
    const bool is_gate = column < panel_columns;
    switch (finishing.gate) {
      case Gate::kFirst: return {is_gate ? inner : inner + out_features, count, 1};
      case Gate::kSecond: return {is_gate ? inner + out_features : inner, count, 1};
      case Gate::kEven: return {2 * inner + !is_gate, count, 2};
      default: return {inner, count, 1};
    }
  }

  // Calls use(k, lines) for every kStep of `features` features: `lines`, [kStep][kPanelColumns], are the panel's columns of
  // the matrix's rows from k on, zero where there are none.
  template <int kStep, class Weight, class Use>
  void for_steps(const Weights<Weight>& weights, int features, int panel, Use&& use) const {
    constexpr int kHalf = kPanelColumns / 2;
    const PanelHalf halves[] = {half_of(panel, 0), half_of(panel, kHalf)};
    alignas(64) Weight lines[kStep][kPanelColumns] = {};
    for (int k = 0; k < features; k += kStep) {
      for (int step = 0; step < kStep; ++step)
        for (int half = 0; half < 2; ++half) halves[half].copy(weights, k + step, lines[step] + half * kHalf);
      use(k, lines);
    }
  }

  // Returns a panel's columns of the matrix's columns, for all panels one after the other, zero for padding.
  std::vector<float> place_columns(const float* columns) const {
    std::vector<float> placed(static_cast<size_t>(panels) * kPanelColumns, 0.0f);
    if (!columns) return placed;
    const Weights<float> row{columns, 1, 0, 0};
    for (int panel = 0; panel < panels; ++panel)
      for (int column = 0; column < kPanelColumns; column += kPanelColumns / 2)
        half_of(panel, column).copy(row, 0, &placed[static_cast<size_t>(panel) * kPanelColumns + column]);
    return placed;
  }

  // Writes `rows` rows of a panel, `made` [rows][kPanelColumns], to where the first row's first column is.
  void put(const float* made, int rows, int panel, float* out, size_t stride) const {
    float* to = out + static_cast<size_t>(panel) * panel_columns;
    const int columns = std::min(panel_columns, out_features - panel * panel_columns);
    const auto put_each = [&](auto finish) {
      for (int r = 0; r < rows; ++r, made += kPanelColumns)
        for_vectors(columns, [&](int column, auto lanes) { lanes.store(to + r * stride + column, finish(column)); });
    };
    const auto other = [&](int column) { return load(made + kPanelColumns / 2 + column); };
    if (finishing.activation == Activation::kSwiglu)
      return put_each([&](int column) { return finishing.swiglu(load(made + column), other(column)); });
    with_activation(finishing.activation, [&](auto function) {
      if (finishing.is_gated()) return put_each([&](int column) { return function(load(made + column)) * other(column); });
      put_each([&](int column) { return function(load(made + column)); });
    });
  }
};

// Calls use(std::integral_constant) with the number of a tile's rows, of which there are at most kTileRows.
template <class Use>
inline void with_tile_rows(int count, Use&& use) {
  switch (count) {
    case 1: return use(std::integral_constant<int, 1>{});
    case 2: return use(std::integral_constant<int, 2>{});
    case 3: return use(std::integral_constant<int, 3>{});
    case 4: return use(std::integral_constant<int, 4>{});
    case 5: return use(std::integral_constant<int, 5>{});
    default: return use(std::integral_constant<int, kTileRows>{});
  }
}

}  // namespace poolgraph
