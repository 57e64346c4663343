// Products of a panel's columns in the tiles of AMX.
#pragma once

#include <type_traits>
#include <utility>

#include "kernel_panels.h"

#ifdef POOLGRAPH_AMX_INSTRUCTIONS  // a test's own, in plain C++
#include POOLGRAPH_AMX_INSTRUCTIONS
#else
#include "kernel_amx_instructions.h"
#endif

namespace poolgraph {

constexpr int kAmxRows = 16;      // of a tile
constexpr int kAmxRowBytes = 64;  // of a tile's row: sixteen sums, and what is multiplied at once
constexpr int kAmxTileBytes = kAmxRows * kAmxRowBytes;
constexpr int kAmxTiles = 8;
constexpr int kAmxColumns = 2 * kAmxRows;  // of weights that are multiplied at once: half a panel's
// Tiles of a row that are multiplied before the next rows: 16 KiB of weights and as many of two groups of rows stay in the
// first cache.
constexpr int kAmxSteps = 8;

// In the library for AVX-512 alone, the others do not have their vectors.
constexpr bool kFitsAmx = kPanelTiles == 1 && kTileColumns == kPanelColumns;
inline bool uses_amx() { return kFitsAmx && has_amx(); }

// Tiles lie in memory as they are loaded, one after the other: of rows [rows / 16][bytes of a row / 64][16][64], of a panel's
// weights [2][bytes of a column / 64][2][16][16 columns][4]. Returns the place of a row's first bytes, those of the next tile
// being kAmxTileBytes further on, and of byte `k` of a column of a panel.
inline size_t amx_row_place(int row, size_t row_bytes) {
  return row / kAmxRows * kAmxRows * row_bytes + row % kAmxRows * kAmxRowBytes;
}
inline size_t amx_weight_place(int column, int k, size_t column_bytes) {
  const int tile = column % kAmxColumns / kAmxRows;
  return column / kAmxColumns * kAmxColumns * column_bytes + (k / kAmxRowBytes * 2 + tile) * kAmxTileBytes +
         k % kAmxRowBytes / 4 * kAmxRowBytes + column % kAmxRows * 4 + k % 4;
}

// The tiles of this thread, where they are used, for as long as this lives.
class AmxTiles {
 public:
  explicit AmxTiles(bool used) : used_(used) {
    if (!used_) return;
    TileShapes shapes;
    for (int tile = 0; tile < kAmxTiles; ++tile) shapes.rows[tile] = kAmxRows, shapes.row_bytes[tile] = kAmxRowBytes;
    set_tiles(shapes);
  }
  ~AmxTiles() {
    if (used_) release_tiles();
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  const bool used_;
};

// Unsigned bytes by signed ones, from nothing.
struct AmxBytes {
  using Sum = int32_t;
  template <int kTile>
  static void start(const Sum* sums, size_t stride, bool is_first) {
    is_first ? clear_tile<kTile>() : load_tile<kTile>(sums, stride);
  }
  template <int kSums, int kRows, int kColumns>
  static void multiply() { multiply_bytes<kSums, kRows, kColumns>(); }
};

// Bfloat16, added to the sums that there are.
struct AmxBFloats {
  using Sum = float;
  template <int kTile>
  static void start(const Sum* sums, size_t stride, bool) { load_tile<kTile>(sums, stride); }
  template <int kSums, int kRows, int kColumns>
  static void multiply() { multiply_bfloats<kSums, kRows, kColumns>(); }
};

template <class Use, int... kNumbers>
inline void for_constants(Use&& use, std::integer_sequence<int, kNumbers...>) {
  (use(std::integral_constant<int, kNumbers>{}), ...);
}
// Calls use(std::integral_constant) with each number below `kCount`.
template <int kCount, class Use>
inline void for_constants(Use&& use) {
  for_constants(use, std::make_integer_sequence<int, kCount>{});
}

// Adds the products of `kGroups` groups of 16 rows, `group_bytes` apart, and of 32 columns to sums [kGroups * 16][64], of which
// there are none yet if `is_first`; all in tiles, `steps` of them.
template <class Numbers, int kGroups>
__attribute__((noinline)) void multiply_groups(const char* rows, size_t group_bytes, const char* weights, int steps,
                                               typename Numbers::Sum* sums, bool is_first) {
  constexpr int kColumns = 2, kSums = kColumns * kGroups, kOfRows = kSums, kOfColumns = kOfRows + kGroups;
  constexpr size_t kStride = kPanelColumns * sizeof *sums;
  const auto place = [&](int tile) { return sums + tile / kColumns * kAmxRows * kPanelColumns + tile % kColumns * kAmxRows; };
  for_constants<kSums>([&](auto tile) { Numbers::template start<tile>(place(tile), kStride, is_first); });
  for (int step = 0; step < steps; ++step, rows += kAmxTileBytes, weights += kColumns * kAmxTileBytes) {
    for_constants<kColumns>([&](auto column) { load_tile<kOfColumns + column>(weights + column * kAmxTileBytes, kAmxRowBytes); });
    for_constants<kGroups>([&](auto group) {
      load_tile<kOfRows + group>(rows + group * group_bytes, kAmxRowBytes);
      for_constants<kColumns>([&](auto column) {
        Numbers::template multiply<group * kColumns + column, kOfRows + group, kOfColumns + column>();
      });
    });
  }
  for_constants<kSums>([&](auto tile) { store_tile<tile>(place(tile), kStride); });
}

// Adds the products of `count` rows, a multiple of 16, and a panel's 64 columns, of `row_bytes` each, to sums [count][64].
template <class Numbers>
void multiply_in_tiles(const void* rows, int count, size_t row_bytes, const void* weights, typename Numbers::Sum* sums) {
  const size_t group_bytes = kAmxRows * row_bytes, half_bytes = kAmxColumns * row_bytes;
  const int steps = static_cast<int>(row_bytes / kAmxRowBytes);
  for (int step = 0; step < steps; step += kAmxSteps)
    for (int half = 0; half < 2; ++half) {
      const char* weight = static_cast<const char*>(weights) + half * half_bytes + step * 2 * kAmxTileBytes;
      const auto multiply = [&](auto groups, int first) {
        multiply_groups<Numbers, groups>(static_cast<const char*>(rows) + first * row_bytes + step * kAmxTileBytes, group_bytes,
                                         weight, std::min(kAmxSteps, steps - step),
                                         sums + first * kPanelColumns + half * kAmxColumns, step == 0);
      };
      int row = 0;
      for (; row + 2 * kAmxRows <= count; row += 2 * kAmxRows) multiply(std::integral_constant<int, 2>{}, row);
      if (row < count) multiply(std::integral_constant<int, 1>{}, row);
    }
}

}  // namespace poolgraph
