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

// Copies of the same weights, as the sessions of several thread counts make them, become one.
template <class Weight>
inline Packed<Weight> share_packed(Buffer<Weight> made, size_t count) {
  static std::mutex mutex;
  static std::unordered_multimap<uint64_t, std::weak_ptr<const Buffer<Weight>>> known;
  const size_t size = count * sizeof(Weight);
  const auto* bytes = reinterpret_cast<const char*>(made.get());
  uint64_t hash = 1469598103934665603ull ^ size;
  for (size_t i = 0; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    hash = (hash ^ word) * 1099511628211ull;
  }
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
  // The matrix's column behind a panel's column, -1 for padding. Gated panels have 32 columns of the gate, then the 32
  // that these multiply.
  int source_column(int panel, int column) const {
    const int inner = panel * panel_columns + column % panel_columns;
    if (inner >= out_features) return -1;
    const bool is_gate = column < panel_columns;
    switch (finishing.gate) {
      case Gate::kFirst: return is_gate ? inner : inner + out_features;
      case Gate::kSecond: return is_gate ? inner + out_features : inner;
      case Gate::kEven: return is_gate ? 2 * inner : 2 * inner + 1;
      default: return inner;
    }
  }

  // Calls use(round, column, source) for every column of a panel that is no padding, in each of `times` rounds.
  template <class Use>
  void for_columns(int panel, int times, Use&& use) const {
    int sources[kPanelColumns];
    for (int column = 0; column < kPanelColumns; ++column) sources[column] = source_column(panel, column);
    for (int round = 0; round < times; ++round)
      for (int column = 0; column < kPanelColumns; ++column)
        if (sources[column] >= 0) use(round, column, sources[column]);
  }

  // Returns a panel's columns of the matrix's columns, for all panels one after the other, zero for padding.
  std::vector<float> place_columns(const float* columns) const {
    std::vector<float> placed(static_cast<size_t>(panels) * kPanelColumns, 0.0f);
    if (!columns) return placed;
    for (int panel = 0; panel < panels; ++panel)
      for_columns(panel, 1, [&](int, int column, int source) { placed[panel * kPanelColumns + column] = columns[source]; });
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
