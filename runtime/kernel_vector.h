// Sixteen numbers at a time: exponentials, activations, and memory that suits them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __AVX512VNNI__
#include "kernel_vector_avx512.h"
#else
#include "kernel_vector_avx2.h"
#endif

namespace poolgraph {

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

// All sixteen lanes of a vector, or the first few of the last one.
struct AllLanes {
  Floats load(const float* from) const { return poolgraph::load(from); }
  void store(float* to, Floats x) const { poolgraph::store(to, x); }
  Floats keep(Floats x) const { return x; }
};

struct FirstLanes {
  Mask mask;
  Floats load(const float* from) const { return load_where(mask, from); }
  void store(float* to, Floats x) const { store_where(mask, to, x); }
  Floats keep(Floats x) const { return keep_where(mask, x); }
};

// Calls step(column, lanes) for every vector of a row: whole ones without masks, which cost as much as the work.
template <class Step>
inline __attribute__((always_inline)) void for_vectors(int width, Step&& step) {
  int column = 0;
  for (; column + kLanes <= width; column += kLanes) step(column, AllLanes{});
  if (column < width) step(column, FirstLanes{mask_of(width - column)});
}

// Sixteen numbers to bfloat16, halves to even, as the lowest 16 bits of each; NaN stays one.
inline Ints round_to_bfloats(Floats x) {
  const Ints bits = as_ints(x), upper = shift_right<16>(bits);
  const Ints rounded = plus(plus(bits, splat(0x7fff)), both_bits(upper, splat(1)));
  return choose(is_nan(x), splat(0x7fc0), shift_right<16>(rounded));
}

// 2**x as power * (1 + fraction * slope): a power of two, and a minimax polynomial of degree 5 of what x differs from the
// nearest integer by. Adding the shift leaves that integer in the lowest bits, and from there it goes to the exponent of 1.
struct Exponential {
  Floats power, fraction, slope;

  explicit Exponential(Floats x) {
    const Floats shift = splat(12582912.0f);  // 1.5 * 2**23
    x = maximum(splat(-125.0f), x);          // in this order NaN stays one
    const Floats shifted = x + shift;
    power = as_floats(plus(shift_left<23>(as_ints(shifted)), as_ints(splat(1.0f))));
    fraction = x - (shifted - shift);
    slope = splat(0.0013276472454890609f);
    slope = fmadd(slope, fraction, splat(0.009675540961325169f));
    slope = fmadd(slope, fraction, splat(0.05550713092088699f));
    slope = fmadd(slope, fraction, splat(0.24022120237350464f));
    slope = fmadd(slope, fraction, splat(0.6931469440460205f));
  }
};

// 2**x to 2.5e-7 of itself, for x from -125 to 127; 2**-125 below: arithmetic on subnormal numbers is slow.
inline Floats exp2(Floats x) {
  const Exponential it(x);
  return fmadd(it.slope, it.fraction, splat(1.0000001192092896f)) * it.power;
}

// 2**x - 1 to 5e-7 of itself, for x from -125 to 127.
inline Floats exp2_less_one(Floats x) {
  const Exponential it(x);
  return fmadd(it.slope * it.fraction, it.power, it.power - splat(1.0f));
}

// x / (1 + 2**-y), of which y is above -127.
inline Floats gate_by_sigmoid(Floats x, Floats y) { return divide(x, splat(1.0f) + exp2(splat(0.0f) - y)); }

// x, and of what is smaller the number behind which an activation is zero: there 2**-y is still finite.
inline Floats above(float least, Floats x) { return maximum(splat(least), x); }

constexpr float kLog2E = 1.4426950408889634f;

inline Floats silu(Floats x) {
  x = above(-87.0f, x);
  return gate_by_sigmoid(x, x * splat(kLog2E));
}

// x * Phi(x) to 1e-7, and rounding: the logit of Phi is x times a polynomial of x**2 (minimax of degree 6 for |x| < 6).
inline Floats gelu(Floats x) {
  x = above(-21.0f, x);
  const Floats square = minimum(x * x, splat(36.0f));
  Floats slope = splat(3.611231355615807e-09f * kLog2E);
  slope = fmadd(slope, square, splat(-2.6689275381061583e-07f * kLog2E));
  slope = fmadd(slope, square, splat(7.938217874480912e-06f * kLog2E));
  slope = fmadd(slope, square, splat(-0.00011048030929896202f * kLog2E));
  slope = fmadd(slope, square, splat(-6.626001344318827e-05f * kLog2E));
  slope = fmadd(slope, square, splat(0.07266856706414963f * kLog2E));
  slope = fmadd(slope, square, splat(1.5957684322194716f * kLog2E));
  return gate_by_sigmoid(x, x * slope);
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2, whose gate is a sigmoid of twice tanh's argument.
inline Floats gelu_tanh(Floats x) {
  constexpr float kTwice = 2 * 0.7978845608028654f * kLog2E;
  x = above(-9.9f, x);
  const Floats square = x * x;
  const Floats slope = fmadd(square, splat(0.044715f * kTwice), splat(kTwice));
  return gate_by_sigmoid(x, x * slope);
}

inline Floats relu(Floats x) { return maximum(splat(0.0f), x); }

enum class Activation : int64_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kRelu = 4, kSwiglu = 5 };

// The gate of gpt-oss: x * sigmoid(alpha * x) * (y + beta), of x up to limit, and of y from -limit to limit.
struct Swiglu {
  float alpha, beta, limit;
  Floats operator()(Floats x, Floats y) const {
    x = above(-87.0f / alpha, minimum(splat(limit), x));
    y = maximum(splat(-limit), minimum(splat(limit), y));
    return gate_by_sigmoid(x, x * splat(alpha * kLog2E)) * (y + splat(beta));
  }
};

// Calls use(function) with the function of an activation of one number, so that a loop is compiled for each.
template <class Use>
void with_activation(Activation activation, Use&& use) {
  switch (activation) {
    case Activation::kGelu: return use([](Floats x) { return gelu(x); });
    case Activation::kGeluTanh: return use([](Floats x) { return gelu_tanh(x); });
    case Activation::kSilu: return use([](Floats x) { return silu(x); });
    case Activation::kRelu: return use([](Floats x) { return relu(x); });
    default: return use([](Floats x) { return x; });
  }
}

}  // namespace poolgraph
