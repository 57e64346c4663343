// Softmax over the scores of a few queries, in floating point up to the exponents and in 16-bit integers from there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_vector.h"

namespace poolgraph {

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
  Floats worth;
};

// The keys of a block that a query sees: all of them, or a bit each.
struct WholeBlock {
  static constexpr int size = kBlockKeys;
  Floats keep(int, Floats x) const { return x; }
  Mask lanes(int) const { return mask_of(kLanes); }
  uint32_t group(int) const { return 0xffffffff; }
};

struct PartBlock {
  uint64_t bits;
  int size;
  static PartBlock of(KeyRange range, int first, int size) {
    return {below(range.last - first) & ~below(range.first - first), size};
  }
  static uint64_t below(int count) { return count >= 64 ? ~0ull : (1ull << std::max(count, 0)) - 1; }
  Mask lanes(int key) const { return mask_of_bits(static_cast<uint16_t>(bits >> key)); }
  Floats keep(int key, Floats x) const { return keep_where(lanes(key), x); }
  uint32_t group(int key) const { return static_cast<uint32_t>(bits >> key); }
};

// Calls use(first key, block of a range) for every block, the last of which may be shorter.
template <class Use>
inline void for_blocks(const ScoreTile& tile, Use&& use) {
  const KeyRange seen_by_all = {tile.ranges[tile.count - 1].first, tile.ranges[0].last};
  for (int first = tile.computed.first; first < tile.computed.last; first += kBlockKeys) {
    const int size = std::min(kBlockKeys, tile.computed.last - first);
    if (size == kBlockKeys && seen_by_all.first <= first && first + size <= seen_by_all.last)
      use(first, [](KeyRange) { return WholeBlock{}; });
    else
      use(first, [first, size](KeyRange range) { return PartBlock::of(range, first, size); });
  }
}

// The same with the block's place in `factors` [blocks][16 queries].
template <class Use>
inline void for_blocks(const ScoreTile& tile, float* factors, Use&& use) {
  for_blocks(tile, [&](int first, auto block_of) {
    use(first, factors + (first - tile.computed.first) / kBlockKeys * kLanes, block_of);
  });
}

// The largest of `largest` and of the scores of a block's keys.
template <class Block>
inline Floats largest_of(const float* scores, Block block, Floats largest) {
#pragma GCC unroll 4
  for (int key = 0; key < block.size; key += kLanes)
    largest = maximum_where(block.lanes(key), largest, load(scores + key));
  return largest;
}

// 2**(x / 4096) as two factors, for 16-bit integers x: a half power of two, in 1 / 128, picked by the highest five bits (0
// for the lowest half power, at which what is small saturates, and where not `kept`), and a polynomial of degree 3 of
// the others, in 1 / 8192, to 2e-4. Their errors' mean is near 0, for many small weights add up.
inline Shorts half_power(Shorts x, uint32_t kept) {
  alignas(64) static constexpr int16_t kHalfPowers[32] = {128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096, 5793,
                                                          8192, 11585, 16384, 23170, 0, 1, 1, 1, 2, 3, 4, 6,
                                                          8, 11, 16, 23, 32, 45, 64, 91};
  return look_up(kHalfPowers, x, kept);
}

inline Shorts rest_power(Shorts x) {
  const Shorts fraction = shift_shorts_left<5>(x);
  Shorts result = high_product(fraction, splat_short(71));
  result = high_product(fraction, plus_shorts(result, splat_short(480)));
  result = high_product(fraction, plus_shorts(result, splat_short(2844)));
  return plus_shorts(result, splat_short(8192));
}

// weights = 2**(5 + (scores * step + shift) / 4096) as integers up to 8190 = 2**13 - 2, saturated at both ends; returns sums
// of them before rounding, in 1 / 2**15.
template <class Block>
inline Ints weigh_block(const float* scores, Block block, float step, float shift, int16_t* weights) {
  const Floats by = splat(step), more = splat(shift);
  Ints sums = splat(0);
#pragma GCC unroll 2
  for (int key = 0; key < block.size; key += kGroupKeys) {
    const Ints low = round_to_ints(fmadd(load(scores + key), by, more));
    const Ints high = round_to_ints(fmadd(load(scores + key + kLanes), by, more));
    const Shorts exponents = to_shorts(low, high);
    const Shorts power = half_power(exponents, block.group(key)), rest = rest_power(exponents);
    add_pairs(sums, power, rest);
    store_shorts(weights + key, rounded_product(power, rest));
  }
  return sums;
}

// Writes log2 of each block's largest weight to `tops` [blocks][16 queries]; returns the largest of each query.
inline Floats find_tops(const ScoreTile& tile, float* tops) {
  Floats most = splat(kUnseen), rows[kLanes];
  for (int r = tile.count; r < kLanes; ++r) rows[r] = splat(0.0f);
  for_blocks(tile, tops, [&](int first, float* top, auto block_of) {
    for (int r = 0; r < tile.count; ++r)
      rows[r] = largest_of(tile.scores + r * tile.stride + first, block_of(tile.ranges[r]), splat(kUnseen));
    const Floats largest = reduce_rows(rows, [](Floats a, Floats b) { return maximum(a, b); });
    const Floats exponent = largest * tile.worth;
    most = maximum(most, exponent);
    store(top, exponent);
  });
  return most;
}

// Writes the weights; replaces the blocks' tops by what a weight of theirs is worth, one of the largest block being worth 1;
// returns each query's sum of all weights' worth, before they were rounded, in 1 / 2**15.
inline Floats weigh_blocks(const ScoreTile& tile, Floats most, int16_t* weights, float* factors) {
  alignas(64) float steps[kLanes], shifts[kLanes];
  store(steps, tile.worth * splat(4096.0f));
  Floats totals[kLanes];
  for (int r = 0; r < kLanes; ++r) totals[r] = splat(0.0f);
  for_blocks(tile, factors, [&](int first, float* factor, auto block_of) {
    const Floats top = load(factor);
    store(shifts, (splat(8.0f) - top) * splat(4096.0f));
    store(factor, exp2(top - most));
    for (int r = 0; r < tile.count; ++r) {
      const size_t place = r * tile.stride + first;
      const Ints sums = weigh_block(tile.scores + place, block_of(tile.ranges[r]), steps[r], shifts[r], weights + place);
      totals[r] = fmadd(to_floats(sums), splat(factor[r]), totals[r]);
    }
  });
  return reduce_rows(totals, [](Floats a, Floats b) { return a + b; });
}

// Turns scores into weights [count][stride]: integers, the largest of each block of keys nearly 2**13, zero for keys that a
// query does not see. `factors` [blocks][16 queries] gets what one is worth in each block, all weights of a query together
// being worth 1; NaN where a score may be NaN or infinite, as `poison`, NaN or 0, says of the keys.
inline void soften(const ScoreTile& tile, float poison, int16_t* weights, float* factors) {
  const Floats most = find_tops(tile, factors);
  const Floats total = weigh_blocks(tile, most, weights, factors);
  const Floats nothing = fmadd(tile.worth + most, splat(0.0f), splat(poison));
  const Floats unit = splat(32768.0f) / total + nothing;
  for_blocks(tile, factors, [&](int, float* factor, auto) {
    store(factor, load(factor) * unit);
  });
}

}  // namespace poolgraph
