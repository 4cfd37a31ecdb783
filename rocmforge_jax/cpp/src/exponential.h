// e^x and the hyperbolic tangent of vectors.
#pragma once

#include "vectors.h"

namespace {

// x = n ln 2 + r, where |r| is at most ln 2 / 2.
struct PowerOfE {
  Ints exponent;    // n, in the exponent bits of a float
  Floats less_one;  // e^r - 1
};

inline PowerOfE split(Floats x) {
  const Floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
  return {(Ints)shifted << 23,
          ((((r * 1.3888889e-3f + 8.3333333e-3f) * r + 4.1666667e-2f) * r + 1.6666667e-1f) * r + 0.5f) * r * r + r};
}

// e^x with a relative error of 2e-7 for |x| < 87. Other x are clamped to this range. NaN stays NaN.
inline Floats exponential(Floats number) {
  Floats x = number > 87.0f ? Floats{} + 87.0f : number;
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const PowerOfE power = split(x);
  return number == number ? (Floats)((Ints)(power.less_one + 1.0f) + power.exponent) : number;
}

// tanh(x) with a relative error of 5e-7, also near zero, where 1 - 2 / (e^2x + 1) would cancel. NaN stays NaN.
inline Floats hyperbolic_tangent(Floats number) {
  const Floats size = absolute(number);
  const PowerOfE power = split(size > 20.0f ? Floats{} + 40.0f : size + size);
  const Floats scale = (Floats)(power.exponent + 0x3F800000), less_one = power.less_one * scale + (scale - 1.0f);
  const Floats result = less_one / (less_one + 2.0f);
  return number == number ? (Floats)((Ints)result | ((Ints)number & ~0x7FFFFFFF)) : number;
}

}  // namespace
