// Attention within a text in float32.
#pragma once

#include <limits>

#include "kernel_attention_shape.h"
#include "kernel_block.h"
#include "kernel_softmax.h"

namespace poolgraph {

// Keys and values of one head in the order in which they are multiplied, sixteen columns a vector: of keys a column is a
// key and a step a feature, of values the other way round. Columns beyond the last are zero.
struct FloatHead {
  const float* keys;    // [keys / 16][head_size][16]
  const float* values;  // [head_size / 16][keys][16]
};

struct FloatAttentionRoom {
  Buffer<float> keys, values, queries, scores;
};

inline void pack_float_keys(const HeadRows& rows, int head, int size, float* to) {
  for (int key = 0; key < rows.length; key += kLanes)
    for (int d = 0; d < size; d += kLanes) {
      Ints block[kLanes];
      for (int r = 0; r < kLanes; ++r)
        block[r] = key + r < rows.length ? as_ints(load_some(rows.at(key + r, head, size) + d, size - d)) : splat(0);
      transpose(block);
      float* first = to + static_cast<size_t>(key) * size + d * kLanes;
      for (int r = 0; r < std::min(kLanes, size - d); ++r) store(first + r * kLanes, as_floats(block[r]));
    }
}

inline void pack_float_values(const HeadRows& rows, int head, int size, float* to) {
  for (int d = 0; d < size; d += kLanes)
    for (int key = 0; key < rows.length; ++key, to += kLanes) store(to, load_some(rows.at(key, head, size) + d, size - d));
}

// Turns a tile's scores, in units of log2, into weights in their place, zero for keys that a query does not see, its largest
// being 1. `shares` gets what a weight of each query is worth, all of them together being worth 1, with that of a sink if there
// is one; NaN where a score is NaN or the largest is infinite.
inline void soften(const ScoreTile& tile, const float* sink, float* scores, float* shares) {
  Floats tops[kQueryRows], sums[kQueryRows];
  for (int r = 0; r < tile.count; ++r) tops[r] = splat(-std::numeric_limits<float>::infinity());
  for_blocks(tile, [&](int first, auto block_of) {
    for (int r = 0; r < tile.count; ++r) tops[r] = largest_of(scores + r * tile.stride + first, block_of(tile.ranges[r]), tops[r]);
  });
  for (int r = 0; r < tile.count; ++r) {
    const float top = largest_lane(tops[r]), sunk = sink ? *sink * kLog2E : 0.0f;
    tops[r] = splat(sink ? std::max(top, sunk) : top);
    sums[r] = sink ? keep_where(mask_of(1), exp2(splat(sunk) - tops[r])) : splat(0.0f);
  }
  for_blocks(tile, [&](int first, auto block_of) {
    for (int r = 0; r < tile.count; ++r) {
      float* place = scores + r * tile.stride + first;
      const auto block = block_of(tile.ranges[r]);
#pragma GCC unroll 4
      for (int key = 0; key < block.size; key += kLanes) {
        const Floats weights = block.keep(key, exp2(load(place + key) - tops[r]));
        sums[r] = sums[r] + weights;
        store(place + key, weights);
      }
    }
  });
  for (int r = 0; r < tile.count; ++r) shares[r] = 1.0f / sum_lanes(sums[r]);
}

struct FloatAttention {
  static constexpr const char* kName = "FloatAttention";
  static constexpr bool kTakesScores = true;
  static constexpr int kRows = kQueryRows;
  using Room = FloatAttentionRoom;
  using Head = FloatHead;

  static Head pack(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head, Room& room) {
    const size_t size = shape.head_size;
    float* packed_keys = room.keys.reserve(size * round_to(keys.length, kLanes));
    float* packed_values = room.values.reserve(shape.padded_size() * static_cast<size_t>(values.length));
    pack_float_keys(keys, head, shape.head_size, packed_keys);
    pack_float_values(values, head, shape.head_size, packed_values);
    return {packed_keys, packed_values};
  }

  // Answers `count` <= kQueryRows queries of one head, the first of which stands at `position` among the keys.
  static void answer(const AttentionShape& shape, const float* queries, size_t stride, const Head& head, int num_keys,
                     int position, int count, const ScoreInputs& inputs, float* out, size_t out_stride, Room& room) {
    const size_t size = shape.head_size, row_keys = round_to(num_keys, kLanes);
    float* scores = room.scores.reserve(kQueryRows * row_keys);
    KeyRange ranges[kQueryRows];
    for (int r = 0; r < count; ++r) ranges[r] = visible_keys(shape, position + r, num_keys);
    const int first = ranges[0].first / kBlockKeys * kBlockKeys, last = round_to(ranges[count - 1].last, kLanes);
    const ScoreTile tile{scores, row_keys, count, {first, last}, ranges, splat(1.0f)};
    const BlockRows<Singles> rows{scale_queries(shape, queries, stride, count, room), size};
    for (int key = first; key < last; key += kBlockKeys)
      multiply<Singles>(std::min(kBlockKeys, last - key) / kLanes, rows, {head.keys + key * size, kLanes, size * kLanes},
                        shape.head_size, count,
                        [&](int r, int j, Floats x) { store(scores + r * row_keys + key + j * kLanes, x); });
    if (shape.softcap > 0) cap_scores(shape, tile, scores);
    if (inputs.bias) add_bias(inputs, tile, num_keys, scores);
    float shares[kQueryRows];
    soften(tile, inputs.sinks, scores, shares);
    weigh(shape, head, num_keys, tile, shares, out, out_stride);
  }

 private:
  // What the queries are multiplied by: scores come in units of log2, or as what cap_scores takes.
  static float query_scale(const AttentionShape& shape) {
    return shape.scale * kLog2E * (shape.softcap > 0 ? 2 / shape.softcap : 1);
  }

  // softcap * tanh(score / softcap) in units of log2, of scores that are 2 / softcap of that: with m = 2**score - 1, which
  // keeps the digits of small scores, tanh is m / (m + 2).
  static void cap_scores(const AttentionShape& shape, const ScoreTile& tile, float* scores) {
    const Floats cap = splat(shape.softcap * kLog2E), two = splat(2.0f);
    for (int r = 0; r < tile.count; ++r)
      for (int key = tile.computed.first; key < tile.computed.last; key += kLanes) {
        float* place = scores + r * tile.stride + key;
        const Floats grown = exp2_less_one(minimum(splat(126.0f), load(place)));
        store(place, cap * (grown / (grown + two)));
      }
  }

  // A bias stays finite in units of log2, be it of the lowest numbers that masks are made of: a row of nothing else is
  // weighed evenly. What is infinite or NaN of the scores stays so.
  static void add_bias(const ScoreInputs& inputs, const ScoreTile& tile, int num_keys, float* scores) {
    constexpr float most = std::numeric_limits<float>::max() / kLog2E;
    const int first = tile.computed.first;
    for (int r = 0; r < tile.count; ++r) {
      float* row = scores + r * tile.stride + first;
      const float* added = inputs.bias + r * inputs.row_stride + first;
      for_vectors(std::min(tile.computed.last, num_keys) - first, [&](int key, auto lanes) {
        const Floats kept = minimum(splat(most), maximum(splat(-most), lanes.load(added + key)));
        lanes.store(row + key, fmadd(kept, splat(kLog2E), lanes.load(row + key)));
      });
    }
  }

  // Copies a tile's queries times query_scale, with zeros up to kQueryRows.
  static const float* scale_queries(const AttentionShape& shape, const float* rows, size_t stride, int count, Room& room) {
    const size_t size = shape.head_size;
    float* scaled = room.queries.reserve(kQueryRows * size);
    std::fill(scaled + count * size, scaled + kQueryRows * size, 0.0f);
    const Floats scale = splat(query_scale(shape));
    for (int r = 0; r < count; ++r)
      for_vectors(shape.head_size, [&](int d, auto lanes) {
        lanes.store(scaled + r * size + d, lanes.load(rows + r * stride + d) * scale);
      });
    return scaled;
  }

  static void weigh(const AttentionShape& shape, const Head& head, int num_keys, const ScoreTile& tile, const float* shares,
                    float* out, size_t out_stride) {
    const int first = tile.computed.first, steps = std::min(tile.computed.last, num_keys) - first;
    const size_t vector_stride = static_cast<size_t>(num_keys) * kLanes;
    const BlockRows<Singles> rows{tile.scores + first, tile.stride};
    for (int d = 0; d < shape.padded_size(); d += 4 * kLanes) {
      const float* values = head.values + d / kLanes * vector_stride + static_cast<size_t>(first) * kLanes;
      multiply<Singles>(std::min(4, (shape.padded_size() - d) / kLanes), rows, {values, kLanes, vector_stride}, steps, tile.count,
                        [&](int r, int j, Floats x) {
                          const int place = d + j * kLanes;
                          store_some(out + r * out_stride + place, shape.head_size - place, x * splat(shares[r]));
                        });
    }
  }
};

}  // namespace poolgraph
