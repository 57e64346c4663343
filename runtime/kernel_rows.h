// Rows of token features: rounded to 8 bits in front of a product, added and normalized behind it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernel_vector.h"

namespace poolgraph {

constexpr float kSteps = 255.0f;    // between the least and the largest byte
constexpr float kTiniest = 1e-12f;  // the least scale of a row

// How rows become integers: by one scale from calibration, or each by its own least and largest value, zero between them.
struct Rounding {
  float scale = 0;  // 0: a scale and a zero point a row
  int zero_point = 0;
  bool per_row() const { return scale == 0; }
};

constexpr int kRowChunk = 4 * kLanes;  // bytes of a row that are rounded at once, and always lie side by side

// Rows of unsigned bytes, a multiple of 64 each; a row's numbers are (byte - its zero point) * its scale.
struct RowBytes {
  RowByte* bytes;
  size_t stride;
  float* scales;
  int32_t* zero_points;
};

// Where a row's bytes go: kRowChunk of them, then as many `apart` from there.
struct RowPlace {
  RowByte* first;
  size_t apart;
};

struct RowsIn {
  const float* data;
  size_t stride;
  int count;
  int width;
};

template <class Lanes>
inline Floats load_scaled(const float* row, const float* factors, int column, Lanes lanes) {
  const Floats x = lanes.load(row + column);
  return factors ? x * lanes.load(factors + column) : x;
}

struct Range {
  float low, high;  // at most and at least zero; both NaN where the row holds one
};

inline Range range_of(const float* row, const float* factors, int width) {
  Floats low = splat(0.0f), high = low;
  Mask broken = mask_of(0);
  for_vectors(width, [&](int column, auto lanes) {
    const Floats x = load_scaled(row, factors, column, lanes);
    broken = broken | is_nan(x);
    low = minimum(low, x);
    high = maximum(high, x);
  });
  const float none = std::numeric_limits<float>::quiet_NaN();
  return any(broken) ? Range{none, none} : Range{least_lane(low), largest_lane(high)};
}

// How a row's numbers become bytes.
struct Bytes {
  const float* factors;
  Floats inverse, zero;

  template <class Lanes>
  Ints integers(const float* row, int column, Lanes lanes) const {
    const Floats x = fmadd(load_scaled(row, factors, column, lanes), inverse, zero);
    // Beyond the integers of 32 bits the conversion would turn large numbers into negative ones.
    return round_to_ints(minimum(x, splat(1e6f)));
  }
};

// Rounds one row to bytes, saturated at both ends, and fills its last vector.
inline void round_row(const float* row, int width, const Bytes& by, RowPlace to) {
  int column = 0;
  for (; column + kRowChunk <= width; column += kRowChunk, to.first += to.apart) {
    Ints x[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) x[j] = by.integers(row, column + j * kLanes, AllLanes{});
    store_bytes(to.first, x[0], x[1], x[2], x[3]);
  }
  for_vectors(width - column, [&](int rest, auto lanes) {
    store_bytes(to.first + rest, by.integers(row, column + rest, lanes));
  });
}

// Rounds rows, each to place(row). One that holds NaN or infinity gets the scale NaN, so that it stays visible in the answer.
template <class Place>
inline void round_rows(const RowsIn& rows, const float* factors, const Rounding& rounding, const RowBytes& out,
                       const Place& place) {
  for (int r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.stride;
    const Range range = range_of(row, factors, rows.width);
    float scale = rounding.scale;
    int zero_point = rounding.zero_point;
    const bool finite = std::isfinite(range.low) && std::isfinite(range.high);
    if (rounding.per_row() && finite) {
      // Halves, so that the difference of two huge numbers is no infinity.
      scale = std::fmax(2 * (range.high / (2 * kSteps) - range.low / (2 * kSteps)), kTiniest);
      zero_point = static_cast<int>(std::lrintf(-range.low / scale));
    }
    const Bytes by{factors, splat(1.0f / scale), splat(static_cast<float>(zero_point))};
    if (finite) round_row(row, rows.width, by, place(r));
    out.scales[r] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
    out.zero_points[r] = zero_point;
  }
}

enum class Norm : int64_t { kNone = 0, kLayer = 1, kRootMeanSquare = 2 };

// What follows a product's rows: a residual is added, the sum is normalized.
struct RowFinish {
  Norm norm = Norm::kNone;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float epsilon = 0;
};

inline float sum_of(const float* row, int width) {
  Floats total = splat(0.0f);
  for_vectors(width, [&](int column, auto lanes) { total = total + lanes.load(row + column); });
  return sum_lanes(total);
}

inline float squares_of(const float* row, float mean, int width) {
  Floats total = splat(0.0f);
  for_vectors(width, [&](int column, auto lanes) {
    const Floats x = lanes.keep(lanes.load(row + column) - splat(mean));
    total = fmadd(x, x, total);
  });
  return sum_lanes(total);
}

inline void add_row(float* row, const float* residual, int width) {
  for_vectors(width, [&](int column, auto lanes) {
    lanes.store(row + column, lanes.load(row + column) + lanes.load(residual + column));
  });
}

// Writes the normalized row to `out`, which may be the row itself.
inline void normalize_row(const float* row, const RowFinish& finish, int width, float* out) {
  const float mean = finish.norm == Norm::kLayer ? sum_of(row, width) / width : 0.0f;
  const Floats inverse = splat(1.0f / std::sqrt(squares_of(row, mean, width) / width + finish.epsilon));
  for_vectors(width, [&](int column, auto lanes) {
    const Floats x = (lanes.load(row + column) - splat(mean)) * inverse;
    const Floats scaled = x * lanes.load(finish.weight + column);
    lanes.store(out + column, finish.bias ? scaled + lanes.load(finish.bias + column) : scaled);
  });
}

// Finishes rows in place: `rows` holds the product, then the sum, then, unless `normed` has room for it, the norm.
inline void finish_rows(float* rows, const float* residual, int count, int width, const RowFinish& finish, float* normed) {
  for (int r = 0; r < count; ++r) {
    float* row = rows + static_cast<size_t>(r) * width;
    if (residual) add_row(row, residual + static_cast<size_t>(r) * width, width);
    if (finish.norm == Norm::kNone) continue;
    normalize_row(row, finish, width, normed ? normed + static_cast<size_t>(r) * width : row);
  }
}

}  // namespace poolgraph
