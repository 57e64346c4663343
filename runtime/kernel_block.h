// Blocks of sums that stay in registers: some rows by some vectors of columns.
//
// What is multiplied is a policy: pairs of 16-bit integers, floats, or pairs of bfloat16. It has Number, Factor (a vector of
// them), Sum, kStep (numbers of a row that are multiplied at once), kUnrolled (steps of one turn of the loop, by measurement),
// nothing, load, broadcast, add_products and finish.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel_vector.h"

namespace poolgraph {

inline Ints splat_pair(const int16_t* from) {
  int32_t two;
  std::memcpy(&two, from, sizeof two);
  return splat(two);
}

struct ShortPairs {
  using Number = int16_t;
  using Factor = Ints;
  using Sum = Ints;
  static constexpr int kStep = 2, kUnrolled = 1;
  static Ints nothing() { return splat(0); }
  static Ints load(const int16_t* from) { return load_pairs(from); }
  static Ints broadcast(const int16_t* from) { return splat_pair(from); }
  static void add_products(Ints& sums, Ints row, Ints columns) { add_pairs(sums, row, columns); }
  static Floats finish(Ints sums) { return to_floats(sums); }
};

struct Singles {
  using Number = float;
  using Factor = Floats;
  using Sum = Floats;
  static constexpr int kStep = 1, kUnrolled = 4;
  static Floats nothing() { return splat(0.0f); }
  static Floats load(const float* from) { return poolgraph::load(from); }
  static Floats broadcast(const float* from) { return splat(*from); }
  static void add_products(Floats& sums, Floats row, Floats columns) { sums = fmadd(row, columns, sums); }
  static Floats finish(Floats sums) { return sums; }
};

// Pairs of bfloat16, by their bits: the higher halves of floats, whose products are exact in float32.
struct BFloats {
  using Number = int16_t;
  using Factor = Ints;
  using Sum = Floats;
  static constexpr int kStep = 2, kUnrolled = 2;
  static Floats nothing() { return splat(0.0f); }
  static Ints load(const int16_t* from) { return load_pairs(from); }
  static Ints broadcast(const int16_t* from) { return splat_pair(from); }
  // In the order of vdpbf16ps: the second number of the pair first.
  static void add_products(Floats& sums, Ints row, Ints columns) {
    const Ints higher = splat(static_cast<int32_t>(0xffff0000u));
    sums = fmadd(as_floats(both_bits(row, higher)), as_floats(both_bits(columns, higher)), sums);
    sums = fmadd(as_floats(shift_left<16>(row)), as_floats(shift_left<16>(columns)), sums);
  }
  static Floats finish(Floats sums) { return sums; }
};

// The same where the processor has an instruction for it.
struct DotBFloats : BFloats {
  static void add_products(Floats& sums, Ints row, Ints columns) { add_bfloat_pairs(sums, row, columns); }
};

// Calls use(numbers) with the policy that computes products of `Numbers` here.
template <class Numbers, class Use>
inline void with_instructions(Use&& use) {
  if constexpr (std::is_same_v<Numbers, BFloats>)
    if (has_bfloat_pairs()) return use(DotBFloats{});
  use(Numbers{});
}

// Columns in the order in which they are multiplied: from step to step, and from one vector of them to the next.
template <class Numbers>
struct Columns {
  const typename Numbers::Number* first;
  size_t step_stride;
  size_t vector_stride;
  Columns vectors_from(int vector) const { return {first + vector * vector_stride, step_stride, vector_stride}; }
};

template <class Numbers>
struct BlockRows {
  const typename Numbers::Number* first;
  size_t stride;
};

// start(r, j) + the sums over steps of rows[r][step] * columns[step][j], of `kRows` rows by `kVectors` vectors, given to
// store(r, j, sums). Unrolled by the compiler, so that all sums stay in registers.
template <class Numbers, int kRows, int kVectors, class Start, class Store>
inline __attribute__((always_inline)) void sum_block(BlockRows<Numbers> rows, Columns<Numbers> columns, int steps,
                                                     const Start& start, const Store& store) {
  typename Numbers::Sum sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[r][j] = start(r, j);
  const auto step = [&]() __attribute__((always_inline)) {
    typename Numbers::Factor column[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) column[j] = Numbers::load(columns.first + j * columns.vector_stride);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename Numbers::Factor x = Numbers::broadcast(rows.first + r * rows.stride);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) Numbers::add_products(sums[r][j], x, column[j]);
    }
    columns.first += columns.step_stride;
    rows.first += Numbers::kStep;
  };
#pragma GCC unroll 1
  for (; steps >= Numbers::kUnrolled; steps -= Numbers::kUnrolled) {
#pragma GCC unroll 4
    for (int i = 0; i < Numbers::kUnrolled; ++i) step();
  }
  if constexpr (Numbers::kUnrolled > 1) {
#pragma GCC unroll 1
    for (; steps > 0; --steps) step();
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) store(r, j, sums[r][j]);
}

// The same from nothing, of a function of its own; rows from `count` on are computed and dropped.
template <class Numbers, int kRows, int kVectors, class Store>
__attribute__((noinline)) void product_block(BlockRows<Numbers> rows, Columns<Numbers> columns, int steps, int count,
                                             const Store& store) {
  sum_block<Numbers, kRows, kVectors>(
      rows, columns, steps, [](int, int) { return Numbers::nothing(); },
      [&](int r, int j, typename Numbers::Sum sums) {
        if (r < count) store(r, j, Numbers::finish(sums));
      });
}

constexpr int kQueryRows = 12;  // rows of a tile of attention: one block of few vectors, or two of half the rows

// Up to kQueryRows rows by up to 4 vectors: blocks that fit the registers, whose sums are the same in each.
template <class Numbers, int kVectors, class Store>
inline void multiply_rows(BlockRows<Numbers> rows, Columns<Numbers> columns, int steps, int count, const Store& store) {
  if constexpr (kVectors * kQueryRows <= kSums)
    if (count > kQueryRows / 2) return product_block<Numbers, kQueryRows, kVectors>(rows, columns, steps, count, store);
  for (int first = 0; first < count; first += kQueryRows / 2)
    product_block<Numbers, kQueryRows / 2, kVectors>(BlockRows<Numbers>{rows.first + first * rows.stride, rows.stride}, columns,
                                                     steps, count - first,
                                                     [&](int r, int j, Floats x) { store(first + r, j, x); });
}

template <class Numbers, class Store>
inline void multiply(int vectors, BlockRows<Numbers> rows, Columns<Numbers> columns, int steps, int count, const Store& store) {
  if constexpr (kSums < kQueryRows) {  // of which no block is wider than a vector
    for (int v = 0; v < vectors; ++v)
      multiply_rows<Numbers, 1>(rows, columns.vectors_from(v), steps, count, [&](int r, int, Floats x) { store(r, v, x); });
    return;
  }
  switch (vectors) {
    case 1: return multiply_rows<Numbers, 1>(rows, columns, steps, count, store);
    case 2: return multiply_rows<Numbers, 2>(rows, columns, steps, count, store);
    case 3: return multiply_rows<Numbers, 3>(rows, columns, steps, count, store);
    default: return multiply_rows<Numbers, 4>(rows, columns, steps, count, store);
  }
}

}  // namespace poolgraph
