// AMX's instructions in plain C++, in the place of runtime/kernel_amx_instructions.h: what Intel's manual says they compute, so
// that the kernels on them are tested on every processor with AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace poolgraph {

struct TileShapes {
  uint8_t palette = 1, rest[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct EmulatedTiles {
  TileShapes shapes;
  bool are_set = false;
  alignas(64) char bytes[8][16][64];
  static EmulatedTiles& of_thread() {
    thread_local EmulatedTiles tiles;
    return tiles;
  }
  // A processor raises a fault where tiles were not set.
  static EmulatedTiles& used() {
    EmulatedTiles& tiles = of_thread();
    if (!tiles.are_set) std::fprintf(stderr, "tiles are used that were not set\n"), std::abort();
    return tiles;
  }
};

inline bool has_amx() { return true; }

inline void set_tiles(const TileShapes& shapes) {
  EmulatedTiles& tiles = EmulatedTiles::of_thread();
  tiles.shapes = shapes;
  tiles.are_set = true;
  std::memset(tiles.bytes, 0, sizeof tiles.bytes);
}
inline void release_tiles() { EmulatedTiles::of_thread().are_set = false; }

template <int kTile>
void clear_tile() {
  std::memset(EmulatedTiles::used().bytes[kTile], 0, sizeof(EmulatedTiles::bytes[kTile]));
}
template <int kTile>
void load_tile(const void* from, size_t stride) {
  EmulatedTiles& tiles = EmulatedTiles::used();
  clear_tile<kTile>();
  for (int row = 0; row < tiles.shapes.rows[kTile]; ++row)
    std::memcpy(tiles.bytes[kTile][row], static_cast<const char*>(from) + row * stride, tiles.shapes.row_bytes[kTile]);
}
template <int kTile>
void store_tile(void* to, size_t stride) {
  EmulatedTiles& tiles = EmulatedTiles::used();
  for (int row = 0; row < tiles.shapes.rows[kTile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.bytes[kTile][row], tiles.shapes.row_bytes[kTile]);
}

// Calls add(sum, the row's four bytes, the column's four bytes) for every sum and each of its 16 steps.
template <int kSums, int kRows, int kColumns, class Sum, class Add>
void multiply_tiles(const Add& add) {
  EmulatedTiles& tiles = EmulatedTiles::used();
  for (int row = 0; row < 16; ++row)
    for (int step = 0; step < 16; ++step)
      for (int column = 0; column < 16; ++column) {
        char* place = tiles.bytes[kSums][row] + column * sizeof(Sum);
        Sum sum;
        std::memcpy(&sum, place, sizeof sum);
        sum = add(sum, tiles.bytes[kRows][row] + step * 4, tiles.bytes[kColumns][step] + column * 4);
        std::memcpy(place, &sum, sizeof sum);
      }
}

template <int kSums, int kRows, int kColumns>
void multiply_bytes() {
  multiply_tiles<kSums, kRows, kColumns, int32_t>([](int32_t sum, const char* row, const char* column) {
    for (int i = 0; i < 4; ++i) sum += static_cast<uint8_t>(row[i]) * static_cast<int8_t>(column[i]);
    return sum;
  });
}

inline float number_of_bfloat(const char* from) {
  float number;
  char bytes[4] = {0, 0, from[0], from[1]};
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

template <int kSums, int kRows, int kColumns>
void multiply_bfloats() {
  multiply_tiles<kSums, kRows, kColumns, float>([](float sum, const char* row, const char* column) {
    for (int i = 0; i < 4; i += 2) sum += number_of_bfloat(row + i) * number_of_bfloat(column + i);
    return sum;
  });
}

}  // namespace poolgraph
