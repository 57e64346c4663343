// The vocabulary of the kernels for AVX2 with FMA, with or without AVX-VNNI: sixteen numbers of 32 bits, or 32 of 16, in two
// registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace poolgraph {

constexpr int kLanes = 16;

struct Floats {
  __m256 low, high;
};
struct Ints {  // of 32 bits
  __m256i low, high;
};
using Shorts = Ints;  // twice as many of 16 bits
using Mask = Ints;    // the highest bit of a lane counts

constexpr int kSums = 6;  // vectors of sums that the registers hold beside what they are summed from

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }

inline Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Shorts splat_short(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }

inline __m256i load_half(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_half(void* to, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }

inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Ints load(const int32_t* from) { return {load_half(from), load_half(from + 8)}; }
inline Ints load_pairs(const int16_t* from) { return {load_half(from), load_half(from + 16)}; }
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline void store_pairs(int16_t* to, Ints x) {
  store_half(to, x.low);
  store_half(to + 16, x.high);
}

// Puts what a pack of two registers left in quarters 0, 2, 1, 3 in order.
inline __m256i in_order(__m256i x) { return _mm256_permute4x64_epi64(x, 0xd8); }

// Sixteen numbers cut to their lowest 16 bits.
inline void store_cut(int16_t* to, Ints x) {
  const __m256i lowest = _mm256_set1_epi32(0xffff);
  store_half(to, in_order(_mm256_packus_epi32(_mm256_and_si256(x.low, lowest), _mm256_and_si256(x.high, lowest))));
}

inline Mask mask_of_bits(uint16_t bits) {
  const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
  const __m256i all = _mm256_set1_epi32(bits);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low), _mm256_cmpeq_epi32(_mm256_and_si256(all, high), high)};
}
inline Mask mask_of(int count) { return mask_of_bits(count >= kLanes ? 0xffff : static_cast<uint16_t>((1u << count) - 1)); }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
inline bool any(Mask mask) { return _mm256_movemask_epi8(_mm256_or_si256(mask.low, mask.high)) != 0; }
inline Mask is_nan(Floats x) {
  return {_mm256_castps_si256(_mm256_cmp_ps(x.low, x.low, _CMP_UNORD_Q)),
          _mm256_castps_si256(_mm256_cmp_ps(x.high, x.high, _CMP_UNORD_Q))};
}
inline Floats keep_where(Mask mask, Floats x) {
  return {_mm256_and_ps(_mm256_castsi256_ps(mask.low), x.low), _mm256_and_ps(_mm256_castsi256_ps(mask.high), x.high)};
}
inline Floats load_where(Mask mask, const float* from) {
  return {_mm256_maskload_ps(from, mask.low), _mm256_maskload_ps(from + 8, mask.high)};
}
inline void store_where(Mask mask, float* to, Floats x) {
  _mm256_maskstore_ps(to, mask.low, x.low);
  _mm256_maskstore_ps(to + 8, mask.high, x.high);
}

// The second where one of the two is NaN.
inline Floats minimum(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats maximum_where(Mask mask, Floats a, Floats b) {
  return maximum(a, {_mm256_blendv_ps(a.low, b.low, _mm256_castsi256_ps(mask.low)),
                     _mm256_blendv_ps(a.high, b.high, _mm256_castsi256_ps(mask.high))});
}
inline Floats fmadd(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

// Exact, for approximate reciprocals differ from one maker of processors to the other.
inline Floats divide(Floats a, Floats b) { return a / b; }

template <class Combine>
inline float combine_lanes(__m256 x, Combine&& combine) {
  const __m128 fours = combine(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 twos = combine(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(combine(twos, _mm_movehdup_ps(twos)));
}
inline float sum_lanes(Floats x) {
  return combine_lanes(_mm256_add_ps(x.low, x.high), [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}
inline float least_lane(Floats x) {
  return combine_lanes(_mm256_min_ps(x.low, x.high), [](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
}
inline float largest_lane(Floats x) {
  return combine_lanes(_mm256_max_ps(x.low, x.high), [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

inline Ints as_ints(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
inline Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline Ints round_to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Ints plus(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Ints minus(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
inline Ints times(Ints a, Ints b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
inline Ints maximum(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
inline Ints choose(Mask mask, Ints a, Ints b) {
  return {_mm256_blendv_epi8(b.low, a.low, mask.low), _mm256_blendv_epi8(b.high, a.high, mask.high)};
}
inline Ints both_bits(Ints a, Ints b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
template <int kBits>
inline Ints shift_left(Ints x) { return {_mm256_slli_epi32(x.low, kBits), _mm256_slli_epi32(x.high, kBits)}; }
template <int kBits>
inline Ints shift_right(Ints x) { return {_mm256_srli_epi32(x.low, kBits), _mm256_srli_epi32(x.high, kBits)}; }

// The lowest 16 bits of each number of both: those of `first`, then those of `second`.
inline Ints pair(Ints first, Ints second) {
  second = shift_left<16>(second);
  return {_mm256_blend_epi16(first.low, second.low, 0xaa), _mm256_blend_epi16(first.high, second.high, 0xaa)};
}

// sums += two products of signed 16-bit integers a lane. The intrinsic for the sum says the same, but GCC 12 then keeps sums in
// memory.
#ifdef __AVXVNNI__
inline void add_half_pairs(__m256i& sums, __m256i left, __m256i right) {
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(left), "x"(right));
}
#else
inline void add_half_pairs(__m256i& sums, __m256i left, __m256i right) {
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(_mm256_madd_epi16(left, right)));
}
#endif
inline void add_pairs(Ints& sums, Shorts left, Shorts right) {
  add_half_pairs(sums.low, left.low, right.low);
  add_half_pairs(sums.high, left.high, right.high);
}

// No processor without AVX-512 has an instruction for products of bfloat16.
constexpr bool has_bfloat_pairs() { return false; }
inline void add_bfloat_pairs(Floats&, Ints, Ints) {}

// In 16 bits, saturated: the numbers of `low`, then those of `high`.
inline Shorts to_shorts(Ints low, Ints high) {
  return {in_order(_mm256_packs_epi32(low.low, low.high)), in_order(_mm256_packs_epi32(high.low, high.high))};
}
inline void store_shorts(int16_t* to, Shorts x) { store_pairs(to, x); }
inline Shorts plus_shorts(Shorts a, Shorts b) { return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)}; }
inline Shorts high_product(Shorts a, Shorts b) {  // unsigned
  return {_mm256_mulhi_epu16(a.low, b.low), _mm256_mulhi_epu16(a.high, b.high)};
}
inline Shorts rounded_product(Shorts a, Shorts b) {  // in 1 / 2**15
  return {_mm256_mulhrs_epi16(a.low, b.low), _mm256_mulhrs_epi16(a.high, b.high)};
}
template <int kBits>
inline Shorts shift_shorts_left(Shorts x) { return {_mm256_slli_epi16(x.low, kBits), _mm256_slli_epi16(x.high, kBits)}; }

// One byte of sixteen of a table's numbers, for _mm256_shuffle_epi8.
inline __m256i bytes_of(const int16_t* table, int shift) {
  alignas(16) uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(table[i] >> shift);
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

inline __m256i look_up_half(const int16_t (&table)[32], __m256i x, uint16_t kept) {
  const __m256i place = _mm256_srli_epi16(x, 11), bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048,
                                                                          4096, 8192, 16384, -32768);
  // A shuffle answers 0 for a place whose byte is negative: here for those of the other half, and for the other byte.
  const __m256i low = _mm256_shuffle_epi8(bytes_of(table, 0), _mm256_add_epi16(place, _mm256_set1_epi16(0x8070 - 0x10000)));
  const __m256i high = _mm256_shuffle_epi8(bytes_of(table, 8),
                                           _mm256_add_epi16(_mm256_slli_epi16(place, 8), _mm256_set1_epi16(0x7080)));
  const __m256i second = _mm256_shuffle_epi8(bytes_of(table + 16, 0), _mm256_sub_epi16(place, _mm256_set1_epi16(16)));
  const __m256i seen = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(kept)), bit), bit);
  return _mm256_and_si256(seen, _mm256_or_si256(_mm256_or_si256(low, high), second));
}

// table[the highest five bits of each number], 0 where its bit of `kept` is not set. Of the table's second half the first
// number is 0 and none is above 255.
inline Shorts look_up(const int16_t (&table)[32], Shorts x, uint32_t kept) {
  return {look_up_half(table, x.low, static_cast<uint16_t>(kept)), look_up_half(table, x.high, static_cast<uint16_t>(kept >> 16))};
}

// Combines the sixteen numbers of each of sixteen vectors: number r of the result is that of vector r. combine(a, b) must not
// depend on the order of its two.
template <class Combine>
inline __attribute__((always_inline)) Floats reduce_rows(const Floats (&rows)[kLanes], Combine&& combine) {
  Floats halves[8], twos[4], fours[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    halves[i] = combine(Floats{rows[i].low, rows[i + 8].low}, Floats{rows[i].high, rows[i + 8].high});
  const auto merge = [&](Floats a, Floats b, auto first, auto second) {
    return combine(Floats{first(a.low, b.low), first(a.high, b.high)}, Floats{second(a.low, b.low), second(a.high, b.high)});
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    twos[i] = merge(halves[2 * i], halves[2 * i + 1], [](__m256 a, __m256 b) { return _mm256_unpacklo_ps(a, b); },
                    [](__m256 a, __m256 b) { return _mm256_unpackhi_ps(a, b); });
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    fours[i] = merge(twos[2 * i], twos[2 * i + 1], [](__m256 a, __m256 b) { return _mm256_shuffle_ps(a, b, 0x44); },
                     [](__m256 a, __m256 b) { return _mm256_shuffle_ps(a, b, 0xee); });
  return merge(fours[0], fours[1], [](__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x20); },
               [](__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x31); });
}

// Swaps rows and columns of 8 by 8 numbers of 32 bits.
inline void transpose_quarter(__m256i (&rows)[8]) {
  __m256i pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
  }
}

// Swaps rows and columns of 16 by 16 numbers of 32 bits.
inline void transpose(Ints (&rows)[kLanes]) {
  __m256i quarters[2][2][8];  // [upper, lower][left, right]
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    quarters[i / 8][0][i % 8] = rows[i].low;
    quarters[i / 8][1][i % 8] = rows[i].high;
  }
  for (auto& half : quarters)
    for (auto& quarter : half) transpose_quarter(quarter);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = {quarters[0][i / 8][i % 8], quarters[1][i / 8][i % 8]};
}

constexpr int kTileVectors = 1;  // of columns: with 6 rows 12 registers of sums, two of weights, one of a row

#ifdef __AVXVNNI__

// What VNNI multiplies: four unsigned bytes of a row with four weights a lane.
using RowByte = uint8_t;
constexpr int kDepth = 4;

// Rounded numbers as bytes, saturated at both ends.
inline void store_bytes(RowByte* to, Ints x) {
  const __m256i shorts = in_order(_mm256_packs_epi32(x.low, x.high));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

inline Ints load_weights(const int8_t* from) { return {load_half(from), load_half(from + 32)}; }

// sums += kDepth products a lane; not the intrinsic, as in add_half_pairs.
inline void add_half_products(__m256i& sums, __m256i row, __m256i weights) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(row), "x"(weights));
}
inline void add_products(Ints& sums, Ints row, Ints weights) {
  add_half_products(sums.low, row.low, weights.low);
  add_half_products(sums.high, row.high, weights.high);
}

#else

// What is multiplied here: two bytes of a row, each in 16 bits, with two weights a lane. The instruction for bytes saturates.
using RowByte = int16_t;
constexpr int kDepth = 2;

// Rounded numbers as bytes, saturated at both ends.
inline void store_bytes(RowByte* to, Ints x) {
  const __m256i shorts = in_order(_mm256_packs_epi32(x.low, x.high));
  store_half(to, _mm256_max_epi16(_mm256_min_epi16(shorts, _mm256_set1_epi16(255)), _mm256_setzero_si256()));
}

inline Ints load_weights(const int8_t* from) {
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
}

// sums += kDepth products a lane.
inline void add_products(Ints& sums, Ints row, Ints weights) { add_pairs(sums, row, weights); }

#endif

inline void store_bytes(RowByte* to, Ints a, Ints b, Ints c, Ints d) {
  store_bytes(to, a);
  store_bytes(to + kLanes, b);
  store_bytes(to + 2 * kLanes, c);
  store_bytes(to + 3 * kLanes, d);
}

}  // namespace poolgraph
