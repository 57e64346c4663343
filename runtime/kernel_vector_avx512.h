// The vocabulary of the kernels for AVX-512 with VNNI: sixteen numbers of 32 bits, or 32 of 16, in one register.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace poolgraph {

constexpr int kLanes = 16;

using Floats = __m512;   // + - * / are the compiler's
using Ints = __m512i;    // of 32 bits
using Shorts = __m512i;  // twice as many of 16 bits
using Mask = __mmask16;

constexpr int kSums = 24;  // vectors of sums that the registers hold beside what they are summed from

inline Floats splat(float x) { return _mm512_set1_ps(x); }
inline Ints splat(int32_t x) { return _mm512_set1_epi32(x); }
inline Shorts splat_short(int16_t x) { return _mm512_set1_epi16(x); }

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Ints load(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Ints load_pairs(const int16_t* from) { return _mm512_loadu_si512(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline void store_pairs(int16_t* to, Ints x) { _mm512_storeu_si512(to, x); }

// Sixteen numbers cut to their lowest 16 bits.
inline void store_cut(int16_t* to, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(x)); }

inline Mask mask_of_bits(uint16_t bits) { return bits; }
inline Mask mask_of(int count) { return count >= kLanes ? 0xffff : static_cast<Mask>((1u << count) - 1); }
inline bool any(Mask mask) { return mask != 0; }
inline Mask is_nan(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
inline Floats keep_where(Mask mask, Floats x) { return _mm512_maskz_mov_ps(mask, x); }
inline Floats load_where(Mask mask, const float* from) { return _mm512_maskz_loadu_ps(mask, from); }
inline void store_where(Mask mask, float* to, Floats x) { _mm512_mask_storeu_ps(to, mask, x); }

// The second where one of the two is NaN.
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats maximum_where(Mask mask, Floats a, Floats b) { return _mm512_mask_max_ps(a, mask, a, b); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

// a / b to a few units in the last place: the reciprocal to 14 bits, then one step of Newton's.
inline Floats divide(Floats a, Floats b) {
  const Floats rough = _mm512_rcp14_ps(b);
  const Floats rest = _mm512_fnmadd_ps(b, rough, splat(1.0f));
  return a * _mm512_fmadd_ps(rough, rest, rough);
}

inline float sum_lanes(Floats x) { return _mm512_reduce_add_ps(x); }
inline float least_lane(Floats x) { return _mm512_reduce_min_ps(x); }
inline float largest_lane(Floats x) { return _mm512_reduce_max_ps(x); }

inline Ints as_ints(Floats x) { return _mm512_castps_si512(x); }
inline Floats as_floats(Ints x) { return _mm512_castsi512_ps(x); }
inline Ints round_to_ints(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints maximum(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints choose(Mask mask, Ints a, Ints b) { return _mm512_mask_blend_epi32(mask, b, a); }
inline Ints both_bits(Ints a, Ints b) { return _mm512_and_si512(a, b); }
template <int kBits>
inline Ints shift_left(Ints x) { return _mm512_slli_epi32(x, kBits); }
template <int kBits>
inline Ints shift_right(Ints x) { return _mm512_srli_epi32(x, kBits); }

// The lowest 16 bits of each number of both: those of `first`, then those of `second`.
inline Ints pair(Ints first, Ints second) { return _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16)); }

// sums += two products of signed 16-bit integers a lane. The intrinsic says the same, but GCC 12 then keeps a copy of
// every sum in memory and runs at two thirds of the speed.
inline void add_pairs(Ints& sums, Shorts left, Shorts right) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
}

// sums += two products of bfloat16 a lane, where the processor has it.
inline bool has_bfloat_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
inline void add_bfloat_pairs(Floats& sums, Ints left, Ints right) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
}

// The lowest 16 bits of each number of both: those of `low`, then those of `high`.
inline Shorts cut_shorts(Ints low, Ints high) {
  const __m256i first = _mm512_cvtepi32_epi16(low), second = _mm512_cvtepi32_epi16(high);
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// Both rounded to bfloat16 in this order, where the processor has it; numbers below 2**-126 become 0.
inline Shorts cut_to_bfloats(Floats low, Floats high) {
  Shorts made;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(made) : "v"(low), "v"(high));
  return made;
}

// The first number, the seventeenth, the second, and so on.
inline Shorts interleave(Shorts x) {
  alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), x);
}

// In 16 bits, saturated: the numbers of `low`, then those of `high`.
inline Shorts to_shorts(Ints low, Ints high) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packs_epi32(low, high));
}
inline void store_shorts(int16_t* to, Shorts x) { _mm512_storeu_si512(to, x); }
inline Shorts plus_shorts(Shorts a, Shorts b) { return _mm512_add_epi16(a, b); }
inline Shorts high_product(Shorts a, Shorts b) { return _mm512_mulhi_epu16(a, b); }      // unsigned
inline Shorts rounded_product(Shorts a, Shorts b) { return _mm512_mulhrs_epi16(a, b); }  // in 1 / 2**15
template <int kBits>
inline Shorts shift_shorts_left(Shorts x) { return _mm512_slli_epi16(x, kBits); }

// table[the highest five bits of each number], 0 where its bit of `kept` is not set. Of the table's second half no number is
// above 255.
inline Shorts look_up(const int16_t (&table)[32], Shorts x, uint32_t kept) {
  return _mm512_maskz_permutexvar_epi16(kept, _mm512_srli_epi16(x, 11), _mm512_load_si512(table));
}

// Combines the sixteen numbers of each of sixteen vectors: number r of the result is that of vector r. combine(a, b) must not
// depend on the order of its two.
template <class Combine>
inline __attribute__((always_inline)) Floats reduce_rows(const Floats (&rows)[kLanes], Combine&& combine) {
  Floats twos[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    twos[i] = combine(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  const auto merge_pairs = [&](Floats a, Floats b) {
    const __m512d low = _mm512_castps_pd(a), high = _mm512_castps_pd(b);
    return combine(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) fours[i] = merge_pairs(twos[2 * i], twos[2 * i + 1]);
  const auto merge_quarters = [&](Floats a, Floats b) {
    return combine(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return merge_quarters(merge_quarters(fours[0], fours[1]), merge_quarters(fours[2], fours[3]));
}

// Swaps rows and columns of 16 by 16 numbers of 32 bits.
inline void transpose(Ints (&rows)[kLanes]) {
  Ints pairs[kLanes], fours[kLanes];
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
    const Ints low = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0xdd);
    const Ints high = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0x88);
    const Ints high2 = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_i32x4(low, high, 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(low2, high2, 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(low, high, 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(low2, high2, 0xdd);
  }
}

// What VNNI multiplies: four unsigned bytes of a row with four weights a lane.
using RowByte = uint8_t;
constexpr int kDepth = 4;
constexpr int kTileVectors = 4;  // of columns: with 6 rows 24 sums, four vectors of weights, one of a row: 29 registers

// Rounded numbers as bytes, saturated at both ends.
inline void store_bytes(RowByte* to, Ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_max_epi32(x, _mm512_setzero_si512())));
}

inline void store_bytes(RowByte* to, Ints a, Ints b, Ints c, Ints d) {
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i all = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(in_order, all));
}

inline Ints load_weights(const int8_t* from) { return _mm512_loadu_si512(from); }

// sums += kDepth products a lane; not the intrinsic, as in add_pairs.
inline void add_products(Ints& sums, Ints row, Ints weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(row), "v"(weights));
}

}  // namespace poolgraph
