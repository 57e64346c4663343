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
constexpr int kAmxTiles = 8;
constexpr int kAmxSums = 4;  // tiles of sums at once; with two of rows and two of columns they are all

// Weights lie as AMX reads them, [step][64 columns][four bytes or two bfloat16], where a panel is one tile of vectors: in the
// library for AVX-512. So both multiply the same memory.
constexpr bool kFitsAmx = kPanelTiles == 1 && kTileColumns == kPanelColumns;
inline bool uses_amx() { return kFitsAmx && has_amx(); }

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
  static void start(const Sum*, size_t) { clear_tile<kTile>(); }
  template <int kSums, int kRows, int kColumns>
  static void multiply() { multiply_bytes<kSums, kRows, kColumns>(); }
};

// Bfloat16, added to the sums that there are.
struct AmxBFloats {
  using Sum = float;
  template <int kTile>
  static void start(const Sum* sums, size_t stride) { load_tile<kTile>(sums, stride); }
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

// sums [kGroups * 16][64] of the products of rows, `stride` bytes apart, and of weights; `steps` of 64 bytes of a row each.
template <class Numbers, int kGroups>
__attribute__((noinline)) void multiply_in_tiles(const void* rows, size_t stride, const void* weights, int steps,
                                                 typename Numbers::Sum* sums) {
  constexpr int kColumns = kAmxSums / kGroups, kOfRows = kAmxSums, kOfColumns = kOfRows + kGroups;
  constexpr size_t kSumsStride = kPanelColumns * sizeof *sums, kWeightsStride = kPanelColumns * 4;
  for (int column = 0; column < kPanelColumns; column += kColumns * kAmxRows) {
    const auto place = [&](int tile) {
      return sums + tile / kColumns * kAmxRows * kPanelColumns + column + tile % kColumns * kAmxRows;
    };
    for_constants<kAmxSums>([&](auto tile) { Numbers::template start<tile>(place(tile), kSumsStride); });
    const char *row = static_cast<const char*>(rows), *weight = static_cast<const char*>(weights) + column * 4;
    for (int step = 0; step < steps; ++step, row += kAmxRowBytes, weight += kAmxRows * kWeightsStride) {
      for_constants<kGroups>([&](auto group) { load_tile<kOfRows + group>(row + group * kAmxRows * stride, stride); });
      for_constants<kColumns>([&](auto one) {
        constexpr int kColumn = kOfColumns + one % (kAmxTiles - kOfColumns);
        load_tile<kColumn>(weight + one * kAmxRowBytes, kWeightsStride);
        for_constants<kGroups>([&](auto group) {
          Numbers::template multiply<group * kColumns + one, kOfRows + group, kColumn>();
        });
      });
    }
    for_constants<kAmxSums>([&](auto tile) { store_tile<tile>(place(tile), kSumsStride); });
  }
}

// Calls use(row, groups) for all of `count` rows, a multiple of 16: two groups of 16 at once, and the last one alone.
template <class Use>
inline void for_amx_rows(int count, Use&& use) {
  int row = 0;
  for (; row + 2 * kAmxRows <= count; row += 2 * kAmxRows) use(row, std::integral_constant<int, 2>{});
  if (row < count) use(row, std::integral_constant<int, 1>{});
}

}  // namespace poolgraph
