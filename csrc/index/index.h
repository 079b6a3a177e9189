// Index arithmetic of the data stream. All arrays are borrowed; sizes are in elements, token offsets in tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace syne::index {

// One period of the mixture: entry k is the component of sample k, `rank[k]` how many samples of it came before.
// Every prefix of k samples gives component c its share k * numerators[c] / period within 1 - 1/(2n - 2) samples,
// n being the number of positive numerators (Tijdeman, "The chairman assignment problem", 1980).
// `numerators` are not negative and sum to `period`.
void period_table(const int64_t* numerators, size_t num_components, int64_t period, uint16_t* component, int32_t* rank);

// A 64-bit hash of each document's token values, whatever integer type stores them.
// `starts` has num_documents + 1 entries: document d is tokens [starts[d], starts[d + 1]).
template <typename Token>
void hash_documents(const Token* tokens, const int64_t* starts, size_t num_documents, uint64_t* hashes);

// Stable ascending argsort.
void sort_documents(const uint64_t* keys, size_t num_keys, int32_t* order);

// A corpus and one order of some of its documents, packed end to end.
template <typename Token>
struct PackedDocuments {
  const Token* tokens;               // the .bin
  size_t num_tokens;
  const char* sequence_offsets;      // int64 in bytes, as they lie in the .idx: unaligned
  size_t num_sequences;
  const char* boundaries;            // int64, unaligned: first sequence of each document
  size_t num_boundaries;
  const int32_t* order;              // document at each place of the order
  const int64_t* ends;               // num_ordered + 1 entries: place i is tokens [ends[i], ends[i + 1]) of the order
  size_t num_ordered;
};

// Copies tokens [offset, offset + count) of the order to `out` and returns where in `out` documents start.
template <typename Token>
std::vector<int32_t> gather(const PackedDocuments<Token>& documents, int64_t offset, int64_t count, int64_t* out);

// Names `path` on stderr before the process dies of a SIGBUS in the mapping of this file: it was truncated under us.
// Returns a slot for `forget_mapping`, or -1 where no slot is free. Not for several threads at once.
int watch_mapping(uintptr_t start, size_t bytes, const char* path);
void forget_mapping(int slot);

}  // namespace syne::index
