// Sixteen numbers at a time: exponentials, activations, and memory that suits them.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace poolgraph {

constexpr int kLanes = 16;

inline int round_to(int size, int multiple) { return (size + multiple - 1) / multiple * multiple; }

struct FreeAligned {
  void operator()(void* memory) const { std::free(memory); }
};

// An array on a cache line's boundary, never initialized; kept by a thread it grows and does not shrink.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) { reserve(count); }
  T* reserve(size_t count) {
    if (count > count_) {
      auto* made = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64));
      if (!made) throw std::bad_alloc();
      memory_.reset(made);
      count_ = count;
    }
    return memory_.get();
  }
  T* get() const { return memory_.get(); }
  size_t size() const { return count_; }

 private:
  std::unique_ptr<T[], FreeAligned> memory_;
  size_t count_ = 0;
};

// sums += four products of unsigned and signed bytes a lane. The intrinsic says the same, but GCC 12 then keeps a copy of
// every sum in memory and runs at two thirds of the speed.
inline void add_products(__m512i& sums, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// sums += two products of signed 16-bit integers a lane.
inline void add_pairs(__m512i& sums, __m512i left, __m512i right) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
}

inline __mmask16 mask_of(int count) { return count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

// Combines the sixteen numbers of each of sixteen vectors: number r of the result is that of vector r. combine(a, b) must not
// depend on the order of its two.
template <class Combine>
inline __attribute__((always_inline)) __m512 reduce_rows(const __m512 (&rows)[kLanes], Combine&& combine) {
  __m512 twos[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    twos[i] = combine(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  const auto merge_pairs = [&](__m512 a, __m512 b) {
    const __m512d low = _mm512_castps_pd(a), high = _mm512_castps_pd(b);
    return combine(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) fours[i] = merge_pairs(twos[2 * i], twos[2 * i + 1]);
  const auto merge_quarters = [&](__m512 a, __m512 b) {
    return combine(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return merge_quarters(merge_quarters(fours[0], fours[1]), merge_quarters(fours[2], fours[3]));
}

// All sixteen lanes of a vector, or the first few of the last one.
struct AllLanes {
  __m512 load(const float* from) const { return _mm512_loadu_ps(from); }
  void store(float* to, __m512 x) const { _mm512_storeu_ps(to, x); }
  void store_bytes(uint8_t* to, __m512i x) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(x)); }
  __m512 keep(__m512 x) const { return x; }
};

struct FirstLanes {
  __mmask16 mask;
  __m512 load(const float* from) const { return _mm512_maskz_loadu_ps(mask, from); }
  void store(float* to, __m512 x) const { _mm512_mask_storeu_ps(to, mask, x); }
  void store_bytes(uint8_t* to, __m512i x) const { _mm512_mask_cvtusepi32_storeu_epi8(to, mask, x); }
  __m512 keep(__m512 x) const { return _mm512_maskz_mov_ps(mask, x); }
};

// Calls step(column, lanes) for every vector of a row: whole ones without masks, which cost as much as the work.
template <class Step>
inline __attribute__((always_inline)) void for_vectors(int width, Step&& step) {
  int column = 0;
  for (; column + kLanes <= width; column += kLanes) step(column, AllLanes{});
  if (column < width) step(column, FirstLanes{mask_of(width - column)});
}

// 2**x to 2.6e-6 of itself, for x from -125 to 127; 2**-125 below: arithmetic on subnormal numbers is slow. A minimax
// polynomial of degree 4 on [-0.5, 0.5] times a power of two that is added to its exponent: adding the shift leaves the
// nearest integer in the lowest bits.
inline __m512 exp2(__m512 x) {
  const __m512 shift = _mm512_set1_ps(12582912.0f);  // 1.5 * 2**23
  x = _mm512_max_ps(_mm512_set1_ps(-125.0f), x);     // in this order NaN stays one
  const __m512 shifted = _mm512_add_ps(x, shift);
  const __m512 fraction = _mm512_sub_ps(x, _mm512_sub_ps(shifted, shift));
  __m512 result = _mm512_set1_ps(0.009570109596576172f);
  result = _mm512_fmadd_ps(result, fraction, _mm512_set1_ps(0.05591789902778707f));
  result = _mm512_fmadd_ps(result, fraction, _mm512_set1_ps(0.24024744991854752f));
  result = _mm512_fmadd_ps(result, fraction, _mm512_set1_ps(0.6931218100635159f));
  result = _mm512_fmadd_ps(result, fraction, _mm512_set1_ps(0.9999992612892401f));
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(result), power));
}

// x / (1 + 2**-y): the reciprocal to 14 bits, then one step of Newton's.
inline __m512 gate_by_sigmoid(__m512 x, __m512 y) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 least = _mm512_set1_ps(-125.0f);  // keeps 2**-y finite, so that no product of zero and infinity is made
  const __m512 divisor = _mm512_add_ps(one, exp2(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_max_ps(y, least))));
  const __m512 rough = _mm512_rcp14_ps(divisor);
  const __m512 rest = _mm512_fnmadd_ps(divisor, rough, one);
  return _mm512_mul_ps(x, _mm512_fmadd_ps(rough, rest, rough));
}

constexpr float kLog2E = 1.4426950408889634f;

inline __m512 silu(__m512 x) { return gate_by_sigmoid(x, _mm512_mul_ps(x, _mm512_set1_ps(kLog2E))); }

// x * Phi(x) to 3e-6: the logit of Phi is x times a polynomial of x**2 (minimax of degree 4 for |x| < 6).
inline __m512 gelu(__m512 x) {
  const __m512 square = _mm512_min_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(36.0f));
  __m512 slope = _mm512_set1_ps(2.238171273980798e-06f * kLog2E);
  slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(-6.116213050451557e-05f * kLog2E));
  slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(-0.0002497226869488985f * kLog2E));
  slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(0.07293758103486173f * kLog2E));
  slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(1.5956562722205871f * kLog2E));
  return gate_by_sigmoid(x, _mm512_mul_ps(x, slope));
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2, whose gate is a sigmoid of twice tanh's argument.
inline __m512 gelu_tanh(__m512 x) {
  constexpr float kTwice = 2 * 0.7978845608028654f * kLog2E;
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 slope = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f * kTwice), _mm512_set1_ps(kTwice));
  return gate_by_sigmoid(x, _mm512_mul_ps(x, slope));
}

inline __m512 relu(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }

enum class Activation : int64_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kRelu = 4 };

// Calls use(function) with the activation's function, so that a loop is compiled for each.
template <class Use>
void with_activation(Activation activation, Use&& use) {
  switch (activation) {
    case Activation::kGelu: return use([](__m512 x) { return gelu(x); });
    case Activation::kGeluTanh: return use([](__m512 x) { return gelu_tanh(x); });
    case Activation::kSilu: return use([](__m512 x) { return silu(x); });
    case Activation::kRelu: return use([](__m512 x) { return relu(x); });
    default: return use([](__m512 x) { return x; });
  }
}

}  // namespace poolgraph
