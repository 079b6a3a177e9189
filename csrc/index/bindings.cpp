// megatron_synE._index: called through megatron_synE/data/native.py, which prepares dtypes and shapes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "index/index.h"

namespace py = pybind11;
using namespace syne::index;

namespace {

// Without forcecast: an array of another dtype is an error, never a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

py::tuple bind_period_table(const Array<int64_t>& numerators) {
  int64_t period = 0;
  for (py::ssize_t c = 0; c < numerators.size(); ++c) {
    if (numerators.data()[c] < 0) throw std::invalid_argument("period_table: negative numerator");
    period += numerators.data()[c];
  }
  if (period <= 0 || period > (int64_t{1} << 30)) throw std::invalid_argument("period_table: period not in [1, 2^30]");
  if (numerators.size() > 65535) throw std::invalid_argument("period_table: more than 65535 components");
  Array<uint16_t> component(period);
  Array<int32_t> rank(period);
  auto* component_data = component.mutable_data();
  auto* rank_data = rank.mutable_data();
  {
    py::gil_scoped_release unlocked;
    period_table(numerators.data(), numerators.size(), period, component_data, rank_data);
  }
  return py::make_tuple(component, rank);
}

py::tuple bind_locate(const Array<int64_t>& offsets, const Array<uint16_t>& component, const Array<int32_t>& rank,
                      const Array<int64_t>& numerators, const Array<int64_t>& cursors) {
  if (numerators.size() != cursors.size() || component.size() != rank.size()) {
    throw std::invalid_argument("locate: sizes differ");
  }
  Array<int32_t> found(offsets.size());
  Array<int64_t> index(offsets.size());
  const int64_t period = component.size();
  const auto *offset = offsets.data(), *numerator = numerators.data(), *cursor = cursors.data();
  const auto* table = component.data();
  const auto* before = rank.data();
  auto* found_data = found.mutable_data();
  auto* index_data = index.mutable_data();
  for (py::ssize_t i = 0; i < offsets.size(); ++i) {
    if (offset[i] < 0) throw std::invalid_argument("locate: negative offset");
    int64_t turn = offset[i] / period, place = offset[i] % period;
    auto c = table[place];
    found_data[i] = c;
    index_data[i] = cursor[c] + turn * numerator[c] + before[place];
  }
  return py::make_tuple(found, index);
}

template <typename Token>
Array<uint64_t> bind_hash_documents(const Array<Token>& tokens, const Array<int64_t>& starts) {
  if (starts.size() < 1) throw std::invalid_argument("hash_documents: starts is empty");
  const auto* start = starts.data();
  for (py::ssize_t d = 0; d + 1 < starts.size(); ++d) {
    if (start[d] < 0 || start[d] > start[d + 1]) throw std::invalid_argument("hash_documents: starts do not ascend");
  }
  if (start[starts.size() - 1] > tokens.size()) throw std::invalid_argument("hash_documents: a document leaves the tokens");
  Array<uint64_t> hashes(starts.size() - 1);
  auto* hash = hashes.mutable_data();
  {
    py::gil_scoped_release unlocked;
    hash_documents(tokens.data(), start, static_cast<size_t>(starts.size() - 1), hash);
  }
  return hashes;
}

Array<int32_t> bind_sort_documents(const Array<uint64_t>& keys) {
  if (keys.size() > INT32_MAX) throw std::invalid_argument("sort_documents: more than 2^31 - 1 keys");
  Array<int32_t> order(keys.size());
  auto* data = order.mutable_data();
  {
    py::gil_scoped_release unlocked;
    sort_documents(keys.data(), keys.size(), data);
  }
  return order;
}

template <typename Token>
Array<int32_t> bind_gather(const Array<Token>& tokens, const Array<int64_t>& sequence_offsets, const Array<int64_t>& boundaries,
                           const Array<int32_t>& order, const Array<int64_t>& ends, int64_t offset, Array<int64_t>& out) {
  if (ends.size() != order.size() + 1) throw std::invalid_argument("gather: ends must have one entry more than order");
  PackedDocuments<Token> documents{tokens.data(), static_cast<size_t>(tokens.size()),
                                   reinterpret_cast<const char*>(sequence_offsets.data()), static_cast<size_t>(sequence_offsets.size()),
                                   reinterpret_cast<const char*>(boundaries.data()), static_cast<size_t>(boundaries.size()),
                                   order.data(), ends.data(), static_cast<size_t>(order.size())};
  std::vector<int32_t> starts;
  auto* target = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    starts = gather(documents, offset, out.size(), target);
  }
  return Array<int32_t>(static_cast<py::ssize_t>(starts.size()), starts.data());
}

}  // namespace

PYBIND11_MODULE(_index, m) {
  m.doc() = "Index arithmetic of the data stream; called through megatron_synE.data.native.";
  m.def("period_table", &bind_period_table, py::arg("numerators").noconvert());
  m.def("locate", &bind_locate, py::arg("offsets").noconvert(), py::arg("component").noconvert(), py::arg("rank").noconvert(),
        py::arg("numerators").noconvert(), py::arg("cursors").noconvert());
  m.def("hash_documents", &bind_hash_documents<uint16_t>, py::arg("tokens").noconvert(), py::arg("starts").noconvert());
  m.def("hash_documents", &bind_hash_documents<int32_t>, py::arg("tokens").noconvert(), py::arg("starts").noconvert());
  m.def("watch_mapping", &watch_mapping, py::arg("start"), py::arg("bytes"), py::arg("path"));
  m.def("forget_mapping", &forget_mapping, py::arg("slot"));
  m.def("sort_documents", &bind_sort_documents, py::arg("keys").noconvert());
  m.def("gather", &bind_gather<uint16_t>, py::arg("tokens").noconvert(), py::arg("sequence_offsets").noconvert(),
        py::arg("boundaries").noconvert(), py::arg("order").noconvert(), py::arg("ends").noconvert(), py::arg("offset"),
        py::arg("out").noconvert());
  m.def("gather", &bind_gather<int32_t>, py::arg("tokens").noconvert(), py::arg("sequence_offsets").noconvert(),
        py::arg("boundaries").noconvert(), py::arg("order").noconvert(), py::arg("ends").noconvert(), py::arg("offset"),
        py::arg("out").noconvert());
}
