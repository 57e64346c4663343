// Attention within a text: products of 16-bit integers summed in 32 bits.
//
// Each query and each key has a scale of its own, each feature of the values one for the text, and softmax's weights one
// for a block of keys. That is closer than bfloat16, whose products of vectors take four times as long on a Xeon (measured);
// those of AMX's tiles do not, see kernel_attention_tiles.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernel_attention_shape.h"
#include "kernel_block.h"
#include "kernel_softmax.h"

namespace poolgraph {

constexpr float kMostValue = 4095;     // kBlockKeys * 2**13, the largest weight, * kMostValue < 2**31
constexpr float kLeastRange = 1e-30f;  // of numbers that get a scale, so that its inverse is finite

// Keys and values of one head in the order in which they are multiplied: a pair of features, or of tokens, in a lane.
struct PackedHead {
  static size_t keys_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, kLanes); }
  static size_t values_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, 2); }
  int16_t* keys;        // [keys / 64][head_size / 2][64 or, of the last block, up to a multiple of 16][2]
  float* key_scales;    // [keys, up to a multiple of 16]
  int16_t* values;      // [keys / 2][head_size][2]
  float* value_scales;  // [head_size]
  float poison;         // 0, NaN where a key has NaN or infinity
};

// Room that a thread keeps.
struct AttentionRoom {
  Buffer<int16_t> keys, values, queries, weights;
  Buffer<float> key_scales, value_scales, scores, factors;
};

// The largest sum of products of two rows of `padded` numbers up to this stays below 2**31.
inline float most_number(int padded) { return std::floor(std::sqrt(2147483647.0 / padded)); }

inline Ints magnitude(Floats x) { return both_bits(as_ints(x), splat(0x7fffffff)); }

// The larger magnitudes of a and b, compared as integers, which have the order of the numbers and let NaN win.
inline Floats larger(Floats a, Floats b) { return as_floats(maximum(magnitude(a), magnitude(b))); }

inline Floats range_of(const float* row, int size) {
  Floats range = splat(0.0f);
  for (int d = 0; d < size; d += kLanes) range = larger(range, load_some(row + d, size - d));
  return range;
}

// Rounds up to sixteen rows, `row(r)` being one, to integers of up to `most`, with zeros up to `padded`; returns what one is
// worth in each: NaN or infinity where a row has one.
template <class Row>
inline __attribute__((always_inline)) Floats round_rows(Row&& row, int count, int size, int padded, int16_t* to,
                                                        size_t stride) {
  const float most = most_number(padded);
  Floats ranges[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) ranges[r] = r < count ? range_of(row(r), size) : splat(0.0f);
  const Floats range = reduce_rows(ranges, larger);
  const Floats kept = maximum(splat(kLeastRange), range);  // in this order NaN stays one
  alignas(64) float inverses[kLanes];
  store(inverses, splat(most) / kept);
  for (int r = 0; r < count; ++r) {
    const Floats inverse = splat(inverses[r]);
    for (int d = 0; d < padded; d += kLanes)
      store_cut(to + r * stride + d, round_to_ints(load_some(row(r) + d, size - d) * inverse));
  }
  return kept * splat(1 / most);
}

// Returns 0, NaN where a key has NaN or infinity.
inline float pack_keys(const HeadRows& rows, int head, int size, int padded, const PackedHead& to) {
  const int lanes_keys = round_to(rows.length, kLanes);
  alignas(64) int16_t numbers[kLanes][kMostFeatures];
  Floats poison = splat(0.0f);
  for (int key = 0; key < rows.length; key += kLanes) {
    const auto row = [&](int r) { return rows.at(std::min(key + r, rows.length - 1), head, size); };
    const Floats scales = round_rows(row, kLanes, size, padded, numbers[0], kMostFeatures);
    store(to.key_scales + key, scales);
    poison = fmadd(scales, splat(0.0f), poison);
    const int first = key / kBlockKeys * kBlockKeys;
    const size_t line = 2 * static_cast<size_t>(std::min(kBlockKeys, lanes_keys - first));
    int16_t* packed = to.keys + static_cast<size_t>(first) * padded + (key - first) * 2;
    for (int d = 0; d < padded; d += 2 * kLanes) {
      Ints block[kLanes];
      for (int r = 0; r < kLanes; ++r) block[r] = load_pairs(numbers[r] + d);
      transpose(block);
      const int pairs = std::min(padded - d, 2 * kLanes) / 2;
      for (int pair = 0; pair < pairs; ++pair) store_pairs(packed + (d / 2 + pair) * line, block[pair]);
    }
  }
  return sum_lanes(poison);
}

inline void pack_values(const HeadRows& rows, int head, int size, int padded, const PackedHead& to) {
  const float* first_row = rows.at(0, head, size);
  for (int d = 0; d < padded; d += kLanes) {
    Ints largest = splat(0);
    for (int key = 0; key < rows.length; ++key)
      largest = maximum(largest, magnitude(load_some(first_row + key * rows.stride + d, size - d)));
    const Floats range = maximum(splat(kLeastRange), as_floats(largest));
    const Floats inverse = splat(kMostValue) / range;
    store(to.value_scales + d, range * splat(1 / kMostValue));
    for (int key = 0; key < rows.length; key += 2) {
      const float* row = first_row + key * rows.stride + d;
      const Floats low = load_some(row, size - d);
      const Floats high = key + 1 < rows.length ? load_some(row + rows.stride, size - d) : splat(0.0f);
      const Ints first = round_to_ints(low * inverse);
      const Ints second = round_to_ints(high * inverse);
      store_pairs(to.values + (static_cast<size_t>(key) * padded + d * 2), pair(first, second));
    }
  }
}

inline PackedHead pack_head(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head,
                            AttentionRoom& room) {
  const int padded = shape.padded_size(), length = keys.length, padded_length = round_to(length, kLanes);
  PackedHead packed{room.keys.reserve(PackedHead::keys_size(length, padded)),
                    room.key_scales.reserve(padded_length), room.values.reserve(PackedHead::values_size(length, padded)),
                    room.value_scales.reserve(padded), 0};
  packed.poison = pack_keys(keys, head, shape.head_size, padded, packed);
  pack_values(values, head, shape.head_size, padded, packed);
  return packed;
}

// out (count, head_size) = the weighted values of keys [first, last).
inline void weigh_values(const AttentionShape& shape, const PackedHead& head, const int16_t* weights, size_t weights_stride,
                         const float* factors, KeyRange keys, int count, float* out, size_t out_stride) {
  const int padded = shape.padded_size();
  alignas(64) float sums[kQueryRows][4 * kLanes];
  for (int d = 0; d < padded; d += 4 * kLanes) {
    const int vectors = std::min(4, (padded - d) / kLanes);
    const float* factor = factors;
    const auto set = [&](int r, int j, Floats x) {
      store(sums[r] + j * kLanes, x * splat(factor[r]));
    };
    const auto add = [&](int r, int j, Floats x) {
      float* to = sums[r] + j * kLanes;
      store(to, fmadd(x, splat(factor[r]), load(to)));
    };
    for (int first = keys.first; first < keys.last; first += kBlockKeys, factor += kLanes) {
      const int steps = (std::min(first + kBlockKeys, keys.last) - first + 1) / 2;
      const int16_t* values = head.values + static_cast<size_t>(first) * padded + d * 2;
      const auto block = [&](const auto& store) {
        multiply<ShortPairs>(vectors, {weights + first, weights_stride}, {values, static_cast<size_t>(padded) * 2, 2 * kLanes},
                             steps, count, store);
      };
      first == keys.first ? block(set) : block(add);
    }
    for (int j = 0; j < vectors; ++j) {
      const int place = d + j * kLanes;
      const Floats worth = load(head.value_scales + place);
      for (int r = 0; r < count; ++r)
        store_some(out + r * out_stride + place, shape.head_size - place, load(sums[r] + j * kLanes) * worth);
    }
  }
}

// The scores of a tile's rounded queries, in units of their own.
inline void multiply_keys(const PackedHead& head, const int16_t* queries, int padded, const ScoreTile& tile, int num_keys,
                          float* scores) {
  for (int key = tile.computed.first; key < tile.computed.last; key += kBlockKeys) {
    const size_t line = 2 * static_cast<size_t>(std::min(kBlockKeys, round_to(num_keys, kLanes) - key));
    const int vectors = (std::min(key + kBlockKeys, tile.computed.last) - key) / kLanes;
    const auto put = [&](int r, int j, Floats sums) {
      const int place = key + j * kLanes;
      store(scores + r * tile.stride + place, sums * load(head.key_scales + place));
    };
    const int16_t* keys = head.keys + static_cast<size_t>(key) * padded;
    multiply<ShortPairs>(vectors, {queries, static_cast<size_t>(padded)}, {keys, line, 2 * kLanes}, padded / 2, tile.count, put);
  }
}

// Rounds a tile's queries, with zeros up to kQueryRows; returns what a score of each is worth in units of log2.
inline Floats round_queries(const AttentionShape& shape, const float* rows, size_t stride, int count, int16_t* to) {
  const int padded = shape.padded_size();
  const auto row = [&](int r) { return rows + r * stride; };
  std::memset(to + count * padded, 0, (kQueryRows - count) * padded * sizeof(int16_t));
  const Floats worth = round_rows(row, count, shape.head_size, padded, to, padded);
  return worth * splat(shape.scale * kLog2E);
}

// Answers `count` <= kQueryRows queries of one head, the first of which stands at `position` among the keys.
inline void attend(const AttentionShape& shape, const float* queries, size_t stride, const PackedHead& head, int num_keys,
                   int position, int count, float* out, size_t out_stride, AttentionRoom& room) {
  const int padded = shape.padded_size();
  const size_t row_keys = round_to(num_keys, kGroupKeys), blocks = (row_keys + kBlockKeys - 1) / kBlockKeys;
  int16_t* rounded = room.queries.reserve(kQueryRows * padded);
  float* scores = room.scores.reserve(kQueryRows * row_keys);
  int16_t* weights = room.weights.reserve(kQueryRows * row_keys);
  float* factors = room.factors.reserve(blocks * kLanes);
  KeyRange ranges[kQueryRows];
  for (int r = 0; r < count; ++r) ranges[r] = visible_keys(shape, position + r, num_keys);
  const int first = ranges[0].first / kBlockKeys * kBlockKeys;
  const int last = std::min(round_to(ranges[count - 1].last, kGroupKeys), round_to(num_keys, kLanes));
  const Floats worth = round_queries(shape, queries, stride, count, rounded);
  const ScoreTile tile{scores, row_keys, count, {first, last}, ranges, worth};
  multiply_keys(head, rounded, padded, tile, num_keys, scores);
  soften(tile, head.poison, weights, factors);
  weigh_values(shape, head, weights, row_keys, factors, {first, std::min(last, num_keys)}, count, out, out_stride);
}

// What the operator is made of.
struct ShortAttention {
  static constexpr const char* kName = "Attention";
  static constexpr bool kTakesScores = false;  // neither a softcap nor a bias
  static constexpr int kRows = kQueryRows;
  using Room = AttentionRoom;
  using Head = PackedHead;
  static Head pack(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head, Room& room) {
    return pack_head(shape, keys, values, head, room);
  }
  static void answer(const AttentionShape& shape, const float* queries, size_t stride, const Head& head, int num_keys,
                     int position, int count, const ScoreInputs&, float* out, size_t out_stride, Room& room) {
    attend(shape, queries, stride, head, num_keys, position, count, out, out_stride, room);
  }
};

}  // namespace poolgraph
