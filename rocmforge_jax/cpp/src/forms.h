// The list of the forms of packings that the products support. Python reads it through `packing_form` in multiply.cc.
#pragma once

#include "kernels.h"

namespace {

// The kind of scales of a form that reads all of them, with any span, more slowly.
constexpr Scale kAnyScale = (Scale)-1;

// Bits per code; whether a table has the values of the codes; scales per group (2: one for each half); whether there are minima; how scales
// are stored; the number of groups that share an entry of d.
template <int kBitsOfCode, bool kHasTable, int kScales, bool kHasMinimum, Scale kScale = kAnyScale, int kGroups = 0>
struct Form {
  static constexpr int kBits = kBitsOfCode, kHalves = kScales, kSpan = kGroups;
  static constexpr bool kTable = kHasTable, kMinimum = kHasMinimum;
  static constexpr Scale kKind = kScale;

  static bool holds(const Weight& w) {
    return w.bits == kBits && (bool)w.has_table == kTable && w.halves == kHalves && (bool)w.minimum == kMinimum &&
           (kKind == kAnyScale || (w.scale_kind == kKind && w.span == kSpan));
  }
};

template <typename... Each>
struct List {};

using Forms = List<Form<2, false, 1, false>, Form<2, false, 2, true>, Form<3, false, 2, false>, Form<4, false, 1, false>,
                   Form<4, false, 1, true>, Form<4, true, 1, false>, Form<4, true, 2, false>, Form<5, false, 1, false>,
                   Form<5, false, 1, true>, Form<6, false, 2, false>, Form<8, false, 1, false>>;

// The forms of ggml's types.
using FastForms = List<Form<2, false, 1, false, kD, 2>, Form<2, false, 1, false, kD, 8>, Form<2, false, 2, true, kNibbles, 8>,
                       Form<3, false, 2, false, kInt8, 8>, Form<4, false, 1, false, kD, 1>, Form<4, false, 1, true, kD, 1>,
                       Form<4, false, 1, true, kBytes, 8>, Form<4, true, 1, false, kD, 1>, Form<4, true, 1, false, kInt8, 8>,
                       Form<4, true, 1, false, kE8M0, 1>, Form<4, true, 2, false, kE4M3, 1>, Form<5, false, 1, false, kD, 1>,
                       Form<5, false, 1, true, kD, 1>, Form<5, false, 1, true, kBytes, 8>, Form<6, false, 2, false, kInt8, 8>,
                       Form<8, false, 1, false, kD, 1>>;

template <template <typename> class Function, typename Value, typename... Each>
Value in_list(const Weight& w, List<Each...>) {
  Value found = nullptr;
  ((Each::holds(w) && (found = Function<Each>::value)), ...);
  return found;
}

// Returns Function<Form>::value for the form of a weight, or nullptr if it is not supported.
template <template <typename> class Function, typename Value>
Value by_form(const Weight& w) {
  const Value fast = in_list<Function, Value>(w, FastForms{});
  return fast ? fast : in_list<Function, Value>(w, Forms{});
}

}  // namespace
