// Attention within a text: products of bfloat16 pairs summed in float32, softmax in float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernel_vector.h"

namespace poolgraph {

constexpr int kQueryRows = 12;  // queries of a task; their scores stay in the first or second cache

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

// Keys and values of one head in the order in which they are multiplied: a pair of features, or of tokens, in a lane.
struct PackedHead {
  static size_t keys_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, kLanes); }
  static size_t values_size(int length, int padded) { return static_cast<size_t>(padded) * round_to(length, 2); }
  uint16_t* keys;    // [head_size / 2][keys, up to a multiple of 16][2]
  uint16_t* values;  // [keys / 2][head_size][2]
};

inline __m256i to_bfloat16(__m512 numbers) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers)); }

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

inline void pack_keys(const float* rows, size_t stride, int length, int size, int padded, uint16_t* to) {
  const size_t line = static_cast<size_t>(round_to(length, kLanes)) * 2;
  for (int key = 0; key < length; key += kLanes)
    for (int d = 0; d < padded; d += 2 * kLanes) {
      __m512i block[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        const float* row = rows + static_cast<size_t>(std::min(key + r, length - 1)) * stride + d;
        const __m512 low = load_some(row, size - d), high = load_some(row + kLanes, size - d - kLanes);
        block[r] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      }
      transpose(block);
      const int pairs = std::min(padded - d, 2 * kLanes) / 2;
      for (int pair = 0; pair < pairs; ++pair) _mm512_storeu_si512(to + (d / 2 + pair) * line + key * 2, block[pair]);
    }
}

inline void pack_values(const float* rows, size_t stride, int length, int size, int padded, uint16_t* to) {
  for (int key = 0; key < length; key += 2) {
    const float* row = rows + static_cast<size_t>(key) * stride;
    const bool is_pair = key + 1 < length;
    for (int d = 0; d < padded; d += kLanes) {
      const __m512 first = load_some(row + d, size - d);
      const __m512 second = is_pair ? load_some(row + stride + d, size - d) : _mm512_setzero_ps();
      const __m512i low = _mm512_cvtepu16_epi32(to_bfloat16(first)), high = _mm512_cvtepu16_epi32(to_bfloat16(second));
      _mm512_storeu_si512(to + (static_cast<size_t>(key) * padded + d * 2), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// A block of 6 rows by 4 vectors of 16 columns, 12 by 2 or 12 by 1: out[r][c] = factors[r] * sum over steps of
// rows[r][step] * columns[step][c], a pair a step. Unrolled by the compiler, so that all sums stay in registers.
template <int kRows, int kVectors>
__attribute__((noinline)) void product_block(const uint16_t* rows, size_t row_stride, const uint16_t* columns,
                                             size_t column_stride, int steps, int count, int width, const float* factors,
                                             float* out, size_t out_stride) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_setzero_ps();
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
      for (int j = 0; j < kVectors; ++j) add_products(sums[r][j], x, column[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const __mmask16 mask = mask_of(std::max(width - j * kLanes, 0));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      if (r < count) _mm512_mask_storeu_ps(out + r * out_stride + j * kLanes, mask, _mm512_mul_ps(sums[r][j], _mm512_set1_ps(factors[r])));
  }
}

// out (count, width) = rows (kQueryRows, 2 * steps) @ columns, each row times its factor.
inline void multiply_queries(const uint16_t* rows, size_t row_stride, const uint16_t* columns, size_t column_stride, int steps,
                             int count, int width, const float* factors, float* out, size_t out_stride) {
  int done = 0;
  while (width - done > 32) {
    for (int row = 0; row < count; row += 6)
      product_block<6, 4>(rows + row * row_stride, row_stride, columns + done * 2, column_stride, steps, count - row,
                          width - done, factors + row, out + row * out_stride + done, out_stride);
    done += 64;
  }
  while (width - done > kLanes) {
    product_block<12, 2>(rows, row_stride, columns + done * 2, column_stride, steps, count, width - done, factors, out + done,
                         out_stride);
    done += 32;
  }
  if (width > done)
    product_block<12, 1>(rows, row_stride, columns + done * 2, column_stride, steps, count, width - done, factors, out + done,
                         out_stride);
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

constexpr float kUnseen = -3e38f;  // 2**score is then so small that it rounds to a bfloat16 of 0

// Overwrites the scores of keys outside the range in the vectors at its two ends.
inline void hide_unseen(float* scores, KeyRange range) {
  const int start = range.first / kLanes * kLanes, last = range.last / kLanes * kLanes;
  const __m512 unseen = _mm512_set1_ps(kUnseen);
  _mm512_mask_storeu_ps(scores + start, mask_of(range.first - start), unseen);
  if (last < range.last) _mm512_mask_storeu_ps(scores + last, static_cast<__mmask16>(~mask_of(range.last - last)), unseen);
}

// Turns scores, in units of log2, into weights of bfloat16, zero for those computed of keys outside the range; returns
// 1 / their sum. `computed` has multiples of 16 and holds the range.
inline float soften(float* scores, KeyRange range, KeyRange computed, uint16_t* weights) {
  hide_unseen(scores, range);
  const int start = range.first / kLanes * kLanes, end = round_to(range.last, kLanes);
  __m512 largest = _mm512_set1_ps(kUnseen), total = _mm512_setzero_ps();
  for (int key = start; key < end; key += kLanes) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + key));
  const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  for (int key = start; key < end; key += kLanes) {
    const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + key), most));
    total = _mm512_add_ps(total, weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), to_bfloat16(weight));
  }
  std::memset(weights + computed.first, 0, (start - computed.first) * sizeof(uint16_t));
  std::memset(weights + end, 0, (computed.last - end) * sizeof(uint16_t));
  return 1.0f / _mm512_reduce_add_ps(total);
}

// Room that a thread keeps.
struct AttentionRoom {
  Buffer<uint16_t> keys;
  Buffer<uint16_t> values;
  Buffer<uint16_t> queries;
  Buffer<float> scores;
  Buffer<uint16_t> weights;
};

constexpr float kOnes[kQueryRows] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

constexpr int kSlack = 64;  // blocks of four vectors read past the last column

inline PackedHead pack_head(const AttentionShape& shape, const HeadRows& keys, const HeadRows& values, int head,
                            AttentionRoom& room) {
  const int padded = shape.padded_size(), length = keys.length;
  PackedHead packed{room.keys.reserve(PackedHead::keys_size(length, padded) + kSlack),
                    room.values.reserve(PackedHead::values_size(length, padded) + kSlack)};
  pack_keys(keys.at(0, head, shape.head_size), keys.stride, length, shape.head_size, padded, packed.keys);
  pack_values(values.at(0, head, shape.head_size), values.stride, length, shape.head_size, padded, packed.values);
  return packed;
}

inline void round_queries(const AttentionShape& shape, const float* rows, size_t stride, int count, uint16_t* to) {
  const int padded = shape.padded_size();
  if (count < kQueryRows) std::memset(to + count * padded, 0, (kQueryRows - count) * padded * sizeof(uint16_t));
  const __m512 scale = _mm512_set1_ps(shape.scale * kLog2E);
  for (int r = 0; r < count; ++r)
    for (int d = 0; d < shape.head_size; d += kLanes) {
      const __m512 x = load_some(rows + r * stride + d, shape.head_size - d);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * padded + d), to_bfloat16(_mm512_mul_ps(x, scale)));
    }
}

// Answers `count` <= kQueryRows queries of one head, the first of which stands at `position` among the keys.
inline void attend(const AttentionShape& shape, const float* queries, size_t stride, const PackedHead& head, int num_keys,
                   int position, int count, float* out, size_t out_stride, AttentionRoom& room) {
  const int padded = shape.padded_size(), padded_keys = round_to(num_keys, kLanes);
  uint16_t* rounded = room.queries.reserve(kQueryRows * padded);
  float* scores = room.scores.reserve(static_cast<size_t>(kQueryRows) * padded_keys);
  uint16_t* weights = room.weights.reserve(static_cast<size_t>(kQueryRows) * padded_keys);
  round_queries(shape, queries, stride, count, rounded);
  const int first = visible_keys(shape, position, num_keys).first / kLanes * kLanes;
  const int last = round_to(visible_keys(shape, position + count - 1, num_keys).last, kLanes);
  multiply_queries(rounded, padded, head.keys + first * 2, static_cast<size_t>(padded_keys) * 2, padded / 2, count,
                   last - first, kOnes, scores + first, padded_keys);
  float factors[kQueryRows] = {};
  for (int r = 0; r < count; ++r)
    factors[r] = soften(scores + static_cast<size_t>(r) * padded_keys, visible_keys(shape, position + r, num_keys),
                        {first, last}, weights + static_cast<size_t>(r) * padded_keys);
  const int steps = (std::min(last, num_keys) - first + 1) / 2;
  multiply_queries(weights + first, padded_keys, head.values + static_cast<size_t>(first) * padded,
                   static_cast<size_t>(padded) * 2, steps, count, shape.head_size, factors, out, out_stride);
}

}  // namespace poolgraph
