// Attention within a text: products of 16-bit integers summed in 32 bits, softmax in float32.
//
// Each query and each key has a scale of its own, each feature of the values one for the text, and softmax's weights one
// for a block of keys. That is closer than bfloat16, whose products take four times as long on a Xeon (measured).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernel_vector.h"

namespace poolgraph {

constexpr int kQueryRows = 12;      // queries of a task; their scores stay in the first or second cache
constexpr int kMostFeatures = 512;  // of a head

struct AttentionShape {
  int num_heads;
  int num_kv_heads;
  int head_size;
  float scale;
  bool causal;
  int left_window;   // tokens that a query sees before itself, -1 for all
  int right_window;  // and after
  int padded_size() const { return round_to(head_size, kLanes); }
};

// The rows of one text, heads side by side.
struct HeadRows {
  const float* data;
  size_t stride;
  int length;
  const float* at(int row, int head, int head_size) const {
    return data + static_cast<size_t>(row) * stride + static_cast<size_t>(head) * head_size;
  }
};

constexpr int kBlockKeys = 64;         // keys whose weighted values add up in 32 bits
constexpr float kWeightBits = 13;      // a block's largest weight is 2**13
constexpr float kMostValue = 4095;     // kBlockKeys * 2**kWeightBits * kMostValue < 2**31
constexpr float kUnseen = -3e38f;      // 2**score is then so small that it rounds to 0
constexpr float kLeastRange = 1e-30f;  // of numbers that get a scale, so that its inverse is finite

// Keys and values of one head in the order in which they are multiplied: a pair of features, or of tokens, in a lane.
struct PackedHead {
  static size_t keys_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, kLanes); }
  static size_t values_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, 2); }
  int16_t* keys;        // [head_size / 2][keys, up to a multiple of 16][2]
  float* key_scales;    // [keys, up to a multiple of 16]
  float* key_biases;    // the same: 0, and kUnseen behind the last key
  int16_t* values;      // [keys / 2][head_size][2]
  float* value_scales;  // [head_size]
};

// Room that a thread keeps.
struct AttentionRoom {
  Buffer<int16_t> keys, values, queries, weights;
  Buffer<float> key_scales, key_biases, value_scales, scores, factors;
};

// Swaps rows and columns of 16 by 16 numbers of 32 bits.
inline void transpose(__m512i (&rows)[kLanes]) {
  __m512i pairs[kLanes], fours[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0xdd);
    const __m512i high = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_i32x4(low, high, 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(low2, high2, 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(low, high, 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(low2, high2, 0xdd);
  }
}

inline __m512 load_some(const float* from, int count) {
  return count >= kLanes ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask_of(std::max(count, 0)), from);
}


// The largest sum of products of two rows of `padded` numbers up to this stays below 2**31.
inline float most_number(int padded) { return std::floor(std::sqrt(2147483647.0 / padded)); }

inline __m512i magnitude(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }

inline __m256i narrow(__m512 x) { return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)); }

// Rounds one row to integers of up to `most`, given to store(d, sixteen of them), with zeros up to `padded`; returns what
// one is worth. A row with NaN or infinity is worth NaN or infinity: magnitudes are compared as integers, which have the
// order of the numbers.
template <class Store>
inline __attribute__((always_inline)) float round_row(const float* row, int size, int padded, float most, Store&& store) {
  __m512i largest = _mm512_setzero_si512();
  for (int d = 0; d < size; d += kLanes) largest = _mm512_max_epi32(largest, magnitude(load_some(row + d, size - d)));
  const __m128 range = _mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(largest)));
  const float kept = _mm_cvtss_f32(_mm_max_ss(_mm_set_ss(kLeastRange), range));  // in this order NaN stays one
  const __m512 inverse = _mm512_set1_ps(most / kept);
  for (int d = 0; d < padded; d += kLanes) store(d, narrow(_mm512_mul_ps(load_some(row + d, size - d), inverse)));
  return kept / most;
}

inline void pack_keys(const HeadRows& rows, int head, int size, int padded, const PackedHead& to) {
  const size_t line = static_cast<size_t>(round_to(rows.length, kLanes)) * 2;
  const float most = most_number(padded);
  alignas(64) int16_t numbers[kLanes][kMostFeatures];
  for (int key = 0; key < rows.length; key += kLanes) {
    for (int r = 0; r < kLanes; ++r) {
      const float* row = rows.at(std::min(key + r, rows.length - 1), head, size);
      int16_t* line_of_row = numbers[r];
      to.key_scales[key + r] = round_row(row, size, padded, most, [&](int d, __m256i x) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(line_of_row + d), x);
      });
    }
    const __m512 unseen = _mm512_set1_ps(kUnseen);
    _mm512_storeu_ps(to.key_biases + key, _mm512_maskz_mov_ps(~mask_of(rows.length - key), unseen));
    for (int d = 0; d < padded; d += 2 * kLanes) {
      __m512i block[kLanes];
      for (int r = 0; r < kLanes; ++r) block[r] = _mm512_load_si512(numbers[r] + d);
      transpose(block);
      const int pairs = std::min(padded - d, 2 * kLanes) / 2;
      for (int pair = 0; pair < pairs; ++pair) _mm512_storeu_si512(to.keys + (d / 2 + pair) * line + key * 2, block[pair]);
    }
  }
}

inline void pack_values(const HeadRows& rows, int head, int size, int padded, const PackedHead& to) {
  const float* first_row = rows.at(0, head, size);
  for (int d = 0; d < padded; d += kLanes) {
    __m512i largest = _mm512_setzero_si512();
    for (int key = 0; key < rows.length; ++key)
      largest = _mm512_max_epi32(largest, magnitude(load_some(first_row + key * rows.stride + d, size - d)));
    const __m512 range = _mm512_max_ps(_mm512_set1_ps(kLeastRange), _mm512_castsi512_ps(largest));
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(kMostValue), range);
    _mm512_storeu_ps(to.value_scales + d, _mm512_mul_ps(range, _mm512_set1_ps(1 / kMostValue)));
    for (int key = 0; key < rows.length; key += 2) {
      const float* row = first_row + key * rows.stride + d;
      const __m512 low = load_some(row, size - d);
      const __m512 high = key + 1 < rows.length ? load_some(row + rows.stride, size - d) : _mm512_setzero_ps();
      const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
      const __m512i second = _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)), 16);
      _mm512_storeu_si512(to.values + (static_cast<size_t>(key) * padded + d * 2),
                          _mm512_mask_blend_epi16(0xaaaaaaaa, first, second));
    }
  }
}

inline PackedHead pack_head(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head,
                            AttentionRoom& room) {
  const int padded = shape.padded_size(), length = keys.length, padded_length = round_to(length, kLanes);
  const PackedHead packed{room.keys.reserve(PackedHead::keys_size(length, padded)),
                          room.key_scales.reserve(padded_length), room.key_biases.reserve(padded_length),
                          room.values.reserve(PackedHead::values_size(length, padded)), room.value_scales.reserve(padded)};
  pack_keys(keys, head, shape.head_size, padded, packed);
  pack_values(values, head, shape.head_size, padded, packed);
  return packed;
}

// A block of 6 or 12 rows by 1 to 4 vectors of 16 columns: sums over steps of rows[r][step] * columns[step][c], a pair a
// step, given to store(r, j, sums). Unrolled by the compiler, so that all sums stay in registers.
template <int kRows, int kVectors, class Store>
__attribute__((noinline)) void product_block(const int16_t* rows, size_t row_stride, const int16_t* columns,
                                             size_t column_stride, int steps, int count, const Store& store) {
  __m512i sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_setzero_si512();
#pragma GCC unroll 1
  for (int step = 0; step < steps; ++step, columns += column_stride, rows += 2) {
    __m512i column[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) column[j] = _mm512_loadu_si512(columns + j * 32);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, rows + r * row_stride, sizeof pair);
      const __m512i x = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) add_pairs(sums[r][j], x, column[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      if (r < count) store(r, j, _mm512_cvtepi32_ps(sums[r][j]));
}

// Up to kQueryRows rows by up to 4 vectors: blocks that fit the registers.
template <int kVectors, class Store>
inline void multiply_rows(const int16_t* rows, size_t row_stride, const int16_t* columns, size_t column_stride, int steps,
                          int count, const Store& store) {
  if constexpr (kVectors <= 2)
    if (count > kQueryRows / 2)
      return product_block<kQueryRows, kVectors>(rows, row_stride, columns, column_stride, steps, count, store);
  for (int first = 0; first < count; first += kQueryRows / 2)
    product_block<kQueryRows / 2, kVectors>(rows + first * row_stride, row_stride, columns, column_stride, steps,
                                            count - first, [&](int r, int j, __m512 x) { store(first + r, j, x); });
}

template <class Store>
inline void multiply(int vectors, const int16_t* rows, size_t row_stride, const int16_t* columns, size_t column_stride,
                     int steps, int count, const Store& store) {
  switch (vectors) {
    case 1: return multiply_rows<1>(rows, row_stride, columns, column_stride, steps, count, store);
    case 2: return multiply_rows<2>(rows, row_stride, columns, column_stride, steps, count, store);
    case 3: return multiply_rows<3>(rows, row_stride, columns, column_stride, steps, count, store);
    default: return multiply_rows<4>(rows, row_stride, columns, column_stride, steps, count, store);
  }
}

// The keys that one query sees: [first, last).
struct KeyRange {
  int first, last;
};

inline KeyRange visible_keys(const AttentionShape& shape, int query, int keys) {
  const int first = shape.left_window < 0 ? 0 : std::max(0, query - shape.left_window);
  const int last = shape.right_window < 0 ? keys : std::min(keys, query + shape.right_window + 1);
  return {first, shape.causal ? std::min(last, query + 1) : last};
}

// Overwrites the scores of keys outside the range in the vectors at its two ends; those behind the last key are unseen
// already.
inline void hide_unseen(float* scores, KeyRange range, int keys) {
  const int start = range.first / kLanes * kLanes, last = range.last / kLanes * kLanes;
  const __m512 unseen = _mm512_set1_ps(kUnseen);
  if (start < range.first) _mm512_mask_storeu_ps(scores + start, mask_of(range.first - start), unseen);
  if (last < range.last && range.last < keys)
    _mm512_mask_storeu_ps(scores + last, static_cast<__mmask16>(~mask_of(range.last - last)), unseen);
}

inline float largest_of(const float* scores, int first, int last) {
  __m512 largest = _mm512_set1_ps(kUnseen);
  for (int key = first; key < last; key += kLanes) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + key));
  return _mm512_reduce_max_ps(largest);
}

// Turns scores, in units of log2, into weights: integers, of each block of keys up to 2**kWeightBits, zero for those
// computed of keys outside the range. `factors` gets what one is worth in each block, all weights together being worth 1.
inline void soften(float* scores, KeyRange range, KeyRange computed, int keys, int16_t* weights, float* factors) {
  hide_unseen(scores, range, keys);
  const int start = range.first / kLanes * kLanes, end = round_to(range.last, kLanes);
  const float most = largest_of(scores, start, end);
  __m512 total = _mm512_setzero_ps();
  const int blocks = (computed.last - computed.first + kBlockKeys - 1) / kBlockKeys;
  for (int block = 0; block < blocks; ++block) {
    const int first = std::max(start, computed.first + block * kBlockKeys);
    const int last = std::min(end, computed.first + (block + 1) * kBlockKeys);
    const float most_here = blocks == 1 ? most : largest_of(scores, first, last);
    const float factor = blocks == 1 ? 1.0f : _mm512_cvtss_f32(exp2(_mm512_set1_ps(most_here - most)));
    const __m512 shift = _mm512_set1_ps(most_here - kWeightBits);
    __m512 sum = _mm512_setzero_ps();
    for (int key = first; key < last; key += kLanes) {
      const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + key), shift));
      sum = _mm512_add_ps(sum, weight);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), narrow(weight));
    }
    factors[block] = factor;
    total = _mm512_fmadd_ps(sum, _mm512_set1_ps(factor), total);
  }
  const float worth = 1.0f / _mm512_reduce_add_ps(total);
  for (int block = 0; block < blocks; ++block) factors[block] *= worth;
  std::memset(weights + computed.first, 0, (start - computed.first) * sizeof(int16_t));
  std::memset(weights + end, 0, (computed.last - end) * sizeof(int16_t));
}

inline void round_queries(const AttentionShape& shape, const float* rows, size_t stride, int count, int16_t* to, float* scales) {
  const int padded = shape.padded_size();
  if (count < kQueryRows) std::memset(to + count * padded, 0, (kQueryRows - count) * padded * sizeof(int16_t));
  for (int r = 0; r < count; ++r) {
    int16_t* line = to + r * padded;
    const float worth = round_row(rows + r * stride, shape.head_size, padded, most_number(padded), [&](int d, __m256i x) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + d), x);
    });
    scales[r] = worth * shape.scale * kLog2E;
  }
}

// out (count, head_size) = the weighted values of keys [first, last).
inline void weigh_values(const AttentionShape& shape, const PackedHead& head, const int16_t* weights, size_t weights_stride,
                         const float* factors, size_t factors_stride, KeyRange keys, int count, float* out, size_t out_stride) {
  const int padded = shape.padded_size();
  for (int block = 0, first = keys.first; first < keys.last; ++block, first += kBlockKeys) {
    const int steps = (std::min(first + kBlockKeys, keys.last) - first + 1) / 2;
    for (int d = 0; d < padded; d += 4 * kLanes) {
      const auto add = [&](int r, int j, __m512 sums) {
        const int place = d + j * kLanes;
        float* to = out + r * out_stride + place;
        const __mmask16 mask = mask_of(shape.head_size - place);
        const __m512 worth = _mm512_mul_ps(_mm512_loadu_ps(head.value_scales + place),
                                           _mm512_set1_ps(factors[r * factors_stride + block]));
        const __m512 before = block == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, to);
        _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(sums, worth, before));
      };
      multiply(std::min(4, (padded - d) / kLanes), weights + first, weights_stride,
               head.values + static_cast<size_t>(first) * padded + d * 2, static_cast<size_t>(padded) * 2, steps, count, add);
    }
  }
}

// Answers `count` <= kQueryRows queries of one head, the first of which stands at `position` among the keys.
inline void attend(const AttentionShape& shape, const float* queries, size_t stride, const PackedHead& head, int num_keys,
                   int position, int count, float* out, size_t out_stride, AttentionRoom& room) {
  const int padded = shape.padded_size(), padded_keys = round_to(num_keys, kLanes);
  const int blocks = (padded_keys + kBlockKeys - 1) / kBlockKeys;
  int16_t* rounded = room.queries.reserve(kQueryRows * padded);
  float* scores = room.scores.reserve(static_cast<size_t>(kQueryRows) * padded_keys);
  int16_t* weights = room.weights.reserve(static_cast<size_t>(kQueryRows) * padded_keys);
  float* factors = room.factors.reserve(static_cast<size_t>(kQueryRows) * blocks);
  float scales[kQueryRows];
  round_queries(shape, queries, stride, count, rounded, scales);
  const int first = visible_keys(shape, position, num_keys).first / kLanes * kLanes;
  const int last = round_to(visible_keys(shape, position + count - 1, num_keys).last, kLanes);
  for (int key = first; key < last; key += 4 * kLanes) {
    const auto put = [&](int r, int j, __m512 sums) {
      const __m512 worth = _mm512_mul_ps(_mm512_loadu_ps(head.key_scales + key + j * kLanes), _mm512_set1_ps(scales[r]));
      const __m512 bias = _mm512_loadu_ps(head.key_biases + key + j * kLanes);
      _mm512_storeu_ps(scores + static_cast<size_t>(r) * padded_keys + key + j * kLanes, _mm512_fmadd_ps(sums, worth, bias));
    };
    multiply(std::min(4, (last - key) / kLanes), rounded, padded, head.keys + key * 2, static_cast<size_t>(padded_keys) * 2,
             padded / 2, count, put);
  }
  for (int r = 0; r < count; ++r)
    soften(scores + static_cast<size_t>(r) * padded_keys, visible_keys(shape, position + r, num_keys), {first, last}, num_keys,
           weights + static_cast<size_t>(r) * padded_keys, factors + static_cast<size_t>(r) * blocks);
  weigh_values(shape, head, weights, padded_keys, factors, blocks, {first, std::min(last, num_keys)}, count, out, out_stride);
}

}  // namespace poolgraph
