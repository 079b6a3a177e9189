#include <algorithm>
#include <array>

#include "index/index.h"

namespace syne::index {

namespace {

// Finaliser of splitmix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr size_t block_tokens = 512;

// The keys of NH: low half of mix(i + 1).
const std::array<uint32_t, block_tokens>& hash_keys() {
  static const auto keys = [] {
    std::array<uint32_t, block_tokens> made{};
    for (size_t i = 0; i < block_tokens; ++i) made[i] = static_cast<uint32_t>(mix(i + 1));
    return made;
  }();
  return keys;
}

}  // namespace

// Per block of 512 tokens NH (Black et al., UMAC 1999): the sum of products of two keyed neighbours, which vectorises;
// blocks are chained through `mix`. An odd last token is paired with 0.
template <typename Token>
void hash_documents(const Token* tokens, const int64_t* starts, size_t num_documents, uint64_t* hashes) {
  const uint32_t* keys = hash_keys().data();
  for (size_t d = 0; d < num_documents; ++d) {
    uint64_t hash = mix(static_cast<uint64_t>(starts[d + 1] - starts[d]));
    for (int64_t at = starts[d]; at < starts[d + 1]; at += block_tokens) {
      const Token* block = tokens + at;
      size_t count = std::min<int64_t>(block_tokens, starts[d + 1] - at);
      uint64_t sum = 0;
      for (size_t i = 0; i + 1 < count; i += 2) {
        uint32_t left = static_cast<uint32_t>(block[i]) + keys[i];
        uint32_t right = static_cast<uint32_t>(block[i + 1]) + keys[i + 1];
        sum += static_cast<uint64_t>(left) * right;
      }
      if (count % 2 == 1) {
        sum += static_cast<uint64_t>(static_cast<uint32_t>(block[count - 1]) + keys[count - 1]) * keys[count % block_tokens];
      }
      hash = mix(hash ^ sum);
    }
    hashes[d] = hash;
  }
}

template void hash_documents<uint16_t>(const uint16_t*, const int64_t*, size_t, uint64_t*);
template void hash_documents<int32_t>(const int32_t*, const int64_t*, size_t, uint64_t*);

// Least-significant-digit radix sort over 11-bit digits; a digit that all keys share costs one histogram.
void sort_documents(const uint64_t* keys, size_t num_keys, int32_t* order) {
  constexpr int digit_bits = 11;
  constexpr size_t num_buckets = size_t{1} << digit_bits;
  constexpr int num_digits = (64 + digit_bits - 1) / digit_bits;
  struct Entry {
    uint64_t key;
    int32_t document;
  };
  std::vector<size_t> histogram(num_digits * num_buckets, 0);
  std::vector<Entry> from(num_keys), to(num_keys);
  for (size_t i = 0; i < num_keys; ++i) {
    from[i] = {keys[i], static_cast<int32_t>(i)};
    for (int digit = 0; digit < num_digits; ++digit) {
      ++histogram[digit * num_buckets + ((keys[i] >> (digit * digit_bits)) & (num_buckets - 1))];
    }
  }
  for (int digit = 0; digit < num_digits; ++digit) {
    size_t* bucket = &histogram[digit * num_buckets];
    int shift = digit * digit_bits;
    if (num_keys == 0 || bucket[(from[0].key >> shift) & (num_buckets - 1)] == num_keys) continue;
    size_t place = 0;
    for (size_t b = 0; b < num_buckets; ++b) {
      size_t count = bucket[b];
      bucket[b] = place;
      place += count;
    }
    for (const Entry& entry : from) to[bucket[(entry.key >> shift) & (num_buckets - 1)]++] = entry;
    from.swap(to);
  }
  for (size_t i = 0; i < num_keys; ++i) order[i] = from[i].document;
}

}  // namespace syne::index
