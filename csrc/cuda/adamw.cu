// Gradient norm, clipping and AdamW over lists of flat buffers; the formulas stand in cpu/adamw.cpp.
//
// The buffers of a launch stand in a table among the kernel's arguments, so nothing is copied to the device and no
// memory has to outlive the launch. A block works on one chunk of one buffer.
#include "cuda/common.cuh"

#include <cstring>
#include <type_traits>
#include <vector>

namespace syne {
namespace {

constexpr int kThreads = 256, kPack = 8;
// Kernels take 4 KiB of arguments, and 32,764 bytes since CUDA 12.1 and its drivers, which CUDA 13 surely runs on.
constexpr int kTableBytes = CUDART_VERSION >= 13000 ? 32000 : 3968;

template <typename Entry>
struct Table {
  static constexpr int kEntries = kTableBytes / static_cast<int>(sizeof(Entry) + sizeof(int64_t));
  Entry entries[kEntries];
  int64_t chunk_ends[kEntries];  // chunks of this entry and of those before it
  int count;
};

// The elements [begin, end) of one entry; those before `packed_end` are worked on in packs.
struct Chunk {
  int entry;
  int64_t begin, packed_end, end;
};

template <typename Entry>
__device__ __forceinline__ Chunk chunk_of_block(const Table<Entry>& table) {
  int first = 0, last = table.count - 1;
  while (first < last) {
    int middle = (first + last) / 2;
    if (table.chunk_ends[middle] <= blockIdx.x)
      first = middle + 1;
    else
      last = middle;
  }
  int64_t number = blockIdx.x - (first == 0 ? 0 : table.chunk_ends[first - 1]), count = table.entries[first].count;
  int64_t begin = number * kChunkElements, end = begin + kChunkElements < count ? begin + kChunkElements : count;
  return {first, begin, table.entries[first].is_aligned ? end - (end - begin) % kPack : begin, end};
}

// Calls `launch(table, number of the first chunk, chunks)` until every entry that is not empty had its turn.
template <typename Entry, typename Launch>
void in_tables(const std::vector<Entry>& entries, const char* what, const Launch& launch) {
  Table<Entry> table;
  std::memset(&table, 0, sizeof(table));
  int64_t done = 0, chunks = 0;
  auto flush = [&] {
    if (table.count == 0) return;
    launch(table, done, static_cast<unsigned>(chunks));
    check(cudaGetLastError(), what);
    done += chunks;
    table.count = 0;
    chunks = 0;
  };
  for (const Entry& entry : entries) {
    if (entry.count == 0) continue;
    chunks += (entry.count + kChunkElements - 1) / kChunkElements;
    table.entries[table.count] = entry;
    table.chunk_ends[table.count++] = chunks;
    if (table.count == Table<Entry>::kEntries) flush();
  }
  flush();
}

struct FlatEntry {
  void* values;
  int64_t count;
  bool is_aligned;
};

std::vector<FlatEntry> flat_entries(const std::vector<FlatTensor>& tensors) {
  std::vector<FlatEntry> entries;
  for (const FlatTensor& tensor : tensors) entries.push_back({tensor.values, tensor.count, aligned(tensor.values)});
  return entries;
}

// The sums of chunks are added up elsewhere in a fixed order: the norm of a run that is repeated has the same bits.
template <typename T>
__global__ void __launch_bounds__(kThreads) squares_kernel(Table<FlatEntry> table, double* chunk_sums) {
  __shared__ float shared[kWarp];
  Chunk chunk = chunk_of_block(table);
  const T* values = static_cast<const T*>(table.entries[chunk.entry].values);
  double sum = 0.0;
  for (int64_t index = chunk.begin + threadIdx.x * kPack; index < chunk.packed_end; index += kThreads * kPack) {
    auto pack = load_floats<T, kPack>(values + index);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack; ++i) squares += pack.item[i] * pack.item[i];
    sum += static_cast<double>(squares);
  }
  for (int64_t index = chunk.packed_end + threadIdx.x; index < chunk.end; index += kThreads) {
    float value = to_float(values[index]);
    sum += static_cast<double>(value * value);
  }
  float total = block_sum(static_cast<float>(sum), shared);
  if (threadIdx.x == 0) chunk_sums[blockIdx.x] = static_cast<double>(total);
}

__global__ void __launch_bounds__(kThreads) scale_kernel(Table<FlatEntry> table, float factor) {
  Chunk chunk = chunk_of_block(table);
  float* values = static_cast<float*>(table.entries[chunk.entry].values);
  for (int64_t index = chunk.begin + threadIdx.x * kPack; index < chunk.packed_end; index += kThreads * kPack) {
    auto pack = load_floats<float, kPack>(values + index);
#pragma unroll
    for (int i = 0; i < kPack; ++i) pack.item[i] *= factor;
    store_floats<float, kPack>(values + index, pack);
  }
  for (int64_t index = chunk.packed_end + threadIdx.x; index < chunk.end; index += kThreads) values[index] *= factor;
}

__device__ __forceinline__ float join(bf16 high, std::int16_t remainder) {
  unsigned bits = static_cast<unsigned>(__bfloat16_as_ushort(high)) << 16;
  return __uint_as_float(bits + static_cast<unsigned>(static_cast<int>(remainder)));
}

__device__ __forceinline__ void split(float value, bf16& high, std::int16_t& remainder) {
  unsigned bits = isnan(value) ? 0x7fc00000u : __float_as_uint(value);
  high = __ushort_as_bfloat16(static_cast<unsigned short>((bits + 0x8000u) >> 16));
  remainder = static_cast<std::int16_t>(bits & 0xffffu);
}

struct AdamWEntry {
  AdamWBuffers buffers;
  int64_t count;
  bool is_aligned;
};

// What is the same for all elements.
struct AdamWFactors {
  float keep, step_size, inverse_root, beta1, beta2, eps, grad_scale;
};

// N elements from `index` on; G, M and V are the types of the gradient and of the moments.
template <bool kRemainder, typename G, typename M, typename V, int N>
__device__ __forceinline__ void update(const AdamWBuffers& buffers, int64_t index, const AdamWFactors& f) {
  bf16* model_param = static_cast<bf16*>(buffers.model_param) + index;
  M* exp_avg = static_cast<M*>(buffers.exp_avg) + index;
  V* exp_avg_sq = static_cast<V*>(buffers.exp_avg_sq) + index;
  auto grad = load_floats<G, N>(static_cast<const G*>(buffers.grad) + index);
  auto m = load_floats<M, N>(exp_avg);
  auto v = load_floats<V, N>(exp_avg_sq);
  Pack<float, N> p;
  Pack<bf16, N> high;
  Pack<std::int16_t, N> low;
  if (kRemainder) {
    high = load_pack<bf16, N>(model_param);
    low = load_pack<std::int16_t, N>(buffers.remainder + index);
#pragma unroll
    for (int i = 0; i < N; ++i) p.item[i] = join(high.item[i], low.item[i]);
  } else {
    p = load_floats<float, N>(buffers.param + index);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float g = grad.item[i] * f.grad_scale;
    m.item[i] = f.beta1 * m.item[i] + (1.0f - f.beta1) * g;
    v.item[i] = f.beta2 * v.item[i] + (1.0f - f.beta2) * g * g;
    p.item[i] = p.item[i] * f.keep - f.step_size * m.item[i] / (sqrtf(v.item[i]) * f.inverse_root + f.eps);
  }
  store_floats<M, N>(exp_avg, m);
  store_floats<V, N>(exp_avg_sq, v);
  if (kRemainder) {
#pragma unroll
    for (int i = 0; i < N; ++i) split(p.item[i], high.item[i], low.item[i]);
    store_pack<bf16, N>(model_param, high);
    store_pack<std::int16_t, N>(buffers.remainder + index, low);
  } else {
    store_floats<float, N>(buffers.param + index, p);
    if (buffers.model_param) store_floats<bf16, N>(model_param, p);
  }
}

template <bool kRemainder, typename G, typename M, typename V>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Table<AdamWEntry> table, AdamWStep step, const float* grad_scale) {
  AdamWFactors factors{1.0f - step.lr * step.weight_decay, step.lr / step.bias_correction1,
                       rsqrtf(step.bias_correction2),      step.beta1,
                       step.beta2,                         step.eps,
                       grad_scale ? step.grad_scale * *grad_scale : step.grad_scale};
  Chunk chunk = chunk_of_block(table);
  AdamWBuffers buffers = table.entries[chunk.entry].buffers;
  for (int64_t index = chunk.begin + threadIdx.x * kPack; index < chunk.packed_end; index += kThreads * kPack)
    update<kRemainder, G, M, V, kPack>(buffers, index, factors);
  for (int64_t index = chunk.packed_end + threadIdx.x; index < chunk.end; index += kThreads)
    update<kRemainder, G, M, V, 1>(buffers, index, factors);
}

// Calls `body` with a null pointer of the element type.
template <typename Body>
void with_type(DType dtype, const Body& body) {
  if (dtype == kFloat32)
    body(static_cast<float*>(nullptr));
  else
    body(static_cast<bf16*>(nullptr));
}

template <bool kRemainder>
void run_adamw(const std::vector<AdamWEntry>& entries, const AdamWTypes& types, const AdamWStep& step,
               const float* grad_scale, cudaStream_t stream) {
  with_type(types.grad, [&](auto* g) {
    with_type(types.exp_avg, [&](auto* m) {
      with_type(types.exp_avg_sq, [&](auto* v) {
        using G = std::remove_pointer_t<decltype(g)>;
        using M = std::remove_pointer_t<decltype(m)>;
        using V = std::remove_pointer_t<decltype(v)>;
        in_tables(entries, "adamw", [&](const Table<AdamWEntry>& table, int64_t, unsigned chunks) {
          adamw_kernel<kRemainder, G, M, V><<<chunks, kThreads, 0, stream>>>(table, step, grad_scale);
        });
      });
    });
  });
}

}  // namespace

void sum_of_squares(DType dtype, const std::vector<FlatTensor>& tensors, double* chunk_sums, cudaStream_t stream) {
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    in_tables(flat_entries(tensors), "sum_of_squares",
              [&](const Table<FlatEntry>& table, int64_t done, unsigned chunks) {
                squares_kernel<T><<<chunks, kThreads, 0, stream>>>(table, chunk_sums + done);
              });
  });
}

void scale_in_place(const std::vector<FlatTensor>& tensors, float factor, cudaStream_t stream) {
  in_tables(flat_entries(tensors), "scale_in_place", [&](const Table<FlatEntry>& table, int64_t, unsigned chunks) {
    scale_kernel<<<chunks, kThreads, 0, stream>>>(table, factor);
  });
}

void adamw(const std::vector<AdamWBuffers>& buffers, const std::vector<int64_t>& counts, const AdamWTypes& types,
           const AdamWStep& step, const float* grad_scale, cudaStream_t stream) {
  std::vector<AdamWEntry> entries;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (counts[i] == 0) continue;  // its pointers may be null, and say nothing
    const AdamWBuffers& b = buffers[i];
    bool is_aligned = all_aligned(b.param, b.model_param, b.remainder, b.grad, b.exp_avg, b.exp_avg_sq);
    entries.push_back({b, counts[i], is_aligned});
  }
  bool has_remainder = !entries.empty() && entries[0].buffers.remainder;
  (has_remainder ? run_adamw<true> : run_adamw<false>)(entries, types, step, grad_scale, stream);
}

}  // namespace syne
