// Attention within a text in the tiles of AMX: products of bfloat16 summed in float32, softmax in float32 between them.
#pragma once

#include <algorithm>

#include "kernel_amx.h"
#include "kernel_attention_shape.h"
#include "kernel_softmax.h"

namespace poolgraph {

constexpr int kTileKeys = 32;       // whose weights are one row of a tile
constexpr int kTileFeatures = 32;   // of a query or a key, likewise
constexpr int kTilesBeside = 4;     // of sums, for which one tile of rows is loaded once

// Keys and values of one head as tiles of columns, and the thread's tiles, which are set as long as it lives.
struct TiledHead {
  const int16_t* keys;    // [keys / 16][features / 32][16 pairs of features][16 keys][2]
  const int16_t* values;  // [keys / 32][features / 16][16 pairs of keys][16 features][2]
  AmxTiles tiles;
};

struct TiledRoom {
  Buffer<int16_t> keys, values, queries, weights;
  Buffer<float> mean, scores, out;
};

alignas(64) constexpr float kNothing[kMostFeatures] = {};
constexpr int kTileNumbers = kAmxTileBytes / sizeof(int16_t);

// 2**x to 8e-5 of itself, for x up to 0: minimax of degree 3, closer than bfloat16 is.
inline Floats rough_exp2(Floats x) {
  const Floats shift = splat(12582912.0f);  // 1.5 * 2**23 leaves the nearest integer in the lowest bits
  x = maximum(splat(-125.0f), x);          // in this order NaN stays one
  const Floats shifted = x + shift, fraction = x - (shifted - shift);
  Floats power = fmadd(fraction, splat(0.05517167f), splat(0.24261112f));
  power = fmadd(power, fraction, splat(0.69326099f));
  power = fmadd(power, fraction, splat(0.99992807f));
  return as_floats(plus(as_ints(power), shift_left<23>(as_ints(shifted))));
}

inline Shorts to_bfloats(Floats low, Floats high) {
  if (has_bfloat_pairs()) return cut_to_bfloats(low, high);
  return cut_shorts(round_to_bfloats(low), round_to_bfloats(high));
}

// One row's features [first, first + 32) as pairs of bfloat16, less `minus` of each, zero from `size` on.
inline Shorts load_features(const float* row, int first, int size, const float* minus) {
  const auto part = [&](int at) { return load_some(row + at, size - at) - load(minus + at); };
  return to_bfloats(part(first), part(first + kLanes));
}

// The mean of all keys, zero from `size` on. Without it no weight changes, every score of a query being less by the same, and
// scores are nearer to 0, where bfloat16 has more digits.
inline void average_keys(const HeadRows& rows, int head, int size, float* to) {
  const Floats share = splat(1.0f / rows.length);
  for (int first = 0; first < round_to(size, kTileFeatures); first += kLanes) {
    Floats sum = splat(0.0f);
    for (int key = 0; key < rows.length; ++key) sum = sum + load_some(rows.at(key, head, size) + first, size - first);
    store(to + first, sum * share);
  }
}

inline void tile_keys(const HeadRows& rows, int head, int size, const float* mean, int16_t* to) {
  for (int key = 0; key < round_to(rows.length, kTileKeys); key += kAmxRows)
    for (int first = 0; first < size; first += kTileFeatures, to += kTileNumbers) {
      Ints pairs[kLanes];
      for (int r = 0; r < kLanes; ++r)
        pairs[r] = key + r < rows.length ? load_features(rows.at(key + r, head, size), first, size, mean) : splat(0);
      transpose(pairs);
      for (int pair = 0; pair < kLanes; ++pair) store_pairs(to + pair * 2 * kLanes, pairs[pair]);
    }
}

inline void tile_values(const HeadRows& rows, int head, int size, int16_t* to) {
  for (int first = 0; first < rows.length; first += kTileKeys)
    for (int feature = 0; feature < size; feature += kLanes)
      for (int key = first; key < first + kTileKeys; key += 2, to += 2 * kLanes) {
        const auto value = [&](int at) {
          return at < rows.length ? load_some(rows.at(at, head, size) + feature, size - feature) : splat(0.0f);
        };
        store_pairs(to, interleave(to_bfloats(value(key), value(key + 1))));
      }
}

// Up to sixteen queries as tiles of rows [features / 32][16][32], zero behind the last.
inline void tile_queries(const float* rows, size_t stride, int count, int size, int16_t* to) {
  for (int first = 0; first < size; first += kTileFeatures)
    for (int r = 0; r < kAmxRows; ++r, to += kTileFeatures)
      store_pairs(to, r < count ? load_features(rows + r * stride, first, size, kNothing) : splat(0));
}

// sums [16][kCount * 16] of the products of `steps` tiles of rows and of columns. Of columns, those of one step are
// `column_stride` numbers apart, and steps `step_stride`.
template <int kCount>
__attribute__((noinline)) void multiply_tiles(const int16_t* rows, const int16_t* columns, size_t column_stride, size_t step_stride,
                                              int steps, float* sums, size_t stride) {
  constexpr int kRows = kTilesBeside, kColumns = kRows + 1;
  for_constants<kCount>([](auto tile) { clear_tile<tile>(); });
  for (int step = 0; step < steps; ++step, rows += kTileNumbers, columns += step_stride) {
    load_tile<kRows>(rows, kAmxRowBytes);
    for_constants<kCount>([&](auto tile) {
      constexpr int kColumn = kColumns + tile % (kAmxTiles - kColumns);
      load_tile<kColumn>(columns + tile * column_stride, kAmxRowBytes);
      multiply_bfloats<tile, kRows, kColumn>();
    });
  }
  for_constants<kCount>([&](auto tile) { store_tile<tile>(sums + tile * kAmxRows, stride * sizeof(float)); });
}

// The same of any number of columns' tiles.
inline void multiply_tiles(const int16_t* rows, const int16_t* columns, size_t column_stride, size_t step_stride, int steps,
                           int count, float* sums, size_t stride) {
  for (; count > 0; count -= kTilesBeside, columns += kTilesBeside * column_stride, sums += kTilesBeside * kAmxRows) {
    const auto multiply = [&](auto some) {
      multiply_tiles<some>(rows, columns, column_stride, step_stride, steps, sums, stride);
    };
    switch (count) {
      case 1: multiply(std::integral_constant<int, 1>{}); break;
      case 2: multiply(std::integral_constant<int, 2>{}); break;
      case 3: multiply(std::integral_constant<int, 3>{}); break;
      default: multiply(std::integral_constant<int, kTilesBeside>{});
    }
  }
}

// Calls use(key, block) for every 32 keys of those computed, the block being which of them a query sees.
template <class Use>
inline __attribute__((always_inline)) void for_seen(KeyRange computed, KeyRange seen, Use&& use) {
  for (int key = computed.first; key < computed.last; key += kTileKeys)
    if (seen.first <= key && key + kTileKeys <= seen.last)
      use(key, WholeBlock{});
    else
      use(key, PartBlock::of(seen, key, kTileKeys));
}

// Writes one query's weights, its scores being worth `worth` in units of log2 and the largest of them `top`, as rows of tiles
// [keys / 32][16][32], zero for keys that it does not see; returns what one of them is worth, all together being worth 1: NaN
// where a score is NaN or the largest is infinite.
inline float weigh_keys(const float* scores, float worth, float top, KeyRange computed, KeyRange seen, int16_t* weights) {
  const Floats by = splat(worth), less = splat(-top * worth);
  Floats low_sums = splat(0.0f), high_sums = splat(0.0f);
  for_seen(computed, seen, [&](int key, auto block) {
    const Floats low = block.keep(0, rough_exp2(fmadd(load(scores + key), by, less)));
    const Floats high = block.keep(kLanes, rough_exp2(fmadd(load(scores + key + kLanes), by, less)));
    low_sums = low_sums + low;
    high_sums = high_sums + high;
    store_pairs(weights, to_bfloats(low, high));
    weights += kTileNumbers;
  });
  return 1.0f / sum_lanes(low_sums + high_sums);
}

struct TiledAttention {
  static constexpr const char* kName = "Attention";
  static constexpr bool kTakesScores = false;  // neither a softcap nor a bias
  static constexpr int kRows = kAmxRows;
  using Room = TiledRoom;
  using Head = TiledHead;

  static Head pack(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head, Room& room) {
    const size_t features = round_to(shape.head_size, kTileFeatures), length = round_to(keys.length, kTileKeys);
    int16_t *packed_keys = room.keys.reserve(length * features), *packed_values = room.values.reserve(length * features);
    float* mean = room.mean.reserve(features);
    average_keys(keys, head, shape.head_size, mean);
    tile_keys(keys, head, shape.head_size, mean, packed_keys);
    tile_values(values, head, shape.head_size, packed_values);
    return {packed_keys, packed_values, AmxTiles(true)};
  }

  static void answer(const AttentionShape& shape, const float* queries, size_t stride, const Head& head, int num_keys,
                     int position, int count, const ScoreInputs&, float* out, size_t out_stride, Room& room) {
    const int steps = (shape.head_size + kTileFeatures - 1) / kTileFeatures, columns = shape.padded_size() / kLanes;
    const size_t row = round_to(num_keys, kTileKeys) + kLanes;  // no power of two, or rows would share a place in caches
    KeyRange ranges[kRows];
    for (int r = 0; r < count; ++r) ranges[r] = visible_keys(shape, position + r, num_keys);
    const KeyRange computed{ranges[0].first / kTileKeys * kTileKeys, round_to(ranges[count - 1].last, kTileKeys)};
    const int tiles = (computed.last - computed.first) / kTileKeys;
    float* scores = room.scores.reserve(kRows * row);
    int16_t* rounded = room.queries.reserve(steps * kTileNumbers);
    tile_queries(queries, stride, count, shape.head_size, rounded);
    const ScoreTile tile{scores, row, count, computed, ranges, splat(0.0f)};
    float worth[kRows];
    find_tops(head, rounded, steps, tile, scores, worth);
    int16_t* weights = room.weights.reserve(static_cast<size_t>(tiles) * kTileNumbers);
    for (int r = 0; r < count; ++r)
      worth[r] = weigh_keys(scores + r * row, shape.scale * kLog2E, worth[r], computed, ranges[r], weights + r * kTileKeys);
    const size_t value_stride = static_cast<size_t>(columns) * kTileNumbers;
    float* made = room.out.reserve(kRows * shape.padded_size());
    multiply_tiles(weights, head.values + computed.first / kTileKeys * value_stride, kTileNumbers, value_stride, tiles, columns, made,
                   shape.padded_size());
    for (int r = 0; r < count; ++r)
      for (int d = 0; d < shape.head_size; d += kLanes)
        store_some(out + r * out_stride + d, shape.head_size - d, load(made + r * shape.padded_size() + d) * splat(worth[r]));
  }

 private:
  // Writes the scores of a tile, and the largest that each query sees, a block of keys after the other.
  static void find_tops(const Head& head, const int16_t* queries, int steps, const ScoreTile& tile, float* scores, float* tops) {
    const size_t key_stride = static_cast<size_t>(steps) * kTileNumbers;
    Floats largest[kRows];
    for (int r = 0; r < tile.count; ++r) largest[r] = splat(kUnseen);
    for_blocks(tile, [&](int first, auto block_of) {
      multiply_tiles(queries, head.keys + first / kAmxRows * key_stride, key_stride, kTileNumbers, steps,
                     std::min(kBlockKeys, tile.computed.last - first) / kAmxRows, scores + first, tile.stride);
      for (int r = 0; r < tile.count; ++r)
        largest[r] = largest_of(scores + r * tile.stride + first, block_of(tile.ranges[r]), largest[r]);
    });
    for (int r = 0; r < tile.count; ++r) tops[r] = largest_lane(largest[r]);
  }
};

}  // namespace poolgraph
