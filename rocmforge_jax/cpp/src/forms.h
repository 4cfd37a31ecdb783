// The list of the forms of packings that the products support. Python reads it through `packing_form` in multiply.cc.
#pragma once

#include "kernels.h"

namespace {

// Bits per code; whether a table has the values of the codes; scales per group (2: one for each half); whether there are minima.
template <int kBitsOfCode, bool kHasTable, int kScales, bool kHasMinimum>
struct Form {
  static constexpr int kBits = kBitsOfCode, kHalves = kScales;
  static constexpr bool kTable = kHasTable, kMinimum = kHasMinimum;

  static bool holds(const Weight& w) {
    return w.bits == kBits && (bool)w.has_table == kTable && w.halves == kHalves && (bool)w.minimum == kMinimum;
  }
};

template <typename... Each>
struct List {};

using Forms = List<Form<2, false, 1, false>, Form<2, false, 2, true>, Form<3, false, 2, false>, Form<4, false, 1, false>,
                   Form<4, false, 1, true>, Form<4, true, 1, false>, Form<4, true, 2, false>, Form<5, false, 1, false>,
                   Form<5, false, 1, true>, Form<6, false, 2, false>, Form<8, false, 1, false>>;

}  // namespace
