// Softmax over the scores of a few queries, in floating point up to the exponents and in 16-bit integers from there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_vector.h"

namespace poolgraph {

constexpr int kQueryRows = 12;     // queries of a tile; their scores stay in the first or second cache
constexpr int kBlockKeys = 64;     // keys whose weighted values add up in 32 bits
constexpr int kGroupKeys = 32;     // keys whose weights are computed at once
constexpr float kUnseen = -3e38f;  // what a block's largest score is for a query that sees none of it

// The keys that one query sees: [first, last).
struct KeyRange {
  int first, last;
};

// The scores of a tile's queries for keys [computed.first, computed.last), the first of which begins a block. What one of
// a query's scores is worth in units of log2 is in `worth`, above 0. Ranges rise from query to query.
struct ScoreTile {
  const float* scores;  // [count][stride]
  size_t stride;        // a multiple of kGroupKeys
  int count;
  KeyRange computed;
  const KeyRange* ranges;
  __m512 worth;
};

// The keys of a block that a query sees: all of them, or a bit each.
struct WholeBlock {
  static constexpr int size = kBlockKeys;
  __mmask16 lanes(int) const { return 0xffff; }
  __mmask32 group(int) const { return 0xffffffff; }
};

struct PartBlock {
  uint64_t bits;
  int size;
  static PartBlock of(KeyRange range, int first, int size) {
    return {below(range.last - first) & ~below(range.first - first), size};
  }
  static uint64_t below(int count) { return count >= 64 ? ~0ull : (1ull << std::max(count, 0)) - 1; }
  __mmask16 lanes(int key) const { return static_cast<__mmask16>(bits >> key); }
  __mmask32 group(int key) const { return static_cast<__mmask32>(bits >> key); }
};

// Calls use(first key, its place in `factors`, block of a range) for every block, the last of which may be shorter.
template <class Use>
inline void for_blocks(const ScoreTile& tile, float* factors, Use&& use) {
  const KeyRange seen_by_all = {tile.ranges[tile.count - 1].first, tile.ranges[0].last};
  for (int first = tile.computed.first; first < tile.computed.last; first += kBlockKeys, factors += kLanes) {
    const int size = std::min(kBlockKeys, tile.computed.last - first);
    if (size == kBlockKeys && seen_by_all.first <= first && first + size <= seen_by_all.last)
      use(first, factors, [](KeyRange) { return WholeBlock{}; });
    else
      use(first, factors, [first, size](KeyRange range) { return PartBlock::of(range, first, size); });
  }
}

template <class Block>
inline __m512 largest_of(const float* scores, Block block) {
  __m512 largest = _mm512_set1_ps(kUnseen);
#pragma GCC unroll 4
  for (int key = 0; key < block.size; key += kLanes)
    largest = _mm512_mask_max_ps(largest, block.lanes(key), largest, _mm512_loadu_ps(scores + key));
  return largest;
}

// 2**(x / 4096) as two factors, for 16-bit integers x: a half power of two, in 1 / 128, picked by the highest five bits (0
// for the lowest half power, at which what is small saturates, and where not `kept`), and a polynomial of degree 3 of
// the others, in 1 / 8192, to 2e-4. Their errors' mean is near 0, for many small weights add up.
inline __m512i half_power(__m512i x, __mmask32 kept) {
  alignas(64) static constexpr int16_t kHalfPowers[32] = {128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096, 5793,
                                                          8192, 11585, 16384, 23170, 0, 1, 1, 1, 2, 3, 4, 6,
                                                          8, 11, 16, 23, 32, 45, 64, 91};
  return _mm512_maskz_permutexvar_epi16(kept, _mm512_srli_epi16(x, 11), _mm512_load_si512(kHalfPowers));
}

inline __m512i rest_power(__m512i x) {
  const __m512i fraction = _mm512_slli_epi16(x, 5);
  __m512i result = _mm512_mulhi_epu16(fraction, _mm512_set1_epi16(71));
  result = _mm512_mulhi_epu16(fraction, _mm512_add_epi16(result, _mm512_set1_epi16(480)));
  result = _mm512_mulhi_epu16(fraction, _mm512_add_epi16(result, _mm512_set1_epi16(2844)));
  return _mm512_add_epi16(result, _mm512_set1_epi16(8192));
}

// weights = 2**(5 + (scores * step + shift) / 4096) as integers up to 8190 = 2**13 - 2, saturated at both ends; returns sums
// of them before rounding, in 1 / 2**15.
template <class Block>
inline __m512i weigh_block(const float* scores, Block block, float step, float shift, int16_t* weights) {
  const __m512 by = _mm512_set1_ps(step), plus = _mm512_set1_ps(shift);
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  __m512i sums = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int key = 0; key < block.size; key += kGroupKeys) {
    const __m512i low = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key), by, plus));
    const __m512i high = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key + kLanes), by, plus));
    const __m512i exponents = _mm512_permutexvar_epi64(in_order, _mm512_packs_epi32(low, high));
    const __m512i power = half_power(exponents, block.group(key)), rest = rest_power(exponents);
    add_pairs(sums, power, rest);
    _mm512_storeu_si512(weights + key, _mm512_mulhrs_epi16(power, rest));
  }
  return sums;
}

// Writes log2 of each block's largest weight to `tops` [blocks][16 queries]; returns the largest of each query.
inline __m512 find_tops(const ScoreTile& tile, float* tops) {
  __m512 most = _mm512_set1_ps(kUnseen), rows[kLanes];
  for (int r = tile.count; r < kLanes; ++r) rows[r] = _mm512_setzero_ps();
  for_blocks(tile, tops, [&](int first, float* top, auto block_of) {
    for (int r = 0; r < tile.count; ++r) rows[r] = largest_of(tile.scores + r * tile.stride + first, block_of(tile.ranges[r]));
    const __m512 largest = reduce_rows(rows, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
    const __m512 exponent = _mm512_mul_ps(largest, tile.worth);
    most = _mm512_max_ps(most, exponent);
    _mm512_storeu_ps(top, exponent);
  });
  return most;
}

// Writes the weights; replaces the blocks' tops by what a weight of theirs is worth, one of the largest block being worth 1;
// returns each query's sum of all weights' worth, before they were rounded, in 1 / 2**15.
inline __m512 weigh_blocks(const ScoreTile& tile, __m512 most, int16_t* weights, float* factors) {
  alignas(64) float steps[kLanes], shifts[kLanes];
  _mm512_store_ps(steps, _mm512_mul_ps(tile.worth, _mm512_set1_ps(4096)));
  __m512 totals[kLanes];
  for (int r = 0; r < kLanes; ++r) totals[r] = _mm512_setzero_ps();
  for_blocks(tile, factors, [&](int first, float* factor, auto block_of) {
    const __m512 top = _mm512_loadu_ps(factor);
    _mm512_store_ps(shifts, _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(8), top), _mm512_set1_ps(4096)));
    _mm512_storeu_ps(factor, exp2(_mm512_sub_ps(top, most)));
    for (int r = 0; r < tile.count; ++r) {
      const size_t place = r * tile.stride + first;
      const __m512i sums = weigh_block(tile.scores + place, block_of(tile.ranges[r]), steps[r], shifts[r], weights + place);
      totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(factor[r]), totals[r]);
    }
  });
  return reduce_rows(totals, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}

// Turns scores into weights [count][stride]: integers, the largest of each block of keys nearly 2**13, zero for keys that a
// query does not see. `factors` [blocks][16 queries] gets what one is worth in each block, all weights of a query together
// being worth 1; NaN where a score may be NaN or infinite, as `poison`, NaN or 0, says of the keys.
inline void soften(const ScoreTile& tile, float poison, int16_t* weights, float* factors) {
  const __m512 most = find_tops(tile, factors);
  const __m512 total = weigh_blocks(tile, most, weights, factors);
  const __m512 nothing = _mm512_fmadd_ps(_mm512_add_ps(tile.worth, most), _mm512_setzero_ps(), _mm512_set1_ps(poison));
  const __m512 unit = _mm512_add_ps(_mm512_div_ps(_mm512_set1_ps(32768), total), nothing);
  for_blocks(tile, factors, [&](int, float* factor, auto) {
    _mm512_storeu_ps(factor, _mm512_mul_ps(_mm512_loadu_ps(factor), unit));
  });
}

}  // namespace poolgraph
