#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "index/index.h"

namespace syne::index {

namespace {

int64_t unaligned(const char* base, size_t index) {
  int64_t value;
  std::memcpy(&value, base + index * sizeof value, sizeof value);
  return value;
}

}  // namespace

template <typename Token>
std::vector<int32_t> gather(const PackedDocuments<Token>& documents, int64_t offset, int64_t count, int64_t* out) {
  const int64_t* ends = documents.ends;
  if (offset < 0 || count < 0 || offset + count > ends[documents.num_ordered]) {
    throw std::out_of_range("gather: tokens " + std::to_string(offset) + " and " + std::to_string(count) +
                            " more leave an order of " + std::to_string(ends[documents.num_ordered]));
  }
  std::vector<int32_t> starts;
  int64_t place = std::upper_bound(ends, ends + documents.num_ordered + 1, offset) - ends - 1;
  for (int64_t done = 0; done < count; ++place) {
    int64_t within = offset + done - ends[place];
    if (within == 0) starts.push_back(static_cast<int32_t>(done));
    int64_t length = std::min(ends[place + 1] - ends[place] - within, count - done);
    auto document = static_cast<size_t>(documents.order[place]);
    if (document >= documents.num_boundaries) throw std::out_of_range("gather: the order names a missing document");
    auto sequence = static_cast<size_t>(unaligned(documents.boundaries, document));
    if (sequence >= documents.num_sequences) throw std::out_of_range("gather: a document names a missing sequence");
    int64_t from = unaligned(documents.sequence_offsets, sequence) / static_cast<int64_t>(sizeof(Token)) + within;
    if (from < 0 || static_cast<size_t>(from + length) > documents.num_tokens) {
      throw std::out_of_range("gather: a document leaves the .bin file");
    }
    std::copy_n(documents.tokens + from, length, out + done);
    done += length;
  }
  return starts;
}

template std::vector<int32_t> gather<uint16_t>(const PackedDocuments<uint16_t>&, int64_t, int64_t, int64_t*);
template std::vector<int32_t> gather<int32_t>(const PackedDocuments<int32_t>&, int64_t, int64_t, int64_t*);

}  // namespace syne::index
