// Every host kernel on odd sizes and exact-size heap buffers, for the address and thread sanitizers.
//
//   g++ -std=c++17 -O1 -g -fopenmp -fsanitize=address,undefined -I csrc tests/kernels/cpp/sanitize.cpp \
//       csrc/cpu/[!b]*.cpp -o sanitize && ./sanitize
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/kernels.h"

using namespace syne;

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

template <typename T>
std::vector<T> random_values(int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (auto& value : values) store(value, static_cast<float>(std::rand()) / RAND_MAX - 0.5f);
  return values;
}

template <typename T>
bool finite(const std::vector<T>& values) {
  for (auto value : values)
    if (!std::isfinite(load(value))) return false;
  return true;
}

template <typename T>
void run_all(DType dtype, int64_t rows, int64_t width) {
  auto x = random_values<T>(rows * width), r = random_values<T>(rows * width), w = random_values<T>(width);
  std::vector<T> summed(x.size()), y(x.size()), dx(x.size());
  std::vector<float> rstd(static_cast<size_t>(rows)), dw(static_cast<size_t>(width));
  rms_norm_forward(dtype, x.data(), r.data(), w.data(), summed.data(), y.data(), rstd.data(), rows, width, 1e-5f);
  rms_norm_backward(dtype, y.data(), r.data(), summed.data(), w.data(), rstd.data(), dx.data(), dw.data(), rows,
                    width);
  expect(finite(y) && finite(dx) && finite(dw), "rms_norm");

  auto gates = random_values<T>(rows * 2 * width);
  std::vector<T> dgates(gates.size());
  swiglu_forward(dtype, gates.data(), y.data(), rows, width);
  swiglu_backward(dtype, y.data(), gates.data(), dgates.data(), rows, width);
  expect(finite(y) && finite(dgates), "swiglu");

  int64_t dim = 2 * width;
  auto packed = random_values<T>(rows * 2 * 4 * dim);
  std::vector<float> cos(static_cast<size_t>(5 * width), 0.6f), sin(static_cast<size_t>(5 * width), 0.8f);
  std::vector<int64_t> positions(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) positions[static_cast<size_t>(i)] = i % 5;
  rope_in_place(dtype, packed.data(), cos.data(), sin.data(), positions.data(), rows, 2, 4, 3, dim, false);
  rope_in_place(dtype, packed.data(), cos.data(), sin.data(), positions.data(), rows, 2, 4, 3, dim, true);
  expect(finite(packed), "rope");

  auto logits = random_values<T>(rows * width);
  std::vector<int64_t> targets(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) targets[static_cast<size_t>(i)] = i % (width + 2) - 1;  // also foreign ones
  std::vector<float> maximum(rstd.size()), sum(rstd.size()), target(rstd.size()), scale(rstd.size(), 1.0f);
  int64_t valid = width > 1 ? width - 1 : width;
  CrossEntropyRows all{targets.data(), scale.data(),  maximum.data(), sum.data(),
                       target.data(),  width, valid, width};
  for (auto pass : {kStats, kGradient, kBoth}) cross_entropy(dtype, logits.data(), pass, rows, all);
  expect(finite(logits) && finite(sum), "cross_entropy");

  auto scores = random_values<T>(rows * width), dscores = random_values<T>(rows * width);
  int64_t queries = rows <= width ? rows : 1;
  causal_softmax_forward(dtype, scores.data(), sum.data(), rows, width, queries, 1, 0.3f);
  causal_softmax_backward(dtype, scores.data(), dscores.data(), sum.data(), rows, width, queries, 1, 0.3f);
  expect(finite(scores) && finite(dscores), "causal_softmax");

  int64_t count = rows * width;
  auto grad = random_values<T>(count);
  auto param = random_values<float>(count), m = std::vector<float>(param.size()), v = m;
  std::vector<bf16> copy(param.size());
  accumulate(dtype, param.data(), grad.data(), count, scale.data());
  const AdamWStep step{1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1.0f};
  adamw({param.data(), copy.data(), nullptr, grad.data(), m.data(), v.data(), dtype, kFloat32, kFloat32}, count, step);
  adamw({param.data(), nullptr, nullptr, grad.data(), m.data(), v.data(), dtype, kFloat32, kFloat32}, count, step);
  std::vector<int16_t> remainder(param.size());
  std::vector<bf16> m16(param.size()), v16(param.size());
  adamw({nullptr, copy.data(), remainder.data(), grad.data(), m16.data(), v16.data(), dtype, kBFloat16, kBFloat16},
        count, step);
  expect(finite(copy), "adamw with remainders");
  scale_in_place(param.data(), count, 0.5f);
  expect(finite(param) && std::isfinite(sum_of_squares(dtype, grad.data(), count)), "adamw");
}

}  // namespace

int main() {
  const int64_t sizes[][2] = {{1, 1}, {3, 7}, {17, 33}, {64, 129}, {130, 515}, {5, 20011}};
  for (auto& size : sizes) {
    run_all<float>(kFloat32, size[0], size[1]);
    run_all<bf16>(kBFloat16, size[0], size[1]);
  }
  std::printf("%s with %d threads\n", failures ? "failed" : "passed", max_threads());
  return failures ? 1 : 0;
}
