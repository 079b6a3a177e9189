// The largest magnitude of a tensor, and the 8-bit numbers of a matrix: as it stands, transposed, or both in one pass.
#include <cuda_fp8.h>

#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

// Magnitudes are compared by their bits, among which a nan stands above all numbers: the order does not matter.
template <typename T>
__device__ __forceinline__ unsigned magnitude_bits(T value) {
  return __float_as_uint(to_float(value)) & 0x7fffffffu;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) magnitude_kernel(const T* values, int64_t count, unsigned* largest) {
  __shared__ unsigned shared[kThreads / kWarp];
  unsigned most = 0;
  int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * N, whole = count / N * N;
  int64_t first = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * N;
  for (int64_t index = first; index < whole; index += step) {
    auto pack = load_pack<T, N>(values + index);
#pragma unroll
    for (int i = 0; i < N; ++i) most = larger(most, magnitude_bits(pack.item[i]));
  }
  if (first == 0)
    for (int64_t index = whole; index < count; ++index) most = larger(most, magnitude_bits(values[index]));
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    most = larger(most, __shfl_xor_sync(0xffffffffu, most, offset));
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned other : shared) most = larger(most, other);
  atomicMax(largest, most);
}

template <typename T, int N>
void run_magnitude(const void* values, int64_t count, float* largest, cudaStream_t stream) {
  magnitude_kernel<T, N><<<grid_for(count / N, kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(values), count, reinterpret_cast<unsigned*>(largest));
  check(cudaGetLastError(), "largest_magnitude");
}

// A block works on a tile of kTile rows and columns, a thread on pieces of it of kRows x kColumns.
constexpr int kTile = 128, kRows = 4, kColumns = 8;
// Blocks of a multiprocessor: 48 KiB of reads under way at a time.
constexpr int kBlocks = 3;
constexpr int kPiecesAcross = kTile / kColumns, kPiecesDown = kTile / kRows;

struct Operands {
  const void* values;
  const float* magnitude;
  float* unit;
  std::uint8_t *straight, *transposed;  // null where it is not wanted
  int64_t rows, columns;
};

// That of megatron_synE/kernels/fp8.py, to the bit.
template <__nv_fp8_interpretation_t kFormat>
__device__ __forceinline__ float scale_of(float magnitude) {
  constexpr float kLargest = kFormat == __NV_E4M3 ? 448.0f : 57344.0f, kSmallest = 0x1p-100f;
  float ratio = kLargest / (magnitude < kSmallest ? kSmallest : magnitude);
  return __uint_as_float(__float_as_uint(ratio) & 0x7f800000u);
}

// The largest number that e5m2 rounds to a finite one.
constexpr float kLastFinite = 61439.99609375f;

// Four 8-bit numbers, the first one in the lowest byte. What is too large becomes inf, or the largest number of e4m3,
// which has no inf.
template <__nv_fp8_interpretation_t kFormat>
__device__ __forceinline__ unsigned convert(const float* values) {
  unsigned low = __nv_cvt_float2_to_fp8x2({values[0], values[1]}, __NV_SATFINITE, kFormat);
  unsigned codes = low | static_cast<unsigned>(
                             __nv_cvt_float2_to_fp8x2({values[2], values[3]}, __NV_SATFINITE, kFormat)) << 16;
  if constexpr (kFormat == __NV_E5M2) {  // the instruction puts the largest number there, too, which inf comes behind
#pragma unroll
    for (int i = 0; i < 4; ++i) codes += fabsf(values[i]) > kLastFinite ? 1u << 8 * i : 0u;
  }
  return codes;
}

// Four rows of four bytes become four columns.
__device__ __forceinline__ void transpose(const unsigned* rows, unsigned* columns) {
  unsigned upper_left = __byte_perm(rows[0], rows[1], 0x5140), upper_right = __byte_perm(rows[0], rows[1], 0x7362);
  unsigned lower_left = __byte_perm(rows[2], rows[3], 0x5140), lower_right = __byte_perm(rows[2], rows[3], 0x7362);
  columns[0] = __byte_perm(upper_left, lower_left, 0x5410);
  columns[1] = __byte_perm(upper_left, lower_left, 0x7632);
  columns[2] = __byte_perm(upper_right, lower_right, 0x5410);
  columns[3] = __byte_perm(upper_right, lower_right, 0x7632);
}

// What lies inside of the matrix of an access; with kWhole that is all of it or nothing.
template <typename T, bool kWhole>
__device__ __forceinline__ Pack<float, kColumns> load_inside(const T* row, int64_t column, int64_t columns) {
  if (kWhole && column < columns) return load_floats<T, kColumns>(row + column);
  Pack<float, kColumns> floats;
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    floats.item[i] = !kWhole && column + i < columns ? to_float(row[column + i]) : 0.0f;
  return floats;
}

template <int kWords, bool kWhole>
__device__ __forceinline__ void store_inside(std::uint8_t* line, int64_t begin, int64_t end, const unsigned* words) {
  if (kWhole) {
    if (begin >= end) return;
    Pack<unsigned, kWords> pack;
#pragma unroll
    for (int i = 0; i < kWords; ++i) pack.item[i] = words[i];
    store_pack<unsigned, kWords>(reinterpret_cast<unsigned*>(line + begin), pack);
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kWords; ++i)
      if (begin + i < end) line[begin + i] = static_cast<std::uint8_t>(words[i / 4] >> 8 * (i % 4));
  }
}

template <typename T, __nv_fp8_interpretation_t kFormat, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks) quantize_kernel(Operands o) {
  // Columns of the tile, a word for four rows. The words of a column change places, so that those of 16 pieces side by
  // side and two below each other, which a warp writes, lie in 32 banks.
  __shared__ unsigned tile[kTile][kPiecesDown];
  float scale = scale_of<kFormat>(*o.magnitude);
  if (blockIdx.x == 0 && threadIdx.x == 0) *o.unit = 1.0f / scale;
  int64_t tiles_across = (o.columns + kTile - 1) / kTile;
  int64_t first_row = blockIdx.x / tiles_across * kTile, first_column = blockIdx.x % tiles_across * kTile;
  int across = threadIdx.x % kPiecesAcross;
  int64_t column = first_column + across * kColumns;
  for (int down = threadIdx.x / kPiecesAcross; down < kPiecesDown; down += kThreads / kPiecesAcross) {
    int64_t row = first_row + down * kRows;
    Pack<float, kColumns> values[kRows];  // read before any is written: as far as the compiler knows, over them
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      values[r] = load_inside<T, kWhole>(static_cast<const T*>(o.values) + (row + r) * o.columns, column,
                                         row + r < o.rows ? o.columns : 0);
    unsigned left[kRows], right[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (float& value : values[r].item) value *= scale;
      unsigned words[2] = {left[r] = convert<kFormat>(values[r].item), right[r] = convert<kFormat>(values[r].item + 4)};
      if (o.straight && row + r < o.rows)
        store_inside<2, kWhole>(o.straight + (row + r) * o.columns, column, o.columns, words);
    }
    if (!o.transposed) continue;
    unsigned columns[kColumns];
    transpose(left, columns);
    transpose(right, columns + 4);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) tile[across * kColumns + i][down ^ across * 2] = columns[i];
  }
  if (!o.transposed) return;
  __syncthreads();
  int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < kTile && first_column + i < o.columns; i += kThreads / kWarp)
    store_inside<1, kWhole>(o.transposed + (first_column + i) * o.rows, first_row + lane * kRows, o.rows,
                            &tile[i][lane ^ i / kColumns * 2]);
}

template <typename T, __nv_fp8_interpretation_t kFormat>
void run_quantize(const Operands& o, cudaStream_t stream) {
  int64_t tiles = ((o.rows + kTile - 1) / kTile) * ((o.columns + kTile - 1) / kTile);
  bool whole = all_aligned(o.values, o.straight, o.transposed) && o.columns % kColumns == 0 && o.rows % kRows == 0;
  auto* kernel = whole ? quantize_kernel<T, kFormat, true> : quantize_kernel<T, kFormat, false>;
  kernel<<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(o);
  check(cudaGetLastError(), "quantize");
}

}  // namespace

void largest_magnitude(DType dtype, const void* values, int64_t count, float* largest, cudaStream_t stream) {
  check(cudaMemsetAsync(largest, 0, sizeof(float), stream), "largest_magnitude");
  if (count == 0) return;
  bool wide = aligned(values);
  if (dtype == kFloat32)
    (wide ? run_magnitude<float, kWide<float>> : run_magnitude<float, 1>)(values, count, largest, stream);
  else
    (wide ? run_magnitude<bf16, kWide<bf16>> : run_magnitude<bf16, 1>)(values, count, largest, stream);
}

void quantize(DType dtype, Format format, const void* values, const float* magnitude, float* unit,
              std::uint8_t* straight, std::uint8_t* transposed, int64_t rows, int64_t columns, cudaStream_t stream) {
  if (rows * columns == 0) return check(cudaMemsetAsync(unit, 0, sizeof(float), stream), "quantize");
  Operands operands{values, magnitude, unit, straight, transposed, rows, columns};
  if (dtype == kFloat32)
    (format == kE4M3 ? run_quantize<float, __NV_E4M3> : run_quantize<float, __NV_E5M2>)(operands, stream);
  else
    (format == kE4M3 ? run_quantize<bf16, __NV_E4M3> : run_quantize<bf16, __NV_E5M2>)(operands, stream);
}

}  // namespace syne
