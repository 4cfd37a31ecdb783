// Converts the blocks of a file to the planes of `pallas_kernels.packing`, in one pass over the blocks, row by row.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kGroup = 32, kPositions = 8;

// Layouts of the small scales of a block, in the order of repack.py.
enum Scales : int64_t { kNone, kBytes, kSixBitPairs, kSixBits, kHighAndLow };

// The numbers of `repack.Blocks`, in the same order. Offsets of fields are relative to their block; -1 if there is no such field.
struct Blocks {
  int64_t block, bytes, bits;
  int64_t d, m;
  int64_t scales, at, more_at, halves;
  int64_t exchanged, fields;
  struct {
    int64_t at, bits, run;
  } codes[2];
};

inline uint64_t load(const uint8_t* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// Unpacks the codes of a field into `out` from bit `low` on, like `formats._bits.unpack`. The first field overwrites `out`.
template <int kBits, bool kFirst>
inline void unpack(const uint8_t* in, int64_t count, int64_t run, int low, uint8_t* out) {
  constexpr int kParts = 8 / kBits, kVector = 8;
  constexpr uint64_t kMask = ((1 << kBits) - 1) * 0x0101010101010101ull;
  if (run == 1) {
    for (; count > 0; count -= kParts, in++)
      for (int part = 0; part < kParts; part++, out++)
        *out = (kFirst ? 0 : *out) | (*in >> part * kBits & ((1 << kBits) - 1)) << low;
    return;
  }
  for (; count > 0; count -= run * kParts, in += run)
    for (int part = 0; part < kParts; part++)
      for (int64_t i = 0; i < run; i += kVector, out += kVector) {  // eight codes in a word
        uint64_t codes = (load(in + i) >> part * kBits & kMask) << low;
        if (!kFirst) codes |= load(out);
        std::memcpy(out, &codes, sizeof codes);
      }
}

// Adds one bit of the field, shifted to bit `low`, to each of `count` bytes. The lowest bits of the field come first.
inline void spread(const uint8_t* in, int64_t count, int low, uint8_t* out) {
  for (; count > 0; count -= 8, in++, out += 8) {
    const uint64_t apart = *in * 0x0101010101010101ull & 0x8040201008040201ull;
    uint64_t codes = load(out);
    codes |= ((apart + 0x7F7F7F7F7F7F7F7Full) >> 7 & 0x0101010101010101ull) << low;
    std::memcpy(out, &codes, sizeof codes);
  }
}

// Packs the codes of a row into the words of its groups, like `packing.pack_codes`. positions: scratch, a word for each position.
template <int kBits>
inline void pack_row(const uint8_t* codes, int64_t groups, uint32_t* __restrict positions, uint32_t* __restrict out) {
  for (int64_t g = 0; g < groups; g++) {
    uint32_t words[kPositions];
    std::memcpy(words, codes + g * kGroup, sizeof words);
    for (int p = 0; p < kPositions; p++) (kBits == 8 ? out : positions)[p * groups + g] = words[p];
  }
  int first = 0;
#pragma GCC unroll 4
  for (int part = 4; part; part >>= 1) {
    if (kBits == 8 || !(kBits & part)) continue;
    const uint32_t mask = ((1u << part) - 1) * 0x01010101u;
    for (int word = 0; word < part; word++, out += groups)
      for (int i = 0; i < 8 / part; i++) {
        const int in_nibble = 4 / part, position = word * in_nibble + i % in_nibble + i / in_nibble * 4;
        const uint32_t* __restrict in = positions + position * groups;
        for (int64_t g = 0; g < groups; g++) out[g] = (i ? out[g] : 0) | (in[g] >> first & mask) << i * part;
      }
    first += part;
  }
}

inline void pack_row(const Blocks& how, const uint8_t* codes, int64_t groups, uint32_t* positions, uint32_t* out) {
  switch (how.bits) {
    case 1: return pack_row<1>(codes, groups, positions, out);
    case 2: return pack_row<2>(codes, groups, positions, out);
    case 3: return pack_row<3>(codes, groups, positions, out);
    case 4: return pack_row<4>(codes, groups, positions, out);
    case 5: return pack_row<5>(codes, groups, positions, out);
    case 6: return pack_row<6>(codes, groups, positions, out);
    case 8: return pack_row<8>(codes, groups, positions, out);
  }
}

// Swaps bits 2 and 3 of codes of four bits, eight codes at a time.
inline void exchange(uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    uint64_t word = load(codes + i);
    word = (word & 0x0303030303030303ull) | (word & 0x0404040404040404ull) << 1 | (word & 0x0808080808080808ull) >> 1;
    std::memcpy(codes + i, &word, sizeof word);
  }
}

inline void unpack_row(const Blocks& how, const uint8_t* row, int64_t blocks, uint8_t* codes) {
  if (how.bits == 8) {
    for (int64_t b = 0; b < blocks; b++) std::memcpy(codes + b * how.block, row + b * how.bytes + how.codes[0].at, how.block);
    return;
  }
  for (int64_t b = 0; b < blocks; b++) {
    const uint8_t* block = row + b * how.bytes;
    uint8_t* out = codes + b * how.block;
    const auto& first = how.codes[0];
    if (first.bits == 4) unpack<4, true>(block + first.at, how.block, first.run, 0, out);
    if (first.bits == 2) unpack<2, true>(block + first.at, how.block, first.run, 0, out);
    if (first.bits == 1) unpack<1, true>(block + first.at, how.block, first.run, 0, out);
    if (how.fields < 2) continue;
    const auto& second = how.codes[1];
    if (second.bits == 1 && second.run == 1) spread(block + second.at, how.block, first.bits, out);
    else if (second.bits == 1) unpack<1, false>(block + second.at, how.block, second.run, first.bits, out);
    else unpack<2, false>(block + second.at, how.block, second.run, first.bits, out);
  }
}

template <typename Number>
inline Number read(const uint8_t* at) {
  Number number;
  std::memcpy(&number, at, sizeof number);
  return number;
}

inline void shared_scales(const Blocks& how, const uint8_t* row, int64_t blocks, void* out) {
  for (int64_t b = 0; b < blocks; b++, row += how.bytes) {
    const uint16_t d = read<uint16_t>(row + how.d);
    if (how.m < 0) ((uint16_t*)out)[b] = d;
    else ((uint32_t*)out)[b] = d | (uint32_t)read<uint16_t>(row + how.m) << 16;
  }
}

// Reads the small scales of a block, in the order of its groups and their halves. A pair of scale and minimum becomes one 16-bit number.
inline void small_scales(const Blocks& how, const uint8_t* block, int64_t count, uint16_t* small) {
  const uint8_t *in = block + how.at, *more = block + how.more_at;
  switch (how.scales) {
    case kBytes:
      for (int64_t i = 0; i < count; i++) small[i] = in[i];
      return;
    case kSixBitPairs:
      for (int i = 0; i < 4; i++) {
        const int low = in[i], mid = in[4 + i], rest = in[8 + i];
        small[i] = (low & 63) | (mid & 63) << 8;
        small[4 + i] = (rest & 15) | low >> 6 << 4 | (rest >> 4 | mid >> 6 << 4) << 8;
      }
      return;
    case kSixBits:
      for (int i = 0; i < 16; i++) {
        const int nibble = i < 8 ? in[i] & 15 : in[i - 8] >> 4, top = in[8 + i % 4] >> i / 4 * 2 & 3;
        small[i] = (nibble | top << 4) - 32;
      }
      return;
    case kHighAndLow: {
      const uint16_t high = read<uint16_t>(in);
      for (int i = 0; i < 8; i++) small[i] = ((more[i / 2] >> i % 2 * 4 & 15) | (high >> 2 * i & 3) << 4) - 32;
    }
  }
}

template <typename Number>
inline void group_scales(const Blocks& how, const uint8_t* row, int64_t blocks, Number* out) {
  const int64_t per_block = how.block / kGroup, groups = blocks * per_block;
  uint16_t small[16];
  for (int64_t b = 0; b < blocks; b++, row += how.bytes) {
    small_scales(how, row, per_block * how.halves, small);
    for (int64_t g = 0; g < per_block; g++)
      for (int64_t h = 0; h < how.halves; h++) out[h * groups + b * per_block + g] = (Number)small[g * how.halves + h];
  }
}

}  // namespace

// Converts `rows` rows of `blocks` blocks each, at `from`, to planes at `codes`, `d` and `scale`.
extern "C" __attribute__((visibility("default"))) void rocmforge_repack(const uint8_t* from, int64_t rows, int64_t blocks, const Blocks* how,
                                                                         uint32_t* codes, uint8_t* d, uint8_t* scale) {
  const int64_t groups = blocks * how->block / kGroup;
  std::vector<uint8_t> row_codes(groups * kGroup);
  std::vector<uint32_t> positions(how->bits == 8 ? 0 : groups * kPositions);
  for (int64_t row = 0; row < rows; row++, from += blocks * how->bytes) {
    unpack_row(*how, from, blocks, row_codes.data());
    if (how->exchanged) exchange(row_codes.data(), groups * kGroup);
    pack_row(*how, row_codes.data(), groups, positions.data(), codes + row * how->bits * groups);
    if (how->d >= 0) shared_scales(*how, from, blocks, d + row * blocks * (how->m < 0 ? 2 : 4));
    uint8_t* scales = scale + row * how->halves * groups * (how->scales == kSixBitPairs ? 2 : 1);
    if (how->scales == kSixBitPairs) group_scales(*how, from, blocks, (uint16_t*)scales);
    else if (how->scales != kNone) group_scales(*how, from, blocks, scales);
  }
}
